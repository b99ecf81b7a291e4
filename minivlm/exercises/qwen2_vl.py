"""10 · Checks of notebook 10's exercises: each takes a reader's function, says what is wrong."""

from collections.abc import Callable
from math import ceil
from random import Random

import torch
from PIL import Image
from torch import Tensor

from minivlm.exercises.answers import (
    compare_answers,
    expect_items,
    expect_number,
    expect_tensor,
    near,
)
from minivlm.parts.rope import mrope_axes, mrope_tables, rotary_tables, rotate
from minivlm.qwen2_vision import patch_places, preprocess
from minivlm.qwen2_vl import grid_positions, sequence_positions

PROMPTS: tuple[
    tuple[list[tuple[int, int]], int], ...
] = (  # images (height, width) and tokens of text
    ([], 5),
    ([(224, 252)], 0),
    ([(224, 252)], 7),
    ([(112, 448), (600, 512)], 3),
    ([(300, 100)], 4),
    ([(10, 10), (3000, 200)], 20),
    ([(2000, 1500)], 2),
)


def check_budget(budget: Callable) -> None:
    """Exercise 1: tall and wide images, tiny and huge ones; against the package's positions."""
    cases = [f"images {images}, {words} tokens of text" for images, words in PROMPTS]
    tokens, following = [], []
    for case, (images, words) in zip(cases, PROMPTS, strict=True):
        got = expect_items(budget(list(images), words), case, 2)
        tokens.append(expect_number(got[0], f"{case}, tokens"))
        following.append(expect_number(got[1], f"{case}, next position"))
    grids = [[_token_grid(*size) for size in images] for images, _ in PROMPTS]
    right = [_prompt(seen, words) for seen, (_, words) in zip(grids, PROMPTS, strict=True)]
    counted = [count for count, _ in right]
    mistakes = {
        "four patches are one token": _total(grids, lambda h, w: 4 * h * w + 2),
        "the two marks of an image are tokens too": _total(grids, lambda h, w: h * w),
        "an image stands between two marks, not after one": _total(grids, lambda h, w: h * w + 1),
    }
    for rounding in (int, round, ceil):
        sizes = [[[rounding(n / 28) for n in size] for size in images] for images, _ in PROMPTS]
        resized = (
            f"smart_resize comes first: these are the sides as they are, by {rounding.__name__}"
        )
        mistakes[resized] = _total(sizes, lambda h, w: h * w + 2)
        mistakes[f"{resized}; and the two marks are tokens"] = _total(sizes, lambda h, w: h * w)
    compare_answers([f"{case}, tokens" for case in cases], counted, tokens, mistakes)
    places, slips = [place for _, place in right], _place_slips(grids, counted)
    slips["that is the last position used, not the next"] = [place - 1 for place in places]
    compare_answers([f"{case}, next position" for case in cases], places, following, slips)


def _place_slips(grids: list[list], counted: list[int]) -> dict[str, list]:
    """What one answers who makes a mistake about the next position."""
    return {
        "an image uses fewer positions than tokens": counted,
        "each mark takes a position": _total(grids, max),
        "an image uses as many positions as its longer side": _total(
            grids, lambda h, w: min(h, w) + 2
        ),
        "rows and columns count from the same start: not their sum": _total(
            grids, lambda h, w: h + w + 2
        ),
        "rows and columns of tokens, not of patches": _total(grids, lambda h, w: 2 * max(h, w) + 2),
        "an image does not stand at a single position": _total(grids, lambda h, w: 3),
        "the longer side, be it the height or the width (rows)": _total(grids, lambda h, w: h + 2),
        "the longer side, be it the height or the width (columns)": _total(
            grids, lambda h, w: w + 2
        ),
    }


def _total(grids: list[list], count: Callable) -> list[int]:
    """Of each prompt of PROMPTS: the text's tokens, and what is counted for its images."""
    pairs = zip(grids, PROMPTS, strict=True)
    return [words + sum(count(*grid) for grid in seen) for seen, (_, words) in pairs]


