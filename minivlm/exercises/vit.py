"""02 · Checks of the exercises of notebook 02: those at its end, and the position table.

What the reader writes on the way to the whole model is checked in vit_core.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.exercises.answers import compare_answers, expect_number, expect_tensor, near
from minivlm.exercises.vit_core import Mistakes, judge_case
from minivlm.plotting import effective_mask
from minivlm.vit import EncoderBlock, ViT, ViTConfig, resize_positions

Grid = tuple[int, int]

MODELS = {
    "no block": ViTConfig((32, 48), 16, 10, 0, 2, 24),
    "two blocks": ViTConfig((32, 48), 16, 10, 2, 2, 24),
    "one channel": ViTConfig((32, 48), 16, 10, 2, 2, 24, channels=1),
    "a square image": ViTConfig((48, 48), 16, 10, 1, 2, 40),
    "ViT-B/16": ViTConfig((224, 224), 16, 768, 12, 12, 3072),
}
COUNT_MISTAKES: dict[str, Callable[[ViTConfig], int]] = {  # how many parameters are missing
    "one vector of length width is missing: class token, its position or a bias": lambda c: c.width,
    "two vectors of length width are missing; the last norm has two": lambda c: 2 * c.width,
    "a norm has a weight and a bias": lambda c: (2 * c.layers + 1) * c.width,
    "each block has two norms": lambda c: c.layers * 2 * c.width,
    "4 * width a block are missing: its norms, or attention's biases": (
        lambda c: c.layers * 4 * c.width
    ),
    "all norms are missing": lambda c: (2 * c.layers + 1) * 2 * c.width,
    "the bias of attention's output is missing": lambda c: c.layers * c.width,
    "the biases of q, k and v are missing": lambda c: c.layers * 3 * c.width,
    "the biases of the MLP are missing": lambda c: c.layers * (c.hidden + c.width),
    "the MLP's second bias has length width": lambda c: c.layers * (c.width - c.hidden),
    "the biases of the blocks are missing": lambda c: c.layers * (c.hidden + 5 * c.width),
    "attention has four projections": lambda c: c.layers * c.width * (c.width + 1),
    "the MLP has two matrices": lambda c: c.layers * c.width * c.hidden,
    "hidden is a setting, not always 4 * width": (
        lambda c: c.layers * (2 * c.width + 1) * (c.hidden - 4 * c.width)
    ),
    "positions: rows times columns of the grid": (
        lambda c: (c.grid[0] * c.grid[1] - c.grid[0] ** 2) * c.width
    ),
    "the positions are missing": lambda c: (1 + c.grid[0] * c.grid[1]) * c.width,
    "the patch embedding is missing": lambda c: (c.channels * c.patch**2 + 1) * c.width,
    "the number of channels is a setting": lambda c: (c.channels - 3) * c.patch**2 * c.width,
    "a patch has channels * patch * patch values": (
        lambda c: (c.channels - 1) * c.patch**2 * c.width
    ),
    "only one block is counted": lambda c: blocks(c) - blocks(replace(c, layers=1)),
}


# Exercise 1


def check_count_parameters(count_parameters: Callable[[ViTConfig], int]) -> None:
    """Against real models, in which no two sizes are equal."""
    right = [parameters(c) for c in MODELS.values()]
    got = [expect_number(count_parameters(c), name) for name, c in MODELS.items()]
    mistakes: dict[str, Iterable] = {
        name: [n - missing(c) for n, c in zip(right, MODELS.values(), strict=True)]
        for name, missing in COUNT_MISTAKES.items()
    }
    compare_answers(list(MODELS), right, got, mistakes)


@cache
def parameters(c: ViTConfig) -> int:
    """Of a model without weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in ViT(c).parameters())


def blocks(c: ViTConfig) -> int:
    """The parameters of the blocks alone."""
    return parameters(c) - parameters(replace(c, layers=0))


# Exercise 2

