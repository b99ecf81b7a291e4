"""Notebook 00: right solutions are accepted, and each likely mistake is named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wrong_solutions import accepts, refuses

from minivlm.exercises import decoder_block, decoding
from minivlm.exercises import language_model as exercises
from minivlm.parts.decoder import DecoderConfig, KVCache
from minivlm.parts.layers import attend
from minivlm.parts.masks import causal

INF = float("inf")


# Attention


def my_attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.T / q.shape[1] ** 0.5
    return scores.masked_fill(~mask, -INF).softmax(dim=1) @ v


def attend_by_loops(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for i in range(len(q)):
        seen = mask[i].nonzero()[:, 0]
        scores = torch.einsum("d,sd->s", q[i], k[seen]) * len(q[i]) ** -0.5
        weights = (scores - scores.max()).exp()
        rows.append((weights / weights.sum())[None].double() @ v[seen].double())
    return torch.cat(rows)


def scores_of(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.T / q.shape[1] ** 0.5).masked_fill(~mask, -INF)


def exponentials(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    weights = scores_of(q, k, mask).exp()
    return weights / weights.sum(1, keepdim=True) @ v


WRONG_ATTEND = {
    "no scale": ("square root", lambda q, k, v, m: (q @ k.T).masked_fill(~m, -INF).softmax(1) @ v),
    "divided by d": (
        "not by d",
        lambda q, k, v, m: (q @ k.T / q.shape[1]).masked_fill(~m, -INF).softmax(1) @ v,
    ),
    "the width of v": (
        "not of a value",
        lambda q, k, v, m: (q @ k.T / v.shape[1] ** 0.5).masked_fill(~m, -INF).softmax(1) @ v,
    ),
    "the number of keys": (
        "not the number of keys",
        lambda q, k, v, m: (q @ k.T / len(k) ** 0.5).masked_fill(~m, -INF).softmax(1) @ v,
    ),
    "the number of queries": (
        "not the number of queries",
        lambda q, k, v, m: (q @ k.T / len(q) ** 0.5).masked_fill(~m, -INF).softmax(1) @ v,
    ),
    "the mask added": (
        "adds 1",
        lambda q, k, v, m: (q @ k.T / q.shape[1] ** 0.5 + m).softmax(1) @ v,
    ),
    "softmax over the queries, as it comes": (
        "over the keys",
        lambda q, k, v, m: scores_of(q, k, m).softmax(0) @ v,
    ),
    "the mask inverted, as it comes": (
        "may attend",
        lambda q, k, v, m: scores_of(q, k, ~m).softmax(1) @ v,
    ),
    "softmax over the queries": (
        "over the keys",
        lambda q, k, v, m: scores_of(q, k, m).softmax(0).nan_to_num() @ v,
    ),
    "softmax over the queries, with NaN": (
        "NaN",
        lambda q, k, v, m: (
            scores_of(q, k, m & m.new_tensor([[True] + [False] * (len(k) - 1)])).softmax(0) @ v
        ),
    ),
    "no mask": ("not used", lambda q, k, v, m: my_attend(q, k, v, torch.ones_like(m))),
    "the mask inverted": (
        "may attend",
        lambda q, k, v, m: scores_of(q, k, ~m).softmax(1).nan_to_num() @ v,
    ),
    "masked after the softmax": (
        "before the softmax",
        lambda q, k, v, m: (q @ k.T / q.shape[1] ** 0.5).softmax(1) * m @ v,
    ),
    "filled with 0": (
        "minus infinity",
        lambda q, k, v, m: (q @ k.T / q.shape[1] ** 0.5).masked_fill(~m, 0).softmax(1) @ v,
    ),
    "no softmax": (
        "no softmax",
        lambda q, k, v, m: (q @ k.T / q.shape[1] ** 0.5).masked_fill(~m, 0) @ v,
    ),
    "the weights": ("multiply them", lambda q, k, v, m: scores_of(q, k, m).softmax(1)),
    "k not transposed": ("raised", lambda q, k, v, m: (q @ k).softmax(1) @ v),
    "exp by hand": ("large scores", exponentials),
    "returns nothing": ("return", lambda q, k, v, m: None),
}


@pytest.mark.parametrize("right", [my_attend, attend_by_loops])
def test_attend_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_attend, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_ATTEND.values(), ids=WRONG_ATTEND)
def test_attend_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_attend, wrong, word)


# The causal mask


def my_causal(length: int, past: int) -> Tensor:
    query = past + torch.arange(length)
    return torch.arange(past + length)[None] <= query[:, None]


def causal_by_lists(length: int, past: int) -> Tensor:
    return torch.tensor([[j <= past + i for j in range(past + length)] for i in range(length)])


def full(length: int, past: int) -> Tensor:
    return torch.ones(length, past + length, dtype=torch.bool)


WRONG_CAUSAL = {
    "not itself": ("itself", lambda n, p: full(n, p).tril(p - 1)),
    "the future": ("came before", lambda n, p: full(n, p).triu(p)),
    "inverted": ("True means", lambda n, p: ~my_causal(n, p)),
    "ignores past": ("position past", lambda n, p: full(n, p).tril()),
    "a square": ("past + T", lambda n, p: full(n, 0).tril()),
    "the cache on the right": ("come first", lambda n, p: my_causal(n, p).flip(1)),
    "all of it": ("every key", full),
    "one too many": ("wrong at", lambda n, p: full(n, p).tril(p + 1)),
    "floats": ("bool", lambda n, p: my_causal(n, p).float()),
    "minus infinity": ("bool", lambda n, p: torch.where(my_causal(n, p), 0.0, -INF)),
    "the whole square": ("shape", lambda n, p: full(n + p, 0).tril()),
    "returns nothing": ("return", lambda n, p: None),
}


@pytest.mark.parametrize("right", [my_causal, causal_by_lists, causal])
def test_causal_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_causal, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_CAUSAL.values(), ids=WRONG_CAUSAL)
def test_causal_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_causal, wrong, word)


# Grouped queries


def grouped(
    pick: Callable[[int, int, int], int] = lambda i, h, g: i // (h // g), scale: bool = True
) -> Callable:
    """Head by head; ``pick`` says which key-value head a query head reads."""

    def run(q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, mask: Tensor) -> Tensor:
        d, out = q.shape[1] // heads, []
        for i in range(heads):
            j = pick(i, heads, kv_heads)
            own, shared = slice(i * d, (i + 1) * d), slice(j * d, (j + 1) * d)
            own_query = q[:, own] * (1 if scale else d**0.5)
            out.append(my_attend(own_query, k[:, shared], v[:, shared], mask))
        return torch.cat(out, dim=1)

    return run


def grouped_by_views(
    q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, mask: Tensor
) -> Tensor:
    q = q.view(len(q), heads, -1)
    k, v = (t.view(len(t), kv_heads, -1).repeat_interleave(heads // kv_heads, 1) for t in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, -INF).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v).reshape(len(q), -1)


def heads_first(t: Tensor, heads: int) -> Tensor:
    return t.view(len(t), heads, -1).transpose(0, 1)[None]


def grouped_joined(join: Callable[[Tensor], Tensor]) -> Callable:
    """The heads (h, T, d) put together by ``join``."""
    return lambda q, k, v, h, g, m: join(
        attend(heads_first(q, h), heads_first(k, g), heads_first(v, g), m)[0]
    )


def grouped_strided(q: Tensor, k: Tensor, v: Tensor, h: int, g: int, m: Tensor) -> Tensor:
    q, k, v = (t.view(len(t), -1, n).permute(2, 0, 1)[None] for t, n in ((q, h), (k, g), (v, g)))
    return attend(q, k, v, m)[0].permute(1, 2, 0).flatten(1)


def grouped_strided_joined(q: Tensor, k: Tensor, v: Tensor, h: int, g: int, m: Tensor) -> Tensor:
    group = h // g
    heads = (
        my_attend(q[:, i::h], k[:, i // group :: g], v[:, i // group :: g], m) for i in range(h)
    )
    return torch.cat(list(heads), dim=1)


WRONG_GROUPED = {
    "taken in turn": ("neighbouring query heads", grouped(lambda i, h, g: i % g)),
    "only head 0": ("head 0", grouped(lambda i, h, g: 0)),
    "the first heads": ("raised", grouped(lambda i, h, g: i)),
    "no mask": ("not used", lambda q, k, v, h, g, m: grouped()(q, k, v, h, g, m | True)),
    "the scale of all heads": (
        "not of all heads",
        lambda q, k, v, h, g, m: grouped()(q * h**-0.5, k, v, h, g, m),
    ),
    "no scale": ("divide the scores", grouped(scale=False)),
    "a bare reshape": ("transpose", grouped_joined(lambda y: y.reshape(y.shape[1], -1))),
    "features first": (
        "wrong order",
        grouped_joined(lambda y: y.permute(1, 2, 0).reshape(y.shape[1], -1)),
    ),
    "every h-th feature": ("d neighbouring features", grouped_strided),
    "every h-th feature, joined": ("h-th one was taken", grouped_strided_joined),
    "one head": ("raised", lambda q, k, v, h, g, m: my_attend(q, k, v, m)),
    "heads not joined": ("shape", grouped_joined(lambda y: y.transpose(0, 1))),
    "returns nothing": ("return", lambda q, k, v, h, g, m: None),
}


@pytest.mark.parametrize("right", [grouped(), grouped_by_views])
def test_grouped_attention_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_grouped_attention, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_GROUPED.values(), ids=WRONG_GROUPED)
def test_grouped_attention_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_grouped_attention, wrong, word)


# Rotary positions


def rotated(frequencies: Callable[[int, float], Tensor], sign: int = 1) -> Callable:
    def run(x: Tensor, positions: Tensor, theta: float) -> Tensor:
        angles = positions[:, None] * frequencies(x.shape[1], theta)
        a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        cos, sin = angles.cos(), sign * angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=1)

    return run


def usual(d: int, theta: float) -> Tensor:
    return theta ** (-2 * torch.arange(d // 2) / d)


my_rotate = rotated(usual)


def rotate_complex(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    d = x.shape[1]
    pairs = torch.complex(x[:, : d // 2].double(), x[:, d // 2 :].double())
    angles = torch.outer(positions.double(), usual(d, theta).double())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=1)


def rotate_neighbours(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    angles = positions[:, None] * usual(x.shape[1], theta)
    a, b = x[:, ::2], x[:, 1::2]
    pair = a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()
    return torch.stack(pair, dim=2).flatten(1)


def rotate_one_half(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    angles = positions[:, None] * usual(x.shape[1], theta)
    a, b = x.chunk(2, dim=1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos()], dim=1)


def rotate_in_place(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    half = x.shape[1] // 2
    angles = positions[:, None] * usual(x.shape[1], theta)
    x[:, :half] = x[:, :half] * angles.cos() - x[:, half:] * angles.sin()
    x[:, half:] = x[:, half:] * angles.cos() + x[:, :half] * angles.sin()
    return x


def add_positions(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    angles = positions[:, None] * usual(x.shape[1], theta)
    return x + torch.cat([angles.cos(), angles.sin()], dim=1)


def rotate_evens_and_odds(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    return my_rotate(torch.cat([x[:, ::2], x[:, 1::2]], dim=1), positions, theta)


WRONG_ROTARY = {
    "neighbouring features": ("pairs are (i, i + d/2)", rotate_neighbours),
    "evens and odds": ("even and the odd", rotate_evens_and_odds),
    "the other way": ("other way", rotated(usual, -1)),
    "exponent -i/d": (
        "last frequency",
        rotated(lambda d, theta: theta ** (-torch.arange(d // 2) / d)),
    ),
    "halved twice": (
        "been halved",
        rotated(lambda d, theta: theta ** (-4 * torch.arange(d // 2) / d)),
    ),
    "a positive exponent": (
        "negative",
        rotated(lambda d, theta: theta ** (2 * torch.arange(d // 2) / d)),
    ),
    "positions ignored": (
        "positions are given",
        lambda x, p, theta: my_rotate(x, torch.arange(len(x)), theta),
    ),
    "theta ignored": ("argument", lambda x, p, theta: my_rotate(x, p, 10_000.0)),
    "one frequency": ("own frequency", rotated(lambda d, theta: torch.ones(d // 2))),
    "half of the turn": ("needs x1", rotate_one_half),
    "added": ("not added", add_positions),
    "in place": ("has changed", rotate_in_place),
    "degrees": (
        "other numbers",
        rotated(lambda d, theta: usual(d, theta) * 3.14159 / 180),
    ),
    "returns nothing": ("return", lambda x, p, theta: None),
}


@pytest.mark.parametrize("right", [my_rotate, rotate_complex])
def test_rotary_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_rotary, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_ROTARY.values(), ids=WRONG_ROTARY)
def test_rotary_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_rotary, wrong, word)


# The block


def norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt() * weight


def mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def block(norm: Callable = norm, mlp: Callable = mlp) -> Callable:
    def run(x: Tensor, attention: Callable, norm1: Tensor, norm2: Tensor, *m: Tensor) -> Tensor:
        x = x + attention(norm(x, norm1))
        return x + mlp(norm(x, norm2), *m)

    return run


def block_with_torch(
    x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, g: Tensor, u: Tensor, d: Tensor
) -> Tensor:
    x = attention(F.rms_norm(x, n1.shape, n1, 1e-6)) + x
    y = F.rms_norm(x, n2.shape, n2, 1e-6)
    return F.linear(F.linear(y, u) * (F.linear(y, g) * F.linear(y, g).sigmoid()), d) + x


def post_norm(x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, *m: Tensor) -> Tensor:
    x = norm(x + attention(x), n1)
    return norm(x + mlp(x, *m), n2)


def block_in_place(x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, *m: Tensor) -> Tensor:
    x += attention(norm(x, n1))
    return x + mlp(norm(x, n2), *m)


def parallel(x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, *m: Tensor) -> Tensor:
    return x + attention(norm(x, n1)) + mlp(norm(x, n2), *m)


def no_first_residual(x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, *m: Tensor) -> Tensor:
    x = attention(norm(x, n1))
    return x + mlp(norm(x, n2), *m)


def no_last_residual(x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, *m: Tensor) -> Tensor:
    return mlp(norm(x + attention(norm(x, n1)), n2), *m)


def no_residual(x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, *m: Tensor) -> Tensor:
    return mlp(norm(attention(norm(x, n1)), n2), *m)


def attention_alone(x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, *m: Tensor) -> Tensor:
    return x + mlp(norm(attention(norm(x, n1)), n2), *m)


def residual_of_x(x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, *m: Tensor) -> Tensor:
    return x + mlp(norm(x + attention(norm(x, n1)), n2), *m)


def unnormed_mlp(x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, *m: Tensor) -> Tensor:
    x = x + attention(norm(x, n1))
    return x + mlp(x, *m)


def unnormed_attention(
    x: Tensor, attention: Callable, n1: Tensor, n2: Tensor, *m: Tensor
) -> Tensor:
    x = x + attention(x)
    return x + mlp(norm(x, n2), *m)


WRONG_BLOCK = {
    "post-norm": ("post-norm", post_norm),
    "no first residual": ("attention's result is added", no_first_residual),
    "no last residual": ("MLP's result is added", no_last_residual),
    "no residual": ("nothing is added", no_residual),
    "the MLP of attention alone": ("result alone", attention_alone),
    "parallel": ("not x", parallel),
    "the second residual of x": ("second residual", residual_of_x),
    "the MLP reads the raw stream": ("second half reads a normed", unnormed_mlp),
    "attention reads the raw stream": ("attention reads a normed", unnormed_attention),
    "LayerNorm": (
        "no mean",
        block(lambda x, w: F.layer_norm(x, w.shape, w, None, 1e-6)),
    ),
    "no norm weights": ("weights", block(lambda x, w: norm(x, torch.ones_like(w)))),
    "one norm twice": ("own norm weight", lambda x, a, n1, n2, *m: block()(x, a, n1, n1, *m)),
    "no root": (
        "root",
        block(lambda x, w: x / (x.pow(2).mean(-1, keepdim=True) + 1e-6) * w),
    ),
    "over the tokens": (
        "not over the tokens",
        block(lambda x, w: x / (x.pow(2).mean(0) + 1e-6).sqrt() * w),
    ),
    "over everything": (
        "over all tokens",
        block(lambda x, w: x / (x.pow(2).mean() + 1e-6).sqrt() * w),
    ),
    "a sum": (
        "not their sum",
        block(lambda x, w: x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt() * w),
    ),
    "no eps": ("eps", block(lambda x, w: norm(x, w, 0.0))),
    "eps outside the root": (
        "under the root",
        block(lambda x, w: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + 1e-6) * w),
    ),
    "no silu": ("silu", block(mlp=lambda x, g, u, d: (x @ g.T * (x @ u.T)) @ d.T)),
    "silu of up": ("not to up", block(mlp=lambda x, g, u, d: mlp(x, u, g, d))),
    "silu of the product": (
        "not to the product",
        block(mlp=lambda x, g, u, d: F.silu(x @ g.T * (x @ u.T)) @ d.T),
    ),
    "a sum of gate and up": (
        "not added",
        block(mlp=lambda x, g, u, d: (F.silu(x @ g.T) + x @ u.T) @ d.T),
    ),
    "gelu": ("not gelu", block(mlp=lambda x, g, u, d: (F.gelu(x @ g.T) * (x @ u.T)) @ d.T)),
    "a sigmoid": (
        "sigmoid",
        block(mlp=lambda x, g, u, d: ((x @ g.T).sigmoid() * (x @ u.T)) @ d.T),
    ),
    "not transposed": (
        "raised",
        block(mlp=lambda x, g, u, d: (F.silu(x @ g) * (x @ u)) @ d),
    ),
    "in place": ("has changed", block_in_place),
    "returns nothing": ("return", lambda *given: None),
}


@pytest.mark.parametrize("right", [block(), block_with_torch])
def test_block_accepts_right_solutions(right: Callable) -> None:
    accepts(decoder_block.check_block, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_BLOCK.values(), ids=WRONG_BLOCK)
def test_block_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(decoder_block.check_block, wrong, word)


# The loss


def my_loss(logits: Tensor, ids: Tensor, padding_id: int) -> Tensor:
    targets = ids[:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=padding_id)


def loss_by_hand(logits: Tensor, ids: Tensor, padding_id: int) -> float:
    total, count = 0.0, 0
    for row, said in zip(logits.log_softmax(-1), ids.tolist(), strict=True):
        for t in range(len(said) - 1):
            if said[t + 1] != padding_id:
                total, count = total - row[t, said[t + 1]].item(), count + 1
    return total / count


def loss_of(x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(x.flatten(0, 1), y.flatten(), **options)


WRONG_LOSS = {
    "no shift": ("shift", lambda x, y, p: loss_of(x, y, ignore_index=p)),
    "the wrong shift": (
        "not the one before",
        lambda x, y, p: loss_of(x[:, 1:], y[:, :-1], ignore_index=p),
    ),
    "padding counted": ("padding", lambda x, y, p: loss_of(x[:, :-1], y[:, 1:])),
    "a sum": (
        "not the sum",
        lambda x, y, p: loss_of(x[:, :-1], y[:, 1:], ignore_index=p, reduction="sum"),
    ),
    "the mean over all positions": (
        "real targets",
        lambda x, y, p: loss_of(x[:, :-1], y[:, 1:], ignore_index=p, reduction="none").mean(),
    ),
    "the mean of rows": (
        "one mean",
        lambda x, y, p: torch.stack(
            [my_loss(a[None], b[None], p) for a, b in zip(x, y, strict=True)]
        ).nanmean(),
    ),
    "softmax first": ("softmax itself", lambda x, y, p: my_loss(x.softmax(-1), y, p)),
    "no minus": ("minus", lambda x, y, p: -my_loss(x, y, p)),
    "padding is 0": ("argument", lambda x, y, p: my_loss(x, y, 0)),
    "a loss for each token": (
        "number",
        lambda x, y, p: loss_of(x[:, :-1], y[:, 1:], reduction="none"),
    ),
    "classes last": ("raised", lambda x, y, p: F.cross_entropy(x[:, :-1], y[:, 1:])),
    "returns nothing": ("return", lambda x, y, p: None),
}


@pytest.mark.parametrize("right", [my_loss, loss_by_hand])
def test_next_token_loss_accepts_right_solutions(right: Callable) -> None:
    accepts(decoder_block.check_next_token_loss, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_LOSS.values(), ids=WRONG_LOSS)
def test_next_token_loss_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(decoder_block.check_next_token_loss, wrong, word)


# Greedy decoding with a cache


def my_greedy(model: Any, ids: Tensor, count: int) -> Tensor:
    cache, said, new = KVCache(), [], ids
    for _ in range(count):
        new = model(new, cache=cache)[:, -1].argmax(-1, keepdim=True)
        said.append(new)
    return torch.cat(said, dim=1)


def greedy_prefill_first(model: Any, ids: Tensor, count: int) -> Tensor:
    cache, all_ids = KVCache(), ids.clone()
    logits = model(ids, None, cache)
    while all_ids.shape[1] < ids.shape[1] + count:
        new = logits[:, -1:].softmax(-1).argmax(-1)
        all_ids = torch.cat([all_ids, new], 1)
        logits = model(new, None, cache)
    return all_ids[:, ids.shape[1] :].int()


def greedy_with(step: Callable) -> Callable:
    """A loop of ``step(model, all ids, newest ids, cache) -> the next id (B, 1)``."""

    def run(model: Any, ids: Tensor, count: int) -> Tensor:
        cache, whole, new = KVCache(), ids, ids
        for _ in range(count):
            new = step(model, whole, new, cache)
            whole = torch.cat([whole, new], 1)
        return whole[:, ids.shape[1] :]

    return run


def largest(logits: Tensor) -> Tensor:
    return logits[:, -1].argmax(-1, keepdim=True)


def greedy_prompt_again(model: Any, ids: Tensor, count: int) -> Tensor:
    cache = KVCache()
    model(ids, cache=cache)
    return greedy_with(lambda m, whole, new, c: largest(m(new, cache=cache)))(model, ids, count)


def greedy_from_the_last_token(model: Any, ids: Tensor, count: int) -> Tensor:
    return my_greedy(model, ids[:, -1:], count)


def greedy_last_token_again(model: Any, ids: Tensor, count: int) -> Tensor:
    cache, said, new = KVCache(), [], ids[:, -1:]
    model(ids, cache=cache)
    for _ in range(count):
        new = largest(model(new, cache=cache))
        said.append(new)
    return torch.cat(said, dim=1)


def forget(ids: Tensor) -> None:
    """What a function without a return gives."""


WRONG_GREEDY = {
    "no cache": ("no cache", greedy_with(lambda m, whole, new, c: largest(m(whole)))),
    "everything again, into the cache": (
        "cache holds",
        greedy_with(lambda m, whole, new, c: largest(m(whole, cache=c))),
    ),
    "a new cache each step": (
        "forgotten",
        greedy_with(lambda m, whole, new, c: largest(m(new, cache=KVCache()))),
    ),
    "the cache only at first": (
        "forgotten",
        greedy_with(lambda m, whole, new, c: largest(m(new, cache=None if c.length else c))),
    ),
    "the first position": (
        "last position",
        greedy_with(lambda m, whole, new, c: m(new, cache=c)[:, :1].argmax(-1)),
    ),
    "the smallest logit": (
        "largest",
        greedy_with(lambda m, whole, new, c: m(new, cache=c)[:, -1:].argmin(-1)),
    ),
    "the prompt returned, too": (
        "new ids alone",
        lambda m, ids, n: torch.cat([ids, my_greedy(m, ids, n)], dim=1),
    ),
    "one too few": ("shape", lambda m, ids, n: my_greedy(m, ids, n)[:, 1:]),
    "the prompt twice": ("not the newest alone", greedy_prompt_again),
    "the last token again": ("last token again", greedy_last_token_again),
    "the last token only": ("tokens of the prompt", greedy_from_the_last_token),
    "without the model": ("never called", lambda m, ids, n: ids[:, :n]),
    "logits": (
        "integers",
        lambda m, ids, n: my_greedy(m, ids, n).float(),
    ),
    "returns nothing": ("return", lambda m, ids, n: forget(my_greedy(m, ids, n))),
}


@pytest.mark.parametrize("right", [my_greedy, greedy_prefill_first])
def test_greedy_accepts_right_solutions(right: Callable) -> None:
    accepts(decoding.check_greedy, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_GREEDY.values(), ids=WRONG_GREEDY)
def test_greedy_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(decoding.check_greedy, wrong, word)


# The nucleus


def my_nucleus(probs: Tensor, top_p: float) -> Tensor:
    ordered, index = probs.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    kept = torch.zeros_like(probs)
    kept[index] = torch.where(before < top_p, ordered, 0.0)
    return kept / kept.sum()


def nucleus_by_loop(probs: Tensor, top_p: float) -> Tensor:
    kept, mass = [0.0] * len(probs), 0.0
    for i in sorted(range(len(probs)), key=lambda i: -probs[i].item()):
        if mass >= top_p:
            break
        kept[i] = probs[i].item()
        mass += kept[i]
    return torch.tensor(kept) / mass


def nucleus_of(rule: Callable[[Tensor, Tensor, float], Tensor]) -> Callable:
    """Keeps the ranks for which ``rule(sorted, cumulated, top_p)`` holds."""

    def run(probs: Tensor, top_p: float) -> Tensor:
        ordered, index = probs.sort(descending=True)
        kept = torch.zeros_like(probs)
        kept[index] = torch.where(rule(ordered, ordered.cumsum(0), top_p), ordered, 0.0)
        return kept / kept.sum().clamp(min=1e-9)

    return run


def nucleus_sorted(probs: Tensor, top_p: float) -> Tensor:
    return my_nucleus(probs.sort(descending=True).values, top_p)


def nucleus_gathered(probs: Tensor, top_p: float) -> Tensor:
    return nucleus_sorted(probs, top_p)[probs.argsort(descending=True)]


def nucleus_in_place(probs: Tensor, top_p: float) -> Tensor:
    kept = my_nucleus(probs, top_p)
    probs[kept == 0] = 0
    return kept


def nucleus_ascending(probs: Tensor, top_p: float) -> Tensor:
    ordered, index = probs.sort()
    kept = torch.zeros_like(probs)
    kept[index] = torch.where(ordered.cumsum(0) <= top_p, ordered, 0.0)
    return kept / kept.sum().clamp(min=1e-9)


WRONG_NUCLEUS = {
    "stops before top_p": ("reaches top_p", nucleus_of(lambda o, c, p: c <= p)),
    "stops even earlier": ("reaches top_p", nucleus_of(lambda o, c, p: c < p)),
    "one too many": ("one token too many", nucleus_of(lambda o, c, p: c - o <= p)),
    "each above top_p": ("not each probability", nucleus_of(lambda o, c, p: o >= p)),
    "not divided": (
        "sums to 1",
        lambda probs, p: torch.where(my_nucleus(probs, p) > 0, probs, 0.0),
    ),
    "sorted": ("own place", nucleus_sorted),
    "gathered": ("scatter", nucleus_gathered),
    "ascending": ("likeliest", nucleus_ascending),
    "a second softmax": (
        "second softmax",
        lambda probs, p: torch.where(my_nucleus(probs, p) > 0, probs, -INF).softmax(0),
    ),
    "unchanged": ("nothing has been cut", lambda probs, p: probs),
    "in place": ("has changed", nucleus_in_place),
    "the kept ones alone": ("shape", lambda probs, p: probs[my_nucleus(probs, p) > 0]),
    "returns nothing": ("return", lambda probs, p: None),
}


@pytest.mark.parametrize("right", [my_nucleus, nucleus_by_loop])
def test_nucleus_accepts_right_solutions(right: Callable) -> None:
    accepts(decoding.check_nucleus, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_NUCLEUS.values(), ids=WRONG_NUCLEUS)
def test_nucleus_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(decoding.check_nucleus, wrong, word)


# Exercise 1: parameters


def count_decoder(c: DecoderConfig) -> int:
    d = c.head_dim or c.width // c.heads
    queries, keys = c.heads * d, c.kv_heads * d
    attention = 2 * c.width * queries + 2 * c.width * keys
    if c.attention_bias:
        attention += queries + 2 * keys
    if c.attention_bias if c.out_bias is None else c.out_bias:
        attention += c.width
    block = attention + 3 * c.width * c.hidden + 2 * c.width
    tables = c.vocab_size * c.width * (1 if c.tied else 2)
    return tables + c.layers * block + c.width


def count_by_shapes(c: DecoderConfig) -> Tensor:
    d = c.rotary_dim
    shapes = [(c.width, c.heads * d)] * 2 + [(c.width, c.kv_heads * d)] * 2
    shapes += [(c.width, c.hidden)] * 3 + [(c.width,)] * 2
    shapes += [(c.heads * d + 2 * c.kv_heads * d,)] * c.attention_bias
    sizes = [torch.Size(shape).numel() for shape in shapes * c.layers]
    table = c.vocab_size * c.width
    return torch.tensor(sum(sizes) + table * (2 - c.tied) + c.width)


WRONG_PARAMETERS = {
    "keys as wide as queries": (
        "kv_heads heads only",
        lambda c: (
            count_decoder(c)
            + c.layers * 2 * c.width * (c.heads - c.kv_heads) * c.rotary_dim
            + c.layers * 2 * (c.heads - c.kv_heads) * c.rotary_dim * c.attention_bias
        ),
    ),
    "a tied table twice": (
        "count it once",
        lambda c: count_decoder(c) + c.vocab_size * c.width * c.tied,
    ),
    "no output layer": (
        "table of its own",
        lambda c: count_decoder(c) - c.vocab_size * c.width * (not c.tied),
    ),
    "two matrices in the MLP": (
        "three matrices",
        lambda c: count_decoder(c) - c.layers * c.width * c.hidden,
    ),
    "one norm a block": ("two norms", lambda c: count_decoder(c) - c.layers * c.width),
    "no last norm": ("last norm", lambda c: count_decoder(c) - c.width),
    "no norms": ("all norms", lambda c: count_decoder(c) - (2 * c.layers + 1) * c.width),
    "norms with a bias": ("no bias", lambda c: count_decoder(c) + (2 * c.layers + 1) * c.width),
    "no biases": (
        "biases in Qwen2",
        lambda c: (
            count_decoder(c)
            - c.attention_bias * c.layers * (c.heads + 2 * c.kv_heads) * c.rotary_dim
        ),
    ),
    "no output matrix": (
        "output matrix",
        lambda c: count_decoder(c) - c.layers * c.width * c.heads * c.rotary_dim,
    ),
    "no embedding": ("embedding table", lambda c: count_decoder(c) - c.vocab_size * c.width),
    "returns nothing": ("return", lambda c: None),
}


@pytest.mark.parametrize("right", [count_decoder, count_by_shapes])
def test_decoder_parameters_accepts_right_solutions(right: Callable) -> None:
    accepts(decoding.check_decoder_parameters, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_PARAMETERS.values(), ids=WRONG_PARAMETERS)
def test_decoder_parameters_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(decoding.check_decoder_parameters, wrong, word)


# Exercise 2: left padding

Rows = list[list[int]]


def left_pad(rows: Rows, pad: int) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def left_pad_by_filling(rows: Rows, pad: int) -> list[Tensor]:
    size = len(rows), max(map(len, rows))
    ids, mask = torch.full(size, pad, dtype=torch.int32), torch.zeros(size, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, -len(row) :] = torch.tensor(row)
        mask[i, -len(row) :] = True
    return [ids, mask]


def right_pad(rows: Rows, pad: int) -> tuple[Tensor, Tensor]:
    ids, mask = left_pad([row[::-1] for row in rows], pad)
    return ids.flip(1), mask.flip(1)


def left_pad_in_place(rows: Rows, pad: int) -> tuple[Tensor, Tensor]:
    padded = left_pad(rows, pad)
    rows[:] = padded[0].tolist()
    return padded


def cut(rows: Rows, pad: int) -> tuple[Tensor, Tensor]:
    shortest = min(map(len, rows))
    return left_pad([row[:shortest] for row in rows], pad)


WRONG_PADDING = {
    "on the right": ("on the right", right_pad),
    "the mask by ids": (
        "use the lengths",
        lambda rows, pad: (left_pad(rows, pad)[0], (left_pad(rows, pad)[0] != pad).long()),
    ),
    "the mask inverted": (
        "not the reverse",
        lambda rows, pad: (left_pad(rows, pad)[0], 1 - left_pad(rows, pad)[1]),
    ),
    "a mask of ones": (
        "mask",
        lambda rows, pad: (left_pad(rows, pad)[0], torch.ones_like(left_pad(rows, pad)[0])),
    ),
    "padded with 0": ("ids", lambda rows, pad: left_pad([[*r] for r in rows], pad + 1)),
    "cut to the shortest": ("shape", cut),
    "reversed rows": ("ids", lambda rows, pad: left_pad([row[::-1] for row in rows], pad)),
    "no mask": ("2 results", lambda rows, pad: left_pad(rows, pad)[0]),
    "lists": ("tensor", lambda rows, pad: tuple(t.tolist() for t in left_pad(rows, pad))),
    "in place": ("have changed", left_pad_in_place),
    "returns nothing": ("return", lambda rows, pad: None),
}


@pytest.mark.parametrize("right", [left_pad, left_pad_by_filling])
def test_left_padded_accepts_right_solutions(right: Callable) -> None:
    accepts(decoding.check_left_padded, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_PADDING.values(), ids=WRONG_PADDING)
def test_left_padded_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(decoding.check_left_padded, wrong, word)


# Exercise 3: an orthogonal update


def my_orthogonal(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def orthogonal_by_roots(matrix: Tensor) -> Tensor:
    tall = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T).double()
    values, vectors = torch.linalg.eigh(tall.T @ tall)
    whitened = tall @ (vectors * values.rsqrt()) @ vectors.T
    return whitened if matrix.shape[0] >= matrix.shape[1] else whitened.T


def by_qr(matrix: Tensor) -> Tensor:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    q = torch.linalg.qr(tall).Q
    return q if matrix.shape[0] >= matrix.shape[1] else q.T


def divided_twice(matrix: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u / s @ vh


def transposed_again(matrix: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v.T


def full_sizes(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix)
    return u @ vh


WRONG_ORTHOGONAL = {
    "divided by the norm": ("by the norm", lambda m: m / m.norm()),
    "divided by the largest singular value": (
        "largest",
        lambda m: m / torch.linalg.matrix_norm(m, 2),
    ),
    "QR": ("nearest", by_qr),
    "signs": ("signs", lambda m: m.sign()),
    "unchanged": ("leave them out", lambda m: m),
    "divided twice": ("not twice", divided_twice),
    "V transposed again": ("already transposed", transposed_again),
    "full matrices": ("raised", full_sizes),
    "U alone": ("shape", lambda m: torch.linalg.svd(m).U),
    "returns nothing": ("return", lambda m: None),
}


@pytest.mark.parametrize("right", [my_orthogonal, orthogonal_by_roots])
def test_orthogonal_update_accepts_right_solutions(right: Callable) -> None:
    accepts(decoding.check_orthogonal_update, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_ORTHOGONAL.values(), ids=WRONG_ORTHOGONAL)
def test_orthogonal_update_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(decoding.check_orthogonal_update, wrong, word)
