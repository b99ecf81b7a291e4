"""The parts of a notebook and their order: a core path short enough for one sitting, in which the
reader writes the functions that matter, and everything else after it.

A check takes the notebook and yields a sentence for each problem, as in `notebook_checks.py`, which
applies them to the notebooks of EDITION.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote

from nbformat import NotebookNode

EDITION = (  # those that have this form
    *("00_language_model", "01_bpe_tokenizer", "02_vit_patches"),
    *("03_vqvae_codes", "04_multimodal_tokens", "05_clip_siglip"),
)
ORDER = (
    *("problem", "mask", "train", "wrong", "full size"),
    *("going deeper", "exercises", "interview"),
)  # words of the sections' headings
CORE_WORDS, CORE_FUNCTIONS, CARDS, MYTHS = 3500, 4, 10, range(3, 6)
ASKED = 3  # interview questions in the title cell
FOLDED = r"(?s)<details>.*?</details>"


def bare(cell: NotebookNode) -> str:
    """A markdown cell's prose, without folded text, formulas and code blocks."""
    text = re.sub(r"(?ms)^(```|~~~).*?^\1[ \t]*$", "", cell.source)
    return re.sub(r"(?s)\$\$.+?\$\$", "", re.sub(FOLDED, "", text))


def markdown(nb: NotebookNode) -> list[NotebookNode]:
    """The cells of prose, in order."""
    return [cell for cell in nb.cells if cell.cell_type == "markdown"]


def section(nb: NotebookNode, word: str) -> list[NotebookNode]:
    """The cells of the section whose heading has the word; none if there is no such section."""
    found: list[NotebookNode] = []
    inside = False
    for cell in nb.cells:
        title = re.search(r"(?m)^## (.+)$", bare(cell)) if cell.cell_type == "markdown" else None
        if title:
            inside = word in title.group(1).lower()
        if inside:
            found.append(cell)
    return found


def core(nb: NotebookNode) -> list[NotebookNode]:
    """The cells before Going deeper."""
    deeper = {cell.id for cell in section(nb, "going deeper")}
    ids = [cell.id for cell in nb.cells]
    end = next((i for i, name in enumerate(ids) if name in deeper), len(ids))
    return nb.cells[:end]


def anchors(nb: NotebookNode) -> set[str]:
    """What a link may point to: JupyterLab's anchors of all headings."""
    titles = [
        title
        for cell in markdown(nb)
        for title in re.findall(r"(?m)^#{1,6} (.+?)[ \t]*$", bare(cell))
    ]
    return {re.sub(r"[`*]", "", title).replace(" ", "-") for title in titles}


def check_order(nb: NotebookNode) -> Iterator[str]:
    """Every part is there, in its place."""
    titles = [
        title.lower() for cell in markdown(nb) for title in re.findall(r"(?m)^## (.+)$", bare(cell))
    ]
    places = [next((i for i, t in enumerate(titles) if word in t), -1) for word in ORDER]
    for word, place in zip(ORDER, places, strict=True):
        if place < 0:
            yield f"no section is about {word!r}"
    if places != sorted(places):
        yield f"the sections are out of order: {titles}"


def check_opening(nb: NotebookNode) -> Iterator[str]:
    """What the reader will be able to answer, what it takes, and the model in one picture."""
    title = nb.cells[0].source
    if title.count("?") < ASKED:
        yield f"the first cell asks fewer than {ASKED} questions"
    if "minutes" not in title:
        yield "the first cell does not say how many minutes it takes"
    before = {cell.id for cell in section(nb, "problem")}
    opening = [cell for cell in core(nb) if cell.id not in before][:8]
    if not any("diagram(" in cell.source for cell in opening if cell.cell_type == "code"):
        yield "there is no diagram at the top"


def check_core(nb: NotebookNode) -> Iterator[str]:
    """Short enough to be read in one go, with something to write."""
    words = sum(len(bare(cell).split()) for cell in core(nb) if cell.cell_type == "markdown")
    if words > CORE_WORDS:
        yield f"{words} words before Going deeper, at most {CORE_WORDS}"
    code = [cell.source for cell in core(nb) if cell.cell_type == "code"]
    written = sum("raise NotImplementedError" in source for source in code)
    if written < CORE_FUNCTIONS:
        yield f"the reader writes {written} functions before Going deeper, not {CORE_FUNCTIONS}"
    for cell in markdown(nb):
        if "**Write it**" in cell.source and not re.search(r"★.*minutes", cell.source):
            yield f"{cell.id}: no stars or no minutes"


def check_deeper(nb: NotebookNode) -> Iterator[str]:
    """Folded in JupyterLab, which folds from a cell that begins with the heading."""
    for cell in section(nb, "going deeper")[:1]:
        if not cell.metadata.get("jp-MarkdownHeadingCollapsed"):
            yield f"{cell.id}: not folded (jp-MarkdownHeadingCollapsed)"
        if not cell.source.startswith("## "):
            yield f"{cell.id}: does not begin with its heading"


def check_myths(nb: NotebookNode) -> Iterator[str]:
    """A few claims, each with a heading of its own."""
    cells = [cell for cell in section(nb, "wrong") if cell.cell_type == "markdown"]
    count = sum(len(re.findall(r"(?m)^### ", bare(cell))) for cell in cells)
    if cells and count not in MYTHS:
        yield f"{count} claims that are wrong, not {MYTHS[0]} to {MYTHS[-1]}"


def check_cards(nb: NotebookNode) -> Iterator[str]:
    """Enough of them, each with a link to the heading that shows it, and a walkthrough."""
    text = "\n".join(c.source for c in section(nb, "interview") if c.cell_type == "markdown")
    cards = re.findall(FOLDED, text)
    if len(cards) < CARDS:
        yield f"{len(cards)} interview cards, at least {CARDS}"
    for card in cards:
        if "](#" not in card:
            yield f"a card without a link: {' '.join(card.split())[:80]}"
    if "walkthrough" not in text.lower():
        yield "no walkthrough for a whiteboard"


def check_links(nb: NotebookNode) -> Iterator[str]:
    """Links within the notebook lead somewhere."""
    there = anchors(nb)
    for cell in markdown(nb):
        for link in re.findall(r"\]\(#([^)]*)\)", cell.source):
            if unquote(link) not in there:
                yield f"{cell.id}: a link to no heading: #{link}"


FORM_CHECKS = (
    *(check_order, check_opening, check_core, check_deeper),
    *(check_myths, check_cards, check_links),
)
