"""Notebook 06's exercises: what their checks accept, and what they say about likely mistakes."""

from collections.abc import Callable
from math import log

import pytest
import torch
from wrong_solutions import accepts, refuses

from minivlm.exercises import blip as exercises

# Exercise 1


def mean_age(m):
    return m / (1 - m)


def summed(m):
    return sum(k * (1 - m) * m**k for k in range(5000))


def as_a_tensor(m):
    return torch.tensor(m) / (1 - m)


@pytest.mark.parametrize("function", [mean_age, summed, as_a_tensor])
def test_right_mean_ages(function: Callable) -> None:
    accepts(exercises.check_mean_age, function)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        pytest.param(lambda m: 1 / (1 - m), "begins at k = 0", id="counted from one"),
        pytest.param(lambda m: m / (1 - m) ** 2, "1 - m", id="without the factor 1 - m"),
        pytest.param(lambda m: (1 - m) / m, "upside down", id="upside down"),
        pytest.param(lambda m: log(0.5) / log(m), "half-life", id="half-life"),
        pytest.param(
            lambda m: sum(k * (1 - m) * m**k for k in range(100)), "too early", id="100 steps"
        ),
        pytest.param(lambda m: m, "not 0.6", id="m itself"),
        pytest.param(lambda m: None, "return", id="no return"),
    ],
)
def test_wrong_mean_ages(function: Callable, word: str) -> None:
    refuses(exercises.check_mean_age, function, word)


# Exercise 2


def negative_odds(similarities, labels):
    same = labels[:, None] == labels[None, :]
    weights = (similarities.softmax(dim=1) + 1e-4).masked_fill(same, 0)
    total = weights.sum(dim=1, keepdim=True)
    return weights / total.where(total > 0, torch.ones_like(total))


def odds_in_loops(similarities, labels):
    odds = torch.zeros(similarities.shape, dtype=torch.float64)
    for i, row in enumerate(similarities.double()):
        weights = row.exp() / row.exp().sum() + 1e-4
        others = [j for j in range(len(row)) if labels[j] != labels[i]]
        for j in others:
            odds[i, j] = weights[j] / sum(weights[k] for k in others)
    return odds


@pytest.mark.parametrize("function", [negative_odds, odds_in_loops])
def test_right_odds(function: Callable) -> None:
    accepts(exercises.check_negative_odds, function)


def diagonal_alone(similarities, labels):
    return negative_odds(similarities, torch.arange(len(labels)))


def without_the_constant(similarities, labels):
    same = labels[:, None] == labels
    weights = similarities.softmax(dim=1).masked_fill(same, 0)
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)


def excluded_before_softmax(similarities, labels):
    same = labels[:, None] == labels
    weights = similarities.masked_fill(same, -1e9).softmax(dim=1) + 1e-4
    weights = weights.masked_fill(same, 0)
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)


def constant_after_exclusion(similarities, labels):
    same = labels[:, None] == labels
    weights = similarities.masked_fill(same, -1e9).softmax(dim=1) + 1e-4
    return weights / weights.sum(dim=1, keepdim=True)


def not_normalised(similarities, labels):
    same = labels[:, None] == labels
    return (similarities.softmax(dim=1) + 1e-4).masked_fill(same, 0)


def nan_where_none_is_left(similarities, labels):
    weights = not_normalised(similarities, labels)
    return weights / weights.sum(dim=1, keepdim=True)


def any_where_none_is_left(similarities, labels):
    odds = negative_odds(similarities, labels)
    return torch.where(odds.sum(dim=1, keepdim=True) > 0, odds, torch.ones_like(odds) / len(odds))


def softmax_over_rows(similarities, labels):
    weights = (similarities.softmax(dim=0) + 1e-4).masked_fill(labels[:, None] == labels, 0)
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (diagonal_alone, "label"),
        (without_the_constant, "constant"),
        (excluded_before_softmax, "softmax"),
        (constant_after_exclusion, "own"),
        (not_normalised, "sums to 1"),
        (nan_where_none_is_left, "nan"),
        (any_where_none_is_left, "zero"),
        (softmax_over_rows, "dim=1"),
        pytest.param(lambda similarities, labels: labels, "shape", id="labels"),
    ],
)
def test_wrong_odds(function: Callable, word: str) -> None:
    refuses(exercises.check_negative_odds, function, word)


# Exercise 3


def best_of(write, judge, n, draws):
    best = write(n)
    score = judge(best)
    for _ in range(draws - 1):
        new = write(n)
        judged = judge(new)
        chosen = zip(best, new, (judged > score).tolist(), strict=True)
        best = [b if yes else a for a, b, yes in chosen]
        score = torch.maximum(judged, score)
    return best


def all_then_best(write, judge, n, draws):
    drawn = [write(n) for _ in range(draws)]
    scores = [judge(captions).tolist() for captions in drawn]
    found = []
    for picture in range(n):
        column = [row[picture] for row in scores]
        found.append(drawn[column.index(max(column))][picture])
    return tuple(found)


@pytest.mark.parametrize("function", [best_of, all_then_best])
def test_right_best_of(function: Callable) -> None:
    accepts(exercises.check_best_of, function)


def by_rule(rule):
    """The captions of the draws that a rule picks from the judgements (draws, n)."""

    def kept(write, judge, n, draws):
        drawn = [write(n) for _ in range(draws)]
        picks = rule(torch.stack([judge(captions) for captions in drawn]))
        return [drawn[int(pick)][picture] for picture, pick in enumerate(picks)]

    return kept


