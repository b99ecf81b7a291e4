"""Notebook 03: right solutions are accepted, and each likely mistake is named."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wrong_solutions import accepts, refuses

from minivlm.exercises import vqvae as exercises
from minivlm.vqvae import Quantizer, VQVAEConfig, nearest, perplexity, tally

# The nearest code


def nearest_by_loops(vectors: Tensor, codebook: Tensor) -> Tensor:
    ids = []
    for z in vectors:
        distances = [float(((z - e) ** 2).sum()) for e in codebook]
        ids.append(distances.index(min(distances)))
    return torch.tensor(ids, dtype=torch.int32)


RIGHT_NEAREST = {
    "the package": nearest,
    "loops": nearest_by_loops,
    "cdist": lambda z, e: torch.cdist(z, e).argmin(1),
    "broadcast": lambda z, e: (z[:, None] - e).pow(2).sum(-1).argmin(-1),
    "without |z|^2": lambda z, e: (e.pow(2).sum(1) - 2 * torch.einsum("nd,kd->nk", z, e)).argmin(1),
}
WRONG_NEAREST = {
    "largest product": ("|e|^2 is missing", lambda z, e: (z @ e.T).argmax(1)),
    "farthest": ("farthest", lambda z, e: torch.cdist(z, e).argmax(1)),
    "minimum over vectors": ("for each vector", lambda z, e: torch.cdist(z, e).argmin(0)),
    "codes": ("return their ids", lambda z, e: e[nearest(z, e)]),
    "distances": ("all distances", lambda z, e: torch.cdist(z, e)),
    "smallest distance": ("integers", lambda z, e: torch.cdist(z, e).min(1).values),
    "min returns two": ("argmin", lambda z, e: torch.cdist(z, e).min(1)),
    "factor 2 forgotten": ("factor -2", lambda z, e: (e.pow(2).sum(1) - z @ e.T).argmin(1)),
    "wrong sign": ("subtracted", lambda z, e: (e.pow(2).sum(1) + 2 * z @ e.T).argmin(1)),
    "length not squared": ("square", lambda z, e: (e.norm(dim=1) - 2 * z @ e.T).argmin(1)),
    "cosine": ("angle", lambda z, e: (F.normalize(z, dim=1) @ F.normalize(e, dim=1).T).argmax(1)),
    "absolute differences": ("square", lambda z, e: torch.cdist(z, e, 1).argmin(1)),
    "sum before the square": (
        "before they are squared",
        lambda z, e: (z[:, None] - e).sum(-1).pow(2).argmin(1),
    ),
    "keepdim": ("too many", lambda z, e: torch.cdist(z, e).argmin(1, keepdim=True)),
    "no transposition": ("your function raised", lambda z, e: (z @ e).argmin(1)),
    "argmin of all": ("shape", lambda z, e: torch.cdist(z, e).argmin()),
    "returns nothing": ("return", lambda z, e: None),
}


@pytest.mark.parametrize("right", RIGHT_NEAREST.values(), ids=RIGHT_NEAREST)
def test_nearest_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_nearest, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_NEAREST.values(), ids=WRONG_NEAREST)
def test_nearest_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_nearest, wrong, word)


# The losses of the quantizer


def quantizer_loss(vectors: Tensor, codes: Tensor, beta: float) -> Tensor:
    return F.mse_loss(codes, vectors.detach()) + beta * F.mse_loss(vectors, codes.detach())


def loss_with_numbers(vectors: Tensor, codes: Tensor, beta: float) -> Tensor:
    codebook = ((vectors.data - codes) ** 2).mean()
    commitment = ((vectors - codes.data) ** 2).sum() / vectors.numel()
    return beta * commitment + codebook


WRONG_LOSS = {
    "no commitment": ("commitment loss is missing", lambda z, e, b: F.mse_loss(e, z.detach())),
    "no codebook loss": ("codebook loss is missing", lambda z, e, b: b * F.mse_loss(z, e.detach())),
    "beta on the wrong loss": ("swapped", lambda z, e, b: quantizer_loss(e, z, b)),
    "nothing detached": (
        "nothing is detached",
        lambda z, e, b: F.mse_loss(e, z) + b * F.mse_loss(z, e),
    ),
    "vectors detached twice": (
        "both losses move the codes",
        lambda z, e, b: (1 + b) * F.mse_loss(e, z.detach()),
    ),
    "codes detached twice": (
        "both losses move the vectors",
        lambda z, e, b: (1 + b) * F.mse_loss(z, e.detach()),
    ),
    "one detaches both": (
        "vectors get no gradient",
        lambda z, e, b: F.mse_loss(e, z.detach()) + b * F.mse_loss(z.detach(), e.detach()),
    ),
    "everything detached": ("detached", lambda z, e, b: quantizer_loss(z, e, b).detach()),
    "beta on both": ("beta weighs", lambda z, e, b: b * quantizer_loss(z, e, 1.0)),
    "no beta": ("weight 1", lambda z, e, b: quantizer_loss(z, e, 1.0)),
    "sum": ("not the sum", lambda z, e, b: quantizer_loss(z, e, b) * z.numel()),
    "beta by heart": ("always 0.25", lambda z, e, b: quantizer_loss(z, e, 0.25)),
    "lengths": ("should be", lambda z, e, b: (e - z.detach()).norm() + b * (z - e.detach()).norm()),
    "sum of each vector": ("sum over each", lambda z, e, b: quantizer_loss(z, e, b) * z.shape[1]),
    "not squared": ("not squared", lambda z, e, b: (1 + b) * (z - e).abs().mean()),
    "one a vector": ("shape ()", lambda z, e, b: (z - e).pow(2).mean(1)),
    "a number": ("tensor", lambda z, e, b: quantizer_loss(z, e, b).item()),
    "returns nothing": ("return", lambda z, e, b: None),
}


@pytest.mark.parametrize("right", [quantizer_loss, loss_with_numbers])
def test_quantizer_loss_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_quantizer_loss, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_LOSS.values(), ids=WRONG_LOSS)
def test_quantizer_loss_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_quantizer_loss, wrong, word)


# A step of the moving averages

State = tuple[Tensor, Tensor, Tensor]


def smoothed(counts: Tensor, epsilon: float) -> Tensor:
    total = counts.sum()
    return (counts + epsilon) / (total + len(counts) * epsilon) * total


def ema_step(
    vectors: Tensor, ids: Tensor, counts: Tensor, sums: Tensor, decay: float, epsilon: float
) -> State:
    chosen = F.one_hot(ids, len(counts)).float()
    counts = decay * counts + (1 - decay) * chosen.sum(0)
    sums = decay * sums + (1 - decay) * chosen.T @ vectors
    return sums / smoothed(counts, epsilon)[:, None], counts, sums


def ema_by_quantizer(*given: Any) -> State:
    vectors, ids, counts, sums, decay, epsilon = given
    config = VQVAEConfig(codes=len(counts), dim=sums.shape[1], decay=decay, epsilon=epsilon)
    quantizer = Quantizer(config)
    quantizer.counts.copy_(counts)
    quantizer.sums.copy_(sums)
    quantizer.update(vectors, ids)
    return quantizer.codebook, quantizer.counts, quantizer.sums


def ema_by_loops(*given: Any) -> list[Tensor]:
    vectors, ids, counts, sums, decay, epsilon = given
    counts *= decay
    sums *= decay
    for z, k in zip(vectors, ids.tolist(), strict=True):
        counts[k] += 1 - decay
        sums[k] += (1 - decay) * z
    total = counts.sum()
    share = (counts + epsilon) / (total + len(counts) * epsilon)
    return [torch.stack([m / (total * s) for m, s in zip(sums, share, strict=True)]), counts, sums]


def ema_of(average: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., State]:
    """Other averages, from the old ones, those of the batch and the decay."""

    def step(*given: Any) -> State:
        vectors, ids, counts, sums, decay, epsilon = given
        new = tally(vectors, ids, len(counts))
        counts, sums = average((counts, sums), new, decay)
        return sums / smoothed(counts, epsilon)[:, None], counts, sums

    return step


def ema_divided(divisor: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., State]:
    """Another divisor, from the new counts, the old ones and epsilon."""

    def step(*given: Any) -> State:
        old, epsilon = given[2].clone(), given[5]
        _, counts, sums = ema_step(*given)
        return sums / divisor(counts, old, epsilon)[:, None], counts, sums

    return step


def ema_of_the_chosen(*given: Any) -> State:
    vectors, ids, counts, sums, decay, epsilon = given
    chosen = F.one_hot(ids).float()  # K is missing
    counts = decay * counts + (1 - decay) * chosen.sum(0)
    sums = decay * sums + (1 - decay) * chosen.T @ vectors
    return sums / smoothed(counts, epsilon)[:, None], counts, sums


def ema_last(*given: Any) -> State:
    vectors, ids, counts, sums, decay, epsilon = given
    _, counts, _ = ema_step(*given)
    new = torch.zeros_like(sums)
    for z, k in zip(vectors, ids.tolist(), strict=True):
        new[k] = z
    sums = decay * sums + (1 - decay) * new
    return sums / smoothed(counts, epsilon)[:, None], counts, sums


def ema_means(old: State, new: State, decay: float) -> tuple[Tensor, Tensor]:
    means = new[1] / new[0].clamp(min=1)[:, None]
    return decay * old[0] + (1 - decay) * new[0], decay * old[1] + (1 - decay) * means


def ema_whether(old: State, new: State, decay: float) -> tuple[Tensor, Tensor]:
    counts = decay * old[0] + (1 - decay) * (new[0] > 0)
    return counts, decay * old[1] + (1 - decay) * new[1]


def ema_share(old: State, new: State, decay: float) -> tuple[Tensor, Tensor]:
    counts = decay * old[0] + (1 - decay) * new[0] / new[0].sum()
    return counts, decay * old[1] + (1 - decay) * new[1]


def ema_only_chosen(old: State, new: State, decay: float) -> tuple[Tensor, Tensor]:
    counts = decay * old[0] + (1 - decay) * new[0]
    sums = decay * old[1] + (1 - decay) * new[1]
    return counts, torch.where(new[0][:, None] > 0, sums, old[1])


def ema_smoothed_counts(*given: Any) -> State:
    codes, counts, sums = ema_step(*given)
    return codes, smoothed(counts, given[5]), sums


WRONG_EMA = {
    "not smoothed": ("not smoothed", ema_divided(lambda n, old, eps: n)),
    "times N forgotten": (
        "multiply by N",
        ema_divided(lambda n, old, eps: (n + eps) / (n.sum() + len(n) * eps)),
    ),
    "epsilon alone": ("no longer add up", ema_divided(lambda n, old, eps: n + eps)),
    "clamped": ("not smoothed", ema_divided(lambda n, old, eps: n.clamp(min=eps))),
    "epsilon without K": (
        "K epsilon",
        ema_divided(lambda n, old, eps: (n + eps) / (n.sum() + eps) * n.sum()),
    ),
    "N of the batch": (
        "not of this batch",
        ema_divided(lambda n, old, eps: (n + eps) / (n.sum() + len(n) * eps) * 7),
    ),
    "N vectors": (
        "number of vectors",
        ema_divided(lambda n, old, eps: (n + eps) / (7 + len(n) * eps) * 7),
    ),
    "old N": (
        "not of the old counts",
        ema_divided(lambda n, old, eps: (n + eps) / (old.sum() + len(n) * eps) * old.sum()),
    ),
    "as many codes as chosen": ("your function raised", ema_of_the_chosen),
    "old counts": ("old counts", ema_divided(lambda n, old, eps: smoothed(old, eps))),
    "no division": ("these are the sums", ema_divided(lambda n, old, eps: torch.ones_like(n))),
    "swapped decay": (
        "swapped",
        ema_of(lambda o, n, d: ((1 - d) * o[0] + d * n[0], (1 - d) * o[1] + d * n[1])),
    ),
    "weight forgotten": (
        "1 - decay",
        ema_of(lambda o, n, d: (d * o[0] + n[0], d * o[1] + n[1])),
    ),
    "weight of the sums forgotten": (
        "sums: the new ones",
        ema_of(lambda o, n, d: (d * o[0] + (1 - d) * n[0], d * o[1] + n[1])),
    ),
    "no average": ("this batch alone", ema_of(lambda o, n, d: n)),
    "no update": ("old ones", ema_of(lambda o, n, d: o)),
    "means": ("their mean", ema_of(ema_means)),
    "last vector": ("one vector a code", ema_last),
    "whether chosen": ("not whether", ema_of(ema_whether)),
    "shares": ("not shares", ema_of(ema_share)),
    "unchosen sums stay": ("shrinks", ema_of(ema_only_chosen)),
    "smoothed counts kept": ("smoothing is for the division", ema_smoothed_counts),
    "another order": ("sums are wrong", lambda *given: ema_step(*given)[::-1]),
    "counts not a column": (
        "your function raised",
        lambda *given: (given[3] / given[2], given[2], given[3]),
    ),
    "codes alone": ("3 results", lambda *given: ema_step(*given)[0]),
    "returns nothing": ("return", lambda *given: None),
}


@pytest.mark.parametrize("right", [ema_step, ema_by_quantizer, ema_by_loops])
def test_ema_step_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_ema_step, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_EMA.values(), ids=WRONG_EMA)
def test_ema_step_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_ema_step, wrong, word)


# Perplexity


def shares_of(ids: Tensor, k: int) -> Tensor:
    return ids.flatten().bincount(minlength=k) / ids.numel()


def perplexity_with_a_counter(ids: Tensor, k: int) -> Tensor:
    counts = torch.tensor(list(Counter(ids.flatten().tolist()).values()))
    shares = counts / counts.sum()
    return (shares**-shares).prod()


def entropy(ids: Tensor, k: int) -> Tensor:
    shares = shares_of(ids, k)
    return -(shares * (shares + 1e-10).log()).sum()


WRONG_PERPLEXITY = {
    "entropy": ("take exp", entropy),
    "no minus": ("minus sign", lambda ids, k: (-entropy(ids, k)).exp()),
    "0 log 0": ("0 ln 0", lambda ids, k: (-(p := shares_of(ids, k)) * p.log()).sum().exp()),
    "codes in use": ("however often", lambda ids, k: len(ids.unique())),
    "bits and exp": ("nats", lambda ids, k: (entropy(ids, k) / torch.tensor(2.0).log()).exp()),
    "bits": ("in bits", lambda ids, k: entropy(ids, k) / torch.tensor(2.0).log()),
    "mean": ("not their mean", lambda ids, k: (entropy(ids, k) / k).exp()),
    "share of the codebook": ("not a share", lambda ids, k: perplexity(ids, k) / k),
    "inverse Simpson": ("sum of squares", lambda ids, k: 1 / shares_of(ids, k).pow(2).sum()),
    "no flatten": ("your function raised", lambda ids, k: ids.bincount(minlength=k).sum()),
    "one a code": ("number", lambda ids, k: shares_of(ids, k).log().exp()),
    "returns nothing": ("return", lambda ids, k: None),
}


@pytest.mark.parametrize(
    "right", [perplexity, perplexity_with_a_counter, lambda ids, k: entropy(ids, k).exp()]
)
def test_perplexity_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_perplexity, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_PERPLEXITY.values(), ids=WRONG_PERPLEXITY)
def test_perplexity_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_perplexity, wrong, word)


# Restarts


def restarting(weigh: Callable[[Tensor], Tensor], *, least: bool = False) -> Callable:
    """Dead codes on vectors drawn with weights from their squared distances (N,)."""

    def restart(vectors: Tensor, codebook: Tensor, counts: Tensor, threshold: float) -> Tensor:
        dead = counts <= threshold if least else counts < threshold
        if not dead.any():
            return codebook
        squares = torch.cdist(vectors, codebook).min(1).values ** 2
        drawn = torch.multinomial(weigh(squares), int(dead.sum()), replacement=True)
        codebook = codebook.clone()
        codebook[dead] = vectors[drawn]
        return codebook

    return restart


restart = restarting(lambda squares: squares)


def restart_in_place(vectors: Tensor, codebook: Tensor, counts: Tensor, threshold: float) -> Tensor:
    error = (vectors - codebook[nearest(vectors, codebook)]).pow(2).sum(1) + 1e-12
    for k in range(len(codebook)):
        if counts[k] < threshold:
            codebook[k] = vectors[torch.multinomial(error, 1)[0]]
            error = error.clone()
    return codebook


def restart_all(vectors: Tensor, codebook: Tensor, counts: Tensor, threshold: float) -> Tensor:
    if not (counts < threshold).any():
        return codebook
    return restart(vectors, codebook, torch.zeros_like(counts), threshold)


def restart_living(vectors: Tensor, codebook: Tensor, counts: Tensor, threshold: float) -> Tensor:
    return restart(vectors, codebook, -counts, -threshold)


def restart_by_argmax(
    vectors: Tensor, codebook: Tensor, counts: Tensor, threshold: float
) -> Tensor:
    farthest = torch.cdist(vectors, codebook).min(1).values.argmax()
    return torch.where((counts < threshold)[:, None], vectors[farthest], codebook)


def restart_on_one(vectors: Tensor, codebook: Tensor, counts: Tensor, threshold: float) -> Tensor:
    squares = torch.cdist(vectors, codebook).min(1).values.pow(2)
    drawn = torch.multinomial(squares + 1e-9, 1)
    return torch.where((counts < threshold)[:, None], vectors[drawn], codebook)


def restart_on_the_mean(
    vectors: Tensor, codebook: Tensor, counts: Tensor, threshold: float
) -> Tensor:
    return torch.where((counts < threshold)[:, None], vectors.mean(0), codebook)


def restart_without_replacement(
    vectors: Tensor, codebook: Tensor, counts: Tensor, threshold: float
) -> Tensor:
    dead = counts < threshold
    if dead.any():
        error = torch.cdist(vectors, codebook).min(1).values ** 2 + 1e-12
        codebook[dead] = vectors[torch.multinomial(error, int(dead.sum()))]
    return codebook


def restart_never_none(
    vectors: Tensor, codebook: Tensor, counts: Tensor, threshold: float
) -> Tensor:
    dead = counts < threshold
    error = torch.cdist(vectors, codebook).min(1).values ** 2
    codebook[dead] = vectors[torch.multinomial(error, int(dead.sum()), replacement=True)]
    return codebook


WRONG_RESTART = {
    "any vector": ("squared distance", restarting(torch.ones_like)),
    "not squared": ("square the distance", restarting(lambda squares: squares.sqrt())),
    "the farthest": ("always the farthest", restart_by_argmax),
    "near ones first": ("squared distance", restarting(lambda squares: 1 / (squares + 1e-3))),
    "at the threshold": ("below the threshold", restarting(lambda squares: squares, least=True)),
    "all codes": ("alive", restart_all),
    "the living": ("below the threshold", restart_living),
    "the mean": ("onto a vector", restart_on_the_mean),
    "without replacement": ("with replacement", restart_without_replacement),
    "one draw": ("for each of them", restart_on_one),
    "no dead code": ("your function raised", restart_never_none),
    "nothing moves": ("has not moved", lambda v, e, n, t: e),
    "the vectors alone": ("shape", lambda v, e, n, t: v[: int((n < t).sum())]),
    "returns nothing": ("return", lambda v, e, n, t: None),
}


@pytest.mark.parametrize("right", [restart, restart_in_place])
def test_restart_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_restart, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_RESTART.values(), ids=WRONG_RESTART)
def test_restart_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_restart, wrong, word)


def test_restart_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    accepts(exercises.check_restart, restart)
    assert torch.equal(torch.get_rng_state(), before)


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


EXACT_STRAIGHT = {
    "the reference": through(lambda v, c: c.clone(), lambda g: (g, None)),
    "codes as they are": through(lambda v, c: c, lambda g: (g, None)),
    "zeros for the codes": through(lambda v, c: c.clone(), lambda g: (g, torch.zeros_like(g))),
    "detach, exactly": lambda v, c: c.detach() + (v - v.detach()),
}
ROUNDED_STRAIGHT = {
    "one line": lambda v, c: v + (c - v).detach(),
    "with data": lambda v, c: (c - v).data + v,
    "no_grad": lambda v, c: v + (c.detach() - v.detach()),
}
WRONG_STRAIGHT = {  # for both checks
    "no detach": ("other way round", lambda v, c: v + (c - v)),
    "the codes get it too": ("codes get a gradient", lambda v, c: c + (v - v.detach())),
    "both get it": (
        "codes get a gradient",
        through(lambda v, c: c.clone(), lambda g: (g, g)),
    ),
    "gives out the vectors": (
        "not the vectors",
        through(lambda v, c: v.clone(), lambda g: (g, None)),
    ),
    "wrong sign": ("wrong sign", lambda v, c: v - (c - v).detach()),
    "only the difference": ("return the codes", lambda v, c: (c - v).detach() + 0 * v),
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
    "the codes alone detached": ("two z cancel", lambda v, c: v + (c.detach() - v)),
    "detached": ("does not know", lambda v, c: c.detach()),
    "all detached": ("does not know", lambda v, c: (v + c - v).detach()),
    "in place": ("have changed", in_place),
    "returns nothing": ("return", lambda v, c: None),
}
STRAIGHT_CHECKS = [exercises.check_straight_through, exercises.check_exact_straight_through]


@pytest.mark.parametrize("check", STRAIGHT_CHECKS)
@pytest.mark.parametrize("right", EXACT_STRAIGHT.values(), ids=EXACT_STRAIGHT)
def test_straight_through_accepts_right_solutions(right: Callable, check: Callable) -> None:
    accepts(check, right)


@pytest.mark.parametrize("right", ROUNDED_STRAIGHT.values(), ids=ROUNDED_STRAIGHT)
def test_only_the_exercise_wants_the_last_bit(right: Callable) -> None:
    accepts(exercises.check_straight_through, right)
    refuses(exercises.check_exact_straight_through, right, "last bit")


@pytest.mark.parametrize("check", STRAIGHT_CHECKS)
@pytest.mark.parametrize(("word", "wrong"), WRONG_STRAIGHT.values(), ids=WRONG_STRAIGHT)
def test_straight_through_names_the_mistake(word: str, wrong: Callable, check: Callable) -> None:
    refuses(check, wrong, word)


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
