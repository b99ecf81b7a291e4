"""00 · Checks of notebook 00's exercises: each takes the reader's function, says what is wrong.

Attention, its mask, its heads and its positions are here, the block and the loss in
decoder_block.py, generation and the last exercises in decoding.py.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from minivlm.exercises.answers import expect_tensor, near
from minivlm.parts.layers import attend, merge_heads, split_heads
from minivlm.parts.masks import causal
from minivlm.parts.rope import rotary_tables, rotate


def random_tensors(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def random_mask(queries: int, keys: int) -> Tensor:
    """True = may attend: (T, S); every query sees its first key, and some query sees each key."""
    generator = torch.Generator().manual_seed(queries)
    mask = torch.rand(queries, keys, generator=generator) < 0.5
    mask[:, 0] = True
    mask[0, 1:] = False
    for key in (~mask.any(dim=0)).nonzero()[:, 0].tolist():
        mask[1 + mask[1:].sum(dim=1).argmin(), key] = True  # the row that sees least
    return mask


def expect_values(got: Tensor, right: Tensor, mistakes: Mapping[str, Tensor], case: str) -> None:
    """The right numbers, or the mistake that gives what the reader got."""
    nan = bool(got.isnan().any()) if got.is_floating_point() else False
    assert not nan, (
        f"{case}: the result holds NaN: 0 / 0, an exp that overflows, "
        "or a softmax over scores that are all minus infinity"
    )
    if near(got, right):
        return
    same = (what for what, wrong in mistakes.items() if wrong.shape == got.shape)
    known = (what for what in same if near(got, mistakes[what]))
    raise AssertionError(f"{case}: {next(known, 'the right shape, but other numbers')}")


# Attention

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def check_attend(my_attend: Attend) -> None:
    """Against the package; as many queries as keys, or more, or fewer, and values of own width."""
    for seed, (queries, keys, width, out) in enumerate([(3, 5, 4, 6), (6, 2, 9, 3), (4, 4, 4, 4)]):
        q, k, v = random_tensors(seed, (queries, width), (keys, width), (keys, out))
        case, mask = f"q {(queries, width)}, k {(keys, width)}", random_mask(queries, keys)
        got = my_attend(q, k, v, mask)
        weights = isinstance(got, Tensor) and got.shape == (queries, keys) != (queries, out)
        assert not weights, f"{case}: these are the weights; multiply them with v"
        got = expect_tensor(got, (queries, out), case)
        right = attend(q[None, None], k[None, None], v[None, None], mask)[0, 0]
        expect_values(got, right, attend_mistakes(q, k, v, mask), case)
    q, k, v = random_tensors(9, (3, 4), (5, 4), (5, 2))
    mask = torch.ones(3, 5, dtype=torch.bool)
    got = expect_tensor(my_attend(1000 * q, k, v, mask), (3, 2), "large scores")
    right = attend(1000 * q[None, None], k[None, None], v[None, None])[0, 0]
    expect_values(got, right, {}, "large scores")


def attend_mistakes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What likely slips give."""
    scores, d = q @ k.T, q.shape[1]
    scaled = scores / d**0.5
    hidden = scaled.masked_fill(~mask, -torch.inf)
    inverted = scaled.masked_fill(mask, -torch.inf).softmax(1).nan_to_num()
    return {
        "divide the scores by the square root of d": (scores + hidden - scaled).softmax(1) @ v,
        "divide by the square root of d, not by d": (hidden / d**0.5).softmax(1) @ v,
        "d is the width of a query, not of a value": (
            (hidden * (d / v.shape[1]) ** 0.5).softmax(1) @ v
        ),
        "d is the width of a query, not the number of keys": (
            (hidden * (d / len(k)) ** 0.5).softmax(1) @ v
        ),
        "d is the width of a query, not the number of queries": (
            (hidden * (d / len(q)) ** 0.5).softmax(1) @ v
        ),
        "adding a boolean mask adds 1 to a score: fill with minus infinity where it is False": (
            (scaled + mask).softmax(1) @ v
        ),
        "the softmax runs over the keys: each row of weights sums to 1": (
            hidden.softmax(0).nan_to_num() @ v
        ),
        "the mask is not used": scaled.softmax(1) @ v,
        "True means may attend: the mask is the wrong way round": inverted @ v,
        "mask the scores before the softmax, so that the weights still sum to 1": (
            scaled.softmax(1) * mask @ v
        ),
        "a hidden score of 0 still gets weight: fill with minus infinity": (
            (scaled * mask).softmax(1) @ v
        ),
        "there is no softmax": scaled.masked_fill(~mask, 0) @ v,
    }


