"""Notebook 02: right solutions are accepted, and each likely mistake is named."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wrong_solutions import accepts, refuses

from minivlm import vit
from minivlm.exercises import vit as exercises
from minivlm.vit import ViTConfig

Grid = tuple[int, int]

# Parameters


def count_parameters(c: ViTConfig) -> int:
    d = c.width
    embedding = d * c.channels * c.patch**2 + d
    positions = (1 + c.grid[0] * c.grid[1]) * d
    norm = 2 * d
    attention = 4 * (d * d + d)
    mlp = d * c.hidden + c.hidden + c.hidden * d + d
    return embedding + d + positions + c.layers * (2 * norm + attention + mlp) + norm


def count_with_torch(c: ViTConfig) -> Tensor:
    block = [(c.width,) * 2] * 4 + [(c.width, c.hidden), (c.hidden, c.width)]
    total = sum(sum(p.numel() for p in nn.Linear(*size).parameters()) for size in block * c.layers)
    norms = sum(p.numel() for p in nn.LayerNorm(c.width).parameters()) * (2 * c.layers + 1)
    conv = sum(p.numel() for p in nn.Conv2d(c.channels, c.width, c.patch).parameters())
    return torch.tensor(total + norms + conv + c.width * (2 + c.grid[0] * c.grid[1]))


WRONG_COUNT = {
    "no class token": ("class token", lambda c: count_parameters(c) - c.width),
    "no bias in the patch embedding": ("bias", lambda c: count_parameters(c) - c.width),
    "no last norm": ("last norm", lambda c: count_parameters(c) - 2 * c.width),
    "one norm a block": ("two norms", lambda c: count_parameters(c) - c.layers * 2 * c.width),
    "norms without a bias": (
        "weight and a bias",
        lambda c: count_parameters(c) - (2 * c.layers + 1) * c.width,
    ),
    "no biases in attention": ("biases", lambda c: count_parameters(c) - c.layers * 4 * c.width),
    "no output projection": (
        "four projections",
        lambda c: count_parameters(c) - c.layers * (c.width**2 + c.width),
    ),
    "the MLP's biases both of one length": (
        "second bias",
        lambda c: count_parameters(c) + c.layers * (c.hidden - c.width),
    ),
    "an MLP four times as wide": (
        "hidden",
        lambda c: count_parameters(replace(c, hidden=4 * c.width)),
    ),
    "a square grid": (
        "rows times columns",
        lambda c: count_parameters(c) - c.width * (c.grid[0] * c.grid[1] - c.grid[0] ** 2),
    ),
    "three channels": ("channels", lambda c: count_parameters(replace(c, channels=3))),
    "one channel": ("channels", lambda c: count_parameters(replace(c, channels=1))),
    "one block": ("one block", lambda c: count_parameters(replace(c, layers=1))),
    "no positions": (
        "positions are missing",
        lambda c: count_parameters(c) - c.width * (1 + c.grid[0] * c.grid[1]),
    ),
    "returns nothing": ("return", lambda c: None),
}


@pytest.mark.parametrize("right", [count_parameters, count_with_torch])
def test_count_parameters_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_count_parameters, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_COUNT.values(), ids=WRONG_COUNT)
def test_count_parameters_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_count_parameters, wrong, word)


# Channels last


def channels_last_matrix(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1).flatten(1)


def channels_last_by_loops(weight: Tensor) -> Tensor:
    d, c, p, _ = weight.shape
    out = torch.empty(d, p * p * c, dtype=torch.float64)
    for i in range(p):
        for j in range(p):
            out[:, (i * p + j) * c : (i * p + j + 1) * c] = weight[:, :, i, j]
    return out


def channels_last_in_place(weight: Tensor) -> Tensor:
    moved = weight.permute(0, 2, 3, 1).flatten(1)
    weight.zero_()
    return moved


WRONG_MATRIX = {
    "flattened": ("reshape moves nothing", lambda w: w.flatten(1)),
    "reshaped only": (
        "reshape moves nothing",
        lambda w: w.reshape(len(w), *w.shape[2:], -1).flatten(1),
    ),
    "rows and columns exchanged": ("exchanged", lambda w: w.permute(0, 3, 2, 1).flatten(1)),
    "two axes exchanged": ("channels come last", lambda w: w.transpose(1, 2).flatten(1)),
    "the wrong rotation": ("channels come last", lambda w: w.permute(0, 3, 1, 2).flatten(1)),
    "transposed": ("shape", lambda w: w.permute(2, 3, 1, 0).flatten(0, 2)),
    "not flattened": ("shape", lambda w: w.permute(0, 2, 3, 1)),
    "view of a permuted tensor": (
        "view",
        lambda w: w.permute(0, 2, 3, 1).view(len(w), -1),
    ),
    "in place": ("has changed", channels_last_in_place),
    "pixels backwards": (
        "other pixels",
        lambda w: w.flip(2, 3).permute(0, 2, 3, 1).flatten(1),
    ),
    "returns nothing": ("return", lambda w: None),
}


@pytest.mark.parametrize("right", [channels_last_matrix, channels_last_by_loops])
def test_channels_last_matrix_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_channels_last_matrix, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_MATRIX.values(), ids=WRONG_MATRIX)
def test_channels_last_matrix_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_channels_last_matrix, wrong, word)


# The position table


def resize_table(table: Tensor, old: Grid, new: Grid) -> Tensor:
    first, patches = table[:, :1], table[:, 1:]
    return torch.cat([first, vit.resize_positions(patches, old, new)], dim=1)


def resize_with_interpolate(table: Tensor, old: Grid, new: Grid) -> Tensor:
    rows, width = new[0] * new[1], table.shape[2]
    out = table.new_zeros(1, 1 + rows, width)
    out[:, 0] = table[:, 0]
    grid = table[0, 1:].T.reshape(1, width, *old)
    grid = F.interpolate(grid, new, mode="bicubic")
    out[0, 1:] = grid.reshape(width, rows).T
    return out


def resize_whole_by_hand(table: Tensor, old: Grid, new: Grid) -> Tensor:
    grid = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, new, mode="bicubic").flatten(2).transpose(1, 2)


def resize_in_one_dimension(table: Tensor, old: Grid, new: Grid) -> Tensor:
    rows = 1 + new[0] * new[1]
    return F.interpolate(table.transpose(1, 2), rows, mode="linear").transpose(1, 2)


def resize_in_place(table: Tensor, old: Grid, new: Grid) -> Tensor:
    resized = resize_table(table, old, new)
    table.zero_()
    return resized


def resize_other_mode(table: Tensor, old: Grid, new: Grid) -> Tensor:
    grid = table[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, new, mode="bilinear").flatten(2).transpose(1, 2)
    return torch.cat([table[:, :1], grid], 1)


def rows(table: Tensor, old: Grid, new: Grid) -> Tensor:
    return vit.resize_positions(table[:, 1:], old, new)


WRONG_RESIZE = {
    "the class row is resized too": ("class token", lambda t, o, n: vit.resize_positions(t, o, n)),
    "the whole table by hand": ("class token", resize_whole_by_hand),
    "the class row is dropped": ("missing", rows),
    "the class row comes last": (
        "first",
        lambda t, o, n: torch.cat([rows(t, o, n), t[:, :1]], 1),
    ),
    "the class row is zero": (
        "must stay",
        lambda t, o, n: torch.cat([0 * t[:, :1], rows(t, o, n)], 1),
    ),
    "the class row is a mean": (
        "must stay",
        lambda t, o, n: torch.cat([t[:, 1:].mean(1, keepdim=True), rows(t, o, n)], 1),
    ),
    "the last row is taken off": (
        "not the last",
        lambda t, o, n: torch.cat([t[:, :1], vit.resize_positions(t[:, :-1], o, n)], 1),
    ),
    "rows and columns exchanged": (
        "exchanged",
        lambda t, o, n: torch.cat([t[:, :1], rows(t, o, n[::-1])], 1),
    ),
    "in one dimension": ("vit.resize_positions", resize_in_one_dimension),
    "another interpolation": ("rows of the patches", resize_other_mode),
    "in place": ("has changed", resize_in_place),
    "unchanged": ("shape", lambda t, o, n: t),
    "returns nothing": ("return", lambda t, o, n: None),
}


@pytest.mark.parametrize("right", [resize_table, resize_with_interpolate])
def test_resize_table_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_resize_table, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_RESIZE.values(), ids=WRONG_RESIZE)
def test_resize_table_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_resize_table, wrong, word)


# The window


def distances(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    n = torch.arange(rows * columns)
    row, column = n // columns, n % columns
    return (row[:, None] - row).abs(), (column[:, None] - column).abs()


def framed(inner: Tensor) -> Tensor:
    return F.pad(inner, (1, 0, 1, 0), value=True)


def window_mask(rows: int, columns: int, reach: int) -> Tensor:
    down, across = distances(rows, columns)
    mask = torch.ones(1 + rows * columns, 1 + rows * columns, dtype=torch.bool)
    mask[1:, 1:] = (down <= reach) & (across <= reach)
    return mask


def window_by_loops(rows: int, columns: int, reach: int) -> Tensor:
    places = [(r, c) for r in range(rows) for c in range(columns)]
    inner = [[max(abs(a - c), abs(b - d)) <= reach for c, d in places] for a, b in places]
    return torch.tensor([[True] * (1 + len(places)), *([True, *row] for row in inner)])


def window_of(near: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[int, int, int], Tensor]:
    return lambda rows, columns, reach: framed(near(*distances(rows, columns), reach))


def window_in_a_line(rows: int, columns: int, reach: int) -> Tensor:
    n = torch.arange(rows * columns)
    return framed((n[:, None] - n).abs() <= reach)


def window_columns_first(rows: int, columns: int, reach: int) -> Tensor:
    return window_mask(columns, rows, reach)


def window_by_rows(rows: int, columns: int, reach: int) -> Tensor:
    n = torch.arange(rows * columns)
    row, column = n // rows, n % rows
    near = ((row[:, None] - row).abs() <= reach) & ((column[:, None] - column).abs() <= reach)
    return framed(near)


def window_class_sees_only(rows: int, columns: int, reach: int) -> Tensor:
    mask = window_mask(rows, columns, reach)
    mask[1:, 0] = False
    return mask


def window_class_at_the_end(rows: int, columns: int, reach: int) -> Tensor:
    return F.pad(window_mask(rows, columns, reach)[1:, 1:], (0, 1, 0, 1), value=True)


WRONG_WINDOW = {
    "rows plus columns": ("1 row(s) and 1 column(s)", window_of(lambda d, a, r: d + a <= r)),
    "rows or columns": ("must not see", window_of(lambda d, a, r: (d <= r) | (a <= r))),
    "only rows": ("column(s) away", window_of(lambda d, a, r: d <= r)),
    "less, not at most": ("must see", window_of(lambda d, a, r: (d < r) & (a < r))),
    "not itself": (
        "0 row(s) and 0 column(s)",
        window_of(lambda d, a, r: (d + a > 0) & (d <= r) & (a <= r)),
    ),
    "a circle": ("must see", window_of(lambda d, a, r: d**2 + a**2 <= r**2)),
    "a line of patches": ("must see patch (1, 0)", window_in_a_line),
    "rows and columns exchanged": ("must", window_columns_first),
    "divides by rows": ("must", window_by_rows),
    "inverted": ("True means", lambda r, c, n: ~window_mask(r, c, n)),
    "no class token": ("shape", lambda r, c, n: window_mask(r, c, n)[1:, 1:]),
    "the class token is not seen": ("class token", window_class_sees_only),
    "the class token is last": ("class token", window_class_at_the_end),
    "floats": ("bool", lambda r, c, n: window_mask(r, c, n).float()),
    "returns nothing": ("return", lambda r, c, n: None),
}


@pytest.mark.parametrize("right", [window_mask, window_by_loops])
def test_window_mask_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_window_mask, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_WINDOW.values(), ids=WRONG_WINDOW)
def test_window_mask_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_window_mask, wrong, word)
