"""05 · Checks of the two losses that the reader of notebook 05 writes before they are shown."""

from collections.abc import Callable, Mapping
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.clip import contrastive_loss, sigmoid_loss
from minivlm.exercises.answers import compare_answers, expect_tensor, near

Loss = Callable[..., Tensor]


def pairs_of(count: int, width: int, multiplier: float, *bias: float) -> list[Tensor]:
    """Unit vectors of images and texts, the scale as its logarithm, and a bias if one is given."""
    generator = torch.Generator().manual_seed(count)
    image, text = (torch.randn(count, width, generator=generator) for _ in range(2))
    numbers = [torch.tensor(number) for number in (log(multiplier), *bias)]
    return [F.normalize(image, dim=1), F.normalize(text, dim=1), *numbers]


def close(a: float, b: float) -> bool:
    """Equal up to rounding; a number that is not finite is close to none."""
    return abs(a - b) < 1e-4 * max(1.0, abs(a))


def judge_loss(
    loss: Loss, reference: Loss, inputs: Mapping[str, list[Tensor]], mistakes: Mapping[str, Loss]
) -> None:
    """Its values, with the likely mistakes told apart; then the gradients of all inputs."""
    given = [[tensor.clone().requires_grad_() for tensor in row] for row in inputs.values()]
    results = [expect_tensor(loss(*row), (), case) for case, row in zip(inputs, given, strict=True)]
    right, known = _values(reference, inputs), {}
    for words, mistake in mistakes.items():
        known[words] = _values(mistake, inputs)
    compare_answers([*inputs], right, [r.item() for r in results], known, close)
    for case, row, result in zip(inputs, given, results, strict=True):
        _judge_gradients(case, row, result, reference)


def _values(loss: Loss, inputs: Mapping[str, list[Tensor]]) -> list[float]:
    """One number for each case."""
    return [loss(*row).item() for row in inputs.values()]


def _judge_gradients(case: str, row: list[Tensor], result: Tensor, reference: Loss) -> None:
    """No input may have been detached."""
    names = ("image", "text", "log_scale", "bias")[: len(row)]  # not every loss has a bias
    assert result.requires_grad, f"{case}: right loss without a gradient: is there an item()?"
    ours = torch.autograd.grad(result, row, allow_unused=True)
    theirs = torch.autograd.grad(reference(*row), row)
    for name, mine, right in zip(names, ours, theirs, strict=True):
        assert mine is not None, f"{case}: right loss, but no gradient reaches {name}"
        assert near(mine, right, 1e-3), f"{case}: right loss, wrong gradient of {name}"


def _cross_entropy(logits: Tensor, target: Tensor | None = None, **how: Any) -> Tensor:
    """Of the rows; the target is the diagonal unless one is given."""
    return F.cross_entropy(logits, torch.arange(len(logits)) if target is None else target, **how)


def _both_ways(logits: Tensor, of: Callable[[Tensor], Tensor] = _cross_entropy) -> Tensor:
    """The mean of a loss of the rows and of the columns."""
    return (of(logits) + of(logits.T)) / 2


def _without_positives(logits: Tensor) -> Tensor:
    """Cross-entropy whose denominator holds the negatives alone."""
    own = torch.eye(len(logits), dtype=torch.bool)
    return (logits.masked_fill(own, -torch.inf).logsumexp(1) - logits.diagonal()).mean()


CONTRASTIVE_MISTAKES: dict[str, Loss] = {
    "`log_scale` is a logarithm: multiply the cosines by its exp": (
        lambda x, y, s: _both_ways(s * x @ y.T)
    ),
    "exp(log_scale) multiplies the cosines; you divide by it": (
        lambda x, y, s: _both_ways(x @ y.T / s.exp())
    ),
    "you divide by `log_scale`; multiply by its exp": lambda x, y, s: _both_ways(x @ y.T / s),
    "the scale is missing": lambda x, y, s: _both_ways(x @ y.T),
    "only images ask for their caption here; captions ask too: average both directions": (
        lambda x, y, s: _cross_entropy(s.exp() * x @ y.T)
    ),
    "only captions ask for their image here; images ask too: average both directions": (
        lambda x, y, s: _cross_entropy(s.exp() * y @ x.T)
    ),
    "twice the loss: the two directions are averaged, not added": (
        lambda x, y, s: 2 * contrastive_loss(x, y, s)
    ),
    "half the loss: it is the mean of two directions": (
        lambda x, y, s: contrastive_loss(x, y, s) / 2
    ),
    "cross_entropy already applies the softmax: give it the logits": (
        lambda x, y, s: _both_ways(s.exp() * x @ y.T, lambda m: _cross_entropy(m.softmax(1)))
    ),
    "cross_entropy already applies the softmax; here it also runs over rows in both directions": (
        lambda x, y, s: _both_ways((s.exp() * x @ y.T).softmax(1))
    ),
    "B times too large: take the mean over the batch, not the sum": (
        lambda x, y, s: len(x) * contrastive_loss(x, y, s)
    ),
    "2 B times too large: take the mean over the batch and over the two directions": (
        lambda x, y, s: 2 * len(x) * contrastive_loss(x, y, s)
    ),
    "every row is told to match caption 0; row i belongs to caption i": lambda x, y, s: _both_ways(
        s.exp() * x @ y.T, lambda m: _cross_entropy(m, torch.zeros(len(m)).long())
    ),
    "the right caption is missing from the denominator": (
        lambda x, y, s: _both_ways(s.exp() * x @ y.T, _without_positives)
    ),
    "row 0 changes when row 1 does: the vectors have length one already, normalise nothing": (
        lambda x, y, s: contrastive_loss(F.normalize(x, dim=0), F.normalize(y, dim=0), s)
    ),
    "the sign is turned around": lambda x, y, s: -contrastive_loss(x, y, s),
    "images meet images here: the logits are image @ text.T": (
        lambda x, y, s: _both_ways(s.exp() * x @ x.T)
    ),
}


