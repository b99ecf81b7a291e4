"""The shape of the repository: what imports what, how much there is to read, what stands only once,
and what the package never does.
"""

import ast
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from notebook_env import CELL_TIMEOUT, ROOT, SETTINGS

PACKAGE = ROOT / "minivlm"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# The root is the syllabus: one row a notebook, in the order in which they are read, from 01 on.
# Notebook 00 is about parts/, which every concept may import.
CONCEPTS = [
    ("bpe", "subwords"),
    ("vit",),
    ("vqvae",),
    ("multimodal",),
    ("clip", "distributed"),
    ("blip",),
    ("blip2", "opt"),
    ("llava",),
    ("qwen_vl", "boxes"),
    ("qwen2_vl", "qwen2_vision"),
]
LESSON = ("lesson", "plotting", "diagrams", "results")  # what notebooks share
PROGRAM = ("speaking", "commands", "__main__")  # what the command line is made of

MAY_IMPORT = {  # kind of module -> kinds; "package" is minivlm/__init__.py, which holds nothing
    "package": set(),
    "formats": {"formats"},
    "parts": {"parts"},
    "concept": {"formats", "parts", "concept"},
    "scenes": {"formats", "parts", "concept", "scenes"},
    "pretrained": {"formats", "parts", "concept", "pretrained"},
    "toys": {"formats", "parts", "concept", "scenes", "pretrained", "toys"},
    "labs": {"formats", "parts", "concept", "scenes", "pretrained", "toys", "labs"},
    "lesson": {"parts", "lesson"},
}
MAY_IMPORT["exercises"] = {*MAY_IMPORT["labs"], "lesson", "exercises"}
MAY_IMPORT["program"] = {*MAY_IMPORT["labs"], "lesson", "program"}
COMMON = "minivlm.toys.common"  # the one module through which toys and labs share

HANDED_ON = {  # by a folder's __init__; the others hand on nothing
    "minivlm.scenes": {"Scene", "is_true", "load", "sample"},
    "minivlm.pretrained": {"from_pretrained", "save_pretrained"},
}

MODULE_LINES, READING_LINES = 300, 3400  # lines of code: a module; the ten concepts and the parts
COLUMNS, UNWRAPPED = 100, 120
MEDIAN_FUNCTION, LONG_FUNCTION = 6, 23  # lines of code: the median, the 95th percentile
REPEATED = 8  # so many equal lines of code are one piece that stands twice

SAME_NAME = {  # a name that several modules give to a function or class, and why that is fine
    "main": "what a module does when it is run as a program",
}
DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")


def module_name(path: Path) -> str:
    """minivlm/parts/rope.py -> "minivlm.parts.rope"; a folder's __init__ has the folder's name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}
FOLDERS = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
SYLLABUS = {f"minivlm.{name}": row for row, names in enumerate(CONCEPTS, 1) for name in names}


def kind(module: str) -> str:
    """The room that a module is in; a ValueError for one that has no place in the house."""
    rooms = module.split(".")[1:]
    if not rooms:
        return "package"
    if rooms[0] in MAY_IMPORT and f"minivlm.{rooms[0]}" in FOLDERS:
        return rooms[0]
    for found, names in (("lesson", LESSON), ("program", PROGRAM)):
        if len(rooms) == 1 and rooms[0] in names:
            return found
    if module in SYLLABUS:
        return "concept"
    raise ValueError(f"{module} is in none of CONCEPTS, LESSON, PROGRAM and the folders")


def test_the_root_is_the_syllabus() -> None:
    assert set(SYLLABUS) - set(MODULES) == set(), "in the table, but not there"
    assert {kind(module) for module in MODULES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("module", SYLLABUS)
def test_a_concept_begins_with_the_number_of_its_notebook(module: str) -> None:
    first_line = (ast.get_docstring(TREES[module]) or "").partition("\n")[0]
    assert first_line.startswith(f"{SYLLABUS[module]:02d} · "), first_line


# Size


@cache
def code_lines(source: str) -> set[int]:
    """The lines with code on them: no blank line, comment or docstring."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    skipped.add(tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = [token for token in tokens if token.type not in skipped]
    lines = {n for token in kept for n in range(token.start[0], token.end[0] + 1)}
    return lines - docstring_lines(ast.parse(source))


