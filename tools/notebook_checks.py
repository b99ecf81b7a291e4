"""What a committed notebook must look like: its canonical form, and one small check for each rule.

No kernel is needed. A check takes the notebook and yields a sentence for each problem; `problems`
collects them for a file. `tests/test_notebooks.py` applies them to the course,
`execute_notebooks.py --check` lists them.
"""

import base64
import copy
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from notebook_env import ROOT

NOTEBOOKS = ROOT / "notebooks"
SOLUTIONS = NOTEBOOKS / "solutions"
IGNORED, RAISES = (
    "nbval-ignore-output",
    "raises-exception",
)  # any other spelling is no marker for nbval
COLLAPSED = "jp-MarkdownHeadingCollapsed"  # JupyterLab folds the section under such a heading
SLIDE_TYPES = {"slide", "subslide", "fragment", "skip", "notes", "-"}
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FIGURE_BYTES, NOTEBOOK_BYTES = 120_000, 600_000
REQUIRED_HEADINGS = ("mask", "full size", "exercises", "interview")
DETAILS, FIGURES = 6, 3  # at least, in a main notebook

FORBIDDEN_CODE = {
    r";[ \t]*(?:#.*)?$": "a line ends with a semicolon (nbval shows what it hides)",
    r"\bclear_output\b|\bdisplay_id\b|\bipywidgets\b": "clear_output, display_id or a widget",
    r"^\s*%%?(?:time|timeit|prun)\b": "a timing magic",
    r"^\s*(?:!|%pip\b|%conda\b|%%bash\b|%%sh\b)": "a shell command",
    r"\btqdm\.(?:auto|notebook)\b": "a tqdm that draws a widget (use the plain one)",
    r"""\b(?:filterwarnings|simplefilter)\(\s*(?:action=)?["']ignore""": "a silenced warning",
    r"\bsvg\b": "svg (use png)",
    r"^\s*#+\s*(?:NBVAL_|PYTEST_VALIDATE_)": "a marker of nbval in a comment (use a cell tag)",
}
ABSOLUTE_PATH = r"(?<![\w./~>])/(?:home|root|work|Users|tmp|opt|mnt|private|var)/|\b[A-Z]:\\"
ADDRESS = r"\bat 0x[0-9a-fA-F]{6,}"
HTML_TAGS = {
    *(
        "details",
        "summary",
        "div",
        "span",
        "p",
        "br",
        "hr",
        "img",
        "a",
        "ul",
        "ol",
        "li",
        "blockquote",
        "pre",
    ),
    *(
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "b",
        "i",
        "em",
        "strong",
        "sub",
        "sup",
        "code",
        "kbd",
    ),
}


# Files


def main_notebooks() -> list[Path]:
    """The notebooks of the course, in order."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def solution_notebooks() -> list[Path]:
    """The notebooks with the solutions of the exercises; each has the name of its main notebook."""
    return sorted(SOLUTIONS.glob("*.ipynb"))


def read(path: Path) -> NotebookNode:
    """The notebook as it lies in the file: nothing is converted, repaired or checked."""
    return nbformat.v4.reads(path.read_text(encoding="utf-8"))


def canonical_text(nb: NotebookNode) -> str:
    """The one way to write this notebook down, so that a diff shows what has really changed."""
    nb = copy.deepcopy(nb)
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = nbformat.from_dict(METADATA)
    for cell in nb.cells:
        cell.source = cell.source.strip("\n")
        cell.metadata = NotebookNode(
            {k: v for k, v in cell.metadata.items() if k in ("tags", "slideshow", COLLAPSED)}
        )
        for output in cell.get("outputs", []):
            _normalise_output(output, cell)
    return nbformat.v4.writes(nb) + "\n"


def _normalise_output(output: NotebookNode, cell: NotebookNode) -> None:
    """Numbers that repeat the cell's, and tracebacks, which hold the paths of one machine."""
    if output.output_type == "execute_result":
        output.execution_count = cell.execution_count
    if output.output_type == "error":
        output.traceback = [f"{output.ename}: {output.evalue}"]


