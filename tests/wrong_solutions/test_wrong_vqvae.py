"""Notebook 03: right solutions are accepted, and each likely mistake is named."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from wrong_solutions import accepts, refuses

from minivlm.exercises import vqvae as exercises
from minivlm.vqvae import nearest

# Codes that cover a share


def codes_to_cover(ids: Tensor, share: float) -> int:
    counts = ids.flatten().bincount().sort(descending=True).values
    reached = counts.cumsum(0) / ids.numel()
    return int((reached < share - 1e-6).sum()) + 1


def cover_with_a_counter(ids: Tensor, share: float) -> int:
    places, total = ids.numel(), 0
    for used, (_, count) in enumerate(Counter(ids.flatten().tolist()).most_common(), start=1):
        total += count
        if total / places >= share:
            return used
    raise AssertionError("shares are at most 1")


def cover_with_searchsorted(ids: Tensor, share: float) -> Tensor:
    counts = ids.unique(return_counts=True)[1].sort(descending=True).values
    return torch.searchsorted(counts.cumsum(0).double(), share * ids.numel() - 1e-9) + 1


def cover_with_shares(ids: Tensor, share: float) -> int:
    shares = ids.flatten().bincount().sort(descending=True).values / ids.numel()
    return 1 + int((shares.cumsum(0) < share).sum())


def cover_beyond(ids: Tensor, share: float) -> int:
    counts = ids.flatten().bincount().sort(descending=True).values
    reached = counts.cumsum(0) / ids.numel()
    return min(int((reached <= share).sum()) + 1, int((counts > 0).sum()))


def cover_in_order(ids: Tensor, share: float, descending: bool | None = None) -> int:
    counts = ids.unique(return_counts=True)[1]
    if descending is not None:
        counts = counts.sort(descending=descending).values
    return int((counts.cumsum(0) / ids.numel() < share - 1e-6).sum()) + 1


WRONG_COVER = {
    "more than the share": ("at least", cover_beyond),
    "one too few": ("one too few", lambda ids, share: codes_to_cover(ids, share) - 1),
    "one too many": ("one too many", lambda ids, share: codes_to_cover(ids, share) + 1),
    "rarest first": ("most frequent", lambda i, s: cover_in_order(i, s, descending=False)),
    "in the order of ids": ("by frequency", cover_in_order),
    "codes in use": ("in use", lambda ids, share: len(ids.unique())),
    "share of the codes": ("all places", lambda ids, share: round(share * len(ids.unique()))),
    "places": ("number of places", lambda ids, share: round(share * ids.numel())),
    "bincount of a table": ("1-d", lambda ids, share: len(ids.bincount())),
    "all codes of the table": (
        "share 0.5",
        lambda ids, share: int((ids.flatten().bincount() / ids.numel() < share).sum()),
    ),
    "a tensor of shares": ("number", lambda ids, share: ids.flatten().bincount().cumsum(0)),
    "returns nothing": ("return", lambda ids, share: None),
}


RIGHT_COVER = [codes_to_cover, cover_with_a_counter, cover_with_searchsorted, cover_with_shares]


@pytest.mark.parametrize("right", RIGHT_COVER)
def test_codes_to_cover_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_codes_to_cover, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_COVER.values(), ids=WRONG_COVER)
def test_codes_to_cover_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_codes_to_cover, wrong, word)


# Straight through


def through(
    forward: Callable[[Tensor, Tensor], Tensor], backward: Callable[[Tensor], Any]
) -> Callable[[Tensor, Tensor], Tensor]:
    """A function whose gradients are given by hand."""

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, vectors: Tensor, codes: Tensor) -> Tensor:
            return forward(vectors, codes)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            return backward(gradient)

    return lambda vectors, codes: Through.apply(vectors, codes)


def in_place(vectors: Tensor, codes: Tensor) -> Tensor:
    out = through(lambda v, c: c.clone(), lambda g: (g, None))(vectors, codes)
    vectors.data.copy_(codes)
    return out


RIGHT_STRAIGHT = {
    "the reference": through(lambda v, c: c.clone(), lambda g: (g, None)),
    "codes as they are": through(lambda v, c: c, lambda g: (g, None)),
    "zeros for the codes": through(lambda v, c: c.clone(), lambda g: (g, torch.zeros_like(g))),
    "detach, exactly": lambda v, c: c.detach() + (v - v.detach()),
}
WRONG_STRAIGHT = {
    "the codes get it too": ("codes get a gradient", lambda v, c: c + (v - v.detach())),
    "both get it": (
        "codes get a gradient",
        through(lambda v, c: c.clone(), lambda g: (g, g)),
    ),
    "rounds": ("last bit", lambda v, c: v + (c - v).detach()),
    "gives out the vectors": (
        "not the vectors",
        through(lambda v, c: v.clone(), lambda g: (g, None)),
    ),
    "gives out the codes alone": ("other way round", lambda v, c: c + 0),
    "swapped gradients": (
        "other way round",
        through(lambda v, c: c.clone(), lambda g: (None, g)),
    ),
    "one gradient for two": (
        "for each argument",
        through(lambda v, c: c.clone(), lambda g: g),
    ),
    "no gradient at all": (
        "no gradient reaches",
        through(lambda v, c: c.clone(), lambda g: (None, None)),
    ),
    "a scaled gradient": (
        "unchanged",
        through(lambda v, c: c.clone(), lambda g: (g / 2, None)),
    ),
    "detached": ("does not know", lambda v, c: c.detach()),
    "in place": ("have changed", in_place),
    "returns nothing": ("return", lambda v, c: None),
}


@pytest.mark.parametrize("right", RIGHT_STRAIGHT.values(), ids=RIGHT_STRAIGHT)
def test_straight_through_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_straight_through, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_STRAIGHT.values(), ids=WRONG_STRAIGHT)
def test_straight_through_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_straight_through, wrong, word)


# Residual quantization


def residual_quantize(vectors: Tensor, codebooks: list[Tensor]) -> tuple[Tensor, Tensor]:
    left, ids = vectors, []
    for codebook in codebooks:
        ids.append(nearest(left, codebook))
        left = left - codebook[ids[-1]]
    return torch.stack(ids, dim=1), vectors - left


def residual_by_loops(vectors: Tensor, codebooks: list[Tensor]) -> list[Tensor]:
    ids = torch.zeros(len(vectors), len(codebooks), dtype=torch.int32)
    total = torch.zeros(vectors.shape, dtype=torch.float64)
    for n, vector in enumerate(vectors):
        for s, codebook in enumerate(codebooks):
            distances = [float(((vector - total[n] - code) ** 2).sum()) for code in codebook]
            ids[n, s] = min(range(len(codebook)), key=distances.__getitem__)
            total[n] += codebook[int(ids[n, s])]
    return [ids, total]


def residual_in_place(vectors: Tensor, codebooks: list[Tensor]) -> tuple[Tensor, Tensor]:
    left, ids, total = vectors, [], 0
    for codebook in codebooks:
        ids.append(nearest(left, codebook))
        left -= codebook[ids[-1]]
        total = total + codebook[ids[-1]]
    return torch.stack(ids, dim=1), total


def residual_anew(vectors: Tensor, codebooks: list[Tensor]) -> tuple[Tensor, Tensor]:
    ids = [nearest(vectors, codebook) for codebook in codebooks]
    return torch.stack(ids, 1), sum(c[i] for c, i in zip(codebooks, ids, strict=True))


def residual_farthest(vectors: Tensor, codebooks: list[Tensor]) -> tuple[Tensor, Tensor]:
    left, ids = vectors, []
    for codebook in codebooks:
        ids.append(torch.cdist(left, codebook).argmax(1))
        left = left - codebook[ids[-1]]
    return torch.stack(ids, dim=1), vectors - left


def residual_first_book(vectors: Tensor, codebooks: list[Tensor]) -> tuple[Tensor, Tensor]:
    return residual_quantize(vectors, [codebooks[0]] * len(codebooks))


def residual_added(vectors: Tensor, codebooks: list[Tensor]) -> tuple[Tensor, Tensor]:
    left, ids = vectors, []
    for codebook in codebooks:
        ids.append(nearest(left, codebook))
        left = left + codebook[ids[-1]]
    return torch.stack(ids, dim=1), left - vectors


def other_sum(number: int) -> Callable[[Tensor, list[Tensor]], tuple[Tensor, Tensor]]:
    def residual(vectors: Tensor, codebooks: list[Tensor]) -> tuple[Tensor, Tensor]:
        ids, _ = residual_quantize(vectors, codebooks)
        return ids, codebooks[number][ids[:, number]]

    return residual


def residual_left(vectors: Tensor, codebooks: list[Tensor]) -> tuple[Tensor, Tensor]:
    ids, total = residual_quantize(vectors, codebooks)
    return ids, vectors - total


WRONG_RESIDUAL = {
    "in place": ("have changed", residual_in_place),
    "the vectors again": ("left over", residual_anew),
    "one codebook for all": ("of its own", residual_first_book),
    "the farthest": ("farthest", residual_farthest),
    "adds instead of subtracting": ("ids of stage 2 are wrong", residual_added),
    "ids of the wrong shape": (
        "shape (20, 3)",
        lambda v, c: (residual_quantize(v, c)[0].T, residual_quantize(v, c)[1]),
    ),
    "gives what is left over": ("left over", residual_left),
    "only the last code": ("last", other_sum(-1)),
    "only the first code": ("first", other_sum(0)),
    "the mean": (
        "mean",
        lambda v, c: (residual_quantize(v, c)[0], residual_quantize(v, c)[1] / len(c)),
    ),
    "swapped results": ("shape", lambda v, c: residual_quantize(v, c)[::-1]),
    "ids alone": ("sums", lambda v, c: residual_quantize(v, c)[0]),
    "returns nothing": ("return", lambda v, c: None),
}


@pytest.mark.parametrize("right", [residual_quantize, residual_by_loops])
def test_residual_quantize_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_residual_quantize, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_RESIDUAL.values(), ids=WRONG_RESIDUAL)
def test_residual_quantize_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_residual_quantize, wrong, word)


# Finite scalar quantization


def parts(levels: list[int]) -> tuple[Tensor, Tensor]:
    """Half of the levels, and the value of a digit."""
    half = torch.tensor([(level - 1) // 2 for level in levels])
    return half, torch.tensor([1, *levels[:-1]]).cumprod(0)


def fsq(vectors: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    half, base = parts(levels)
    bounded = vectors.tanh() * half
    rounded = bounded + (bounded.round() - bounded).detach()
    digits = bounded.detach().round().long() + half
    return rounded, (digits * base).sum(1)


def fsq_number_by_number(vectors: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    columns, ids, base = [], torch.zeros(len(vectors), dtype=torch.int32), 1
    for column, level in zip(vectors.unbind(1), levels, strict=True):
        bounded = torch.tanh(column) * (level - 1) / 2
        whole = torch.round(bounded).detach()
        columns.append(whole + bounded - bounded.detach())
        ids += ((whole + (level - 1) / 2) * base).int()
        base *= level
    return torch.stack(columns, 1), ids


def fsq_scaled(scale: Callable[[Tensor], Tensor]) -> Callable:
    def scaled(vectors: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
        bounded = vectors.tanh() * scale(torch.tensor(levels))
        return bounded + (bounded.round() - bounded).detach(), fsq(vectors, levels)[1]

    return scaled


def fsq_ids(count: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """Other ids, from digits, their base and half of the levels."""

    def counted(vectors: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
        half, base = parts(levels)
        digits = (vectors.detach().tanh() * half).round().long() + half
        return fsq(vectors, levels)[0], count(digits, base, half)

    return counted


def fsq_past_everything(vectors: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    rounded, ids = fsq(vectors, levels)
    return vectors + (rounded - vectors).detach(), ids


def fsq_past_the_scale(vectors: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    rounded, ids = fsq(vectors, levels)
    return vectors.tanh() + (rounded - vectors.tanh()).detach(), ids


def fsq_without_tanh(vectors: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    scaled = vectors * parts(levels)[0]
    return scaled + (scaled.round() - scaled).detach(), fsq(vectors, levels)[1]


def fsq_in_place(vectors: Tensor, levels: list[int]) -> tuple[Tensor, Tensor]:
    answer = fsq(vectors.clone(), levels)
    vectors.tanh_()
    return answer


WRONG_FSQ = {
    "the gradient of round": (
        "straight-through",
        lambda v, n: ((v.tanh() * parts(n)[0]).round(), fsq(v, n)[1]),
    ),
    "detached": ("straight-through", lambda v, n: (fsq(v, n)[0].detach(), fsq(v, n)[1])),
    "straight through everything": ("tanh and scale", fsq_past_everything),
    "straight through the scale": ("past the scale", fsq_past_the_scale),
    "not rounded": (
        "not rounded",
        lambda v, n: (v.tanh() * parts(n)[0], fsq(v, n)[1]),
    ),
    "scaled by L / 2": ("(L - 1) / 2", fsq_scaled(lambda n: n / 2)),
    "scaled by L - 1": ("(L - 1) / 2", fsq_scaled(lambda n: n - 1)),
    "not scaled": ("scaling", fsq_scaled(torch.ones_like)),
    "no tanh": ("tanh", fsq_without_tanh),
    "divided again": (
        "whole numbers",
        lambda v, n: (fsq(v, n)[0] / parts(n)[0], fsq(v, n)[1]),
    ),
    "digits below zero": ("0 to L - 1", fsq_ids(lambda d, base, half: ((d - half) * base).sum(1))),
    "the highest digit first": (
        "lowest digit",
        fsq_ids(lambda d, base, half: (d * torch.tensor([35, 7, 1])).sum(1)),
    ),
    "the base is too large": (
        "levels before it",
        fsq_ids(lambda d, base, half: (d * torch.tensor([3, 15, 105])).sum(1)),
    ),
    "the base is no product": (
        "product",
        fsq_ids(lambda d, base, half: (d * torch.tensor([1, 3, 5])).sum(1)),
    ),
    "digits only added": ("only added", fsq_ids(lambda d, base, half: d.sum(1))),
    "ids for each number": ("shape (5,)", fsq_ids(lambda d, base, half: d * base)),
    "ids are floats": ("integers", fsq_ids(lambda d, base, half: (d * base).sum(1).float())),
    "in place": ("have changed", fsq_in_place),
    "rounded alone": ("ids", lambda v, n: fsq(v, n)[0]),
    "returns nothing": ("return", lambda v, n: None),
}


@pytest.mark.parametrize("right", [fsq, fsq_number_by_number])
def test_fsq_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_fsq, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_FSQ.values(), ids=WRONG_FSQ)
def test_fsq_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_fsq, wrong, word)