def starting_at_zero(write, judge, n, draws):
    best, score = [None] * n, [0.0] * n
    for _ in range(draws):
        new = write(n)
        for i, judged in enumerate(judge(new).tolist()):
            if judged > score[i]:
                best[i], score[i] = new[i], judged
    return best


def the_draw_before(write, judge, n, draws):
    best = write(n)
    score = judge(best)
    for _ in range(draws - 1):
        new = write(n)
        judged = judge(new)
        better = judged > score
        best = [b if yes else a for a, b, yes in zip(best, new, better, strict=True)]
        score = judged
    return best


def the_first_score(write, judge, n, draws):
    best = write(n)
    score = judge(best)
    for _ in range(draws - 1):
        new = write(n)
        best = [b if yes else a for a, b, yes in zip(best, new, judge(new) > score, strict=True)]
    return best


def judged_one_by_one(write, judge, n, draws):
    drawn = [write(n) for _ in range(draws)]
    return [max((row[i] for row in drawn), key=lambda one: judge([one])) for i in range(n)]


def one_draw_too_many(write, judge, n, draws):
    return best_of(write, judge, n, draws + 1)


def one_draw_too_few(write, judge, n, draws):
    return best_of(write, judge, n, max(1, draws - 1))


def by_caption(write, judge, n, draws):
    drawn = [write(n) for _ in range(draws)]
    score = {}
    for captions in drawn:
        score |= dict(zip(captions, judge(captions).tolist(), strict=True))
    return [max((row[i] for row in drawn), key=score.get) for i in range(n)]


def last_of_equals(scores):
    return [len(scores) - 1 - scores[:, i].flip(0).argmax() for i in range(scores.shape[1])]


@pytest.mark.parametrize(
    ("function", "word"),
    [
        pytest.param(
            by_rule(lambda scores: [scores.mean(dim=1).argmax()] * scores.shape[1]),
            "its own best draw",
            id="one best draw for all",
        ),
        pytest.param(by_rule(last_of_equals), "the first stays", id="last of equals"),
        pytest.param(by_rule(lambda scores: scores.argmin(dim=0)), "worst", id="worst"),
        pytest.param(
            by_rule(lambda scores: [len(scores) - 1] * scores.shape[1]), "last draw", id="last"
        ),
        pytest.param(the_draw_before, "best so far", id="compared with the draw before"),
        pytest.param(the_first_score, "remember", id="judgement never updated"),
        pytest.param(starting_at_zero, "nothing likely", id="zero to begin with"),
        pytest.param(judged_one_by_one, "judge takes one caption for each", id="one by one"),
        pytest.param(one_draw_too_many, "write is called", id="one draw more"),
        pytest.param(one_draw_too_few, "write is called", id="one draw less"),
        pytest.param(by_caption, "both pictures", id="judgements shared by equal captions"),
        pytest.param(
            lambda write, judge, n, draws: best_of(write, judge, n, draws)[0],
            "give a list",
            id="one caption",
        ),
    ],
)
def test_wrong_best_of(function: Callable, word: str) -> None:
    refuses(exercises.check_best_of, function, word)


# Exercise 4


def threshold(probabilities, noise):
    for p in probabilities.unique():  # from the lowest up
        if (1 - probabilities[probabilities >= p]).mean() <= noise:
            return p.item()
    return 1.0


def from_the_surest_down(probabilities, noise):
    found, ordered = 1.0, sorted(probabilities.tolist(), reverse=True)
    for p in ordered:
        kept = [x for x in ordered if x >= p]
        if sum(1 - x for x in kept) <= (noise + 1e-9) * len(kept):
            found = p
    return found


@pytest.mark.parametrize("function", [threshold, from_the_surest_down])
def test_right_thresholds(function: Callable) -> None:
    accepts(exercises.check_lowest_threshold, function)


def cumulated(probabilities, noise, divisor=None):
    ordered = probabilities.sort(descending=True).values
    counts = divisor or torch.arange(1, len(ordered) + 1)
    kept = int(((1 - ordered).cumsum(0) / counts <= noise + 1e-7).sum())
    return ordered[kept - 1].item() if kept else 1.0


def each_alone(probabilities, noise):
    sure = probabilities[1 - probabilities <= noise + 1e-7]
    return sure.min().item() if len(sure) else 1.0


def noise_of_all(probabilities, noise):
    fine = len(probabilities) and (1 - probabilities).mean() <= noise
    return probabilities.min().item() if fine else 1.0


def strictly_less(probabilities, noise):
    return threshold(probabilities, noise - 1e-6)


def the_highest(probabilities, noise):
    return probabilities.max().item() if threshold(probabilities, noise) < 1 else 1.0


@pytest.mark.parametrize(
    ("function", "word"),
    [
        pytest.param(each_alone, "each pair alone", id="each alone"),
        pytest.param(
            lambda p, noise: cumulated(p, noise, len(p)), "over all pairs", id="divided by all"
        ),
        pytest.param(noise_of_all, "not of all", id="noise of all"),
        pytest.param(lambda p, noise: cumulated(p, noise, 1), "sum", id="a sum"),
        pytest.param(strictly_less, "at most", id="strictly less"),
        pytest.param(cumulated, "kept together", id="equal probabilities torn apart"),
        pytest.param(lambda p, noise: 1 - noise, "one of the probabilities", id="1 - noise"),
        pytest.param(the_highest, "not 0.99", id="the highest"),
        pytest.param(lambda p, noise: p[p >= 1 - noise], "a number", id="a tensor"),
    ],
)
def test_wrong_thresholds(function: Callable, word: str) -> None:
    refuses(exercises.check_lowest_threshold, function, word)
