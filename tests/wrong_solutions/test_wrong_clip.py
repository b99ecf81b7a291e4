"""Notebook 05: right solutions are accepted, and each likely mistake is named."""

from collections.abc import Callable
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wrong_solutions import accepts, refuses

from minivlm.clip import contrastive_loss, sigmoid_loss
from minivlm.exercises import clip as exercises

# Curation


def keep_probability(counts: list[int], t: int) -> float:
    dropped = 1.0
    for count in counts:
        dropped *= 1 - min(1.0, t / count)
    return 1 - dropped if counts else 0.0


def keep_by_inclusion(counts: list[int], t: int) -> Tensor:
    kept = torch.tensor(0.0, dtype=torch.float64)
    for count in counts:
        kept = kept + min(1.0, t / count) * (1 - kept)
    return kept


def shares(counts: list[int], t: int) -> list[float]:
    return [min(1.0, t / count) for count in counts]


WRONG_KEEP = {
    "all have to say yes": ("all", lambda c, t: prod(shares(c, t))),
    "all, but none for no entry": ("all", lambda c, t: prod(shares(c, t)) if c else 0.0),
    "dropped": ("dropped", lambda c, t: prod(1 - p for p in shares(c, t))),
    "added up": ("add up", lambda c, t: sum(shares(c, t))),
    "added up to 1": ("cut off", lambda c, t: min(1.0, sum(shares(c, t)))),
    "the likeliest entry": ("other entries", lambda c, t: max(shares(c, t), default=0.0)),
    "the least likely entry": ("enough", lambda c, t: min(shares(c, t), default=0.0)),
    "the mean": ("mean", lambda c, t: sum(shares(c, t)) / max(len(c), 1)),
    "counts added": ("on its own", lambda c, t: min(1.0, t / sum(c)) if c else 0.0),
    "more than 1": ("at most 1", lambda c, t: 1 - prod(1 - t / n for n in c)),
    "no entry keeps": ("without an entry", lambda c, t: keep_probability(c, t) if c else 1.0),
    "max of nothing": ("ValueError", lambda c, t: max(shares(c, t))),
    "a list": ("number", shares),
    "returns nothing": ("return", lambda c, t: None),
}


@pytest.mark.parametrize("right", [keep_probability, keep_by_inclusion])
def test_keep_probability_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_keep_probability, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_KEEP.values(), ids=WRONG_KEEP)
def test_keep_probability_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_keep_probability, wrong, word)


# The gradient of InfoNCE


def halves(cosine: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    logits, target = scale * cosine, torch.eye(len(cosine))
    return logits.softmax(1) - target, logits.softmax(0) - target


def infonce_gradient(cosine: Tensor, scale: float) -> Tensor:
    return scale * sum(halves(cosine, scale)) / (2 * len(cosine))


def gradient_by_loops(cosine: Tensor, scale: float) -> Tensor:
    n = len(cosine)
    weights = (scale * cosine.double()).exp()
    out = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            asked = weights[i, j] / weights[i].sum() + weights[i, j] / weights[:, j].sum()
            out[i, j] = scale * (asked - 2 * (i == j)) / n / 2
    return out


def gradient_without_target(cosine: Tensor, scale: float) -> Tensor:
    logits = scale * cosine
    return scale * (logits.softmax(1) + logits.softmax(0)) / (2 * len(cosine))


def gradient_target_once(cosine: Tensor, scale: float) -> Tensor:
    once = scale * torch.eye(len(cosine)) / (2 * len(cosine))
    return gradient_without_target(cosine, scale) - once


WRONG_GRADIENT = {
    "no chain rule": ("chain rule", lambda c, s: infonce_gradient(c, s) / s),
    "no multiplier in the softmax": (
        "softmax sees",
        lambda c, s: s * sum(halves(c, 1.0)) / (2 * len(c)),
    ),
    "no multiplier at all": ("multiplier is missing", lambda c, s: infonce_gradient(c, 1.0)),
    "only rows": ("sentences ask", lambda c, s: s * halves(c, s)[0] / len(c)),
    "only columns": ("images ask", lambda c, s: s * halves(c, s)[1] / len(c)),
    "half of the rows": ("add the sentences", lambda c, s: s * halves(c, s)[0] / (2 * len(c))),
    "not halved": ("half each", lambda c, s: 2 * infonce_gradient(c, s)),
    "not divided by B": ("mean over the pairs", lambda c, s: len(c) * infonce_gradient(c, s)),
    "not divided at all": ("2 B", lambda c, s: 2 * len(c) * infonce_gradient(c, s)),
    "divided by B twice": ("B times too small", lambda c, s: infonce_gradient(c, s) / len(c)),
    "probability minus target alone": ("2 B", lambda c, s: sum(halves(c, s))),
    "no target": ("target", gradient_without_target),
    "the target once": ("once for columns", gradient_target_once),
    "the wrong sign": ("sign", lambda c, s: -infonce_gradient(c, s)),
    "exp of the multiplier": (
        "no exp",
        lambda c, s: infonce_gradient(c, torch.tensor(s).exp().item()),
    ),
    "the loss": ("shape", lambda c, s: infonce_gradient(c, s).sum()),
    "returns nothing": ("return", lambda c, s: None),
}


@pytest.mark.parametrize("right", [infonce_gradient, gradient_by_loops])
def test_infonce_gradient_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_infonce_gradient, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_GRADIENT.values(), ids=WRONG_GRADIENT)
def test_infonce_gradient_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_infonce_gradient, wrong, word)