# Looking into a notebook


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    """The cells that run, in order."""
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell, most often none."""
    return cell.metadata.get("tags", [])


def figures(cell: NotebookNode) -> list[bytes]:
    """The png files that a cell shows."""
    pngs = (output.get("data", {}).get("image/png") for output in cell.get("outputs", []))
    return [base64.b64decode(png) for png in pngs if png]


def without_fences(markdown: str) -> str:
    """Markdown without its fenced code blocks."""
    return re.sub(r"(?ms)^(```|~~~).*?^\1[ \t]*$", "", markdown)


def prose(cell: NotebookNode) -> str:
    """The markdown of a cell without what is shown literally: code, inline code, formulas."""
    text = re.sub(r"(?s)(`+)(?!`).+?(?<!`)\1(?!`)", "", without_fences(cell.source))
    return re.sub(r"(?s)\$\$.+?\$\$|\$[^$\n]+\$", "", text)


def headings(nb: NotebookNode, level: int) -> list[str]:
    """The text of every markdown heading of one level."""
    texts = (without_fences(cell.source) for cell in nb.cells if cell.cell_type == "markdown")
    return [
        title
        for text in texts
        for title in re.findall(rf"(?m)^{'#' * level}[ \t]+(.+?)[ \t]*$", text)
    ]


def output_texts(cell: NotebookNode) -> Iterator[str]:
    """Everything that nbval compares and a reader sees as text."""
    for output in cell.get("outputs", []):
        yield output.get("text", "")
        yield output.get("evalue", "")
        yield from (v for mime, v in output.get("data", {}).items() if mime.startswith("text/"))


# Checks of every notebook


def check_valid(nb: NotebookNode) -> Iterator[str]:
    """Valid by the schema of nbformat 4.5."""
    if (nb.get("nbformat"), nb.get("nbformat_minor")) != (4, 5):
        yield "is not in nbformat 4.5"
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError as error:
        yield f"is not valid: {str(error).splitlines()[0]}"


def check_run_in_order(nb: NotebookNode) -> Iterator[str]:
    """Every code cell ran, from 1 to N: nbval itself compares nothing in a cell that never ran."""
    counts = [cell.execution_count for cell in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"code cells ran as {counts}, not 1..{len(counts)}"


def check_no_empty_code(nb: NotebookNode) -> Iterator[str]:
    """A code cell has code."""
    yield from (
        f"{cell.id}: an empty code cell" for cell in code_cells(nb) if not cell.source.strip()
    )


def check_ids(nb: NotebookNode) -> Iterator[str]:
    """Cell ids are unique words that a person chose, such as `count-pairs`: a diff then names its
    places.
    """
    for name, count in Counter(cell.get("id", "") for cell in nb.cells).items():
        if count > 1:
            yield f"{name}: {count} cells have this id"
        if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
            yield f"{name or '(no id)'}: not an id of lower-case words and hyphens"
        elif any(re.fullmatch(r"(?=.*\d)[0-9a-f]{8,}", part) for part in re.split("[-_]", name)):
            yield f"{name}: looks like a random id"


def check_references(nb: NotebookNode) -> Iterator[str]:
    """Prose refers to sections and figures: an id of a cell is seen by no reader."""
    names = {cell.get("id") for cell in code_cells(nb)}
    for cell in nb.cells:
        if cell.cell_type == "markdown" and isinstance(cell.source, str):
            named = re.findall(r"(?i)\bcells? `([^`]+)`|`([a-z0-9]+(?:-[a-z0-9]+)+)`", cell.source)
            for name in sorted({a or b for a, b in named} & names):
                yield f"{cell.id}: refers to the cell {name}, whose id no reader sees"


def check_tags(nb: NotebookNode) -> Iterator[str]:
    """Only our two tags, on code cells, never both: such a cell would pass when nothing raises."""
    for cell in nb.cells:
        unknown = sorted(set(tags(cell)) - {IGNORED, RAISES})
        if unknown:
            yield f"{cell.id}: unknown tags {unknown}"
        if tags(cell) and cell.cell_type != "code":
            yield f"{cell.id}: tags on a {cell.cell_type} cell"
        if {IGNORED, RAISES} <= set(tags(cell)):
            yield f"{cell.id}: both {IGNORED} and {RAISES}"


def check_errors(nb: NotebookNode) -> Iterator[str]:
    """An error is shown exactly where the tag announces one."""
    for cell in code_cells(nb):
        raised = any(output.output_type == "error" for output in cell.outputs)
        if raised != (RAISES in tags(cell)):
            yield (
                f"{cell.id}: an error without the tag"
                if raised
                else f"{cell.id}: the tag, but no error"
            )


def check_outputs(nb: NotebookNode) -> Iterator[str]:
    """No stderr, no svg, no widget; in compared cells no address and no path of one machine."""
    for cell in code_cells(nb):
        mimes = {mime for output in cell.outputs for mime in output.get("data", {})}
        yield from (
            f"{cell.id}: an output of type {m}"
            for m in sorted(mimes)
            if "svg" in m or "widget" in m
        )
        if any(output.get("name") == "stderr" for output in cell.outputs):
            yield f"{cell.id}: output on stderr"
        text = "\n".join(output_texts(cell))
        if IGNORED not in tags(cell) and re.search(ADDRESS, text):
            yield f"{cell.id}: a memory address in the output"
        if re.search(ABSOLUTE_PATH, text):
            yield f"{cell.id}: an absolute path in the output"


def check_ignored_are_asserted(nb: NotebookNode) -> Iterator[str]:
    """After a cell whose output is not compared, the next code cell is, and it asserts what was
    shown.
    """
    cells = code_cells(nb)
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if IGNORED in tags(cell) and not (following and _is_strict_assertion(following)):
            yield f"{cell.id}: ignored output, and no strict cell with an assert follows"


def _is_strict_assertion(cell: NotebookNode) -> bool:
    return not tags(cell) and bool(
        re.search(r"^\s*assert\b|\bassert_\w+\(", cell.source, re.MULTILINE)
    )


def check_source(nb: NotebookNode) -> Iterator[str]:
    """Nothing that is known to make strict nbval fail, or to hide something."""
    for cell in code_cells(nb):
        for pattern, why in FORBIDDEN_CODE.items():
            if re.search(pattern, cell.source, re.MULTILINE):
                yield f"{cell.id}: {why}"
    for cell in nb.cells:
        if re.search(ABSOLUTE_PATH, cell.source):
            yield f"{cell.id}: an absolute path"


def check_markdown(nb: NotebookNode) -> Iterator[str]:
    """A raw `<image>` disappears when it is shown: it must stand in backticks. Pictures have alt
    text.
    """
    for cell in nb.cells:
        if cell.cell_type != "markdown":
            continue
        for name in re.findall(r"</?([A-Za-z][\w-]*)(?=[\s/>])[^<>]*>", prose(cell)):
            if name.lower() not in HTML_TAGS:
                yield f"{cell.id}: <{name}> outside backticks disappears"
        if re.search(r"!\[\s*\]\(", prose(cell)):
            yield f"{cell.id}: a picture without alt text"


def check_figures(nb: NotebookNode) -> Iterator[str]:
    """A figure is small, and a markdown cell right below says what to see."""
    for cell, following in zip(nb.cells, [*nb.cells[1:], None], strict=True):
        if any(len(png) > FIGURE_BYTES for png in figures(cell)):
            size = max(map(len, figures(cell)))
            yield f"{cell.id}: a figure of {size} bytes, over {FIGURE_BYTES}"
        if figures(cell) and not (following and following.cell_type == "markdown"):
            yield f"{cell.id}: a figure without a caption in a markdown cell below"


def check_slides(nb: NotebookNode) -> Iterator[str]:
    """Every cell has its place in the lecture."""
    for cell in nb.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind not in SLIDE_TYPES:
            yield f"{cell.id}: slide_type is {kind!r}"


def check_title(nb: NotebookNode) -> Iterator[str]:
    """One title, and it comes first."""
    titles = headings(nb, 1)
    if len(titles) != 1 or not nb.cells[0].source.startswith("# "):
        yield f"has the titles {titles}, not one in the first cell"


# Checks of a main notebook only


def check_sections(nb: NotebookNode) -> Iterator[str]:
    """Sections are numbered from 1, and the parts that each notebook must have are among them."""
    sections = headings(nb, 2)
    numbers = [int(n.group()) if (n := re.match(r"\d+", title)) else None for title in sections]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"sections are numbered {numbers}"
    for word in REQUIRED_HEADINGS:
        if not any(word in title.lower() for title in sections):
            yield f"no section heading has the words {word!r}"


def check_questions(nb: NotebookNode) -> Iterator[str]:
    """Interview questions with folded answers."""
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    opened, closed = text.count("<details"), text.count("</details>")
    if opened != closed:
        yield f"{opened} <details> are opened and {closed} closed"
    if opened < DETAILS:
        yield f"{opened} folded answers, at least {DETAILS} are wanted"


def check_has_figures(nb: NotebookNode) -> Iterator[str]:
    """Something to look at."""
    count = sum(len(figures(cell)) for cell in nb.cells)
    if count < FIGURES:
        yield f"{count} figures, at least {FIGURES} are wanted"


CHECKS = (
    check_valid,
    check_run_in_order,
    check_no_empty_code,
    check_ids,
    check_references,
    check_tags,
    check_errors,
    check_outputs,
    check_ignored_are_asserted,
    check_source,
    check_markdown,
    check_figures,
    check_slides,
    check_title,
)
MAIN_CHECKS = (check_sections, check_questions, check_has_figures)


def file_problems(path: Path, nb: NotebookNode) -> Iterator[str]:
    """What only the file can show: its name, its size, its exact text, its solutions."""
    main = path.parent.name != SOLUTIONS.name
    number = re.fullmatch(r"(\d\d)_[a-z0-9_]+", path.stem)
    if not number:
        yield "is not named NN_words.ipynb"
    elif main and nb.cells and not nb.cells[0].source.startswith(f"# {number.group(1)} · "):
        yield f"does not begin with '# {number.group(1)} · Title'"
    if path.stat().st_size > NOTEBOOK_BYTES:
        yield f"has {path.stat().st_size} bytes, over {NOTEBOOK_BYTES}"
    if path.read_text(encoding="utf-8") != canonical_text(nb):
        yield "is not in canonical form (tools/execute_notebooks.py writes it)"
    if main and not (path.parent / SOLUTIONS.name / path.name).exists():
        yield f"has no {SOLUTIONS.name}/{path.name}"
    if not main and not (path.parent.parent / path.name).exists():
        yield "solves the exercises of a notebook that does not exist"


def problems(path: Path) -> list[str]:
    """All that is wrong with a notebook file, as sentences; an empty list is what we want."""
    nb = read(path)
    checks = CHECKS if path.parent.name == SOLUTIONS.name else CHECKS + MAIN_CHECKS
    return [*file_problems(path, nb), *(problem for check in checks for problem in check(nb))]
