"""02 · Checks of what the reader of notebook 02 writes before it is shown."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.exercises.answers import expect_tensor, near
from minivlm.parts.layers import Attention, merge_heads, split_heads
from minivlm.parts.masks import causal
from minivlm.vit import EncoderBlock, patchify, unpatchify

Mistakes = Mapping[str, Callable[..., Tensor]]  # what is wrong -> a function that does it


def judge_case(
    function: Callable, right: Callable, mistakes: Mistakes, given: tuple, case: str
) -> None:
    """One case: the shape, the values, and that nothing given has changed.

    A mistake that gives the very result is named; one that does not fit the case is passed over.
    """
    tensors = [value for value in given if isinstance(value, Tensor)]
    before = [tensor.clone() for tensor in tensors]
    with torch.no_grad():
        wanted, got = right(*given), function(*given)
        same = all(map(torch.equal, tensors, before))
        assert same, f"{case}: the tensor that was given has changed"
        known = (what for what, wrong in mistakes.items() if explains(wrong, given, wanted, got))
        hint = next(known, "")
    assert not hint, f"{case}: {hint}"
    got = expect_tensor(got, wanted.shape, case)
    far = (got - wanted).abs().max().item()
    assert near(got, wanted), f"{case}: right shape, but values differ by up to {far:.3g}"


def explains(wrong: Callable[..., Tensor], given: tuple, wanted: Tensor, got: Any) -> bool:
    """Whether a mistake gives what the reader got, and not what is wanted."""
    try:
        made = wrong(*given)
    except RuntimeError:  # the mistake cannot be made here: the sizes do not fit
        return False
    right = made.shape == wanted.shape and near(made, wanted)
    return isinstance(got, Tensor) and got.shape == made.shape and near(got, made) and not right


# Cut


def grid_of(images: Tensor, patch: int) -> Tensor:
    """(B, C, rows, p, columns, p): the axes that patchify moves."""
    return images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))


def in_order(order: tuple[int, ...], images: Tensor, patch: int) -> Tensor:
    """The six axes in some order, then as a sequence: (B, N, ...)."""
    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    return grid_of(images, patch).permute(order).reshape(len(images), rows * columns, -1)


def sliding(images: Tensor, patch: int) -> Tensor:
    """What F.unfold gives: (B, C * p * p, N)."""
    return F.unfold(images.double(), patch, stride=patch)


FORGOTTEN = "the numbers were never moved: a reshape alone mixes different patches in one row"
PATCH_MISTAKES: Mistakes = {
    FORGOTTEN: lambda images, patch: in_order((0, 1, 2, 3, 4, 5), images, patch),
    "bring the grid's axes to the front before you flatten: each of your rows mixes several "
    "patches": lambda images, patch: in_order((0, 1, 2, 4, 3, 5), images, patch),
    "the order inside a patch is (C, p, p), channels first; yours is channels last": (
        lambda images, patch: in_order((0, 2, 4, 3, 5, 1), images, patch)
    ),
    "the order inside a patch is (C, p, p); yours has the channels in the middle": (
        lambda images, patch: in_order((0, 2, 4, 3, 1, 5), images, patch)
    ),
    "the patches run column by column; reading order is row by row": (
        lambda images, patch: in_order((0, 4, 2, 1, 3, 5), images, patch)
    ),
    "rows and columns inside a patch are exchanged": (
        lambda images, patch: in_order((0, 2, 4, 1, 5, 3), images, patch)
    ),
    "this is F.unfold's (B, C * p * p, N): exchange the last two axes": sliding,
    "flatten the grid: N patches in one axis, not rows and columns in two": (
        lambda images, patch: grid_of(images, patch).permute(0, 2, 4, 1, 3, 5).flatten(3)
    ),
    "flatten each patch: one axis of C * p * p values": (
        lambda images, patch: grid_of(images, patch).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    ),
}
CUTS = [((2, 3, 8, 12), 4), ((2, 2, 9, 6), 3), ((1, 1, 4, 10), 2), ((3, 4, 6, 6), 6)]


def check_patchify(my_patchify: Callable[[Tensor, int], Tensor]) -> None:
    """On images whose numbers all differ; more columns than rows, then more rows."""
    for shape, patch in CUTS:
        images = torch.arange(float(torch.Size(shape).numel())).view(shape)
        case = f"images {shape}, patch {patch}"
        judge_case(my_patchify, patchify, PATCH_MISTAKES, (images, patch), case)


def assembled(order: tuple[int, ...], patches: Tensor, patch: int, rows: int) -> Tensor:
    """(B, rows, columns, C, p, p) in some order, as images."""
    columns, channels = patches.shape[1] // rows, patches.shape[2] // patch**2
    grid = patches.reshape(-1, rows, columns, channels, patch, patch).permute(order)
    return grid.reshape(-1, channels, rows * patch, columns * patch)


def by_width(patches: Tensor, patch: int, rows: int) -> Tensor:
    """The number of rows taken for the number of columns."""
    return unpatchify(patches, patch, patches.shape[1] // rows)


def read_columns_first(patches: Tensor, patch: int, rows: int) -> Tensor:
    """Patch 1 put below patch 0, not beside it."""
    grid = patches.unflatten(1, (patches.shape[1] // rows, rows)).transpose(1, 2)
    return unpatchify(grid.flatten(1, 2), patch, rows)


UNPATCH_MISTAKES: Mistakes = {
    FORGOTTEN: lambda patches, patch, rows: assembled((0, 1, 2, 3, 4, 5), patches, patch, rows),
    "that is patchify's permute once more; the way back is the inverse one": (
        lambda patches, patch, rows: assembled((0, 2, 4, 1, 3, 5), patches, patch, rows)
    ),
    "rows counts the patch rows, so H = rows * patch; yours is the width": by_width,
    "patch 1 is right of patch 0, not below it": read_columns_first,
    "rows and columns inside a patch are exchanged": (
        lambda patches, patch, rows: assembled((0, 3, 1, 5, 2, 4), patches, patch, rows)
    ),
    "put the axis of places next to the axis of the patch: (rows, p, columns, p)": (
        lambda patches, patch, rows: assembled((0, 3, 4, 1, 5, 2), patches, patch, rows)
    ),
    "the patches' own rows come after the grid's rows: (rows, p, columns, p)": (
        lambda patches, patch, rows: assembled((0, 3, 1, 2, 4, 5), patches, patch, rows)
    ),
    "a patch holds (C, p, p), channels first; you read channels last": (
        lambda patches, patch, rows: unpatchify(channels_first(patches, patch), patch, rows)
    ),
}


def channels_first(patches: Tensor, patch: int) -> Tensor:
    """Features read as (p, p, C), written as (C, p, p)."""
    return patches.unflatten(2, (patch, patch, -1)).permute(0, 1, 4, 2, 3).flatten(2)


def check_unpatchify(my_unpatchify: Callable[[Tensor, int, int], Tensor]) -> None:
    """On grids that are not square."""
    for shape, patch in CUTS:
        images = torch.arange(float(torch.Size(shape).numel())).view(shape)
        given = (patchify(images, patch), patch, shape[2] // patch)
        case = f"patches {tuple(given[0].shape)} of images {shape}, {given[2]} row(s)"
        judge_case(my_unpatchify, unpatchify, UNPATCH_MISTAKES, given, case)


# Class token and positions


def joined(patches: Tensor, class_token: Tensor) -> Tensor:
    """The class token in front, no positions."""
    return torch.cat([class_token.expand(len(patches), -1, -1), patches], dim=1)


def sequence(patches: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    """(B, N, D), (1, 1, D), (1, 1 + N, D) -> (B, 1 + N, D)."""
    return joined(patches, class_token) + positions


def class_last(patches: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    """The class token after the patches."""
    return torch.cat([patches, class_token.expand(len(patches), -1, -1)], dim=1) + positions


def without_class_position(patches: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    """The class token as it is."""
    return sequence(patches, class_token - positions[:, :1], positions)


SEQUENCE_MISTAKES: Mistakes = {
    "the class token comes first, not last": class_last,
    "the class token has a position too: row 0 of the table": without_class_position,
    "the patches' positions start at row 1 of the table; yours are one row off": (
        lambda patches, token, positions: joined(patches + positions[:, :-1], token)
    ),
    "the positions are missing": lambda patches, token, positions: joined(patches, token),
    "the class token is missing": lambda patches, token, positions: patches + positions[:, 1:],
    "positions are added, not put beside the features": lambda patches, token, positions: torch.cat(
        [joined(patches, token), positions.expand(len(patches), -1, -1)], dim=2
    ),
    "positions are added, not multiplied": lambda patches, token, positions: (
        joined(patches, token) * positions
    ),
    "the class token is a learned vector, not the mean of the patches": (
        lambda patches, token, positions: (
            torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1) + positions
        )
    ),
    "put the class token in front of the patches; you added it to each": (
        lambda patches, token, positions: patches + token + positions[:, 1:]
    ),
}


def check_tokens(my_tokens: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Batches of three and of one; no two rows are alike."""
    generator = torch.Generator().manual_seed(0)
    for batch, count, width in [(3, 6, 8), (1, 5, 4), (2, 1, 6)]:
        shapes = [(batch, count, width), (1, 1, width), (1, 1 + count, width)]
        given = tuple(torch.randn(shape, generator=generator) for shape in shapes)
        case = f"{batch} image(s) of {count} patches, width {width}"
        judge_case(partial(expanded, my_tokens, case), sequence, SEQUENCE_MISTAKES, given, case)


