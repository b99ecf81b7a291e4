"""05 · Checks of notebook 05's exercises: each takes the reader's function, says what is wrong."""

from collections.abc import Callable, Iterable
from math import exp, log, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minivlm.clip import contrastive_loss, sigmoid_loss
from minivlm.exercises.answers import compare_answers, expect_number, expect_tensor, near
from minivlm.exercises.clip_losses import check_contrastive_loss as check_contrastive_loss
from minivlm.exercises.clip_losses import check_sigmoid_loss as check_sigmoid_loss
from minivlm.exercises.clip_readout import check_build_classifier as check_build_classifier
from minivlm.exercises.clip_readout import check_pool_text as check_pool_text
from minivlm.exercises.clip_readout import check_recall_at as check_recall_at

# Exercise 1

KEPT: dict[str, tuple[list[int], int]] = {  # why it matters: counts, t
    "one entry": ([1000], 100),
    "two entries: stays unless both say no": ([1000, 200], 100),
    "three entries": ([400, 1000, 250], 50),
    "a rare entry keeps all of its texts": ([50], 100),
    "one rare entry is enough": ([1000, 50], 100),
    "an entry with exactly t texts": ([100], 100),
    "no entry matches: the text is dropped": ([], 100),
}


def check_keep_probability(keep_probability: Callable[[list[int], int], float]) -> None:
    """Frequent and rare entries, several of them, and none."""
    cases = [f"counts {counts}, t = {t} ({why})" for why, (counts, t) in KEPT.items()]
    got = [
        expect_number(keep_probability(list(counts), t), case)
        for case, (counts, t) in zip(cases, KEPT.values(), strict=True)
    ]
    right = [
        1 - prod(1 - min(1.0, t / n) for n in counts) if counts else 0.0
        for counts, t in KEPT.values()
    ]
    mistakes: dict[str, Iterable] = {
        name: [formula(counts, t) for counts, t in KEPT.values()]
        for name, formula in KEEP_MISTAKES.items()
    }
    mistakes["without an entry nothing keeps the text"] = [*right[:-1], got[-1]]
    compare_answers(cases, right, got, mistakes, lambda a, b: abs(a - b) < 1e-6)


def _shares(counts: list[int], t: int) -> list[float]:
    """How likely each entry keeps a text."""
    return [min(1.0, t / n) for n in counts]


KEEP_MISTAKES: dict[str, Callable[[list[int], int], float]] = {
    "that is the probability that all entries keep it": (
        lambda counts, t: prod(_shares(counts, t)) if counts else 0.0
    ),
    "that all keep it; and without an entry the text is dropped": (
        lambda counts, t: prod(_shares(counts, t))
    ),
    "that is the probability that the text is dropped": (
        lambda counts, t: prod(1 - p for p in _shares(counts, t))
    ),
    "probabilities of several entries do not add up": lambda counts, t: sum(_shares(counts, t)),
    "a sum, cut off at 1, counts it twice when both keep it": (
        lambda counts, t: min(1.0, sum(_shares(counts, t)))
    ),
    "the other entries keep it too": lambda counts, t: max(_shares(counts, t), default=0.0),
    "one entry that keeps it is enough, not all are needed": (
        lambda counts, t: min(_shares(counts, t), default=0.0)
    ),
    "a mean over the entries": (lambda counts, t: sum(_shares(counts, t)) / max(len(counts), 1)),
    "each entry draws on its own, counts are not added": (
        lambda counts, t: min(1.0, t / sum(counts)) if counts else 0.0
    ),
    "a probability is at most 1: min(1, t / count)": (
        lambda counts, t: 1 - prod(1 - t / n for n in counts)
    ),
}


# Exercise 2


def check_infonce_gradient(infonce_gradient: Callable[[Tensor, float], Tensor]) -> None:
    """Against autograd, with a factor and sizes that tell the likely mistakes apart."""
    generator = torch.Generator().manual_seed(0)
    for n, factor in ((5, 2.5), (3, 14.29), (4, 1.0)):
        cosine = 2 * torch.rand(n, n, generator=generator) - 1
        case = f"batch {n}, multiplier {factor}"
        got = expect_tensor(infonce_gradient(cosine.clone(), factor), (n, n), case).detach()
        right = _gradient(cosine, factor)
        if not near(got, right):
            mistakes = _gradient_mistakes(cosine, factor, right)
            known = (words for words, value in mistakes.items() if near(got, value))
            worst = (got - right).abs().max().item()
            raise AssertionError(f"{case}: {next(known, f'off by up to {worst:.3f}')}")