# The causal mask


def check_causal(my_causal: Callable[[int, int], Tensor]) -> None:
    """Squares, and the rectangles of a cache."""
    for length, past in [(4, 0), (3, 2), (1, 5), (2, 3)]:
        case = f"length {length}, past {past}"
        got = my_causal(length, past)
        square = past and isinstance(got, Tensor) and tuple(got.shape) == (length, length)
        assert not square, f"{case}: the cached keys need columns, too: (T, past + T)"
        got = expect_tensor(got, (length, past + length), case)
        assert got.dtype == torch.bool, f"{case}: give a bool mask, not {got.dtype}"
        for mistake, wrong in causal_mistakes(length, past).items():
            same = torch.equal(got, wrong) and not torch.equal(wrong, causal(length, past))
            assert not same, f"{case}: {mistake}"
        wrong_pairs = (got != causal(length, past)).nonzero().tolist()
        where = f"query {wrong_pairs[0][0]}, key {wrong_pairs[0][1]}" if wrong_pairs else ""
        assert not wrong_pairs, f"{case}: wrong at {where}"


def causal_mistakes(length: int, past: int) -> dict[str, Tensor]:
    """What likely slips give."""
    full, right = torch.ones(length, past + length, dtype=torch.bool), causal(length, past)
    return {
        "a token sees itself, too": full.tril(past - 1),
        "True means may attend: the mask is the wrong way round": ~right,
        "a token sees what came before it, not what follows": full.triu(past),
        "the first query has position past: it sees all cached keys": full.tril(),
        "the cached keys come first, the new ones after them": right.flip(1),
        "every query sees every key": full,
    }


# Many heads

Grouped = Callable[[Tensor, Tensor, Tensor, int, int, Tensor], Tensor]


def check_grouped_attention(my_grouped_attention: Grouped) -> None:
    """Against the package, for groups of three heads, of two, of one, and one group."""
    for heads, kv_heads, width in [(6, 2, 4), (4, 2, 3), (3, 3, 2), (3, 1, 5)]:
        shapes = (4, heads * width), (5, kv_heads * width), (5, kv_heads * width)
        q, k, v = random_tensors(heads, *shapes)
        case, mask = f"{heads} query heads, {kv_heads} key-value heads", random_mask(4, 5)
        got = my_grouped_attention(q, k, v, heads, kv_heads, mask)
        got = expect_tensor(got, shapes[0], case)
        split = partial(split_heads, heads=heads), partial(split_heads, heads=kv_heads)
        parts = split[0](q[None]), split[1](k[None]), split[1](v[None])
        right = merge_heads(attend(*parts, mask))[0]
        expect_values(got, right, grouped_mistakes(*parts, mask), case)


