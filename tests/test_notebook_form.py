"""The form of the second edition: a notebook that has it, and one way to break each rule."""

from collections.abc import Callable

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import notebook_checks
import notebook_form as form

CARD = "<details><summary>Why?</summary>See [2.1](#2.1-A-step).</details>\n"


def good() -> NotebookNode:
    """A notebook with all its parts."""
    write = "### 2.1 A step\n\n**Write it** ★☆☆ · 5 minutes"
    myths = "## 5. Where readers go wrong\n\n" + "".join(f"### 5.{i} A\n\n" for i in range(1, 4))
    cells = [
        new_markdown_cell("# 01 · Title\n\n40 minutes. What? Why? How?", id="title"),
        new_code_cell("diagram(a, b)", id="picture"),
        new_markdown_cell("## 1. The problem", id="problem"),
        new_markdown_cell(f"## 2. Build it\n\n{write}", id="build"),
        *[new_code_cell("raise NotImplementedError", id=f"stub-{i}") for i in range(4)],
        new_markdown_cell("## 3. Look at the mask", id="mask"),
        new_markdown_cell("## 4. Train it and measure it", id="train"),
        new_markdown_cell(myths, id="wrong"),
        new_markdown_cell("## 6. At full size", id="size"),
        new_markdown_cell(
            "## 7. Going deeper", id="deeper", metadata={"jp-MarkdownHeadingCollapsed": True}
        ),
        new_markdown_cell("word " * 4000, id="long"),
        new_markdown_cell("## 8. Exercises", id="exercises"),
        new_markdown_cell(
            "## 9. Interview\n\n" + 10 * CARD + "### 9.1 Whiteboard walkthrough", id="interview"
        ),
    ]
    return new_notebook(cells=cells)


def changed(name: str, old: str, new: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        cell = next(cell for cell in nb.cells if cell.id == name)
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return change


def without(name: str) -> Callable[[NotebookNode], None]:
    return lambda nb: nb.cells.remove(next(cell for cell in nb.cells if cell.id == name))


def unfolded(nb: NotebookNode) -> None:
    next(cell for cell in nb.cells if cell.id == "deeper").metadata.clear()


BREAKS = [
    (form.check_order, "'full size'", without("size")),
    (form.check_order, "out of order", changed("mask", "mask", "interview")),
    (form.check_opening, "questions", changed("title", "?", ".")),
    (form.check_opening, "minutes", changed("title", "minutes", "m")),
    (form.check_opening, "no diagram", without("picture")),
    (form.check_core, "words before", changed("problem", "problem", "problem " * 4000)),
    (form.check_core, "writes 3", without("stub-2")),
    (form.check_core, "no stars", changed("build", "★☆☆", "easy")),
    (form.check_deeper, "not folded", unfolded),
    (form.check_deeper, "begin", changed("deeper", "## 7", "More.\n\n## 7")),
    (form.check_myths, "2 claims", changed("wrong", "### 5.3 A", "")),
    (form.check_cards, "9 interview", changed("interview", 10 * CARD, 9 * CARD)),
    (form.check_cards, "without a link", changed("interview", "](#2.1-A-step)", "]")),
    (form.check_cards, "walkthrough", changed("interview", "Whiteboard walkthrough", "More")),
    (form.check_links, "no heading", changed("build", "2.1 A step", "2.1 Another step")),
]


def test_a_notebook_with_all_parts_has_no_problem() -> None:
    assert [found for check in form.FORM_CHECKS for found in check(good())] == []


@pytest.mark.parametrize(("check", "words", "damage"), BREAKS)
def test_a_missing_part_is_found(check: Callable, words: str, damage: Callable) -> None:
    nb = good()
    damage(nb)
    assert any(words in problem for problem in check(nb))


def test_every_form_check_is_broken_once() -> None:
    assert {check for check, _, _ in BREAKS} == {*form.FORM_CHECKS}


def test_folded_text_and_formulas_are_no_words_of_the_core_path() -> None:
    nb = good()
    nb.cells[3].source += f"\n\n<details>{'word ' * 5000}</details>\n\n$$\n{'x ' * 5000}\n$$"
    assert list(form.check_core(nb)) == []


def test_the_second_edition_is_checked_and_other_notebooks_are_not(tmp_path) -> None:
    nb = good()
    nb.cells = [cell for cell in nb.cells if cell.id != "size"]
    for stem, wanted in ((form.EDITION[0], True), ("77_words", False)):
        path = tmp_path / f"{stem}.ipynb"
        path.write_text(notebook_checks.canonical_text(nb), encoding="utf-8")
        said = notebook_checks.problems(path)
        assert any("is about 'full size'" in problem for problem in said) == wanted
