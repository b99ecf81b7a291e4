"""00 · Checks of notebook 00's exercises: the block of a decoder, and the loss of a next token."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.exercises.answers import expect_number, expect_tensor
from minivlm.exercises.language_model import expect_values, random_tensors

EPS = 1e-6  # of the norms in a block

# The block

Weights = tuple[Tensor, ...]  # norm1, norm2, gate, up, down
Block = Callable[..., Tensor]


def check_block(my_block: Block) -> None:
    """With an attention that mixes tokens, and a stream so faint that eps matters."""
    for seed, (tokens, width, hidden, scale) in enumerate([(3, 4, 7, 1.0), (5, 6, 3, 1e-3)]):
        shapes = (tokens, width), (width,), (width,), (hidden, width), (hidden, width)
        x, *weights, mix = random_tensors(seed, *shapes, (width, hidden), (tokens, tokens))
        case = f"x {(tokens, width)}" + (" of about 0.001" if scale < 1 else "")
        attention, given = partial(torch.matmul, mix), scale * x
        got = my_block(given, attention, *weights)
        got = expect_tensor(got, x.shape, case)
        assert torch.equal(given, scale * x), f"{case}: the x that was given has changed"
        right = plain_block(scale * x, attention, tuple(weights))
        mistakes = block_mistakes(scale * x, attention, tuple(weights))
        expect_values(got, right, mistakes, case)


def rms(x: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    """x over its root mean square, times the weight."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def gated(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU."""
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def plain_block(
    x: Tensor, attention: Callable, weights: Weights, norm: Callable = rms, mlp: Callable = gated
) -> Tensor:
    """The block, with another norm or another MLP where that is the mistake."""
    norm1, norm2, *matrices = weights
    x = x + attention(norm(x, norm1))
    return x + mlp(norm(x, norm2), *matrices)


def mean_square(x: Tensor, dim: int = -1) -> Tensor:
    """Over the features, or over the tokens."""
    return x.square().mean(dim, keepdim=True)


WRONG_NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "RMSNorm subtracts no mean": lambda x, w: rms(x - x.mean(-1, keepdim=True), w),
    "the norm divides by the root of the mean square": lambda x, w: x / (mean_square(x) + EPS) * w,
    "the mean square is over the features of a token, not over the tokens": (
        lambda x, w: x * (mean_square(x, 0) + EPS).rsqrt() * w
    ),
    "every token has its own mean square: this is the mean over all tokens": (
        lambda x, w: x * (x.square().mean() + EPS).rsqrt() * w
    ),
    "it is the mean of the squares, not their sum": (
        lambda x, w: x * (mean_square(x) * x.shape[-1] + EPS).rsqrt() * w
    ),
    "eps = 1e-6 is added to the mean square": lambda x, w: rms(x, w, 0.0),
    "eps is added under the root": lambda x, w: x / (mean_square(x).sqrt() + EPS) * w,
}
WRONG_MLPS: dict[str, Callable[..., Tensor]] = {
    "silu is applied to the gate": lambda x, gate, up, down: (x @ gate.T * (x @ up.T)) @ down.T,
    "silu is applied to the gate alone, not to up": (
        lambda x, gate, up, down: gated(x, up, gate, down)
    ),
    "silu is applied to the gate alone, not to the product": (
        lambda x, gate, up, down: F.silu(x @ gate.T * (x @ up.T)) @ down.T
    ),
    "gate and up are multiplied, not added": (
        lambda x, gate, up, down: (F.silu(x @ gate.T) + x @ up.T) @ down.T
    ),
    "the gate's activation is silu, not gelu": (
        lambda x, gate, up, down: (F.gelu(x @ gate.T) * (x @ up.T)) @ down.T
    ),
    "the gate's activation is silu, not the sigmoid": (
        lambda x, gate, up, down: ((x @ gate.T).sigmoid() * (x @ up.T)) @ down.T
    ),
}