def _halves(cosine: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Probability minus target, for the rows and for the columns."""
    logits, target = factor * cosine, torch.eye(len(cosine))
    return logits.softmax(1) - target, logits.softmax(0) - target


def _gradient(cosine: Tensor, factor: float) -> Tensor:
    """By autograd."""
    cosine = cosine.clone().requires_grad_()
    target = torch.arange(len(cosine))
    rows, columns = (F.cross_entropy(factor * x, target) for x in (cosine, cosine.T))
    return torch.autograd.grad((rows + columns) / 2, cosine)[0]


def _gradient_mistakes(cosine: Tensor, factor: float, right: Tensor) -> dict[str, Tensor]:
    """What each mistake gives."""
    (rows, columns), n = _halves(cosine, factor), len(cosine)
    unscaled = torch.stack(_halves(cosine, 1.0)).sum(0)
    one, both = 2 * n / factor, torch.eye(n) * factor / n
    return {
        "only images ask here; sentences ask as well": factor * rows / n,
        "only sentences ask here; images ask as well": factor * columns / n,
        "only images ask, and their loss counts half: add the sentences": factor * rows / (2 * n),
        "rows and columns count half each": 2 * right,
        "B times too large: the loss is a mean over the pairs": n * right,
        "2 B times too large: the loss is a mean over pairs, of two halves": 2 * n * right,
        "B times too small: one mean over the pairs, not over the matrix": right / n,
        "the chain rule brings the multiplier once more: multiply by it": right / factor,
        "multiply by the multiplier, and divide by 2 B": right * one,
        "the softmax sees the multiplier times the cosine": factor * unscaled / (2 * n),
        "the multiplier is missing, in the softmax and before it": unscaled / (2 * n),
        "the multiplier comes once from the chain rule, not twice": right * factor,
        "the sign is turned around: probability minus target": -right,
        "subtract the target: the diagonal lacks -1": right + both,
        "the target is the diagonal, subtracted once for rows, once for columns": right + both / 2,
        "`scale` is the multiplier already, exp(t): take no exp": _gradient(cosine, exp(factor)),
    }


# Exercise 3

Chunked = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


class Largest(TorchDispatchMode):
    """Notes the largest matrix of pairs that is formed, whichever operation forms it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.shape: tuple[int, ...] = (0,)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        shape = tuple(out.shape) if isinstance(out, Tensor) else (0,)
        if self.pairs(shape) > self.pairs(self.shape):
            self.shape = shape
        return out

    def pairs(self, shape: tuple[int, ...]) -> int:
        """How many pairs a tensor holds; of vectors, one axis is their width."""
        sizes = list(shape)
        if self.width in sizes:
            sizes.remove(self.width)
        return prod(sizes)


def check_chunked_sigmoid_loss(chunked_sigmoid_loss: Chunked) -> None:
    """The loss, what is held for it, and its gradients; the last chunk is shorter."""
    generator = torch.Generator().manual_seed(0)
    for n, chunk in ((6, 6), (7, 3), (10, 4)):  # subtle: no size is 5, the width; n <= chunk ** 2
        x, y = (torch.randn(n, 5, generator=generator) for _ in range(2))
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        scale, bias = torch.tensor(log(10.0)), torch.tensor(-2.0)
        inputs = [tensor.requires_grad_() for tensor in (x, y, scale, bias)]
        case = f"{n} pairs in chunks of {chunk}"
        with Largest(5) as largest:
            got = chunked_sigmoid_loss(x, y, scale, bias, chunk)
        got = expect_tensor(got, (), case)
        _check_loss(got, inputs, chunk, case)
        held = f"at most {chunk} x {chunk} logits may be formed at once"
        shape = largest.shape
        assert largest.pairs(shape) <= chunk**2, f"{case}: a tensor of {shape}; {held}"
        _check_loss_gradients(got, inputs, case)


def _check_loss(got: Tensor, inputs: list[Tensor], chunk: int, case: str) -> None:
    """The value, with likely mistakes told apart."""
    x, y, scale, bias = (tensor.detach() for tensor in inputs)
    right, n = sigmoid_loss(x, y, scale, bias), len(x)
    diagonal = (scale.exp() * (x * y).sum(1) + bias).sum() / n
    full, chunks = n // chunk * chunk, -(-n // chunk)
    blocks = [
        sigmoid_loss(a, b, scale, bias) * len(a)
        for a, b in zip(x.split(chunk), y.split(chunk), strict=True)
    ]
    mistakes = {
        "a mean over B * B; divide by B": right / n,
        "a sum; divide by B": right * n,
        "divide by B, not by the chunk": right * n / chunk,
        "the last, shorter chunk is missing": sigmoid_loss(x[:full], y[:full], scale, bias)
        * (full / n),
        "also pairs from two different chunks count": torch.stack(blocks).sum() / n,
        "the pairs that belong together are missing: subtract the diagonal": right + diagonal,
        "the diagonal is subtracted, not added": right + 2 * diagonal,
        "the diagonal is subtracted once, not for each chunk": right - (chunks - 1) * diagonal,
        "`scale` is a logarithm: take its exp": sigmoid_loss(x, y, scale.log(), bias),
        "the bias is missing": sigmoid_loss(x, y, scale, 0 * bias),
        "the diagonal has the bias too": right + bias,
        "the diagonal is multiplied by exp(scale) too": (
            right + diagonal - ((x * y).sum(1) + bias).mean()
        ),
    }
    known = (words for words, value in mistakes.items() if near(got.detach(), value, 1e-5))
    said = next(known, f"{right.item():.4f}, not {got.item():.4f}")
    assert near(got.detach(), right, 1e-4), f"{case}: {said}"


def _check_loss_gradients(got: Tensor, inputs: list[Tensor], case: str) -> None:
    """Those of all four inputs."""
    names = ("the images", "the texts", "scale", "bias")
    assert got.requires_grad, f"{case}: right loss without a gradient: is there an item()?"
    ours = torch.autograd.grad(got, inputs, allow_unused=True)
    x, y, scale, bias = inputs
    theirs = torch.autograd.grad(sigmoid_loss(x, y, scale, bias), inputs)
    for name, mine, right in zip(names, ours, theirs, strict=True):
        assert mine is not None, f"{case}: right loss, but no gradient reaches {name}"
        assert near(mine, right), f"{case}: right loss, wrong gradient of {name}"


# Exercise 4

Grouped = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def check_grouped_contrastive_loss(grouped_contrastive_loss: Grouped) -> None:
    """Labels that all differ, groups of unequal size, and one group."""
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(6, 4, generator=generator), dim=1) for _ in range(2))
    scale = torch.tensor(log(10.0))
    for row in ([40, 7, 40, 3, 7, 40], [5, 3, 9, 0, 12, 8], [2] * 6):
        labels = torch.tensor(row)
        case = f"labels {row}"
        got = grouped_contrastive_loss(x.clone(), y.clone(), scale.clone(), labels.clone())
        got = expect_tensor(got, (), case).detach()
        right = _grouped(10 * x @ y.T, labels)
        known = (
            words
            for words, value in _grouped_mistakes(x, y, labels).items()
            if near(got, value) and not near(right, value)
        )
        said = f"{right.item():.4f}, not {got.item():.4f}"
        hint = next(known, "each row of the target has to sum to 1")
        assert near(got, right), f"{case}: {said} ({hint})"


