"""03 · Checks of the exercises at the end of notebook 03; `vqvae.py` has those of its core."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from minivlm.exercises.answers import compare_answers, expect_number, expect_tensor, near
from minivlm.exercises.returned import expect_ids, expect_parts

# Exercise 1

COVERED = [  # ids, share; shares that are reached exactly are sums of powers of two
    ([[2, 7, 7, 7, 7], [7, 7, 7, 0, 0]], 0.5),
    ([[2, 7, 7, 7, 7], [7, 7, 7, 0, 0]], 0.85),
    ([[9, 3, 3, 5], [3, 3, 5, 6]], 0.5),
    ([[9, 3, 3, 5], [3, 3, 5, 6]], 0.75),
    ([[9, 3, 3, 5], [3, 3, 5, 6]], 0.8),
    ([[9, 3, 3, 5], [3, 3, 5, 6]], 1.0),
    ([[n, n + 1] for n in range(0, 100, 2)], 0.495),
]


def check_codes_to_cover(codes_to_cover: Callable[[Tensor, float], int]) -> None:
    """Shares that are passed, shares that are reached exactly, and all of the ids."""
    got, right = [], []
    mistakes: dict[str, list] = {name: [] for name in COVER_MISTAKES}
    cases = [f"share {share} of {str(ids):.60}" for ids, share in COVERED]
    for case, (ids, share) in zip(cases, COVERED, strict=True):
        got.append(expect_number(codes_to_cover(torch.tensor(ids), share), case))
        flat = [i for row in ids for i in row]
        counts = sorted(Counter(flat).values(), reverse=True)
        right.append(_covered(counts, share * len(flat)))
        for name, count in COVER_MISTAKES.items():
            mistakes[name].append(count(flat, counts, share * len(flat)))
    compare_answers(cases, right, got, dict[str, Iterable](mistakes))


def _covered(counts: Sequence[int], places: float) -> int:
    """How many of the counts, in this order, make up so many places."""
    return 1 + sum(total < places - 1e-6 for total in list(accumulate(counts))[:-1])


def _covered_beyond(flat: list[int], counts: list[int], places: float) -> int:
    """How many make up more than so many places."""
    return min(len(counts), 1 + sum(total <= places + 1e-6 for total in accumulate(counts)))


COVER_MISTAKES: dict[str, Callable[[list[int], list[int], float], int]] = {
    "at least the share: more than it is not asked": _covered_beyond,
    "one too few: the code that reaches the share counts too": lambda i, c, p: _covered(c, p) - 1,
    "one too many": lambda ids, counts, places: _covered(counts, places) + 1,
    "the most frequent codes first, not the rarest": lambda i, c, p: _covered(c[::-1], p),
    "sort by frequency, not by id": (
        lambda ids, counts, p: _covered([n for _, n in sorted(Counter(ids).items())], p)
    ),
    "the share is one of all places, not of the codes in use": (
        lambda ids, counts, places: round(places / len(ids) * len(counts))
    ),
    "this is the number of places, not of codes": lambda i, c, places: round(places),
    "this is the number of codes in use, whatever the share": lambda i, counts, p: len(counts),
}


# Exercise 2, and the check of section 2.3


def check_exact_straight_through(straight_through: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Forward to the last bit, backward unchanged, and nothing for the codes."""
    pass_through(straight_through, exact=True)


def pass_through(straight_through: Callable[[Tensor, Tensor], Tensor], *, exact: bool) -> None:
    """Forward the codes, exactly or up to rounding; backward the gradient, for the vectors."""
    generator = torch.Generator().manual_seed(0)
    for shape in [(5, 3), (2, 4, 3)]:
        vectors, codes, wish = (torch.randn(shape, generator=generator) for _ in range(3))
        given = vectors.clone().requires_grad_(), codes.clone().requires_grad_()
        out = expect_tensor(straight_through(*given), shape, "forward")
        _check_forward(out, vectors, codes)
        _backward(out, wish)
        _check_gradients(given[0].grad, given[1].grad, wish)
        rounded = "forward: the codes, to the last bit (z + (e - z) would round)"
        assert not exact or torch.equal(out, codes), rounded
        same = torch.equal(given[0], vectors) and torch.equal(given[1], codes)
        assert same, "the tensors that were given have changed"


def _check_forward(out: Tensor, vectors: Tensor, codes: Tensor) -> None:
    """The codes, and part of a graph."""
    assert not torch.equal(out, vectors), "forward: return the codes, not the vectors"
    doubled = near(out, 2 * vectors - codes)
    assert not doubled, "forward: this is z - (e - z): the difference has the wrong sign"
    assert near(out, codes), "forward: return the codes"
    words = "the output does not know of the vectors: its graph is cut, as by detach"
    assert out.requires_grad, words


