"""Notebook 10's exercises: what their checks accept, and what they say about likely mistakes."""

from collections.abc import Callable
from math import ceil

import pytest
import torch
from wrong_solutions import accepts, refuses

from minivlm.exercises import qwen2_vl as exercises
from minivlm.qwen2_vision import smart_resize

# Exercise 1


def resized(height, width):
    return [side // 28 for side in smart_resize(height, width)]


def total(
    images,
    words,
    grid=resized,
    tokens=lambda h, w: h * w + 2,
    used=lambda h, w: max(h, w) + 2,
):
    grids = [grid(*size) for size in images]
    return words + sum(tokens(*g) for g in grids), words + sum(used(*g) for g in grids)


def budget(images, words):
    return total(images, words)


def image_by_image(images, words):
    tokens = position = words
    for size in images:
        height, width = smart_resize(*size)
        tokens += 1 + (height // 14) * (width // 14) // 4 + 1
        position = position + 1 + max(height, width) // 28 + 1
    return [tokens, torch.tensor(position)]


@pytest.mark.parametrize("function", [budget, image_by_image])
def test_right_budgets(function: Callable) -> None:
    accepts(exercises.check_budget, function)


def changed(**slips):
    return lambda images, words: total(images, words, **slips)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        pytest.param(
            changed(grid=lambda h, w: (h // 28, w // 28)), "smart_resize", id="not resized, down"
        ),
        pytest.param(
            changed(grid=lambda h, w: (ceil(h / 28), ceil(w / 28))), "smart_resize", id="up"
        ),
        pytest.param(
            changed(grid=lambda h, w: (round(h / 28), round(w / 28))), "smart_resize", id="round"
        ),
        pytest.param(
            changed(grid=lambda h, w: (h // 28, w // 28), tokens=lambda h, w: h * w),
            "smart_resize",
            id="neither resized nor marked",
        ),
        pytest.param(changed(tokens=lambda h, w: h * w), "marks", id="without marks"),
        pytest.param(changed(tokens=lambda h, w: h * w + 1), "two marks", id="one mark"),
        pytest.param(changed(tokens=lambda h, w: 4 * h * w + 2), "patches", id="patches"),
        pytest.param(
            changed(used=lambda h, w: h * w + 2), "fewer positions", id="positions count tokens"
        ),
        pytest.param(changed(used=max), "mark", id="marks without positions"),
        pytest.param(changed(used=lambda h, w: min(h, w) + 2), "longer", id="shorter side"),
        pytest.param(changed(used=lambda h, w: h + w + 2), "sum", id="sum of the sides"),
        pytest.param(changed(used=lambda h, w: h + 2), "longer", id="rows"),
        pytest.param(changed(used=lambda h, w: w + 2), "longer", id="columns"),
        pytest.param(changed(used=lambda h, w: 3), "single position", id="one position"),
        pytest.param(
            lambda images, words: (budget(images, words)[0], budget(images, words)[1] - 1),
            "not the next",
            id="last position",
        ),
        pytest.param(lambda images, words: budget(images, words)[0], "list or tuple", id="tokens"),
    ],
)
def test_wrong_budgets(function: Callable, word: str) -> None:
    refuses(exercises.check_budget, function, word)


# Exercise 2


def place_of(index, grid, merge=2, order=(0, 1, 2, 3)):
    _, h, w = grid
    time, inside = divmod(index, h * w)
    window, patch = divmod(inside, merge**2)
    parts = (*divmod(window, w // merge), *divmod(patch, merge))
    window_row, window_column, row, column = (parts[i] for i in order)
    return time, window_row * merge + row, window_column * merge + column


def with_unravel(index, grid, merge=2):
    t, h, w = grid
    shape = (t, h // merge, w // merge, merge, merge)
    time, a, b, c, d = torch.unravel_index(torch.tensor(index), shape)
    return torch.stack([time, a * merge + c, b * merge + d])


@pytest.mark.parametrize("function", [place_of, with_unravel])
def test_right_places(function: Callable) -> None:
    accepts(exercises.check_place_of, function)


def reading_order(index, grid, merge=2):
    time, inside = divmod(index, grid[1] * grid[2])
    return time, *divmod(inside, grid[2])


def without_time(index, grid, merge=2):
    return 0, *place_of(index, grid, merge)[1:]


def rows_go_on(index, grid, merge=2):
    time, row, column = place_of(index, grid, merge)
    return 0, time * grid[1] + row, column


def always_two(index, grid, merge=2):
    return place_of(index, grid)


def window_alone(index, grid, merge=2):
    time, row, column = place_of(index, grid, merge)
    return time, row // merge, column // merge


def column_first(index, grid, merge=2):
    time, row, column = place_of(index, grid, merge)
    return time, column, row


def windows_by_column(index, grid, merge=2):
    time, inside = divmod(index, grid[1] * grid[2])
    window, patch = divmod(inside, merge**2)
    column, row = divmod(window, grid[1] // merge)
    return time, row * merge + patch // merge, column * merge + patch % merge


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (reading_order, "that is reading order"),
        (without_time, "pair of frames"),
        (rows_go_on, "begin anew"),
        (always_two, "not always 2"),
        (window_alone, "where in it"),
        (column_first, "changed places"),
        (windows_by_column, "squares are in reading order"),
        pytest.param(
            lambda *given: place_of(*given, order=(0, 1, 3, 2)), "inside a square", id="inside"
        ),
        pytest.param(lambda *given: place_of(*given)[1:], "items", id="no time"),
    ],
)
def test_wrong_places(function: Callable, word: str) -> None:
    refuses(exercises.check_place_of, function, word)


# Exercise 3


def turn(x, positions, axes, theta, exponent=lambda i, count: i / count, sign=1):
    count = len(axes)
    frequencies = theta ** -exponent(torch.arange(count), count)
    angles = sign * positions[axes].T * frequencies
    pairs = torch.complex(*x.chunk(2, dim=1)) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], dim=1)


def pair_by_pair(x, positions, axes, theta):
    turned, half = torch.empty(x.shape, dtype=torch.float64), len(axes)
    for i, axis in enumerate(axes):
        z = torch.complex(x[:, i].double(), x[:, i + half].double())
        z = z * torch.exp(1j * positions[axis].double() * theta ** (-2 * i / x.shape[1]))
        turned[:, i], turned[:, i + half] = z.real, z.imag
    return turned


@pytest.mark.parametrize("function", [turn, pair_by_pair])
def test_right_turns(function: Callable) -> None:
    accepts(exercises.check_turn, function)


def neighbours(x, positions, axes, theta):
    halves = torch.cat([x[:, ::2], x[:, 1::2]], dim=1)
    return torch.stack(turn(halves, positions, axes, theta).chunk(2, dim=1), dim=2).flatten(1)


def anew_in_each_section(x, positions, axes, theta):
    seen = torch.tensor([axes[:i].count(axis) for i, axis in enumerate(axes)])
    return turn(x, positions, axes, theta, lambda i, count: seen / count)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (neighbours, "neighbours"),
        (anew_in_each_section, "run on"),
        pytest.param(
            lambda x, at, axes, theta: turn(x, at, [0] * len(axes), theta), "time", id="time alone"
        ),
        pytest.param(
            lambda x, at, axes, theta: turn(x, at, [2] * len(axes), theta), "column", id="columns"
        ),
        pytest.param(lambda *given: turn(*given, sign=-1), "other way", id="other way"),
        pytest.param(
            lambda *given: turn(*given, lambda i, count: i / (2 * count)), "-2i/d", id="i / d"
        ),
        pytest.param(
            lambda *given: turn(*given, lambda i, count: -i / count), "minus", id="no minus"
        ),
        pytest.param(
            lambda *given: turn(*given, lambda i, count: (i + 1) / count), "from i = 0", id="from 1"
        ),
        pytest.param(
            lambda *given: turn(*given, lambda i, count: (count - 1 - i) / count),
            "fastest",
            id="slowest first",
        ),
        pytest.param(
            lambda x, at, axes, theta: turn(x, at + 1, axes, theta),
            "change nothing",
            id="from 1 on",
        ),
        pytest.param(
            lambda *given: torch.complex(*turn(*given).chunk(2, dim=1)), "shape", id="complex"
        ),
    ],
)
def test_wrong_turns(function: Callable, word: str) -> None:
    refuses(exercises.check_turn, function, word)


# Exercise 4


def find_pictures(positions):
    found, at = [], 0
    while at + 1 < positions.shape[1]:
        here, after = positions[:, at], positions[:, at + 1]
        if (after - here).tolist() != [0, 0, 1]:
            at += 1
            continue
        time, row, column = positions[:, at:] == here[:, None]
        grid = tuple(int(both.sum()) for both in (row & column, time & column, time & row))
        found.append((at, grid))
        at += grid[0] * grid[1] * grid[2]
    return found


def by_walking(positions):
    table = [tuple(place) for place in positions.T.tolist()]
    found, at = [], 0
    while at < len(table):
        start = table[at][0]
        if at + 1 == len(table) or table[at + 1] != (start, start, start + 1):
            at += 1
            continue
        columns = 1
        while table[at + columns] == (start, start, start + columns):
            columns += 1
        rows = 1
        while table[at + rows * columns] == (start, start + rows, start):
            rows += 1
        times = 1
        while table[at + times * rows * columns] == (start + times, start, start):
            times += 1
        found.append([torch.tensor(at), [times, rows, columns]])
        at += times * rows * columns
    return found[::-1]


@pytest.mark.parametrize("function", [find_pictures, by_walking])
def test_right_pictures(function: Callable) -> None:
    accepts(exercises.check_find_pictures, function)


def until_equal(positions):
    found = []
    for at, grid in find_pictures(positions):
        tokens = positions[:, at + 1 : at + grid[0] * grid[1] * grid[2]]
        equal = (tokens == tokens[0]).all(dim=0).nonzero()[:, 0].tolist()
        times = equal[0] // (grid[1] * grid[2]) + 1 if equal else grid[0]
        found.append((at, (times, *grid[1:])))
    return found


def unequal_alone(positions):
    """Pictures are the runs of unequal positions; the first token of each is left out."""
    unequal = (positions != positions[0]).any(dim=0).tolist()
    starts = [t for t in range(1, len(unequal)) if unequal[t] and not unequal[t - 1]]
    known = dict(find_pictures(positions))
    return [(t, known.get(t - 1, (1, 1, 1))) for t in starts]


def one_token_late(positions):
    return [(at + 1, grid) for at, grid in find_pictures(positions)]


def a_frame_each(positions):
    return [
        (at + i * grid[1] * grid[2], (1, *grid[1:]))
        for at, grid in find_pictures(positions)
        for i in range(grid[0])
    ]


def stills_alone(positions):
    return [(at, grid) for at, grid in find_pictures(positions) if grid[0] == 1]


def columns_first(positions):
    return [(at, (t, w, h)) for at, (t, h, w) in find_pictures(positions)]


def in_patches(positions):
    return [(at, (t, 2 * h, 2 * w)) for at, (t, h, w) in find_pictures(positions)]


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (until_equal, "three equal positions"),
        (unequal_alone, "three equal positions"),
        (one_token_late, "begins at"),
        (a_frame_each, "video one picture"),
        (stills_alone, "pictures, not"),
        (columns_first, "time, rows, columns"),
        (in_patches, "not (1, 4, 4)"),
        pytest.param(
            lambda positions: [at for at, _ in find_pictures(positions)],
            "a picture is",
            id="starts",
        ),
        pytest.param(lambda positions: None, "return", id="no return"),
    ],
)
def test_wrong_pictures(function: Callable, word: str) -> None:
    refuses(exercises.check_find_pictures, function, word)