def docstring_lines(tree: ast.Module) -> set[int]:
    """The lines that a string statement covers."""
    return covered(n for n in ast.walk(tree) if isinstance(n, ast.Expr) and is_string(n.value))


def covered(nodes: Iterable[ast.AST]) -> set[int]:
    """The lines that some pieces of code cover."""
    return {line for node in nodes for line in range(node.lineno, node.end_lineno + 1)}


def is_string(node: ast.AST) -> bool:
    """Whether a node is a string literal."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def lines_by_kind() -> Counter[str]:
    """Lines of code in each room."""
    counts = Counter()
    for module, source in SOURCES.items():
        counts[kind(module)] += len(code_lines(source))
    return counts


@pytest.mark.parametrize("module", MODULES)
def test_module_is_short_and_says_what_it_is(module: str) -> None:
    lines = len(code_lines(SOURCES[module]))
    assert lines <= MODULE_LINES
    assert ast.get_docstring(TREES[module]), "no docstring"


def test_package_is_read_in_an_evening() -> None:
    counts = lines_by_kind()
    reading = counts["concept"] + counts["parts"]
    report = f"{reading} lines to read; all: {dict(counts.most_common())}"
    print(report)  # pytest -rP shows it
    assert reading <= READING_LINES, report


def test_lines_are_counted() -> None:
    source = '"""Doc.\n\nMore."""\n\n# why\nx = 1  # how\ny = [\n    2,\n]\n\n\ndef f():\n'
    source += '    """Doc."""\n    return """a\nb"""\n'
    assert code_lines(source) == {6, 7, 8, 9, 12, 14, 15}


def test_no_line_is_wider_than_a_window() -> None:
    folders = ("minivlm", "tests", "tools", "experiments")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > COLUMNS
    ]
    assert not wide, f"{len(wide)} lines: {' '.join(wide)}"


def function_lengths(source: str) -> list[int]:
    """Lines of code of each function, method and inner function, its `def` included."""
    lines = code_lines(source)
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [len(lines & covered([function])) for function in functions]


def test_functions_are_short(tmp_path: Path) -> None:
    """Measured on a copy that ruff has joined up to 120 columns, whatever the trailing commas say:
    a statement that is wrapped only because a window has 100 columns is no longer to read.
    """
    pytest.importorskip("ruff")
    copy = shutil.copytree(PACKAGE, tmp_path / "minivlm")
    options = ["--isolated", "--no-cache", f"--line-length={UNWRAPPED}"]
    options += ["--config", "format.skip-magic-trailing-comma = true"]
    subprocess.run([sys.executable, "-m", "ruff", "format", *options, copy], check=True)
    sources = [path.read_text(encoding="utf-8") for path in copy.rglob("*.py")]
    lengths = [length for source in sources for length in function_lengths(source)]
    median, long = statistics.median(lengths), statistics.quantiles(lengths, n=20)[-1]
    report = f"{len(lengths)} functions: median {median}, 95th percentile {long:.1f}"
    print(report, f"longest {max(lengths)}")
    assert median <= MEDIAN_FUNCTION and long <= LONG_FUNCTION, report


def test_functions_are_measured() -> None:
    source = 'def f():\n    """Doc."""\n\n    # why\n    def g():\n        return 1\n    return g\n'
    assert sorted(function_lengths(source)) == [2, 4]


# Imports


def imported_modules(tree: ast.Module, importer: str) -> set[str]:
    """The modules of the package that a module imports, wherever in the file it does so.

    A name that is not a module is taken from the `__init__` of its folder.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, importer)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return {name for name in found if name.split(".")[0] == "minivlm"}


def absolute(node: ast.ImportFrom, importer: str) -> str:
    """The module that `from ... import` names, also where it begins with dots."""
    above = node.level - (importer in FOLDERS)  # a folder's __init__ is already inside
    folder = importer.split(".")[:-above] if above > 0 else importer.split(".")
    return ".".join([*(folder if node.level else []), *filter(None, [node.module])])