def _backward(out: Tensor, wish: Tensor) -> None:
    """Backward, whose errors are the reader's."""
    try:
        out.backward(wish)
    except Exception as error:
        said = str(error).partition("\n")[0]
        hint = "give one gradient for each argument of forward, None for the codes"
        raise AssertionError(f"backward raised {type(error).__name__}: {said} ({hint})") from error


def _check_gradients(vectors: Tensor | None, codes: Tensor | None, wish: Tensor) -> None:
    """The one that came back, for the vectors alone."""
    leak = codes is not None and bool(codes.any())
    swapped = leak and (vectors is None or not vectors.any())
    hint = "in z + (e - z) the difference has to be a constant"
    said = "the codes get the gradient, the vectors none: it is the other way round"
    assert not swapped, f"{said} ({hint})"
    assert vectors is not None, "no gradient reaches the vectors"
    assert not leak, "the codes get a gradient; only their own loss may move them"
    lost = (
        "the gradient of the vectors is zero: the two z cancel (detach the difference, not e alone)"
    )
    assert vectors.any(), lost
    same = near(vectors, wish, 1e-6)
    assert same, "the gradient of the vectors is not the one that came back, unchanged"


# Exercise 3

Residual = Callable[[Tensor, list[Tensor]], tuple[Tensor, Tensor]]


def check_residual_quantize(residual_quantize: Residual) -> None:
    """Every stage takes the nearest code of what is left over."""
    generator = torch.Generator().manual_seed(0)
    for stages in (3, 1, 2):
        vectors = torch.randn(20, 4, generator=generator)
        books = [torch.randn(6, 4, generator=generator) / 2**s for s in range(stages)]
        case, given = f"{stages} codebook(s)", vectors.clone()
        parts = residual_quantize(given, [book.clone() for book in books])
        ids, total = expect_parts(parts, ("ids", "sums of codes"), case)
        changed = "the vectors that were given have changed: subtract without writing into them"
        assert torch.equal(given, vectors), f"{case}: {changed}"
        ids = expect_ids(ids, (20, stages), f"{case}, ids")
        _check_stages(ids, vectors, books, case)
        chosen = [book[ids[:, s]] for s, book in enumerate(books)]
        total = expect_tensor(total, (20, 4), f"{case}, sums")
        _check_sums(total, vectors, chosen, case)


def _check_stages(ids: Tensor, vectors: Tensor, books: list[Tensor], case: str) -> None:
    """The ids of each stage, with the mistakes of a loop told apart."""
    left = vectors
    for s, book in enumerate(books):
        right, got = torch.cdist(left, book).argmin(1), ids[:, s]
        wrong = int((got != right).sum())
        farthest = wrong and torch.equal(got, torch.cdist(left, book).argmax(1))
        assert not farthest, f"{case}: stage {s + 1} takes the farthest code, not the nearest"
        anew = wrong and torch.equal(got, torch.cdist(vectors, book).argmin(1))
        hint = "what the stages before left over, not the vectors again"
        assert not anew, f"{case}: stage {s + 1} must quantize {hint}"
        first = wrong and torch.equal(got, torch.cdist(left, books[0]).argmin(1))
        assert not first, f"{case}: stage {s + 1} has a codebook of its own"
        assert not wrong, f"{case}: {wrong} of 20 ids of stage {s + 1} are wrong"
        left = left - book[right]


def _check_sums(total: Tensor, vectors: Tensor, chosen: list[Tensor], case: str) -> None:
    """The sum of the chosen codes, not something else that a loop has at its end."""
    right = torch.stack(chosen).sum(0)
    mistakes = {
        "this is what is left over; give the sum of the chosen codes": vectors - right,
        "only the last code; give the sum over all stages": chosen[-1],
        "only the first code; give the sum over all stages": chosen[0],
        "the mean of the codes; give their sum": right / len(chosen),
        "these are the vectors; give the sum of the chosen codes": vectors,
    }
    if not near(total, right):
        known = (words for words, sums in mistakes.items() if near(total, sums))
        hint = next(known, "right ids, but the sum of their codes is wrong")
        raise AssertionError(f"{case}: {hint}")


# Exercise 4

LEVELS = [3, 5, 7]
CORNERS = torch.tensor([[0.0, 0, 0], [-9, -9, -9], [9, 9, 9], [9, 0, -9], [0.25, 0.25, 0.25]])