# SigLIP's loss in chunks


def chunked(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    chunk: int,
    product: Callable[[Tensor, Tensor], Tensor] = lambda a, b: a @ b.T,
) -> Tensor:
    total = -(scale.exp() * (x * y).sum(1) + bias).sum()
    for images in x.split(chunk):
        for texts in y.split(chunk):
            total = total + F.softplus(scale.exp() * product(images, texts) + bias).sum()
    return total / len(x)


def chunked_by_places(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, chunk: int) -> Tensor:
    total, columns = 0, y.T
    for i in range(0, len(x), chunk):
        for j in range(0, len(y), chunk):
            logits = scale.exp() * x[i : i + chunk] @ columns[:, j : j + chunk] + bias
            sign = 2 * torch.eye(*logits.shape) * (i == j) - 1
            total = total - F.logsigmoid(sign * logits).sum()
    return total / len(x)


def pair_by_pair(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, chunk: int) -> Tensor:
    total = torch.zeros(())
    for i in range(len(x)):
        for j in range(len(y)):
            logit = scale.exp() * (x[i] * y[j]).sum() + bias
            total = total + F.softplus(-logit if i == j else logit)
    return total / len(x)


def using(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *inputs: chunked(*inputs, product=product)


def in_rows(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, chunk: int) -> Tensor:
    total = -(scale.exp() * (x * y).sum(1) + bias).sum()
    for images in x.split(chunk):
        total = total + F.softplus(scale.exp() * images @ y.T + bias).sum()
    return total / len(x)


def at_once(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """All logits, by any operation."""

    def whole(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, chunk: int) -> Tensor:
        logits = scale.exp() * product(x, y) + bias
        return (F.softplus(logits).sum() - logits.diagonal().sum()) / len(x)

    return whole


def whole_chunks(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, chunk: int) -> Tensor:
    full = len(x) // chunk * chunk
    return chunked(x[:full], y[:full], scale, bias, chunk) * full / len(x)


def only_the_diagonal(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, chunk: int) -> Tensor:
    blocks = zip(x.split(chunk), y.split(chunk), strict=True)
    return sum(sigmoid_loss(a, b, scale, bias) * len(a) for a, b in blocks) / len(x)


def diagonal(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return (scale.exp() * (x * y).sum(1) + bias).mean()


def no_gradient(*inputs: Tensor) -> Tensor:
    return torch.tensor(chunked(*inputs).item())


def scale_detached(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, chunk: int) -> Tensor:
    return chunked(x, y, torch.tensor(scale.item()), bias, chunk)


RIGHT_CHUNKS = {
    "matmul operator": chunked,
    "by places": chunked_by_places,
    "pair by pair": pair_by_pair,
    "torch.matmul": using(lambda a, b: torch.matmul(a, b.T)),
    "einsum": using(lambda a, b: torch.einsum("id,jd->ij", a, b)),
    "broadcast": using(lambda a, b: (a[:, None] * b).sum(-1)),
    "F.linear": using(F.linear),
}
WRONG_CHUNKS = {
    "all at once, @": ("at once", at_once(lambda a, b: a @ b.T)),
    "all at once, torch.matmul": ("at once", at_once(lambda a, b: torch.matmul(a, b.T))),
    "all at once, mm": ("at once", at_once(lambda a, b: a.mm(b.T))),
    "all at once, einsum": ("at once", at_once(lambda a, b: torch.einsum("id,jd->ij", a, b))),
    "all at once, F.linear": ("at once", at_once(F.linear)),
    "all at once, broadcast": ("at once", at_once(lambda a, b: (a[:, None] * b).sum(-1))),
    "rows of chunks": ("at once", in_rows),
    "the package's loss": ("at once", lambda x, y, s, b, n: sigmoid_loss(x, y, s, b)),
    "a mean over B * B": ("divide by B", lambda *i: chunked(*i) / len(i[0])),
    "a sum": ("a sum", lambda *i: chunked(*i) * len(i[0])),
    "divided by the chunk": ("not by the chunk", lambda *i: chunked(*i) * len(i[0]) / i[-1]),
    "the last chunk is lost": ("shorter chunk", whole_chunks),
    "blocks on the diagonal alone": ("different chunks", only_the_diagonal),
    "no positives": ("subtract the diagonal", lambda *i: chunked(*i) + diagonal(*i[:4])),
    "the diagonal without bias": ("bias", lambda *i: chunked(*i) + i[3]),
    "no bias": ("bias is missing", lambda x, y, s, b, n: chunked(x, y, s, 0 * b, n)),
    "scale as it is": ("exp", lambda x, y, s, b, n: chunked(x, y, s.log(), b, n)),
    "item": ("without a gradient", no_gradient),
    "scale has no gradient": ("reaches scale", scale_detached),
    "a float": ("tensor", lambda *i: chunked(*i).item()),
    "returns nothing": ("return", lambda *i: None),
}


@pytest.mark.parametrize("right", RIGHT_CHUNKS.values(), ids=RIGHT_CHUNKS)
def test_chunked_sigmoid_loss_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_chunked_sigmoid_loss, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_CHUNKS.values(), ids=WRONG_CHUNKS)
def test_chunked_sigmoid_loss_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_chunked_sigmoid_loss, wrong, word)


# Captions that are shared


def grouped(x: Tensor, y: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
    logits = scale.exp() * x @ y.T
    same = (labels[:, None] == labels[None, :]).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def grouped_by_loops(x: Tensor, y: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in ((x, y), (y, x)):
        for i in range(len(a)):
            log_p = torch.log_softmax(scale.exp() * torch.mv(b, a[i]), dim=0)
            mates = [j for j in range(len(b)) if labels[j] == labels[i]]
            total = total - sum(log_p[j] for j in mates) / len(mates)
    return total / (2 * len(x))


def with_target(make: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The reference with another target, made from who is like whom."""

    def loss(x: Tensor, y: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
        logits = scale.exp() * x @ y.T
        target = make((labels[:, None] == labels).float())
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return loss


def one_way(columns: bool) -> Callable[..., Tensor]:
    def loss(x: Tensor, y: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
        logits = scale.exp() * (y @ x.T if columns else x @ y.T)
        same = (labels[:, None] == labels).float()
        return F.cross_entropy(logits, same / same.sum(1, keepdim=True))

    return loss


def mates_masked(x: Tensor, y: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
    mates = (labels[:, None] == labels) & ~torch.eye(len(x), dtype=torch.bool)
    logits = (scale.exp() * x @ y.T).masked_fill(mates, float("-inf"))
    target = torch.arange(len(x))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def log_of_a_sum(x: Tensor, y: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
    same = (labels[:, None] == labels).float()
    both = [scale.exp() * a @ b.T for a, b in ((x, y), (y, x))]
    return -sum((m.softmax(1) * same).sum(1).log().mean() for m in both) / 2


def labels_as_places(x: Tensor, y: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
    logits = scale.exp() * x @ y.T
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


WRONG_GROUPED = {
    "labels are ignored": ("still negatives", lambda x, y, s, n: contrastive_loss(x, y, s)),
    "the target is not divided": ("sum to 1", with_target(lambda same: same)),
    "divided by all pairs": (
        "its own number",
        with_target(lambda same: same * len(same) / same.sum()),
    ),
    "mates are masked": ("left out", mates_masked),
    "the log of a sum": ("log of a sum", log_of_a_sum),
    "softmax of the target": ("sum to 1", with_target(lambda same: same.softmax(1))),
    "only rows": ("only rows", one_way(columns=False)),
    "only columns": ("only columns", one_way(columns=True)),
    "not halved": ("half each", lambda *i: 2 * grouped(*i)),
    "a sum": ("mean", lambda *i: len(i[0]) * grouped(*i)),
    "scale as it is": ("exp", lambda x, y, s, n: grouped(x, y, s.log(), n)),
    "no scale": ("scale is missing", lambda x, y, s, n: grouped(x, y, 0 * s, n)),
    "labels as places": ("IndexError", labels_as_places),
    "a loss for each row": ("shape", lambda *i: grouped(*i).expand(len(i[0]))),
    "returns nothing": ("return", lambda *i: None),
}


@pytest.mark.parametrize("right", [grouped, grouped_by_loops])
def test_grouped_contrastive_loss_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_grouped_contrastive_loss, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_GROUPED.values(), ids=WRONG_GROUPED)
def test_grouped_contrastive_loss_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_grouped_contrastive_loss, wrong, word)
