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

# CLIP's loss, written before it is shown


def my_contrastive_loss(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    logits = log_scale.exp() * image @ text.T
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def contrastive_by_pairs(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    n = len(image)
    s = torch.einsum("id,jd->ij", image, text) * log_scale.exp()
    total = 0
    for i in range(n):
        total = total - (s[i, i].exp() / s[i].exp().sum()).log()
        total = total - (s[i, i].exp() / s[:, i].exp().sum()).log()
    return total / (2 * n)


def contrastive_by_targets(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """Rows and columns in one call, the target as probabilities."""
    logits = (image * log_scale.exp()) @ text.T
    both, target = torch.cat([logits, logits.T]), torch.eye(len(image))
    return F.cross_entropy(both.log_softmax(1), torch.cat([target, target]))


def contrastive_of(
    logits: Callable[[Tensor, Tensor, Tensor], Tensor],
    of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Callable[..., Tensor]:
    """The reference with other logits, or another loss of them and of the target."""

    def loss(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
        made, target = logits(image, text, log_scale), torch.arange(len(image))
        return (of(made, target) + of(made.T, target)) / 2

    return loss


def scaled(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    return log_scale.exp() * image @ text.T


def without_the_diagonal(logits: Tensor, target: Tensor) -> Tensor:
    hidden = logits.masked_fill(torch.eye(len(logits)).bool(), -torch.inf)
    return (hidden.logsumexp(1) - logits.diagonal()).mean()


def normalised_again(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    return scaled(F.normalize(image, dim=0), F.normalize(text, dim=0), log_scale)


def without_gradient(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    return torch.tensor(my_contrastive_loss(image, text, log_scale).item())


def scale_as_a_number(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    return my_contrastive_loss(image, text, torch.tensor(log_scale.item()))


WRONG_CONTRASTIVE = {
    "scale as it is": ("its exp", contrastive_of(lambda x, y, s: s * x @ y.T)),
    "only rows": (
        "captions ask too",
        lambda x, y, s: F.cross_entropy(scaled(x, y, s), torch.arange(len(x))),
    ),
    "only columns": (
        "images ask too",
        lambda x, y, s: F.cross_entropy(scaled(y, x, s), torch.arange(len(x))),
    ),
    "not halved": ("averaged", lambda *i: 2 * my_contrastive_loss(*i)),
    "softmax of the rows first": (
        "both directions",
        contrastive_of(lambda x, y, s: scaled(x, y, s).softmax(1)),
    ),
    "softmax first": (
        "already applies",
        contrastive_of(scaled, lambda m, t: F.cross_entropy(m.softmax(1), t)),
    ),
    "a sum": (
        "the mean over the batch",
        contrastive_of(scaled, lambda m, t: F.cross_entropy(m, t, reduction="sum")),
    ),
    "neither mean": ("two directions", lambda *i: 2 * len(i[0]) * my_contrastive_loss(*i)),
    "targets all zero": (
        "caption 0",
        contrastive_of(scaled, lambda m, t: F.cross_entropy(m, torch.zeros_like(t))),
    ),
    "no scale": ("scale is missing", contrastive_of(lambda x, y, s: x @ y.T)),
    "divided by the scale": ("divide", contrastive_of(lambda x, y, s: x @ y.T / s.exp())),
    "divided by the logarithm": ("its exp", contrastive_of(lambda x, y, s: x @ y.T / s)),
    "no positive in the denominator": (
        "denominator",
        contrastive_of(scaled, without_the_diagonal),
    ),
    "normalised over the batch": ("normalise nothing", contrastive_of(normalised_again)),
    "images with images": ("image @ text.T", contrastive_of(lambda x, y, s: scaled(x, x, s))),
    "the wrong sign": ("sign", lambda *i: -my_contrastive_loss(*i)),
    "halved twice": ("half", lambda *i: my_contrastive_loss(*i) / 2),
    "item": ("without a gradient", without_gradient),
    "scale has no gradient": ("reaches log_scale", scale_as_a_number),
    "a float": ("tensor", lambda *i: my_contrastive_loss(*i).item()),
    "a loss for each pair": (
        "shape",
        contrastive_of(scaled, lambda m, t: F.cross_entropy(m, t, reduction="none")),
    ),
    "no transpose": ("RuntimeError", contrastive_of(lambda x, y, s: s.exp() * x @ y)),
    "returns nothing": ("return", lambda *i: None),
}
RIGHT_CONTRASTIVE = [my_contrastive_loss, contrastive_by_pairs, contrastive_by_targets]


@pytest.mark.parametrize("right", RIGHT_CONTRASTIVE)
def test_contrastive_loss_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_contrastive_loss, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_CONTRASTIVE.values(), ids=WRONG_CONTRASTIVE)
def test_contrastive_loss_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_contrastive_loss, wrong, word)


# SigLIP's loss


def my_sigmoid_loss(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = log_scale.exp() * image @ text.T + bias
    sign = 2 * torch.eye(len(image)) - 1
    return -F.logsigmoid(sign * logits).sum() / len(image)


def sigmoid_by_pairs(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    total = torch.zeros(())
    for i in range(len(image)):
        for j in range(len(text)):
            logit = (image[i] * text[j]).sum() * log_scale.exp() + bias
            total = total + F.softplus(-logit if i == j else logit)
    return total / len(image)


def sigmoid_as_bce(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = log_scale.exp() * image @ text.T + bias
    target = torch.eye(len(image))
    every = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return every.sum(1).mean()


def log_of_sigmoid(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = log_scale.exp() * image @ text.T + bias
    return -torch.sigmoid((2 * torch.eye(len(image)) - 1) * logits).log().sum() / len(image)


def signed(sign: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The reference with other signs, made from the identity matrix."""

    def loss(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        logits = log_scale.exp() * image @ text.T + bias
        return -F.logsigmoid(sign(torch.eye(len(image))) * logits).sum() / len(image)

    return loss


def part_of(own: bool) -> Callable[..., Tensor]:
    """Positives alone, or negatives alone."""

    def loss(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        logits, eye = log_scale.exp() * image @ text.T + bias, torch.eye(len(image))
        every = F.binary_cross_entropy_with_logits(logits, eye, reduction="none")
        return (every * (eye if own else 1 - eye)).sum() / len(image)

    return loss


def sign_and_bias(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    sign = 2 * torch.eye(len(image)) - 1
    return -F.logsigmoid(sign * log_scale.exp() * (image @ text.T) + bias).sum() / len(image)


def no_logarithm(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = log_scale.exp() * image @ text.T + bias
    return -torch.sigmoid((2 * torch.eye(len(image)) - 1) * logits).sum() / len(image)


def bias_as_a_number(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return my_sigmoid_loss(image, text, log_scale, torch.tensor(bias.item()))


def row_softmax(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    return F.cross_entropy(log_scale.exp() * image @ text.T + bias, torch.arange(len(image)))


WRONG_SIGMOID = {
    "a mean over all pairs": ("B * B", lambda *i: my_sigmoid_loss(*i) / len(i[0])),
    "bce mean": ("B * B", lambda *i: sigmoid_as_bce(*i) / len(i[0])),
    "a sum": ("divide the sum", lambda *i: my_sigmoid_loss(*i) * len(i[0])),
    "labels 0 and 1": ("not 0", signed(lambda eye: eye)),
    "all positive": ("positives", signed(torch.ones_like)),
    "all negative": ("negatives", signed(lambda eye: -torch.ones_like(eye))),
    "signs exchanged": ("other way", signed(lambda eye: 1 - 2 * eye)),
    "only positives": ("negatives count too", part_of(own=True)),
    "only negatives": ("positives count too", part_of(own=False)),
    "no bias": ("bias is missing", lambda x, y, s, b: my_sigmoid_loss(x, y, s, 0 * b)),
    "bias subtracted": ("added, not", lambda x, y, s, b: my_sigmoid_loss(x, y, s, -b)),
    "bias scaled": ("after the scale", lambda x, y, s, b: my_sigmoid_loss(x, y, s, s.exp() * b)),
    "sign before the bias": ("bias as well", sign_and_bias),
    "scale as it is": ("its exp", lambda x, y, s, b: my_sigmoid_loss(x, y, s.log(), b)),
    "divided by the scale": ("divide", lambda x, y, s, b: my_sigmoid_loss(x, y, -s, b)),
    "no logarithm": ("logarithm of the sigmoid", no_logarithm),
    "the wrong sign": ("minus", lambda *i: -my_sigmoid_loss(*i)),
    "a softmax": ("graded alone", row_softmax),
    "the other loss": ("CLIP", lambda x, y, s, b: contrastive_loss(x, y, s)),
    "log of a sigmoid": ("logsigmoid", log_of_sigmoid),
    "bias has no gradient": ("reaches bias", bias_as_a_number),
    "a float": ("tensor", lambda *i: my_sigmoid_loss(*i).item()),
    "returns nothing": ("return", lambda *i: None),
}


@pytest.mark.parametrize("right", [my_sigmoid_loss, sigmoid_by_pairs, sigmoid_as_bce])
def test_sigmoid_loss_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_sigmoid_loss, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_SIGMOID.values(), ids=WRONG_SIGMOID)
def test_sigmoid_loss_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_sigmoid_loss, wrong, word)


# Where a text ends


def pool_text(x: Tensor, input_ids: Tensor, eos_id: int) -> Tensor:
    at = (input_ids == eos_id).int().argmax(dim=1)
    return x[torch.arange(len(x)), at]


def pool_by_lists(x: Tensor, input_ids: Tensor, eos_id: int) -> Tensor:
    return torch.stack([x[i, row.index(eos_id)] for i, row in enumerate(input_ids.tolist())])


def pool_by_gather(x: Tensor, input_ids: Tensor, eos_id: int) -> Tensor:
    first = (input_ids == eos_id) & ((input_ids == eos_id).cumsum(1) == 1)
    return torch.einsum("bt,btd->bd", first.float(), x)


def last_end(x: Tensor, input_ids: Tensor, eos_id: int) -> Tensor:
    rows = [len(row) - 1 - row[::-1].index(eos_id) for row in input_ids.tolist()]
    return x[torch.arange(len(x)), torch.tensor(rows)]


def mean_to_the_end(x: Tensor, input_ids: Tensor, eos_id: int) -> Tensor:
    ends = [row.index(eos_id) for row in input_ids.tolist()]
    return torch.stack([x[i, : at + 1].mean(0) for i, at in enumerate(ends)])


def ends_of(ids: Tensor, eos_id: int) -> Tensor:
    return (ids == eos_id).int().argmax(dim=1)


WRONG_POOLING = {
    "the last position": ("last position", lambda x, ids, e: x[:, -1]),
    "the first position": ("first position", lambda x, ids, e: x[:, 0]),
    "the largest id": ("largest id", lambda x, ids, e: x[torch.arange(len(x)), ids.argmax(1)]),
    "the last end": ("take the first", last_end),
    "the word before": ("too early", lambda x, i, e: x[torch.arange(len(x)), ends_of(i, e) - 1]),
    "rows not indexed": ("index the rows", lambda x, ids, e: x[:, ends_of(ids, e)]),
    "the first row's end": ("first row ends", lambda x, ids, e: x[:, ends_of(ids, e)[0]]),
    "a mean": ("mean over all", lambda x, ids, e: x.mean(1)),
    "a mean to the end": ("end token alone", mean_to_the_end),
    "argmax of bools": ("your function raised", lambda x, ids, e: x[0, (ids == e).argmax(1)]),
    "all end tokens": ("every eos_id", lambda x, ids, e: x[ids == e]),
    "the positions": ("shape", lambda x, ids, e: ends_of(ids, e)),
    "returns nothing": ("return", lambda *i: None),
}


@pytest.mark.parametrize("right", [pool_text, pool_by_lists, pool_by_gather])
def test_pool_text_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_pool_text, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_POOLING.values(), ids=WRONG_POOLING)
def test_pool_text_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_pool_text, wrong, word)


# A classifier made of sentences


def build_classifier(prompts: list[Tensor]) -> Tensor:
    means = [F.normalize(vectors, dim=-1).mean(dim=0) for vectors in prompts]
    return F.normalize(torch.stack(means), dim=-1)


def classifier_by_sums(prompts: list[Tensor]) -> Tensor:
    rows = []
    for vectors in prompts:
        total = sum(vector / vector.norm() for vector in vectors)
        rows.append(total / total.norm())
    return torch.stack(rows)


def classes_of(
    before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]
) -> Callable[[list[Tensor]], Tensor]:
    return lambda prompts: after(torch.stack([before(p).mean(0) for p in prompts]))


def unit(x: Tensor, dim: int = -1) -> Tensor:
    return F.normalize(x, dim=dim)


def same(x: Tensor) -> Tensor:
    return x


WRONG_CLASSIFIER = {
    "not before the mean": ("outweighs", classes_of(same, unit)),
    "not after the mean": ("again after", classes_of(unit, same)),
    "never": ("nothing is normalised", classes_of(same, same)),
    "along the prompts": (
        "along the features",
        classes_of(lambda p: unit(p, 0), lambda m: unit(m, 0)),
    ),
    "the prompts alone": ("before the mean too", classes_of(lambda p: unit(p, 0), unit)),
    "the classes alone": ("not along the classes", classes_of(unit, lambda m: unit(m, 0))),
    "the first prompt": ("only the first", lambda ps: torch.stack([unit(p[0]) for p in ps])),
    "the last prompt": ("only the last", lambda ps: torch.stack([unit(p[-1]) for p in ps])),
    "the largest": (
        "take the mean",
        lambda ps: torch.stack([unit(unit(p).amax(0)) for p in ps]),
    ),
    "a stack": ("RuntimeError", lambda ps: unit(unit(torch.stack(ps)).mean(1))),
    "a list": ("tensor", lambda ps: [unit(unit(p).mean(0)) for p in ps]),
    "one vector": ("shape", lambda ps: unit(unit(torch.cat(ps)).mean(0))),
    "mean of the features": ("shape", lambda ps: torch.stack([p.mean() for p in ps])),
    "returns nothing": ("return", lambda ps: None),
}


@pytest.mark.parametrize("right", [build_classifier, classifier_by_sums])
def test_build_classifier_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_build_classifier, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_CLASSIFIER.values(), ids=WRONG_CLASSIFIER)
def test_build_classifier_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_build_classifier, wrong, word)


# Recall with several right answers


def recall_at(scores: Tensor, true: Tensor, k: int) -> float:
    return true.gather(1, scores.topk(k, dim=1).indices).any(dim=1).float().mean().item()


def recall_by_loops(scores: Tensor, true: Tensor, k: int) -> float:
    found = 0
    for row, right in zip(scores.tolist(), true.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda j: -row[j])[:k]
        found += any(right[j] for j in best)
    return found / len(scores)


def recall_by_a_threshold(scores: Tensor, true: Tensor, k: int) -> Tensor:
    kth = scores.sort(dim=1, descending=True).values[:, k - 1 : k]
    return ((scores >= kth) & true).any(dim=1).double().mean()


def of_the_own(scores: Tensor, true: Tensor, k: int) -> float:
    best = scores.topk(k, dim=1).indices
    return (best == torch.arange(len(scores))[:, None]).any(1).float().mean().item()


def hits(scores: Tensor, true: Tensor, k: int) -> Tensor:
    return true.gather(1, scores.topk(k, dim=1).indices)


WRONG_RECALL = {
    "the own column": ("column i", of_the_own),
    "a share of the k": ("one true among them", lambda *i: hits(*i).float().mean().item()),
    "a share of the true": (
        "one of them is enough",
        lambda s, true, k: (hits(s, true, k).sum(1) / true.sum(1)).mean().item(),
    ),
    "all k": ("all k", lambda *i: hits(*i).all(1).float().mean().item()),
    "the smallest": ("smallest", lambda s, true, k: recall_at(-s, true, k)),
    "k is ignored": ("only the best", lambda s, true, k: recall_at(s, true, 1)),
    "columns ask": ("each row asks", lambda s, true, k: recall_at(s.T, true.T, k)),
    "a count": ("number of rows", lambda *i: hits(*i).any(1).sum()),
    "percent": ("percent", lambda *i: 100 * recall_at(*i)),
    "any true": ("k best", lambda s, true, k: true.any(1).float().mean().item()),
    "one for each row": ("number", lambda *i: hits(*i).any(1).float()),
    "returns nothing": ("return", lambda *i: None),
}


@pytest.mark.parametrize("right", [recall_at, recall_by_loops, recall_by_a_threshold])
def test_recall_at_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_recall_at, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_RECALL.values(), ids=WRONG_RECALL)
def test_recall_at_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_recall_at, wrong, word)


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