def may_import(importer: str, imported: str) -> bool:
    """Whether the rules of the house allow it."""
    theirs = kind(imported)
    if theirs not in MAY_IMPORT[kind(importer)]:
        return False
    if theirs == "concept" and kind(importer) == "concept":
        return SYLLABUS[imported] <= SYLLABUS[importer]
    if theirs in ("toys", "labs") and kind(importer) in ("toys", "labs"):
        return imported == COMMON
    return True


def graph() -> dict[str, set[str]]:
    """module -> what it imports, and the `__init__` of each folder that it thereby enters."""
    return {name: with_entrances(imported_modules(TREES[name], name), name) for name in MODULES}


def with_entrances(imported: set[str], importer: str) -> set[str]:
    """Python runs a folder's `__init__` before a module in it, unless it is inside already."""
    entered = {folder for folder in FOLDERS for name in imported if name.startswith(folder + ".")}
    return imported | {folder for folder in entered if not f"{importer}.".startswith(f"{folder}.")}


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """The groups of modules that import each other, by whatever way."""
    reached = {module: reachable(imports, module) for module in imports}
    groups = {frozenset(n for n in reached[m] if m in reached[n]) for m in imports}
    return [set(group) for group in groups if group]


def reachable(imports: dict[str, set[str]], start: str) -> set[str]:
    """What is imported from `start` on, in one step or more."""
    found, waiting = set(), list(imports[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imports.get(module, ())
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_room_allows(module: str) -> None:
    imported = imported_modules(TREES[module], module)
    assert imported - set(MODULES) == set(), "there is no such module"
    assert {other for other in imported if not may_import(module, other)} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert [sorted(circle) for circle in circles(graph())] == []


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_folder_hands_on_its_names_and_nothing_else(folder: str) -> None:
    declared, bound = set(), set()
    for node in TREES[folder].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            declared = set(ast.literal_eval(node.value))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
        else:
            assert isinstance(node, ast.Expr) and is_string(node.value), ast.unparse(node)
    assert declared == bound == HANDED_ON.get(folder, set())


def test_the_package_imports_no_script() -> None:
    scripts = script_names("experiments") | script_names("tools") | script_names("tests")
    assert [module for module, tree in TREES.items() if top_names(tree) & scripts] == []


def test_nobody_imports_experiments() -> None:
    tools = {path: [path.read_text(encoding="utf-8")] for path in (ROOT / "tools").glob("*.py")}
    notebooks = {path: code_cells(path) for path in (ROOT / "notebooks").rglob("*.ipynb")}
    for path, sources in (tools | notebooks).items():
        names = set().union(*(top_names(ast.parse(source)) for source in sources))
        assert not names & script_names("experiments"), path.name


def script_names(folder: str) -> set[str]:
    """The names under which a folder's scripts could be imported."""
    return {folder, *(path.stem for path in (ROOT / folder).glob("*.py"))}


def code_cells(path: Path) -> list[str]:
    """The code of a notebook, cell by cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def top_names(tree: ast.Module) -> set[str]:
    """`a` of every `import a.b` and `from a.b import c`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_imports_are_found_in_every_form() -> None:
    source = """
import minivlm.vit, torch
from minivlm import bpe, clip as c, scenes
from minivlm.blip import A
from minivlm.scenes import grammar, load
from . import rope
from .. import llava
def f():
    from .masks import causal
    from ..opt import Opt
    from torch import nn
"""
    names = "vit bpe clip scenes blip scenes.grammar parts.rope llava parts.masks opt"
    found = imported_modules(ast.parse(source), "minivlm.parts.layers")
    assert found == {f"minivlm.{name}" for name in names.split()}
    relative = ast.parse("from .drawing import load")
    assert imported_modules(relative, "minivlm.scenes") == {"minivlm.scenes.drawing"}
    assert top_names(ast.parse(source)) == {"minivlm", "torch", "masks", "opt"}


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("clip", "vit", True),
        ("vit", "clip", False),
        ("qwen2_vision", "qwen2_vl", True),
        ("parts.layers", "bpe", False),
        ("llava", "pretrained", False),
        ("llava", "scenes.pixels", False),
        ("pretrained", "scenes", False),
        ("scenes.pixels", "vit", True),
        ("toys.clip", "toys.common", True),
        ("toys.clip", "toys.captioner", False),
        ("toys.clip", "plotting", False),
        ("plotting", "parts.masks", True),
        ("plotting", "vit", False),
        ("speaking", "toys.captioner", True),
    ],
)
def test_rules_of_the_house(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(f"minivlm.{importer}", f"minivlm.{imported}") == allowed


def test_a_module_without_a_place_and_a_circle_are_found() -> None:
    with pytest.raises(ValueError, match="utils"):
        kind("minivlm.utils")
    line = {"a": {"b"}, "b": {"c"}, "c": set()}
    assert circles(line) == []
    assert circles({**line, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    entered = with_entrances({"minivlm.scenes.grammar"}, "minivlm.vit")
    assert entered == {"minivlm.scenes.grammar", "minivlm.scenes"}
    assert with_entrances({"minivlm.scenes.grammar"}, "minivlm.scenes.tasks") < entered


# Once


def compared_lines(source: str) -> list[tuple[int, str]]:
    """(number, text) of the lines that say something: code that is more than punctuation, no
    comment, no import.
    """
    tree = ast.parse(source)
    imports = covered(n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    numbered = [(n, lines[n - 1].strip()) for n in sorted(code_lines(source) - imports)]
    return [(number, text) for number, text in numbered if re.search(r"\w", text)]


def repeated_runs(sources: dict[str, str]) -> list[str]:
    """Where `REPEATED` lines are equal to as many that came before, in the same file or another."""
    first_place, found = {}, []
    for name, source in sources.items():
        lines = compared_lines(source)
        for start in range(len(lines) - REPEATED + 1):
            run = tuple(text for _, text in lines[start : start + REPEATED])
            other, line, index = first_place.setdefault(run, (name, lines[start][0], start))
            if other != name or index + REPEATED <= start:
                found.append(f"{other}:{line} = {name}:{lines[start][0]}")
    return found


def test_no_piece_of_code_stands_twice() -> None:
    found = repeated_runs(SOURCES)
    assert not found, "\n".join(found)


def test_repeated_code_is_found() -> None:
    piece = "".join(f"x{n} = f({n})\n" for n in range(REPEATED))
    other = piece.replace("x3 = f(3)\n", "\n# three\n\nx3 = f(3)  # why\n")
    assert repeated_runs({"a": "y = 1\n" + piece, "b": "import a\n" + other}) == ["a:2 = b:2"]
    assert repeated_runs({"a": piece + "y = 1\n" + piece}) == [f"a:1 = a:{REPEATED + 2}"]
    assert repeated_runs({"a": piece, "b": piece.replace("x3", "y")}) == []
    assert repeated_runs({"a": "f(\n" * 9 + ")\n" * 9}) == []


def public_names(tree: ast.Module) -> list[str]:
    """The functions and classes that a module defines for others."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]


def test_one_name_is_one_thing() -> None:
    places = defaultdict(list)
    for module, tree in TREES.items():
        for name in public_names(tree):
            places[name].append(module)
    twice = {name for name, modules in places.items() if len(modules) > 1}
    listed = [f"{name} in {' and '.join(places[name])}" for name in sorted(twice - set(SAME_NAME))]
    assert not listed, "\n".join(listed)
    assert set(SAME_NAME) <= twice, "an exception that nobody needs"


# What the package must not do


def loose_loading(tree: ast.Module) -> list[str]:
    """Unpickling, and weights that are loaded although they do not fit."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [*(alias.name for alias in node.names), getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in ("pickle", "dill", "joblib")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) != "zip":
            given = [ast.unparse(keyword) for keyword in node.keywords]
            found += [text for text in given if text in ("weights_only=False", "strict=False")]
    return found


def device_names(tree: ast.AST) -> list[str]:
    """Devices that code names, outside the one function that reads MINIVLM_DEVICE."""
    if isinstance(tree, ast.FunctionDef) and reads_device_variable(tree):
        return []
    found = [tree.attr] if isinstance(tree, ast.Attribute) and tree.attr == "cuda" else []
    found += [tree.value] if is_string(tree) and DEVICE.fullmatch(tree.value) else []
    for child in ast.iter_child_nodes(tree):
        found += device_names(child)
    return found


def reads_device_variable(tree: ast.AST) -> bool:
    """Whether the name of the variable stands anywhere in this piece of code."""
    return any(is_string(node) and node.value == "MINIVLM_DEVICE" for node in ast.walk(tree))


@pytest.mark.parametrize("module", MODULES)
def test_module_loads_nothing_loosely_and_names_no_device(module: str) -> None:
    assert loose_loading(TREES[module]) == []
    assert device_names(TREES[module]) == []


def test_one_place_reads_the_device_variable() -> None:
    assert sum(source.count('MINIVLM_DEVICE"') for source in SOURCES.values()) <= 1


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "m.load_state_dict(w, strict=False)",
        "torch.load(f, weights_only=False)",
    ],
)
def test_loose_loading_is_found(source: str) -> None:
    assert loose_loading(ast.parse(source))
    assert not loose_loading(ast.parse("zip(a, b, strict=False)"))


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
    for pin in (*base.values(), *dev.values()):
        assert re.fullmatch(r"==[\d.]+", str(pin.specifier)), pin
    assert not set(base) & set(dev)


def test_pins_satisfy_the_floors_of_the_package() -> None:
    pinned = pins("requirements.txt")
    for line in PYPROJECT["project"]["dependencies"]:
        floor = Requirement(line)
        version = str(pinned[floor.name].specifier).removeprefix("==")
        assert floor.specifier.contains(version), line


def test_tests_run_on_one_thread_and_nbval_has_the_same_timeout_as_the_execute_tool() -> None:
    assert torch.get_num_threads() == int(SETTINGS["OMP_NUM_THREADS"]) == 1
    options = PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    assert f"--nbval-cell-timeout={CELL_TIMEOUT}" in options


def test_the_readme_shows_the_house_as_it_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"^```\nminivlm/.*?^```", text, re.DOTALL | re.MULTILINE).group()
    shown = set(re.findall(r"^ *([\w./]+)", tree, re.MULTILINE))
    rooms = {f"{folder.removeprefix('minivlm.')}/" for folder in FOLDERS - {"minivlm"}}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert (rooms | modules) - shown == set(), "there, but not shown"
    gone = {name for name in shown if not any((at / name).exists() for at in (ROOT, PACKAGE))}
    assert gone == set(), "shown, but not there"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "data/README.md"])
