"""The shape of the repository: what imports what, how long a module may be, what the package never
does.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from notebook_env import CELL_TIMEOUT, ROOT, SETTINGS

PACKAGE = ROOT / "minivlm"
MODULES = sorted(PACKAGE.glob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Order matters: a concept may use the shared parts and the concepts of earlier rows.
CONCEPTS = [
    ("bpe", "bpe_files", "byte_level", "subwords"),
    ("vit",),
    ("vqvae",),
    ("multimodal",),
    ("clip", "distributed"),
    ("blip",),
    ("blip2", "opt"),
    ("llava",),
    ("qwen_vl",),
    ("qwen2_vl", "qwen_vision"),
]
SHARED = {
    *("layers", "masks", "rope", "decoder", "training", "generation", "plotting"),
    *("scenes", "grammar", "questions", "instructions", "grounding", "reading"),
    *("checkpoints", "__init__"),
}
# They import anything, and no other module imports them.
FREE = {
    "pretrained",
    "captioner",
    "train_clip",
    "train_blip",
    "assistant",
    "train_qwen_vl",
    "train_qwen2_vl",
}
FREE |= {"speaking", "__main__"}

MODULE_LINES, PACKAGE_CODE_LINES = 360, 5400
DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")


# Size


def non_blank_lines(source: str) -> int:
    """Lines with anything on them."""
    return sum(bool(line.strip()) for line in source.splitlines())


def code_lines(source: str) -> int:
    """Lines with code on them: no blank line, comment or docstring."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    tokens = [
        t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in skipped
    ]
    lines = {
        n for t in tokens if t.type != tokenize.ENDMARKER for n in range(t.start[0], t.end[0] + 1)
    }
    return len(lines - docstring_lines(ast.parse(source)))


def docstring_lines(tree: ast.Module) -> set[int]:
    """The lines that a string statement covers."""
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Expr) and is_string(n.value)]
    return {line for node in strings for line in range(node.lineno, node.end_lineno + 1)}


def is_string(node: ast.AST) -> bool:
    """Whether a node is a string literal."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_is_short_and_says_what_it_is(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert non_blank_lines(source) <= MODULE_LINES
    assert ast.get_docstring(ast.parse(source)), "no docstring"


def test_package_is_read_in_an_evening() -> None:
    assert (
        sum(code_lines(path.read_text(encoding="utf-8")) for path in MODULES) < PACKAGE_CODE_LINES
    )


def test_lines_are_counted() -> None:
    source = '"""Doc.\n\nMore."""\n\n# why\nx = 1  # how\ny = [\n    2,\n]\n\n\ndef f():\n'
    source += '    """Doc."""\n    return """a\nb"""\n'
    assert non_blank_lines(source) == 11
    assert code_lines(source) == 7


# Imports


def imported_modules(tree: ast.Module) -> set[str]:
    """The modules of the package that a module imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("minivlm.")}
        elif isinstance(node, ast.ImportFrom):
            parts = [*(["minivlm"] if node.level else []), *(node.module or "").split(".")]
            parts = [part for part in parts if part]
            if parts[0] == "minivlm":
                found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
    return found - {"__version__"}


def allowed_imports(name: str) -> set[str]:
    """What the module `name` may import; a ValueError for a module that has no place in the order."""
    if name in SHARED:
        return SHARED
    for row, names in enumerate(CONCEPTS):
        if name in names:
            return SHARED | {earlier for names in CONCEPTS[: row + 1] for earlier in names}
    raise ValueError(f"{name} is in none of CONCEPTS, SHARED and FREE")


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.stem not in FREE], ids=lambda path: path.stem
)
def test_module_imports_only_what_comes_before_it(path: Path) -> None:
    imported = imported_modules(ast.parse(path.read_text(encoding="utf-8")))
    assert imported - allowed_imports(path.stem) == set()


