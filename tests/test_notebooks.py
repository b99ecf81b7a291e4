"""The committed notebooks keep the rules of `tools/notebook_checks.py`, and each rule can fail.

No kernel runs here, except in the one test that shows that nbval is strict: nbval itself runs the
notebooks.
"""

import base64
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns

import notebook_checks as checks
import notebook_env

NAMES = [
    str(p.relative_to(checks.ROOT))
    for p in [*checks.main_notebooks(), *checks.solution_notebooks()]
]
README = checks.ROOT / "README.md"


# The course


@pytest.mark.parametrize("name", NAMES)
def test_notebook_keeps_the_rules(name: str) -> None:
    assert checks.problems(checks.ROOT / name) == []


@pytest.mark.skipif(not README.exists(), reason="no README.md yet")
def test_readme_and_folder_list_the_same_notebooks() -> None:
    listed = set(re.findall(r"notebooks/[\w/]+\.ipynb", README.read_text(encoding="utf-8")))
    assert {name for name in listed if not (checks.ROOT / name).exists()} == set(), (
        "listed, but missing"
    )
    assert {name for name in NAMES if "solutions" not in name} - listed == set(), (
        "there, but not listed"
    )


# A small good notebook, and one way to break it for each rule


def md(name: str, source: str) -> NotebookNode:
    return new_markdown_cell(source, id=name, metadata={"slideshow": {"slide_type": "slide"}})


def code(
    name: str, source: str, *outputs: NotebookNode, tags: tuple[str, ...] = ()
) -> NotebookNode:
    metadata = {"slideshow": {"slide_type": "fragment"}, **({"tags": list(tags)} if tags else {})}
    return new_code_cell(source, id=name, outputs=list(outputs), metadata=metadata)


def stream(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def picture(n_bytes: int = 90, mime: str = "image/png") -> NotebookNode:
    return new_output("display_data", {mime: base64.b64encode(bytes(n_bytes)).decode()})


def result(text: str) -> NotebookNode:
    return new_output("execute_result", {"text/plain": text}, execution_count=1)


def error() -> NotebookNode:
    return new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])


def good_notebook() -> NotebookNode:
    """Ten cells that keep every rule of a main notebook."""
    folded = "<details><summary>Why?</summary>Because.</details>\n"
    cells = [
        md("title", "# 01 · A title\n\nThe token `<image>`, and $a<b>c$."),
        md("sections", "## 1 · Look at the mask\n\n## 2 · At full size\n\n## 3 · Exercises"),
        code("draw", "plt.show()", picture(), picture(), picture()),
        md("draw-caption", "Three pictures."),
        code("train", "fit(model)", stream("loss 0.1234\n"), tags=("nbval-ignore-output",)),
        code("train-check", "assert loss < 1\nprint('fine')", stream("fine\n")),
        code("refuse", "raise ValueError('no')", error(), tags=("raises-exception",)),
        md("questions", "## 4 · Interview questions\n\n" + 6 * folded),
    ]
    nb = new_notebook(cells=cells, metadata=checks.METADATA)
    return number(nb)


def number(nb: NotebookNode) -> NotebookNode:
    """As if all cells had run."""
    nb.nbformat_minor = 5
    for count, cell in enumerate(checks.code_cells(nb), start=1):
        cell.execution_count = count
    return nb


def cell_of(nb: NotebookNode, name: str) -> NotebookNode:
    return next(cell for cell in nb.cells if cell.id == name)


def set_source(name: str, source: str) -> Callable[[NotebookNode], None]:
    return lambda nb: cell_of(nb, name).update(source=source)


def append_source(name: str, source: str) -> Callable[[NotebookNode], None]:
    return lambda nb: cell_of(nb, name).update(source=cell_of(nb, name).source + source)


def set_tags(name: str, *tags: str) -> Callable[[NotebookNode], None]:
    return lambda nb: cell_of(nb, name).metadata.update(tags=list(tags))


def add_output(name: str, output: NotebookNode) -> Callable[[NotebookNode], None]:
    return lambda nb: cell_of(nb, name).outputs.append(output)


def set_id(name: str, new: str) -> Callable[[NotebookNode], None]:
    return lambda nb: cell_of(nb, name).update(id=new)


def remove(name: str) -> Callable[[NotebookNode], None]:
    return lambda nb: nb.cells.remove(cell_of(nb, name))


