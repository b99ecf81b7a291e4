"""06 · Checks of notebook 06's exercises: each takes a reader's function, says what is wrong."""

from collections.abc import Callable
from math import inf, log

import torch
from torch import Tensor

from minivlm.exercises.answers import (
    compare_answers,
    expect_items,
    expect_number,
    expect_tensor,
    near,
)


def check_mean_age(mean_age: Callable) -> None:
    """Exercise 1: against the sum itself, far enough out."""
    momenta = (0.6, 0.75, 0.9, 0.99, 0.995)
    close = lambda a, b: abs(a - b) < 1e-3 * abs(a)
    cases = [f"m = {m}" for m in momenta]
    right = [sum(k * (1 - m) * m**k for k in range(20_000)) for m in momenta]
    got = [expect_number(mean_age(m), case) for m, case in zip(momenta, cases, strict=True)]
    short = close(right[0], got[0]) and all(b <= a for a, b in zip(right, got, strict=True))
    mistakes = {
        "the sum begins at k = 0, not at 1": [1 / (1 - m) for m in momenta],
        "the shares must sum to 1: the factor 1 - m": [m / (1 - m) ** 2 for m in momenta],
        "upside down: the larger m, the older": [(1 - m) / m for m in momenta],
        "that is the half-life; give the mean": [log(0.5) / log(m) for m in momenta],
        "the sum stops too early: training has run for very long": got if short else right,
    }
    compare_answers(cases, right, got, mistakes, close)


def check_negative_odds(negative_odds: Callable) -> None:
    """Exercise 2: labels all different, some alike, all alike, and a batch of one."""
    all_labels = ([4, 0, 3, 1, 2], [7, 1, 7, 2, 1, 7], [3, 3, 3, 3], [5])
    for labels in all_labels:
        label, size, case = torch.tensor(labels), len(labels), f"labels {labels}"
        similarities = torch.randn(size, size, generator=torch.Generator().manual_seed(size)) * 3
        odds = negative_odds(similarities.clone(), label.clone())
        got = expect_tensor(odds, (size, size), case)
        same = label[:, None] == label[None, :]
        assert not got.isnan().any(), f"{case}: nan; a row without a negative is zero everywhere"
        if same.all():
            assert (got == 0).all(), f"{case}: no negative, so the odds are zero everywhere"
            continue
        _check_drawable(got, similarities, same, case)


def _check_drawable(got: Tensor, similarities: Tensor, same: Tensor, case: str) -> None:
    """Odds (B, B) of a batch in which every row has a negative."""
    own = "a row can draw its own column"
    assert (got.diagonal() == 0).all(), f"{case}: {own}"
    assert (got[same] == 0).all(), f"{case}: a column with the row's own label can be drawn"
    sums = got.sum(dim=1)
    assert near(sums, torch.ones(len(got))), f"{case}: each row of odds sums to 1"
    apart = similarities.masked_fill(same, -inf).softmax(dim=1)
    mistakes = {
        "add draw_negatives' constant, 1e-4, to the softmax": similarities.softmax(dim=1),
        "softmax over the columns of a row, dim=1": similarities.softmax(dim=0) + 1e-4,
        "softmax over all columns first, exclude after it": apart + 1e-4,
    }
    normal = lambda weights: weights / weights.sum(dim=1, keepdim=True)
    odds = lambda weights: normal(weights.masked_fill(same, 0))
    hint = "the columns that are left keep the ratios of draw_negatives"
    found = (what for what, weights in mistakes.items() if near(got, odds(weights), 1e-5))
    right = near(got, odds(similarities.softmax(dim=1) + 1e-4), 1e-5)
    assert right, f"{case}: {next(found, hint)}"


# What is judged in each draw (row) of each picture (column); captions are named by draw and picture
DRAWS = {
    "three pictures": [[0.1, 0.9, 0.3], [0.8, 0.2, 0.4], [0.3, 0.7, 0.9], [0.5, 0.8, 0.2]],
    "captions that both pictures get": [[0.2, 0.9], [0.1, 0.5]],
    "equal judgements": [[0.2, 0.6], [0.7, 0.6], [0.7, 0.6]],
    "nothing likely": [[0.0, 0.0], [0.0, 0.5]],
    "one draw": [[0.4, 0.3, 0.2, 0.1]],
    "one picture": [[0.6], [0.4], [0.5], [0.3], [0.9]],
}


def check_best_of(best_of: Callable) -> None:
    """Exercise 3: each picture on its own, its first best draw."""
    answers, cases = [], [f"{name}, judged {table}" for name, table in DRAWS.items()]
    for case, table in DRAWS.items():
        answers.append(_best_of_script(best_of, table, case))
    picked = {what: [_picks(table, rule) for table in DRAWS.values()] for what, rule in RULES}
    right = picked.pop("right")
    compare_answers(cases, right, answers, picked)


def _best_of_script(best_of: Callable, table: list[list[float]], case: str) -> list[str]:
    """What a reader's function keeps when draws and judgements are as in the table."""
    n, draws, calls = len(table[0]), len(table), []

    def write(n: int) -> list[str]:
        calls.append(n)
        assert len(calls) <= draws, f"{case}: write is called more often than {draws} times"
        return [_caption(len(calls) - 1, picture) for picture in range(len(table[0]))]

    def judge(captions: list[str]) -> Tensor:
        came = f"judge takes one caption for each of {n} pictures; {len(captions)} came"
        assert len(captions) == n, f"{case}: {came}"
        place = [CAPTIONS.index(caption) for caption in captions]
        scores = [table[(at - picture) % 5][picture] for picture, at in enumerate(place)]
        return torch.tensor(scores)

    got = expect_items(best_of(write, judge, n, draws), case, n)
    wanted = f"write is called {draws} times, for {n} pictures each"
    assert calls == [n] * draws, f"{case}: {wanted}; it was called with {calls}"
    return got