def block_mistakes(x: Tensor, attention: Callable, weights: Weights) -> dict[str, Tensor]:
    """What likely slips give."""
    norm1, _, *matrices = weights
    block, ones = partial(plain_block, x, attention), torch.ones_like(norm1)
    mistakes = residual_mistakes(x, attention, weights)
    mistakes["the norms have weights"] = block((ones, ones, *matrices))
    mistakes["the second half has its own norm weight"] = block((norm1, norm1, *matrices))
    mistakes |= {what: block(weights, norm) for what, norm in WRONG_NORMS.items()}
    return mistakes | {what: block(weights, mlp=mlp) for what, mlp in WRONG_MLPS.items()}


def residual_mistakes(x: Tensor, attention: Callable, weights: Weights) -> dict[str, Tensor]:
    """What is added to what, and what is normed."""
    norm1, norm2, *matrices = weights
    seen = attention(rms(x, norm1))

    def mlp(stream: Tensor) -> Tensor:
        return gated(rms(stream, norm2), *matrices)

    after, raw, first = x + seen, x + attention(x), rms(x + attention(x), norm1)
    return {
        "attention's result is added to x, it does not replace it": seen + mlp(seen),
        "both results are added to the stream: nothing is added here": mlp(seen),
        "the MLP reads the stream after attention, not attention's result alone": x + mlp(seen),
        "the MLP's result is added to the stream, it does not replace it": mlp(after),
        "this is post-norm: the norm comes before attention and before the MLP": (
            rms(first + gated(first, *matrices), norm2)
        ),
        "the MLP reads the stream after attention, not x": after + mlp(x),
        "the second residual adds the stream after attention, not x": x + mlp(after),
        "the second half reads a normed copy, too": after + gated(after, *matrices),
        "attention reads a normed copy, too": raw + mlp(raw),
    }


# The loss


def check_next_token_loss(my_loss: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """Rows of unequal length, rows without padding, and a padding id that is not 0."""
    cases = {
        "rows of 5 and 3 tokens": ([[1, 4, 2, 6, 3], [5, 2, 1, 0, 0]], 0),
        "no padding": ([[3, 1, 2, 5]], 0),
        "padding id 6": ([[0, 4, 6, 6], [2, 0, 1, 5], [3, 6, 6, 6]], 6),
    }
    for seed, (case, (rows, padding_id)) in enumerate(cases.items()):
        ids = torch.tensor(rows)
        (logits,) = random_tensors(seed, (*ids.shape, 7))
        got = torch.tensor(float(expect_number(my_loss(logits, ids, padding_id), case)))
        wrong = loss_mistakes(logits, ids, padding_id)
        expect_values(got, wrong.pop("right"), wrong, case)


def loss_mistakes(logits: Tensor, ids: Tensor, padding_id: int) -> dict[str, Tensor]:
    """The right loss, and what likely slips give."""

    def loss(x: Tensor, y: Tensor, **options: Any) -> Tensor:
        return F.cross_entropy(x.flatten(0, 1), y.flatten(), **options)

    x, y, real = logits[:, :-1], ids[:, 1:], ids[:, 1:] != padding_id
    skip, total = {"ignore_index": padding_id}, loss(x, y, ignore_index=padding_id, reduction="sum")
    by_row = torch.stack([loss(a[None], b[None], **skip) for a, b in zip(x, y, strict=True)])
    return {
        "right": total / real.sum(),
        "position t predicts token t + 1: shift the ids by one": loss(logits, ids, **skip),
        "position t predicts the token after it, not the one before": (
            loss(logits[:, 1:], ids[:, :-1], **skip)
        ),
        "padding is not a token to predict: leave it out": loss(x, y),
        "the mean is over the real targets, not over all positions": total / real.numel(),
        "the mean is over the real targets, not over all ids": total / ids.numel(),
        "take the mean over the targets, not the sum": total,
        "a long row has more targets than a short one: take one mean over all targets": (
            by_row.nanmean()
        ),
        "cross_entropy applies the softmax itself: give it the logits": (
            loss(x.softmax(-1), y, **skip)
        ),
        "the loss is minus the log-probability": -total / real.sum(),
        "id 0 is a token here: the padding id is an argument": loss(x, y, ignore_index=0),
    }