ORDERS = {
    "the features are in the order (C, p, p): a bare reshape moves nothing": (0, 1, 2, 3),
    "rows and columns of a patch are exchanged": (0, 3, 2, 1),
    "channels come last, not between rows and columns": (0, 2, 1, 3),
    "channels come last, and rows before columns": (0, 3, 1, 2),
    "channels are first, and rows and columns exchanged": (0, 1, 3, 2),
}


def check_channels_last_matrix(channels_last_matrix: Callable[[Tensor], Tensor]) -> None:
    """On a weight whose entries all differ, and whose sizes do, too."""
    for channels, patch in [(3, 4), (2, 3), (1, 2), (3, 1)]:
        weight = torch.arange(5.0 * channels * patch**2).view(5, channels, patch, patch)
        given = weight.clone()
        case = f"{channels} channel(s), patches of {patch}"
        got = expect_tensor(channels_last_matrix(given), (5, patch**2 * channels), case)
        assert torch.equal(given, weight), f"{case}: the weight that was given has changed"
        right = torch.stack([weight[:, :, i // patch, i % patch] for i in range(patch**2)], 1)
        for mistake, order in ORDERS.items():
            same = near(got, weight.permute(order).flatten(1)) and not near(got, right.flatten(1))
            assert not same, f"{case}: {mistake}"
        mixed = "right shape, but the columns belong to other pixels"
        assert near(got, right.flatten(1)), f"{case}: {mixed}"


# Exercise 3


def check_window_mask(window_mask: Callable[[int, int, int], Tensor]) -> None:
    """Every pair of patches, then what a block obeys."""
    for rows, columns, reach in [(2, 4, 1), (4, 3, 2), (3, 3, 0), (3, 5, 1), (3, 2, 5)]:
        case, size = f"{rows} x {columns}, reach {reach}", 1 + rows * columns
        mask = expect_tensor(window_mask(rows, columns, reach), (size, size), case)
        assert mask.dtype == torch.bool, f"{case}: a bool mask, not {mask.dtype}"
        right = _window(rows, columns, reach)
        inverted = torch.equal(mask, ~right)
        assert not inverted, f"{case}: True means may attend; here it means may not"
        both = bool(mask[0].all() and mask[:, 0].all())
        assert both, f"{case}: the class token sees all and is seen by all"
        _check_patches(mask[1:, 1:], right[1:, 1:], columns, case)
        torch.manual_seed(0)
        block = EncoderBlock(8, 2, 16, eps=1e-6, act="gelu")
        x = torch.randn(1, size, 8)
        seen = effective_mask(partial(block, mask=mask), x)
        assert torch.equal(seen, mask), f"{case}: a block does not obey the mask"


def _window(rows: int, columns: int, reach: int) -> Tensor:
    """The mask, patch by patch."""
    mask = torch.ones(1 + rows * columns, 1 + rows * columns, dtype=torch.bool)
    for a in range(rows * columns):
        for b in range(rows * columns):
            down, across = abs(a // columns - b // columns), abs(a % columns - b % columns)
            mask[1 + a, 1 + b] = max(down, across) <= reach
    return mask


def _check_patches(mask: Tensor, right: Tensor, columns: int, case: str) -> None:
    """The first pair of patches that is wrong, in words."""
    wrong = (mask != right).nonzero().tolist()
    if not wrong:
        return
    a, b = (divmod(n, columns) for n in wrong[0])
    down, across = abs(a[0] - b[0]), abs(a[1] - b[1])
    may = "must see" if right[tuple(wrong[0])] else "must not see"
    away = f"{down} row(s) and {across} column(s) away"
    raise AssertionError(f"{case}: patch {a} {may} patch {b}, {away}")


# The position table

Resize = Callable[[Tensor, Grid, Grid], Tensor]


def resized(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """The class token's row as it is, the others bicubic."""
    return torch.cat([table[:, :1], resize_positions(table[:, 1:], old, new)], dim=1)


def resized_with(table: Tensor, old: Grid, new: Grid, **options: Any) -> Tensor:
    """The same, interpolated in another way."""
    grid = table[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, new, **options).flatten(2).transpose(1, 2)
    return torch.cat([table[:, :1], grid], dim=1)


def bare_view(table: Tensor, old: Grid, new: Grid, *, back: bool = False) -> Tensor:
    """The features viewed as the first axis, or the result viewed as a table."""
    grid = table[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)
    grid = grid if back else table[:, 1:].reshape(1, -1, *old)
    grid = F.interpolate(grid, new, mode="bicubic")
    rows = grid.reshape(1, -1, table.shape[2]) if back else grid.flatten(2).transpose(1, 2)
    return torch.cat([table[:, :1], rows], dim=1)


RESIZE_MISTAKES: Mistakes = {
    "interpolate with mode='bicubic'; yours is bilinear": partial(resized_with, mode="bilinear"),
    "interpolate with mode='bicubic'; yours is nearest, the default": partial(
        resized_with, mode="nearest"
    ),
    "leave align_corners at False": partial(resized_with, mode="bicubic", align_corners=True),
    "leave antialias at False": partial(resized_with, mode="bicubic", antialias=True),
    "features are the last axis: permute to (1, D, rows, columns), a view mixes them": bare_view,
    "transpose back to (1, M, D): a view mixes features and places": partial(bare_view, back=True),
    "rows and columns of the new grid are exchanged": lambda table, old, new: resized(
        table, old, new[::-1]
    ),
    "rows and columns of the old grid are exchanged": lambda table, old, new: resized(
        table, old[::-1], new
    ),
    "the class token's row is the first, not the last": lambda table, old, new: torch.cat(
        [table[:, :1], resize_positions(table[:, :-1], old, new)], dim=1
    ),
    "the class token's row is missing, put it back in front": lambda *given: resized(*given)[:, 1:],
    "the class token's row comes first, not last": lambda *given: resized(*given).roll(-1, dims=1),
    "the class token's row must stay as it is; yours became a mean": lambda table, old, new: (
        torch.cat(
            [table[:, 1:].mean(1, keepdim=True), resize_positions(table[:, 1:], old, new)], dim=1
        )
    ),
    "the class token's row must stay as it is": lambda table, old, new: torch.cat(
        [0 * table[:, :1], resize_positions(table[:, 1:], old, new)], dim=1
    ),
    "the table is an image of rows and columns; you interpolated it as one line": (
        lambda table, old, new: torch.cat([table[:, :1], in_one_line(table[:, 1:], new)], dim=1)
    ),
    "the table is an image of rows and columns, after the class token's row": lambda t, old, new: (
        in_one_line(t, new, extra=1)
    ),
}


def in_one_line(table: Tensor, new: Grid, extra: int = 0) -> Tensor:
    """Interpolated along the sequence."""
    rows = extra + new[0] * new[1]
    return F.interpolate(table.transpose(1, 2), rows, mode="linear").transpose(1, 2)


def check_resize_table(my_resize: Resize) -> None:
    """Larger, smaller, narrower and equal grids."""
    generator = torch.Generator().manual_seed(0)
    for old, new in [((2, 3), (4, 3)), ((3, 3), (2, 6)), ((4, 4), (5, 5)), ((3, 5), (3, 5))]:
        table = torch.randn(1, 1 + old[0] * old[1], 8, generator=generator)
        case = f"{old} -> {new}"
        reader = partial(of_patches, my_resize, case)
        judge_case(reader, resized, RESIZE_MISTAKES, (table, old, new), case)


def of_patches(my_resize: Resize, case: str, table: Tensor, old: Grid, new: Grid) -> Tensor:
    """The reader's result, where the whole table in a grid is named for what it is."""
    try:
        return my_resize(table, old, new)
    except (RuntimeError, ValueError) as error:
        known = (f"size {table.numel()}", f"({table.shape[1]}) in the input")
        whole = any(words in str(error) for words in known)
        words = f"{case}: {table.shape[1]} rows do not fill the grid {old}: the class token"
        assert not whole, f"{words}'s row has no place in the image, take it off first"
        raise