BREAKS = [
    (checks.check_valid, "not in nbformat 4.5", lambda nb: nb.update(nbformat_minor=4)),
    (checks.check_valid, "not valid", lambda nb: cell_of(nb, "title").update(source=3)),
    (
        checks.check_run_in_order,
        "ran as",
        lambda nb: cell_of(nb, "train").update(execution_count=None),
    ),
    (
        checks.check_run_in_order,
        "ran as",
        lambda nb: cell_of(nb, "train").update(execution_count=1),
    ),
    (checks.check_no_empty_code, "empty", set_source("refuse", "\n")),
    (checks.check_ids, "2 cells", set_id("train", "draw")),
    (checks.check_ids, "not an id", set_id("train", "Train It")),
    (checks.check_ids, "random", set_id("train", "a1b2c3d4")),
    (checks.check_ids, "random", set_id("train", "f3a1b2c4-d5e6-4f70-8192-a3b4c5d6e7f8")),
    (checks.check_references, "no reader sees", append_source("title", " See cell `train`.")),
    (checks.check_references, "no reader sees", append_source("title", " (`train-check`)")),
    (checks.check_tags, "unknown tags", set_tags("train", "NBVAL_IGNORE_OUTPUT")),
    (checks.check_tags, "unknown tags", set_tags("train", "nbval-skip")),
    (checks.check_tags, "markdown", set_tags("title", "raises-exception")),
    (checks.check_tags, "both", set_tags("refuse", "nbval-ignore-output", "raises-exception")),
    (checks.check_errors, "without the tag", set_tags("refuse")),
    (checks.check_errors, "but no error", set_tags("draw", "raises-exception")),
    (checks.check_outputs, "stderr", add_output("draw", stream("a warning\n", name="stderr"))),
    (checks.check_outputs, "svg", add_output("draw", picture(mime="image/svg+xml"))),
    (
        checks.check_outputs,
        "widget",
        add_output("draw", picture(mime="application/vnd.jupyter.widget-view+json")),
    ),
    (checks.check_outputs, "address", add_output("draw", stream("<object at 0x7f0012345678>"))),
    (checks.check_outputs, "absolute path", add_output("draw", stream("saved /home/ada/x.png"))),
    (
        checks.check_ignored_are_asserted,
        "no strict cell",
        set_source("train-check", "print('fine')"),
    ),
    (
        checks.check_ignored_are_asserted,
        "no strict cell",
        set_tags("train-check", "nbval-ignore-output"),
    ),
    (checks.check_ignored_are_asserted, "no strict cell", set_source("train-check", "# assert it")),
    (checks.check_source, "semicolon", append_source("draw", ";  # quiet")),
    (checks.check_source, "clear_output", append_source("draw", "\nclear_output()")),
    (checks.check_source, "widget", append_source("draw", "\nimport ipywidgets")),
    (checks.check_source, "timing", set_source("draw", "%%time\nf()")),
    (checks.check_source, "shell", append_source("draw", "\n!ls")),
    (checks.check_source, "tqdm", append_source("draw", "\nfrom tqdm.auto import tqdm")),
    (checks.check_source, "tqdm", append_source("draw", "\nfrom tqdm.notebook import tqdm")),
    (checks.check_source, "silenced", append_source("draw", "\nwarnings.filterwarnings('ignore')")),
    (checks.check_source, "silenced", append_source("draw", '\nwarnings.simplefilter("ignore")')),
    (checks.check_source, "svg", append_source("draw", "\nplt.savefig('a.svg')")),
    (checks.check_source, "marker", append_source("draw", "\n# NBVAL_IGNORE_OUTPUT")),
    (checks.check_source, "absolute path", append_source("draw", "\nopen('/home/x')")),
    (checks.check_source, "absolute path", append_source("title", "\nIt lies in /root/x.")),
    (checks.check_markdown, "<image>", append_source("title", "\nThe <image> token.")),
    (checks.check_markdown, "<s>", append_source("title", "\nIt begins with <s>.")),
    (checks.check_markdown, "alt text", append_source("title", "\n![](a.png)")),
    (checks.check_figures, "a figure of", add_output("draw", picture(checks.FIGURE_BYTES + 1))),
    (checks.check_figures, "without a caption", remove("draw-caption")),
    (checks.check_slides, "slide_type", lambda nb: cell_of(nb, "draw").metadata.clear()),
    (checks.check_title, "not one", append_source("sections", "\n\n# Another title")),
    (checks.check_title, "not one", set_source("title", "A title")),
    (checks.check_sections, "numbered", append_source("sections", "\n\n## 7 · Seven")),
    (checks.check_sections, "numbered", append_source("sections", "\n\n## No number")),
    (
        checks.check_sections,
        "'mask'",
        set_source("sections", "## 1 · At full size\n\n## 2 · Exercises"),
    ),
    (checks.check_sections, "'interview'", remove("questions")),
    (checks.check_questions, "0 folded", remove("questions")),
    (checks.check_questions, "closed", append_source("questions", "\n<details>")),
    (checks.check_has_figures, "0 figures", remove("draw")),
]


def break_name(value: object) -> str:
    return value.__name__ if callable(value) else str(value)


def test_good_notebook_passes_every_check() -> None:
    nb = good_notebook()
    assert [found for check in (*checks.CHECKS, *checks.MAIN_CHECKS) for found in check(nb)] == []


@pytest.mark.parametrize(("check", "words", "damage"), BREAKS, ids=break_name)
def test_broken_notebook_is_found(check: Callable, words: str, damage: Callable) -> None:
    nb = good_notebook()
    damage(nb)
    assert any(words in found for found in check(nb))


def test_every_check_is_broken_once() -> None:
    assert {check for check, _, _ in BREAKS} == {*checks.CHECKS, *checks.MAIN_CHECKS}