def _grouped(logits: Tensor, labels: Tensor, directions: str = "both") -> Tensor:
    """Row by row."""
    rows, columns = (
        torch.stack([-x[i].log_softmax(0)[labels == labels[i]].mean() for i in range(len(x))])
        for x in (logits, logits.T)
    )
    means = {"rows": rows.mean(), "columns": columns.mean()}
    return means.get(directions, (means["rows"] + means["columns"]) / 2)


def _mates_hidden(logits: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy with the other mates left out."""
    hidden = same & ~torch.eye(len(same), dtype=torch.bool)
    return F.cross_entropy(logits.masked_fill(hidden, -torch.inf), torch.arange(len(same)))


GROUP_LOSSES: list[Callable[[Tensor, Tensor], Tensor]] = [  # of logits, and of who is like whom
    lambda m, same: F.cross_entropy(m, same.float()),
    lambda m, same: F.cross_entropy(m, same.float() * len(same) / same.sum()),
    _mates_hidden,
    lambda m, same: -(m.softmax(1) * same).sum(1).log().mean(),
]


def _grouped_mistakes(x: Tensor, y: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What each mistake gives."""
    logits, n = 10 * x @ y.T, len(x)
    same = labels[:, None] == labels
    right = _grouped(logits, labels)
    flat, total, masked, union = (
        torch.stack([of(logits, same), of(logits.T, same)]).mean() for of in GROUP_LOSSES
    )
    return {
        "the labels change nothing: mates are still negatives": (
            contrastive_loss(x, y, torch.tensor(log(10.0)))
        ),
        "each row of the target has to sum to 1: divide by the number of mates": flat,
        "divide each row by its own number of mates, not by that of all pairs": total,
        "mates are left out of the softmax; they have to share the target": masked,
        "the log of a sum; spread the target evenly over the mates": union,
        "only rows count here, columns do too": _grouped(logits, labels, "rows"),
        "only columns count here, rows do too": _grouped(logits, labels, "columns"),
        "rows and columns count half each": 2 * right,
        "a sum over the rows; take the mean": n * right,
        "`scale` is a logarithm: take its exp": _grouped(log(10.0) * x @ y.T, labels),
        "the scale is missing": _grouped(x @ y.T, labels),
    }