def expanded(my_tokens: Callable, case: str, *given: Tensor) -> Tensor:
    """The reader's result; what torch.cat refuses is named for what it is."""
    try:
        return my_tokens(*given)
    except RuntimeError as error:
        refused = "Sizes of tensors must match except in dimension" in str(error)
        along = "dimension 0" not in str(error)
        words = f"{case}: the class token is one for all images, (1, 1, D)"
        assert not refused or along, f"{case}: the sequence is axis 1: torch.cat(..., dim=1)"
        assert not refused or len(given[0]) == 1, f"{words}: expand it to the batch first"
        raise


# Attention and the block


def attention_with(  # noqa: PLR0913  (each is one mistake)
    x: Tensor,
    layer: Attention,
    *,
    scale: Callable[[int, int], float] = lambda width, d: d**-0.5,
    split: Callable[[Tensor, int], Tensor] = split_heads,
    merge: Callable[[Tensor], Tensor] = merge_heads,
    over: int = -1,
    out: bool = True,
    read: str = "qkv",
    mask: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Multi-head attention, with one thing or another done wrongly."""
    projections = {"q": layer.q, "k": layer.k, "v": layer.v, "x": nn.Identity()}
    q, k, v = (split(projections[name](x), layer.heads) for name in read)
    scores = q @ k.transpose(-1, -2) * scale(x.shape[-1], q.shape[-1])
    if mask:
        scores = scores.masked_fill(~mask(scores.shape[-1]), float("-inf"))
    mixed = merge(scores.softmax(dim=over) @ v)
    return layer.out(mixed) if out else mixed


def mixed_up(x: Tensor, heads: int) -> Tensor:
    """Reshaped to (B, h, T, d) without a transpose."""
    return x.reshape(len(x), heads, x.shape[1], -1)


def interleaved(x: Tensor, heads: int) -> Tensor:
    """Every h-th feature for a head."""
    return x.unflatten(-1, (-1, heads)).movedim(-1, 1)


ATTENTION_MISTAKES: Mistakes = {
    "the scores are not divided by sqrt(d)": partial(attention_with, scale=lambda width, d: 1),
    "divide by the square root of d = D / heads, the width of a head, not of D": partial(
        attention_with, scale=lambda width, d: width**-0.5
    ),
    "divide by the square root of d, not by d": partial(
        attention_with, scale=lambda width, d: 1 / d
    ),
    "the scores are multiplied by sqrt(d): divide": partial(
        attention_with, scale=lambda width, d: d**0.5
    ),
    "this is one head: split q, k and v into heads first": partial(
        attention_with, split=lambda x, heads: x[:, None]
    ),
    "this is one head, scaled as several: split q, k and v into heads first": partial(
        attention_with, split=lambda x, heads: x[:, None], scale=lambda width, d: 1
    ),
    "a bare reshape to (B, h, T, d) mixes tokens: split the last axis, then transpose": partial(
        attention_with, split=mixed_up
    ),
    "a bare reshape to (B, h, T, d), and back, mixes tokens: split the last axis, then transpose": (
        partial(attention_with, split=mixed_up, merge=lambda x: x.reshape(len(x), x.shape[2], -1))
    ),
    "heads attend to heads of the same token: transpose to (B, h, T, d) before the scores": partial(
        attention_with,
        split=lambda x, heads: x.unflatten(-1, (heads, -1)),
        merge=lambda x: x.flatten(2),
    ),
    "head 0 has the first d features, not every h-th one": partial(
        attention_with, split=interleaved, merge=lambda x: x.movedim(1, -1).flatten(2)
    ),
    "transpose back to (B, T, h, d) before you flatten the heads": partial(
        attention_with, merge=lambda x: x.reshape(len(x), x.shape[2], -1)
    ),
    "put the heads side by side, head after head": partial(
        attention_with, merge=lambda x: x.permute(0, 2, 3, 1).flatten(2)
    ),
    "the softmax runs over the keys, the last axis": partial(attention_with, over=-2),
    "the softmax runs over the keys, not over the heads": partial(attention_with, over=1),
    "the last step is missing: layer.out mixes the heads": partial(attention_with, out=False),
    "q and k are exchanged: the rows of the scores are the queries": partial(
        attention_with, read="kqv"
    ),
    "mix the values, layer.v(x), not x itself": partial(attention_with, read="qkx"),
    "mix the values, layer.v(x), not the keys": partial(attention_with, read="qkk"),
    "keys have a projection of their own, layer.k": partial(attention_with, read="qqv"),
    "an image has no future: no causal mask here": partial(attention_with, mask=causal),
    "the softmax is missing": lambda x, layer: layer.out(
        merge_heads(_scores(x, layer) @ split_heads(layer.v(x), layer.heads))
    ),
}


def _scores(x: Tensor, layer: Attention) -> Tensor:
    """Before the softmax."""
    q, k = split_heads(layer.q(x), layer.heads), split_heads(layer.k(x), layer.heads)
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def check_attention(my_attention: Callable[[Tensor, Attention], Tensor]) -> None:
    """Layers of three, two and one head; no size equals another one."""
    torch.manual_seed(0)
    for batch, tokens, width, heads in [(2, 5, 12, 3), (3, 7, 8, 2), (1, 4, 6, 1)]:
        layer, x = Attention(width, heads).requires_grad_(False), torch.randn(batch, tokens, width)
        for projection in (layer.q, layer.k):
            projection.weight *= 3  # sharp enough to tell scales apart
        case = f"x ({batch}, {tokens}, {width}), {heads} head(s)"
        judge_case(my_attention, applied, ATTENTION_MISTAKES, (x, layer), case)


def applied(x: Tensor, layer: nn.Module) -> Tensor:
    """What the package's layer gives."""
    return layer(x)


def post_norm(x: Tensor, block: EncoderBlock) -> Tensor:
    """The block of the first transformer (2017)."""
    x = block.norm1(x + block.attention(x))
    return block.norm2(x + block.mlp(x))


def mlp_first(x: Tensor, block: EncoderBlock) -> Tensor:
    """The halves in the other order."""
    x = x + block.mlp(block.norm2(x))
    return x + block.attention(block.norm1(x))


def halves(
    x: Tensor, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]
) -> Tensor:
    """x + first(x), then x + second(x)."""
    x = x + first(x)
    return x + second(x)