def _token_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens, from what preprocess makes of a real image."""
    _, ((_, rows, columns),) = preprocess(Image.new("L", (width, height)))
    return int(rows) // 2, int(columns) // 2


def _prompt(grids: list[tuple[int, int]], words: int) -> tuple[int, int]:
    """Tokens of a prompt and the position of the next one."""
    text, image, row = 1, 2, [1] * words
    for h, w in grids:
        row += [text, *[image] * (h * w), text]
    positions = iter([grid_positions((1, h, w)) for h, w in grids])
    return len(row), int(sequence_positions([*row, text], {image: positions})[0, -1])


def check_place_of(place_of: Callable) -> None:
    """Exercise 2: every patch of images and videos, not square, merged by 1, 2 and 3."""
    cases, right, got = [], [], []
    mistakes: dict[str, list[tuple]] = {}
    for grid, merge in (((1, 4, 6), 2), ((3, 6, 4), 2), ((2, 6, 9), 3), ((4, 3, 5), 1)):
        spots, frames = patch_places(torch.tensor([grid]), merge)
        places = list(zip(frames.tolist(), *spots.tolist(), strict=True))
        for index, place in enumerate(places):
            cases.append(f"patch {index} of grid {grid}, merge {merge}")
            answer = expect_items(place_of(index, grid, merge), cases[-1], 3)
            got.append(tuple(expect_number(number, cases[-1]) for number in answer))
            right.append(place)
            for what, wrong in _place_orders(index, place, grid, merge).items():
                mistakes.setdefault(what, []).append(wrong)
    compare_answers(cases, right, got, mistakes)


def _place_orders(
    index: int, place: tuple[int, int, int], grid: tuple[int, int, int], merge: int
) -> dict[str, tuple]:
    """Where a patch lies in other orders than the right one."""
    (t, row, column), (_, h, w) = place, grid
    inside, squares = index % (h * w), merge**2
    by_rows = divmod(inside // squares, w // merge)
    by_columns = divmod(inside // squares, h // merge)[::-1]
    at = divmod(inside % squares, merge)
    join = lambda outer, inner: (t, *(a * merge + b for a, b in zip(outer, inner, strict=True)))
    return {
        "that is reading order, row by row": (t, inside // w, inside % w),
        "row and column have changed places": (t, column, row),
        "the squares are in reading order, not column by column": join(by_columns, at),
        "inside a square in reading order, not column by column": join(by_rows, at[::-1]),
        "that is the square; where in it is the patch?": (t, *by_rows),
        "where in its square; which square is it?": (t, *at),
        "rows begin anew in each pair of frames": (0, row + t * h, column),
        "index // (h · w) is the pair of frames": (0, row, column),
        "merge is not always 2": (t, *_square_order(inside, w, 2)),
    }


def _square_order(inside: int, columns: int, merge: int) -> tuple[int, int]:
    """Row and column of a patch of one pair of frames."""
    outer, inner = divmod(inside, merge**2)
    at, place = divmod(outer, columns // merge), divmod(inner, merge)
    return at[0] * merge + place[0], at[1] * merge + place[1]


def check_turn(turn: Callable) -> None:
    """Exercise 3: sections, interleaved axes, and one pair of each."""
    generator = torch.Generator().manual_seed(0)
    cases = ([0, 1, 2, 0], 100.0), (mrope_axes([2, 3, 3], 8), 1e4)
    for axes, theta in (*cases, (mrope_axes([4, 2, 2], 8, True), 50.0), ([2, 1, 0], 10.0)):
        d, case = 2 * len(axes), f"axes {axes}, theta {theta:g}"
        x = torch.randn(7, d, generator=generator)
        at = torch.randint(0, 9, (3, 7), generator=generator)
        at[:, 0] = 0
        got = expect_tensor(turn(x.clone(), at.clone(), list(axes), theta), (7, d), case)
        assert not got.is_complex(), f"{case}: real numbers are asked for"
        assert near(got[0], x[0]), f"{case}: three positions of 0 change nothing"
        right = rotate(x, *mrope_tables(at, axes, theta))
        hint = "the frequencies?"
        for what, value in _turned_otherwise(x, at, axes, theta).items():
            if near(got, value) and not near(right, value):
                hint = what
        off = (got - right).abs().max()
        assert near(got, right), f"{case}: {hint} (off by up to {off:.3f})"


def _turned_otherwise(x: Tensor, at: Tensor, axes: list[int], theta: float) -> dict[str, Tensor]:
    """x (T, d) after turns with one mistake."""
    d, count = x.shape[1], len(axes)
    cos, sin = mrope_tables(at, axes, theta)
    order = torch.arange(d).view(-1, 2).T.flatten()  # neighbours, brought apart
    wrong = {
        "pairs are i and i + d/2, not neighbours": rotate(x[:, order], cos, sin)[
            :, order.argsort()
        ],
        "the turn goes the other way": rotate(x, cos, -sin),
    }
    for axis, name in enumerate(("time", "row", "column")):
        wrong[f"all pairs turn by {name}"] = rotate(x, *rotary_tables(at[axis], d, theta))
    powers, seen = torch.arange(count).double(), [axes[:i].count(a) for i, a in enumerate(axes)]
    exponents = {
        "frequency i is theta^(-2i/d): with d, not d/2, below the line": powers / d,
        "frequency i is theta^(-2i/d), from i = 0 on": (powers + 1) / count,
        "frequency i is theta^(-2i/d): the minus is missing": -powers / count,
        "the first pair is the fastest": powers.flip(0) / count,
        "frequencies run on over all pairs, whatever their axes": torch.tensor(seen) / count,
    }
    for what, exponent in exponents.items():
        angles = at[axes].T.double() * theta**-exponent
        turned = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.complex(*x.double().chunk(2, dim=1)) * turned
        wrong[what] = torch.cat([pairs.real, pairs.imag], dim=1)
    return wrong


def check_find_pictures(find_pictures: Callable) -> None:
    """Exercise 4: rows of text, images and videos; long videos go past their rows and columns."""
    rng = Random(0)
    rows: list[list] = [[3], [1, (1, 2, 2), 1], [2, (1, 2, 3), 1, (3, 2, 2), 4], [1, (9, 2, 2), 1]]
    rows += [[2, (1, 3, 5), 1, (1, 5, 3), 1, (1, 3, 5), 2], [1, (4, 3, 2), 1, (2, 5, 4), 3]]
    for _ in range(40):
        parts: list = [rng.randint(1, 4)]
        for _ in range(rng.randint(1, 4)):
            grid = (rng.choice([1, 1, 2, 5]), rng.randint(2, 5), rng.randint(2, 5))
            parts += [grid, rng.randint(1, 4)]
        rows.append(parts)
    for parts in rows:
        case = f"a row of {parts}"
        table, right = positions_of_row(parts)
        found = expect_items(find_pictures(table.clone()), case)
        _check_pictures([_picture(one, case) for one in found], right, case)


def positions_of_row(parts: list) -> tuple[Tensor, list[tuple]]:
    """Numbers of text tokens and grids -> positions (3, T), and where each picture begins."""
    ids, grids, right = [], [], []
    for part in parts:
        if isinstance(part, int):
            ids += [0] * part
            continue
        right.append((len(ids), part))
        grids.append(grid_positions(part))
        ids += [1] * grids[-1].shape[1]
    return sequence_positions(ids, {1: iter(grids)}), right


def _picture(found: object, case: str) -> tuple[int, tuple[int, ...]]:
    """One picture of a reader's answer: its first token and its grid."""
    what = f"{case}: a picture is (first token, (t, h, w))"
    first, grid = expect_items(found, what, 2)
    numbers = [int(expect_number(n, what)) for n in (first, *expect_items(grid, what, 3))]
    return numbers[0], tuple(numbers[1:])


def _check_pictures(got: list[tuple], right: list[tuple], case: str) -> None:
    """All pictures of a row, in any order."""
    got, said = sorted(got), f"{case}: {len(right)} pictures, not {len(got)}"
    assert len(got) >= len(right), f"{said}; text between them ends a picture"
    assert len(got) <= len(right), f"{said}; is a video one picture, is text none?"
    for (first, grid), (at, found) in zip(right, got, strict=True):
        late = "; its first token has three equal positions, as text has" * (at == first + 1)
        assert first == at, f"{case}: a picture begins at {first}, not at {at}{late}"
        hint = ""
        if found == (grid[0], grid[2], grid[1]):
            hint = "; a grid is time, rows, columns"
        elif found[1:] == grid[1:] and found[0] < grid[0]:
            hint = "; a picture, too, has tokens with three equal positions"
        elif found[1:] == grid[1:]:
            hint = "; the text after it is no part of it"
        assert found == grid, f"{case}: the one at {first} is {grid}, not {found}{hint}"