CAPTIONS = ["a dot", "a star", "a cross", "a ring", "a moon"]


def _caption(draw: int, picture: int) -> str:
    """Captions come back in other draws and for other pictures."""
    return CAPTIONS[(draw + picture) % 5]


def _picks(table: list[list[float]], rule: Callable) -> list[str]:
    """The captions that a rule keeps; it takes the judgements of one picture, and the table."""
    columns = list(zip(*table, strict=True))
    return [_caption(rule(list(column), table), i) for i, column in enumerate(columns)]


def _after(scores: list[float], table: list[list[float]]) -> int:
    """The last draw that was better than the one before it."""
    better = [i for i in range(1, len(scores)) if scores[i] > scores[i - 1]]
    return max(better, default=0)


RULES = (
    ("right", lambda scores, table: scores.index(max(scores))),
    (
        "each picture has its own best draw, not one draw for all",
        lambda scores, table: max(range(len(table)), key=lambda draw: sum(table[draw])),
    ),
    (
        "of captions that are judged alike, the first stays",
        lambda scores, table: len(scores) - 1 - scores[::-1].index(max(scores)),
    ),
    ("compare with the best so far, not with the draw before", _after),
    (
        "remember the best judgement too: you compare with the first draw's",
        lambda scores, table: max([0, *(i for i, s in enumerate(scores) if s > scores[0])]),
    ),
    ("that is the last draw, whatever is judged", lambda scores, table: len(scores) - 1),
    ("that is the first draw, whatever is judged", lambda scores, table: 0),
    ("that is the draw that is judged worst", lambda scores, table: scores.index(min(scores))),
)


THRESHOLDS: tuple[tuple[list[float], float, float], ...] = (  # probabilities, noise, threshold
    ([0.2, 0.99, 0.6, 0.9, 0.95, 0.4], 0.012, 0.99),
    ([0.2, 0.99, 0.6, 0.9, 0.95, 0.4], 0.06, 0.9),
    ([0.2, 0.99, 0.6, 0.9, 0.95, 0.4], 0.15, 0.6),
    ([0.2, 0.99, 0.6, 0.9, 0.95, 0.4], 0.25, 0.4),
    ([0.2, 0.99, 0.6, 0.9, 0.95, 0.4], 0.9, 0.2),
    ([0.2, 0.99, 0.6, 0.9, 0.95, 0.4], 0.001, 1.0),
    ([0.75, 0.5], 0.25, 0.75),  # exactly
    ([0.6, 0.9, 0.6], 0.27, 0.9),  # at 0.6 both are kept: a noise of 0.3
    ([0.3], 0.8, 0.3),
    ([], 0.5, 1.0),
)


def check_lowest_threshold(threshold: Callable) -> None:
    """Exercise 4: the mean over the kept pairs, with equal probabilities and an exact limit."""
    cases = [f"probabilities {p}, noise {noise}" for p, noise, _ in THRESHOLDS]
    got = [
        expect_number(threshold(torch.tensor(p), noise), case)
        for case, (p, noise, _) in zip(cases, THRESHOLDS, strict=True)
    ]
    mistakes = {
        what: [_lowest(p, noise, estimate) for p, noise, _ in THRESHOLDS]
        for what, estimate in NOISES.items()
    }
    mistakes["one of the probabilities, not 1 - noise"] = [1 - noise for _, noise, _ in THRESHOLDS]
    right = [expected for *_, expected in THRESHOLDS]
    compare_answers(cases, right, got, mistakes, lambda a, b: abs(a - b) < 1e-6)


def _lowest(p: list[float], noise: float, estimate: Callable) -> float:
    """The lowest probability at which a (wrong) estimate of the noise is small enough.

    The estimate takes the probabilities kept, from the highest down, and all.
    """
    ordered = sorted(p, reverse=True)
    kept = [ordered[: i + 1] for i in range(len(ordered))]
    fine = [some[-1] for some in kept if estimate(some, ordered) <= noise + 1e-9]
    return min(fine, default=1.0)


def _doubt(p: list[float]) -> float:
    return sum(1 - x for x in p)


def _tied(kept: list[float], p: list[float]) -> float:
    """A hair above the noise of all at or above the lowest: equal to the limit is too much."""
    above = [x for x in p if x >= kept[-1]]
    return _doubt(above) / len(above) + 1e-6


NOISES = {
    "the mean over the kept pairs counts, not each pair alone": lambda kept, p: 1 - kept[-1],
    "the mean over the kept pairs, not over all pairs": lambda kept, p: _doubt(kept) / len(p),
    "the noise of the kept pairs, not of all": lambda kept, p: _doubt(p) / len(p),
    "the mean over the kept pairs, not their sum": lambda kept, p: _doubt(kept),
    "at most: a noise equal to the limit is fine": _tied,
    "equal probabilities are kept together": lambda kept, p: _doubt(kept) / len(kept),
}
