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
from minivlm.exercises import vit_core as core
from minivlm.vit import ViTConfig

Grid = tuple[int, int]

# Cut


def by_loops(images: Tensor, patch: int) -> Tensor:
    _, _, height, width = images.shape
    corners = [(y, x) for y in range(0, height, patch) for x in range(0, width, patch)]
    cut = [images[:, :, y : y + patch, x : x + patch].flatten(1) for y, x in corners]
    return torch.stack(cut, dim=1)


def by_unfold(images: Tensor, patch: int) -> Tensor:
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def six_axes(images: Tensor, patch: int) -> Tensor:
    b, c, height, width = images.shape
    return images.reshape(b, c, height // patch, patch, width // patch, patch)


def cut_in_place(images: Tensor, patch: int) -> Tensor:
    patches = by_loops(images, patch)
    images.zero_()
    return patches


def rows_of(order: tuple[int, ...]) -> Callable[[Tensor, int], Tensor]:
    def cut(images: Tensor, patch: int) -> Tensor:
        moved = six_axes(images, patch).permute(order)
        return moved.reshape(len(images), -1, images.shape[1] * patch**2)

    return cut


WRONG_PATCHIFY = {
    "a bare reshape": (
        "reshape alone",
        lambda x, p: x.reshape(len(x), -1, x.shape[1] * p * p),
    ),
    "unfold twice, never permuted": (
        "front",
        lambda x, p: x.unfold(2, p, p).unfold(3, p, p).reshape(len(x), -1, x.shape[1] * p * p),
    ),
    "channels last": ("channels last", rows_of((0, 2, 4, 3, 5, 1))),
    "channels in the middle": ("middle", rows_of((0, 2, 4, 3, 1, 5))),
    "column by column": ("row by row", rows_of((0, 4, 2, 1, 3, 5))),
    "transposed patches": ("exchanged", rows_of((0, 2, 4, 1, 5, 3))),
    "unfold without transpose": (
        "exchange the last two",
        lambda x, p: F.unfold(x, p, stride=p),
    ),
    "the grid is not flattened": (
        "flatten the grid",
        lambda x, p: six_axes(x, p).permute(0, 2, 4, 1, 3, 5).flatten(3),
    ),
    "the patch is not flattened": (
        "flatten each patch",
        lambda x, p: six_axes(x, p).permute(0, 2, 4, 1, 3, 5).flatten(1, 2),
    ),
    "one image alone": ("shape", lambda x, p: by_loops(x[:1], p)[0]),
    "three channels": ("shape", lambda x, p: by_loops(x, p).view(len(x), -1, 3 * p * p)),
    "a square grid": (
        "shape",
        lambda x, p: by_loops(x, p)[:, : (x.shape[2] // p) ** 2],
    ),
    "a patch with overlap": ("shape", lambda x, p: F.unfold(x, p).transpose(1, 2)),
    "in place": ("has changed", cut_in_place),
    "backwards": ("values differ", lambda x, p: by_loops(x, p).flip(1)),
    "returns nothing": ("return", lambda x, p: None),
}


@pytest.mark.parametrize("right", [by_loops, by_unfold, rows_of((0, 2, 4, 1, 3, 5))])
def test_patchify_accepts_right_solutions(right: Callable) -> None:
    accepts(core.check_patchify, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_PATCHIFY.values(), ids=WRONG_PATCHIFY)
def test_patchify_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(core.check_patchify, wrong, word)


def back_by_loops(patches: Tensor, patch: int, rows: int) -> Tensor:
    b, n, values = patches.shape
    columns = n // rows
    images = patches.new_zeros(b, values // patch**2, rows * patch, columns * patch)
    for i in range(n):
        y, x = patch * (i // columns), patch * (i % columns)
        images[:, :, y : y + patch, x : x + patch] = patches[:, i].reshape(b, -1, patch, patch)
    return images


def back_by_fold(patches: Tensor, patch: int, rows: int) -> Tensor:
    size = (rows * patch, patches.shape[1] // rows * patch)
    return F.fold(patches.transpose(1, 2), size, patch, stride=patch)


def back_of(order: tuple[int, ...]) -> Callable[[Tensor, int, int], Tensor]:
    def back(patches: Tensor, patch: int, rows: int) -> Tensor:
        b, n, values = patches.shape
        grid = patches.reshape(b, rows, n // rows, values // patch**2, patch, patch)
        size = (b, values // patch**2, rows * patch, n // rows * patch)
        return grid.permute(order).reshape(size)

    return back


def back_channels_last(patches: Tensor, patch: int, rows: int) -> Tensor:
    last = patches.unflatten(2, (patch, patch, -1)).permute(0, 1, 4, 2, 3)
    return back_by_loops(last.flatten(2), patch, rows)


def back_in_place(patches: Tensor, patch: int, rows: int) -> Tensor:
    images = back_by_loops(patches, patch, rows)
    patches.zero_()
    return images


WRONG_UNPATCHIFY = {
    "a bare reshape": ("reshape alone", back_of((0, 1, 2, 3, 4, 5))),
    "the same permute again": ("once more", back_of((0, 2, 4, 1, 3, 5))),
    "rows are columns": (
        "H = rows",
        lambda x, p, rows: back_by_loops(x, p, x.shape[1] // rows),
    ),
    "columns first": (
        "right of patch 0",
        lambda x, p, rows: back_by_loops(
            x.unflatten(1, (-1, rows)).transpose(1, 2).flatten(1, 2), p, rows
        ),
    ),
    "transposed patches": ("exchanged", back_of((0, 3, 1, 5, 2, 4))),
    "places last": ("next to", back_of((0, 3, 4, 1, 5, 2))),
    "channels forward only": ("come after", back_of((0, 3, 1, 2, 4, 5))),
    "channels last": ("channels last", back_channels_last),
    "a square grid": (
        "shape",
        lambda x, p, rows: back_by_loops(x[:, : rows * rows], p, rows),
    ),
    "no batch": ("shape", lambda x, p, rows: back_by_loops(x, p, rows)[0]),
    "in place": ("has changed", back_in_place),
    "returns nothing": ("return", lambda x, p, rows: None),
}


@pytest.mark.parametrize("right", [back_by_loops, back_by_fold, back_of((0, 3, 1, 4, 2, 5))])
def test_unpatchify_accepts_right_solutions(right: Callable) -> None:
    accepts(core.check_unpatchify, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_UNPATCHIFY.values(), ids=WRONG_UNPATCHIFY)
def test_unpatchify_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(core.check_unpatchify, wrong, word)


# The sequence


def tokens(patches: Tensor, token: Tensor, positions: Tensor) -> Tensor:
    token = token.repeat(len(patches), 1, 1)
    return torch.cat([token, patches], dim=1) + positions


def tokens_by_rows(patches: Tensor, token: Tensor, positions: Tensor) -> Tensor:
    out = positions.repeat(len(patches), 1, 1)
    out[:, 0] += token[0, 0]
    out[:, 1:] += patches
    return out


def tokens_in_place(patches: Tensor, token: Tensor, positions: Tensor) -> Tensor:
    token += positions[:, :1]
    patches += positions[:, 1:]
    return torch.cat([token.expand(len(patches), -1, -1), patches], dim=1)


def row(patches: Tensor, token: Tensor) -> Tensor:
    return token.expand(len(patches), -1, -1)


WRONG_TOKENS = {
    "not expanded": ("expand", lambda x, c, p: torch.cat([c, x], dim=1) + p),
    "the class token last": ("first", lambda x, c, p: torch.cat([x, row(x, c)], dim=1) + p),
    "no position for the class token": (
        "row 0",
        lambda x, c, p: torch.cat([row(x, c), x + p[:, 1:]], dim=1),
    ),
    "one row off": ("row 1", lambda x, c, p: torch.cat([row(x, c), x + p[:, :-1]], dim=1)),
    "no positions": ("missing", lambda x, c, p: torch.cat([row(x, c), x], dim=1)),
    "no class token": ("class token is missing", lambda x, c, p: x + p[:, 1:]),
    "positions beside": (
        "added",
        lambda x, c, p: torch.cat([torch.cat([row(x, c), x], 1), p.expand(len(x), -1, -1)], dim=2),
    ),
    "multiplied": ("added", lambda x, c, p: torch.cat([row(x, c), x], dim=1) * p),
    "the mean": (
        "mean",
        lambda x, c, p: torch.cat([x.mean(1, keepdim=True), x], dim=1) + p,
    ),
    "the class token added": ("in front", lambda x, c, p: x + c + p[:, 1:]),
    "along the batch": ("axis 1", lambda x, c, p: torch.cat([row(x, c), x], dim=0)),
    "in place": ("has changed", tokens_in_place),
    "twice": ("values differ", lambda x, c, p: tokens(x, c, p) + p),
    "returns nothing": ("return", lambda x, c, p: None),
}


@pytest.mark.parametrize("right", [tokens, tokens_by_rows])
def test_tokens_accepts_right_solutions(right: Callable) -> None:
    accepts(core.check_tokens, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_TOKENS.values(), ids=WRONG_TOKENS)
def test_tokens_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(core.check_tokens, wrong, word)


# Attention


def attention(x: Tensor, layer: nn.Module) -> Tensor:
    b, t, width = x.shape
    size = (b, t, layer.heads, width // layer.heads)
    q, k, v = (project(x).reshape(size).transpose(1, 2) for project in (layer.q, layer.k, layer.v))
    weights = (q @ k.transpose(2, 3) / size[3] ** 0.5).softmax(dim=-1)
    return layer.out((weights @ v).transpose(1, 2).reshape(b, t, width))


def attention_by_heads(x: Tensor, layer: nn.Module) -> Tensor:
    q, k, v = (torch.chunk(f(x), layer.heads, dim=-1) for f in (layer.q, layer.k, layer.v))
    mixed = [F.scaled_dot_product_attention(*head) for head in zip(q, k, v, strict=True)]
    return layer.out(torch.cat(mixed, dim=-1))


def attention_by_einsum(x: Tensor, layer: nn.Module) -> Tensor:
    q, k, v = (f(x).unflatten(-1, (layer.heads, -1)) for f in (layer.q, layer.k, layer.v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    return layer.out(torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(2))


def heads_of(
    x: Tensor, layer: nn.Module, scale: float = 1.0, over: int = -1, merged: bool = True
) -> Tensor:
    q, k, v = (
        f(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for f in (layer.q, layer.k, layer.v)
    )
    mixed = (q @ k.transpose(2, 3) * scale).softmax(dim=over) @ v
    return mixed.transpose(1, 2).flatten(2) if merged else mixed.reshape(x.shape)


def size_of(x: Tensor, layer: nn.Module) -> float:
    return x.shape[2] / layer.heads


def one_head(x: Tensor, layer: nn.Module) -> Tensor:
    return layer.out(F.scaled_dot_product_attention(layer.q(x), layer.k(x), layer.v(x)))


def reshaped_heads(x: Tensor, layer: nn.Module) -> Tensor:
    b, t, width = x.shape
    q, k, v = (f(x).reshape(b, layer.heads, t, -1) for f in (layer.q, layer.k, layer.v))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return layer.out(mixed.transpose(1, 2).reshape(b, t, width))


def reshaped_both_ways(x: Tensor, layer: nn.Module) -> Tensor:
    size = len(x), layer.heads, x.shape[1], -1
    q, k, v = (project(x).reshape(size) for project in (layer.q, layer.k, layer.v))
    return layer.out(F.scaled_dot_product_attention(q, k, v).reshape(x.shape))


def among_heads(x: Tensor, layer: nn.Module) -> Tensor:
    q, k, v = (f(x).unflatten(-1, (layer.heads, -1)) for f in (layer.q, layer.k, layer.v))
    return layer.out(F.scaled_dot_product_attention(q, k, v).flatten(2))


def causal_attention(x: Tensor, layer: nn.Module) -> Tensor:
    return layer(x, torch.ones(x.shape[1], x.shape[1]).tril().bool())


def values_of(x: Tensor, layer: nn.Module, value: Tensor, key: Tensor | None = None) -> Tensor:
    key = layer.k(x) if key is None else key
    parts = (layer.q(x), key, value)
    q, k, v = (part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in parts)
    return layer.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def right_scale(x: Tensor, layer: nn.Module) -> float:
    return size_of(x, layer) ** -0.5


WRONG_ATTENTION = {
    "not scaled": ("not divided", lambda x, layer: layer.out(heads_of(x, layer))),
    "scaled by the width": (
        "width of a head",
        lambda x, layer: layer.out(heads_of(x, layer, x.shape[2] ** -0.5)),
    ),
    "divided by d": (
        "not by d",
        lambda x, layer: layer.out(heads_of(x, layer, 1 / size_of(x, layer))),
    ),
    "multiplied": (
        "multiplied",
        lambda x, layer: layer.out(heads_of(x, layer, size_of(x, layer) ** 0.5)),
    ),
    "one head": ("one head", one_head),
    "reshaped to heads": ("mixes tokens", reshaped_heads),
    "reshaped to heads and back": ("and back, mixes tokens", reshaped_both_ways),
    "among the heads": ("same token", among_heads),
    "heads reshaped back": (
        "transpose back",
        lambda x, layer: layer.out(heads_of(x, layer, right_scale(x, layer), merged=False)),
    ),
    "softmax over queries": (
        "over the keys",
        lambda x, layer: layer.out(heads_of(x, layer, right_scale(x, layer), over=-2)),
    ),
    "softmax over heads": (
        "not over the heads",
        lambda x, layer: layer.out(heads_of(x, layer, right_scale(x, layer), over=1)),
    ),
    "no output projection": (
        "layer.out",
        lambda x, layer: heads_of(x, layer, right_scale(x, layer)),
    ),
    "x as values": ("not x itself", lambda x, layer: values_of(x, layer, x)),
    "keys as values": ("not the keys", lambda x, layer: values_of(x, layer, layer.k(x))),
    "queries as keys": (
        "layer.k",
        lambda x, layer: values_of(x, layer, layer.v(x), layer.q(x)),
    ),
    "causal": ("no future", causal_attention),
    "a residual": ("values differ", lambda x, layer: x + layer(x)),
    "no batch": ("shape", lambda x, layer: layer(x)[0]),
    "in place": ("has changed", lambda x, layer: layer(x.mul_(1.5))),
    "returns nothing": ("return", lambda x, layer: None),
}


@pytest.mark.parametrize("right", [attention, attention_by_heads, attention_by_einsum])
def test_attention_accepts_right_solutions(right: Callable) -> None:
    accepts(core.check_attention, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_ATTENTION.values(), ids=WRONG_ATTENTION)
def test_attention_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(core.check_attention, wrong, word)


# The block


def block(x: Tensor, b: nn.Module) -> Tensor:
    x = x + b.attention(b.norm1(x))
    return x + b.mlp(b.norm2(x))


def block_in_one_line(x: Tensor, b: nn.Module) -> Tensor:
    middle = torch.add(b.attention(b.norm1(x)), x)
    return b.mlp.down(F.gelu(b.mlp.up(b.norm2(middle)))) + middle


def block_post_norm(x: Tensor, b: nn.Module) -> Tensor:
    x = b.norm1(x + b.attention(x))
    return b.norm2(x + b.mlp(x))


def block_on_copies(x: Tensor, b: nn.Module) -> Tensor:
    x = b.norm1(x)
    x = x + b.attention(x)
    x = b.norm2(x)
    return x + b.mlp(x)


def block_on_first_copy(x: Tensor, b: nn.Module) -> Tensor:
    x = b.norm1(x)
    x = x + b.attention(x)
    return x + b.mlp(b.norm2(x))


def block_mlp_first(x: Tensor, b: nn.Module) -> Tensor:
    x = x + b.mlp(b.norm2(x))
    return x + b.attention(b.norm1(x))


def block_without_first_residual(x: Tensor, b: nn.Module) -> Tensor:
    x = b.attention(b.norm1(x))
    return x + b.mlp(b.norm2(x))


def block_with(first: Callable, second: Callable) -> Callable[[Tensor, nn.Module], Tensor]:
    def run(x: Tensor, b: nn.Module) -> Tensor:
        x = x + b.attention(first(b)(x))
        return x + b.mlp(second(b)(x))

    return run


def block_in_place(x: Tensor, b: nn.Module) -> Tensor:
    x += b.attention(b.norm1(x))
    x += b.mlp(b.norm2(x))
    return x


WRONG_BLOCK = {
    "post-norm": ("post-norm", block_post_norm),
    "no residual": ("both residuals", lambda x, b: b.mlp(b.norm2(b.attention(b.norm1(x))))),
    "no residual at attention": ("attention's residual", block_without_first_residual),
    "no residual at the MLP": (
        "MLP's residual",
        lambda x, b: b.mlp(b.norm2(x + b.attention(b.norm1(x)))),
    ),
    "in parallel": (
        "old one",
        lambda x, b: x + b.attention(b.norm1(x)) + b.mlp(b.norm2(x)),
    ),
    "added to the copies": ("both sums", block_on_copies),
    "added to the first copy": ("normalised copy", block_on_first_copy),
    "MLP first": ("attention comes first", block_mlp_first),
    "one norm for both": ("its own norm", block_with(lambda b: b.norm1, lambda b: b.norm1)),
    "norms exchanged": ("norm1 belongs", block_with(lambda b: b.norm2, lambda b: b.norm1)),
    "no norms": ("norms are missing", block_with(lambda b: nn.Identity(), lambda b: nn.Identity())),
    "no second norm": ("MLP has no norm", block_with(lambda b: b.norm1, lambda b: nn.Identity())),
    "in place": ("has changed", block_in_place),
    "returns nothing": ("return", lambda x, b: None),
}


@pytest.mark.parametrize("right", [block, block_in_one_line])
def test_block_accepts_right_solutions(right: Callable) -> None:
    accepts(core.check_encoder_block, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_BLOCK.values(), ids=WRONG_BLOCK)
def test_block_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(core.check_encoder_block, wrong, word)


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


def resize_with(**options: object) -> Callable[[Tensor, Grid, Grid], Tensor]:
    def resize(table: Tensor, old: Grid, new: Grid) -> Tensor:
        grid = table[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, new, **options).flatten(2).transpose(1, 2)
        return torch.cat([table[:, :1], grid], 1)

    return resize


def resize_viewed(table: Tensor, old: Grid, new: Grid) -> Tensor:
    grid = table[:, 1:].reshape(1, table.shape[2], *old)
    grid = F.interpolate(grid, new, mode="bicubic").flatten(2).transpose(1, 2)
    return torch.cat([table[:, :1], grid], 1)


def resize_viewed_back(table: Tensor, old: Grid, new: Grid) -> Tensor:
    grid = table[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, new, mode="bicubic")
    return torch.cat([table[:, :1], grid.reshape(1, -1, table.shape[2])], 1)


def resize_patches_in_a_line(table: Tensor, old: Grid, new: Grid) -> Tensor:
    patches = table[:, 1:].transpose(1, 2)
    patches = F.interpolate(patches, new[0] * new[1], mode="linear").transpose(1, 2)
    return torch.cat([table[:, :1], patches], 1)


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
    "the whole table in a line": ("after the class token", resize_in_one_dimension),
    "the patches in a line": ("one line", resize_patches_in_a_line),
    "bilinear": ("bilinear", resize_with(mode="bilinear")),
    "the default mode": ("nearest", resize_with()),
    "aligned corners": ("align_corners", resize_with(mode="bicubic", align_corners=True)),
    "antialiased": ("antialias", resize_with(mode="bicubic", antialias=True)),
    "viewed, not permuted": ("permute", resize_viewed),
    "viewed back": ("transpose back", resize_viewed_back),
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