def check_contrastive_loss(loss: Loss) -> None:
    """Two batches of different size and scale."""
    inputs = {
        "6 pairs, multiplier 14.29": pairs_of(6, 8, 1 / 0.07),
        "3 pairs, multiplier 2.5": pairs_of(3, 5, 2.5),
    }
    judge_loss(loss, contrastive_loss, inputs, CONTRASTIVE_MISTAKES)


def _yes_or_no(logits: Tensor, positives: float = 1, negatives: float = 1) -> Tensor:
    """The sum over all pairs, divided by B; positives and negatives with a weight each."""
    own = torch.eye(len(logits))
    weighed = positives * own * F.softplus(-logits) + negatives * (1 - own) * F.softplus(logits)
    return weighed.sum() / len(logits)


SIGMOID_MISTAKES: dict[str, Loss] = {
    "B times too small: divide the sum by B, not by B * B": (
        lambda x, y, s, b: sigmoid_loss(x, y, s, b) / len(x)
    ),
    "B times too large: divide the sum by B": lambda x, y, s, b: len(x) * sigmoid_loss(x, y, s, b),
    "a negative has z = -1, not 0": (
        lambda x, y, s, b: -F.logsigmoid(torch.eye(len(x)) * (s.exp() * x @ y.T + b)).sum() / len(x)
    ),
    "all pairs count as positives": (
        lambda x, y, s, b: -F.logsigmoid(s.exp() * x @ y.T + b).sum() / len(x)
    ),
    "all pairs count as negatives": (
        lambda x, y, s, b: F.softplus(s.exp() * x @ y.T + b).sum() / len(x)
    ),
    "the diagonal is +1 and the rest -1; yours is the other way round": (
        lambda x, y, s, b: (
            F.softplus((2 * torch.eye(len(x)) - 1) * (s.exp() * x @ y.T + b)).sum() / len(x)
        )
    ),
    "only the positives count here; negatives count too": (
        lambda x, y, s, b: _yes_or_no(s.exp() * x @ y.T + b, negatives=0)
    ),
    "only the negatives count here; positives count too": (
        lambda x, y, s, b: _yes_or_no(s.exp() * x @ y.T + b, positives=0)
    ),
    "the bias is added, not subtracted": lambda x, y, s, b: sigmoid_loss(x, y, s, -b),
    "the bias is missing": lambda x, y, s, b: sigmoid_loss(x, y, s, 0 * b),
    "the bias is added after the scale has multiplied": (
        lambda x, y, s, b: sigmoid_loss(x, y, s, s.exp() * b)
    ),
    "the sign z multiplies the bias as well": (
        lambda x, y, s, b: (
            -F.logsigmoid((2 * torch.eye(len(x)) - 1) * s.exp() * (x @ y.T) + b).sum() / len(x)
        )
    ),
    "`log_scale` is a logarithm: multiply the cosines by its exp": (
        lambda x, y, s, b: sigmoid_loss(x, y, s.log(), b)
    ),
    "exp(log_scale) multiplies the cosines; you divide by it": (
        lambda x, y, s, b: sigmoid_loss(x, y, -s, b)
    ),
    "the logarithm of the sigmoid is missing": (
        lambda x, y, s, b: (
            -torch.sigmoid((2 * torch.eye(len(x)) - 1) * (s.exp() * x @ y.T + b)).sum() / len(x)
        )
    ),
    "the sign is turned around: minus the logarithm": (
        lambda x, y, s, b: -sigmoid_loss(x, y, s, b)
    ),
    "that is a softmax over each row; here every pair is graded alone": (
        lambda x, y, s, b: _cross_entropy(s.exp() * x @ y.T + b)
    ),
    "that is CLIP's loss; here every pair is graded alone": (
        lambda x, y, s, b: contrastive_loss(x, y, s)
    ),
}


def check_sigmoid_loss(loss: Loss) -> None:
    """Two batches, then one in which a sigmoid is 0 in float32."""
    inputs = {
        "6 pairs, multiplier 10, bias -2": pairs_of(6, 8, 10.0, -2.0),
        "3 pairs, multiplier 2.5, bias -0.5": pairs_of(3, 5, 2.5, -0.5),
    }
    judge_loss(loss, sigmoid_loss, inputs, SIGMOID_MISTAKES)
    sure = pairs_of(4, 3, 500.0, -10.0)
    got = expect_tensor(loss(*sure), (), "4 pairs, multiplier 500, bias -10").item()
    said = f"4 pairs, multiplier 500, bias -10: {got}; log(sigmoid(x)) is -inf for x = -500"
    assert close(sigmoid_loss(*sure).item(), got), f"{said}: use F.logsigmoid(x)"