def test_markdown_that_is_shown_literally_is_no_tag() -> None:
    nb = good_notebook()
    append_source(
        "title", "\n```\n<image>\n# no title\n```\n``a ` <box>`` and <|image|> and <https://a.b>"
    )(nb)
    assert [*checks.check_markdown(nb), *checks.check_title(nb)] == []


# Files


@pytest.fixture
def course(tmp_path: Path) -> Iterator[Path]:
    """A folder with one good notebook and its solutions."""
    for folder in (tmp_path, tmp_path / "solutions"):
        folder.mkdir(exist_ok=True)
        (folder / "01_words.ipynb").write_text(
            checks.canonical_text(good_notebook()), encoding="utf-8"
        )
    return tmp_path


def test_good_files_have_no_problems(course: Path) -> None:
    assert checks.problems(course / "01_words.ipynb") == []
    assert checks.problems(course / "solutions" / "01_words.ipynb") == []


def test_canonical_form_is_a_fixed_point_and_differs_from_what_jupyterlab_saves() -> None:
    nb = good_notebook()
    text = checks.canonical_text(nb)
    nb.metadata.language_info["version"] = "3.11.7"
    nb.cells[0].metadata["editable"] = True
    cell_of(nb, "refuse").outputs[0].traceback = ["File /home/ada/x.py"]
    assert nbformat.v4.writes(nb) + "\n" != text
    assert checks.canonical_text(nb) == text == checks.canonical_text(nbformat.v4.reads(text))


def test_a_file_is_judged_by_name_size_text_and_solutions(course: Path) -> None:
    path = course / "01_words.ipynb"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + " ", encoding="utf-8")
    assert any("canonical" in found for found in checks.problems(path))
    path.write_text(text + " " * checks.NOTEBOOK_BYTES, encoding="utf-8")
    assert any("bytes, over" in found for found in checks.problems(path))
    path.rename(course / "02_words.ipynb")
    found = checks.problems(course / "02_words.ipynb")
    assert any("does not begin" in f for f in found) and any("has no solutions" in f for f in found)
    assert any(
        "does not exist" in f for f in checks.problems(course / "solutions" / "01_words.ipynb")
    )
    (course / "02_words.ipynb").rename(course / "words.ipynb")
    assert any("not named" in f for f in checks.problems(course / "words.ipynb"))


# nbval


def sanitize(text: str) -> str:
    """What nbval makes of an output before it compares."""
    rules = (checks.ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    for regex, replacement in get_sanitize_patterns(rules):
        text = re.sub(regex, replacement, text)
    return text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<object at 0x7f3a5c0d1e50>", "<object at 0xADDRESS>"),
        ("a\n 45%|####      | 9/20 [00:01<00:02,  5.21it/s, loss=0.3]\nb", "a\nb"),
        ("100%|██████████| 3/3 [00:00<00:00, 99864.38it/s]\n", ""),
        ("took 12.3 s", "took TIME"),
        ("/tmp/ipykernel_4242/123456.py:1: UserWarning", "<cell>:1: UserWarning"),
    ],
)
def test_sanitizer_hides(text: str, expected: str) -> None:
    assert sanitize(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "0.981",
        "(2, 16, 96)",
        "accuracy 98.4 %",
        "60 s",
        "in 3 s",
        "[0x10, 0xff]",
        "a | b | 10%",
        "12.5 s",
    ],
)
def test_sanitizer_leaves_results_alone(text: str) -> None:
    assert sanitize(text) == text


def test_no_rule_of_the_sanitizer_is_skipped() -> None:
    rules = (checks.ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    assert len(get_sanitize_patterns(rules)) == rules.count("\nregex:") == rules.count("\nreplace:")


def test_nbval_is_strict_and_the_environment_is_set() -> None:
    """A scratch notebook, run by pytest as configured: two cells agree, and three that differ are
    found.
    """
    names = ("PYTHONHASHSEED", "TQDM_DISABLE", "OMP_NUM_THREADS", "MPLBACKEND")
    seen = f"print(*(os.environ.get(name) for name in {names}))"
    cells = [
        code(
            "environment",
            f"import os, sys\n{seen}",
            stream("0 1 1 module://matplotlib_inline.backend_inline\n"),
        ),
        code(
            "python", "os.path.samefile(sys.prefix, os.environ['EXPECTED_PREFIX'])", result("True")
        ),
        code("number", "print(0.125)", stream("0.126\n")),
        code("silent", "x = 1", stream("1\n")),
        code("chatty", "print(1)"),
    ]
    nb = number(new_notebook(cells=cells))
    with tempfile.TemporaryDirectory(
        dir=notebook_env.CACHE
    ) as folder:  # inside, so that conftest.py applies
        path = Path(folder) / "strict.ipynb"
        nbformat.write(nb, path)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--color=no",
            str(path),
        ]
        environment = {**os.environ, "EXPECTED_PREFIX": sys.prefix, "MPLBACKEND": "Agg"}
        run = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120
        )
    assert "3 failed, 2 passed" in run.stdout, run.stdout
    assert re.findall(r"^FAILED .*Cell (\d)", run.stdout, re.MULTILINE) == ["2", "3", "4"]