def test_imports_are_found_in_every_form() -> None:
    source = """
import minivlm.vit, torch
from minivlm import bpe, clip as c
from minivlm.blip import A
from . import rope
def f():
    from .masks import causal
    from torch import nn
"""
    assert imported_modules(ast.parse(source)) == {"vit", "bpe", "clip", "blip", "rope", "masks"}
    assert "vit" in allowed_imports("clip") and "clip" not in allowed_imports("vit")
    assert "bpe" not in allowed_imports("layers") and "pretrained" not in allowed_imports("llava")
    with pytest.raises(ValueError, match="utils"):
        allowed_imports("utils")


# What the package must not do


def loose_loading(tree: ast.Module) -> list[str]:
    """Unpickling, and weights that are loaded although they do not fit."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [*(alias.name for alias in node.names), getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in ("pickle", "dill", "joblib")]
        if (
            isinstance(node, ast.keyword)
            and isinstance(node.value, ast.Constant)
            and node.value.value is False
        ):
            found += [f"{node.arg}=False"] if node.arg in ("weights_only", "strict") else []
    return found


def device_names(tree: ast.Module) -> list[str]:
    """Devices that code names, outside the one function that reads MINIVLM_DEVICE."""
    if isinstance(tree, ast.FunctionDef) and reads_device_variable(tree):
        return []
    calls = [tree.attr] if isinstance(tree, ast.Attribute) and tree.attr == "cuda" else []
    names = [tree.value] if is_string(tree) and DEVICE.fullmatch(tree.value) else []
    return (
        calls
        + names
        + [name for child in ast.iter_child_nodes(tree) for name in device_names(child)]
    )


def reads_device_variable(tree: ast.AST) -> bool:
    """Whether the name of the variable stands anywhere in this piece of code."""
    return any(is_string(node) and node.value == "MINIVLM_DEVICE" for node in ast.walk(tree))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_loads_nothing_loosely_and_names_no_device(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert loose_loading(tree) == []
    assert device_names(tree) == []


def test_one_place_reads_the_device_variable() -> None:
    assert sum(path.read_text(encoding="utf-8").count('MINIVLM_DEVICE"') for path in MODULES) <= 1


@pytest.mark.parametrize(
    "source", ["import pickle", "from pickle import load", "m.load_state_dict(w, strict=False)"]
)
def test_loose_loading_is_found(source: str) -> None:
    assert loose_loading(ast.parse(source))


@pytest.mark.parametrize(
    "source", ["x.to('cpu')", "x.cuda()", "f(device='cuda:1')", "def f(d='cpu'): pass"]
)
def test_device_names_are_found(source: str) -> None:
    assert device_names(ast.parse(source))
    assert not device_names(
        ast.parse("def device():\n    return environ.get('MINIVLM_DEVICE', 'cpu')")
    )


# Requirements, environment, style


def pins(name: str) -> dict[str, Requirement]:
    """The pinned packages of one requirements file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return {requirement.name: requirement for requirement in requirements}


def test_everything_is_pinned_once() -> None:
    base, dev = pins("requirements.txt"), pins("requirements-dev.txt")
    assert all(
        re.fullmatch(r"==[\d.]+", str(pin.specifier)) for pin in (*base.values(), *dev.values())
    )
    assert not set(base) & set(dev)


def test_pins_satisfy_the_floors_of_the_package() -> None:
    floors = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    pinned = {
        name: str(pin.specifier).removeprefix("==")
        for name, pin in pins("requirements.txt").items()
    }
    assert all(floor.specifier.contains(pinned[floor.name]) for floor in floors)


def test_tests_run_on_one_thread_and_nbval_has_the_same_timeout_as_the_execute_tool() -> None:
    assert torch.get_num_threads() == int(SETTINGS["OMP_NUM_THREADS"]) == 1
    assert (
        f"--nbval-cell-timeout={CELL_TIMEOUT}"
        in PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    )


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_is_content(command: list[str]) -> None:
    pytest.importorskip("ruff")
    parts = ["minivlm", "tests", "tools", "notebooks", "conftest.py"]
    run = [sys.executable, "-m", "ruff", *command, "--output-format=concise", "--no-cache", *parts]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