def test_a_document_names_files_and_modules_that_are_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    files = set(re.findall(r"\b(?:\w+/)+\w+\.(?:py|md|ipynb)\b", text.replace("NN_what", "")))
    starts = (ROOT, PACKAGE, (ROOT / name).parent)
    assert {file for file in files if not any((at / file).exists() for at in starts)} == set()
    modules = set(re.findall(r"-m (minivlm[\w.]*)", text))
    assert modules - set(MODULES) == set()


def test_make_fast_leaves_out_files_that_are_there() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = re.search(r"^SLOW = (.*)$", text, re.MULTILINE).group(1).split()
    assert [name for name in names if not (ROOT / f"tests/test_{name}.py").exists()] == []


def run_tool(name: str, *arguments: str) -> None:
    """Run a tool of requirements-dev.txt over the repository; show what it says where it fails."""
    pytest.importorskip(name)
    run = [sys.executable, "-m", name, *arguments]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_is_content(command: list[str]) -> None:
    folders = ["minivlm", "tests", "tools", "experiments", "notebooks", "conftest.py"]
    run_tool("ruff", *command, "--output-format=concise", "--no-cache", *folders)


def test_mypy_is_content() -> None:
    """Over the root, parts and pretrained, as pyproject.toml says; no file has rules of its own."""
    assert not [name for name, source in SOURCES.items() if re.search(r"#\s*mypy:", source)]
    assert "overrides" not in PYPROJECT["tool"]["mypy"]
    run_tool("mypy", "--no-error-summary")