def grouped_mistakes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What likely slips give, of heads that are split: (1, h, T, d) each."""
    group, kv_heads = q.shape[1] // k.shape[1], k.shape[1]
    shared = [i % kv_heads for i in range(q.shape[1])]
    every, first = attend(q, k, v, mask), [0] * q.shape[1]
    strided = [merge_heads(t).unflatten(-1, (-1, t.shape[1])).movedim(-1, 1) for t in (q, k, v)]
    raw = merge_heads(attend(q * q.shape[1] ** -0.5, k, v, mask))
    out = {
        "neighbouring query heads share: head i reads head i // (heads / kv_heads)": (
            merge_heads(attend(q, k[:, shared], v[:, shared], mask))
        ),
        "every query head reads key-value head 0": (
            merge_heads(attend(q, k[:, first], v[:, first], mask))
        ),
        "the mask is not used": merge_heads(attend(q, k, v)),
        "the scale is the square root of a head's width, not of all heads'": raw,
        "the heads are put together in the wrong order: head 0 fills the first d features": (
            every.permute(0, 2, 3, 1).flatten(2)
        ),
        "reshape mixes tokens and heads: transpose them before you join the heads": (
            every.flatten(1).unflatten(1, (q.shape[2], -1))
        ),
        "a head is d neighbouring features, not every h-th one": (
            attend(strided[0], strided[1], strided[2], mask).movedim(1, -1).flatten(2)
        ),
        "a head is d neighbouring features; every h-th one was taken": (
            merge_heads(attend(strided[0], strided[1], strided[2], mask))
        ),
        "divide the scores by the square root of a head's width": (
            merge_heads(attend(q * q.shape[-1] ** 0.5, k, v, mask))
        ),
    }
    if group == 1:  # nothing is shared: these are right
        del out["neighbouring query heads share: head i reads head i // (heads / kv_heads)"]
    return {name: wrong[0] for name, wrong in out.items()}


# Positions


def check_rotary(my_rotate: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Against the package; positions with gaps, and thetas other than 10,000."""
    cases = [([0, 3, 1], 8, 10_000.0), ([5, 2], 6, 500.0), ([7, 0, 4, 9], 4, 10.0)]
    for seed, (places, width, theta) in enumerate(cases):
        (x,), positions = random_tensors(seed, (len(places), width)), torch.tensor(places)
        case, given = f"positions {places}, d = {width}, theta = {theta:,.0f}", x.clone()
        got = expect_tensor(my_rotate(given, positions, theta), x.shape, case)
        assert torch.equal(given, x), f"{case}: the tensor that was given has changed"
        right = rotate(x, *rotary_tables(positions, width, theta))
        expect_values(got, right, rotary_mistakes(x, positions, theta), case)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """The pairs (i, i + d/2) of x (T, d), turned by angles (T, d/2)."""
    a, b = x.chunk(2, dim=1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=1)


def rotary_mistakes(x: Tensor, positions: Tensor, theta: float) -> dict[str, Tensor]:
    """What likely slips give."""
    half, place = x.shape[1] // 2, positions[:, None].float()
    i = torch.arange(half)
    frequencies = theta ** (-i / half)
    angles = place * frequencies
    pairs = x.unflatten(1, (half, 2)).transpose(1, 2).flatten(1)  # evens, then odds
    beside = turned(pairs, angles).unflatten(1, (2, half)).transpose(1, 2).flatten(1)
    a, b = x.chunk(2, dim=1)
    return {
        "the pairs are (i, i + d/2), not (2i, 2i + 1)": beside,
        "the pairs are (i, i + d/2); the even and the odd features were taken": (
            turned(pairs, angles)
        ),
        "it turns the other way: x1 cos - x2 sin, x2 cos + x1 sin": turned(x, -angles),
        "the exponent is -2i/d: the last frequency is near 1/theta": (
            turned(x, place * theta ** (-i / x.shape[1]))
        ),
        "the exponent is -2i/d, i counts pairs: it has been halved": (
            turned(x, place * theta ** (-2 * i / half))
        ),
        "the exponent is negative: later pairs turn more slowly": turned(
            x, place * theta ** (i / half)
        ),
        "the positions are given, they are not 0, 1, 2": (
            turned(x, torch.arange(len(x))[:, None] * frequencies)
        ),
        "theta is an argument, not always 10,000": turned(x, place * 10_000.0 ** (-i / half)),
        "every pair has its own frequency": turned(x, place.expand(-1, half)),
        "the second half needs x1, too: x2 cos + x1 sin": (
            torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos()], dim=1)
        ),
        "positions turn a vector, they are not added to it": (
            x + torch.cat([angles.cos(), angles.sin()], dim=1)
        ),
    }