def check_fsq(fsq: Callable[[Tensor, list[int]], tuple[Tensor, Tensor]]) -> None:
    """Values, ids and the gradient, for three different numbers of levels."""
    given = CORNERS.clone()
    parts = fsq(given, list(LEVELS))
    rounded, ids = expect_parts(parts, ("rounded", "ids"), "corners")
    assert torch.equal(given, CORNERS), "the vectors that were given have changed"
    half = torch.tensor([1.0, 2, 3])
    right = (CORNERS.tanh() * half).round()
    rounded = expect_tensor(rounded, right.shape, "rounded")
    _check_rounded(rounded, right)
    _check_digits(expect_ids(ids, (len(right),), "ids"), (right + half).long())
    spread = 3 * torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    count = len(fsq(spread, list(LEVELS))[1].unique())
    assert count == 3 * 5 * 7, f"5,000 random vectors reach {count} ids, not {3 * 5 * 7}"
    _check_slope(fsq, half)


def _check_rounded(rounded: Tensor, right: Tensor) -> None:
    """The values, with likely scales and a missing tanh told apart."""
    levels = torch.tensor(LEVELS)
    mistakes = {
        "rounded to whole numbers only after the scaling by (L - 1) / 2": CORNERS.tanh().round(),
        "scale by (L - 1) / 2, not by L / 2": (CORNERS.tanh() * levels / 2).round(),
        "scale by (L - 1) / 2, not by L - 1": (CORNERS.tanh() * (levels - 1)).round(),
        "scale by (L - 1) / 2, not by L": (CORNERS.tanh() * levels).round(),
        "squeeze with tanh before scaling": (CORNERS * (levels - 1) / 2).round(),
        "the scaled numbers are not rounded": CORNERS.tanh() * (levels - 1) / 2,
        "the digits; rounded goes from -(L - 1) / 2 to (L - 1) / 2": right + (levels - 1) / 2,
        "divided by the scale again; give whole numbers": right / ((levels - 1) / 2),
    }
    known = (words for words, values in mistakes.items() if near(rounded, values))
    said = f"rounded: {right.tolist()}, not {[[round(x, 2) for x in r] for r in rounded.tolist()]}"
    assert near(rounded, right), f"{said} ({next(known, 'tanh, scale, round')})"


def _check_digits(ids: Tensor, digits: Tensor) -> None:
    """Mixed base, the first number is the lowest digit."""
    low, high = torch.tensor([1, 3, 15]), torch.tensor([35, 7, 1])
    half = torch.tensor([1, 2, 3])
    mistakes = {
        "the first number is the lowest digit, here it is the highest": (digits * high).sum(1),
        "digits run from 0 to L - 1: add (L - 1) / 2": ((digits - half) * low).sum(1),
        "the base of a digit is the product of the levels before it": (
            (digits * torch.tensor([3, 15, 105])).sum(1)
        ),
        "a mixed base multiplies the levels, it does not add them": (
            (digits * torch.tensor([1, 3, 8])).sum(1)
        ),
        "the base is a product over all levels before, not the level before alone": (
            (digits * torch.tensor([1, 3, 5])).sum(1)
        ),
        "the digits are only added": digits.sum(1),
    }
    right = (digits * low).sum(1)
    known = (words for words, values in mistakes.items() if torch.equal(ids, values))
    said = f"ids: {right.tolist()}, not {ids.tolist()}"
    assert torch.equal(ids, right), f"{said} ({next(known, 'a mixed base of 3, 5 and 7')})"


def _check_slope(fsq: Callable, half: Tensor) -> None:
    """The gradient of the scaled tanh, as if there were no rounding."""
    x = torch.tensor([[0.3, -0.2, 0.1], [1.0, 0.5, -2.0]], requires_grad=True)
    wish = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]])
    y = fsq(x, list(LEVELS))[0]
    lost = "no gradient: rounding needs a straight-through estimator"
    assert y.requires_grad, lost
    y.backward(wish)
    assert x.grad is not None and x.grad.any(), lost
    slope = (1 - x.detach().tanh() ** 2) * half
    mistakes = {
        "it goes past tanh and scale: straight through the rounding alone": wish,
        "it goes past the scale: straight through the rounding alone": wish * slope / half,
        "it goes past tanh: straight through the rounding alone": wish * half,
    }
    known = (words for words, values in mistakes.items() if near(x.grad, values))
    said = "gradient: that of the scaled tanh"
    assert near(x.grad, wish * slope), f"{said} ({next(known, 'as if nothing were rounded')})"