def on_copies(x: Tensor, block: EncoderBlock) -> Tensor:
    """Normalise, then add, in both halves."""
    x = block.norm1(x)
    x = block.norm2(x + block.attention(x))
    return x + block.mlp(x)


BLOCK_MISTAKES: Mistakes = {
    "this is post-norm: the norm comes before attention and MLP, and x stays unnormalised": (
        post_norm
    ),
    "both residuals are missing: add x": lambda x, block: block.mlp(
        block.norm2(block.attention(block.norm1(x)))
    ),
    "attention's residual is missing: x + attention(...)": lambda x, block: halves(
        block.attention(block.norm1(x)), torch.zeros_like, lambda x: block.mlp(block.norm2(x))
    ),
    "the MLP's residual is missing: x + mlp(...)": lambda x, block: block.mlp(
        block.norm2(x + block.attention(block.norm1(x)))
    ),
    "the MLP reads the new x, after attention; yours reads the old one": lambda x, block: (
        x + block.attention(block.norm1(x)) + block.mlp(block.norm2(x))
    ),
    "add to x itself, not to its normalised copy": lambda x, block: halves(
        block.norm1(x), lambda n: block.attention(n), lambda y: block.mlp(block.norm2(y))
    ),
    "both sums add to the normalised copy: add to x itself": on_copies,
    "attention comes first, then the MLP": mlp_first,
    "each half has its own norm: norm1, then norm2": lambda x, block: halves(
        x, lambda y: block.attention(block.norm1(y)), lambda y: block.mlp(block.norm1(y))
    ),
    "norm1 belongs to attention, norm2 to the MLP": lambda x, block: halves(
        x, lambda y: block.attention(block.norm2(y)), lambda y: block.mlp(block.norm1(y))
    ),
    "the norms are missing": lambda x, block: halves(x, block.attention, block.mlp),
    "attention has no norm": lambda x, b: halves(x, b.attention, lambda y: b.mlp(b.norm2(y))),
    "the MLP has no norm": lambda x, b: halves(x, lambda y: b.attention(b.norm1(y)), b.mlp),
}


def check_encoder_block(my_block: Callable[[Tensor, EncoderBlock], Tensor]) -> None:
    """With norms whose weights differ."""
    torch.manual_seed(0)
    for batch, tokens, width in [(2, 5, 12), (1, 3, 8)]:
        block = EncoderBlock(width, 2, 3 * width, eps=1e-6, act="gelu").requires_grad_(False)
        for norm in (block.norm1, block.norm2):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
        x = 2 * torch.randn(batch, tokens, width) + 1
        case = f"x ({batch}, {tokens}, {width})"
        judge_case(my_block, applied, BLOCK_MISTAKES, (x, block), case)
