"""03 · Checks of notebook 03's exercises: each takes the reader's function, says what is wrong."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.exercises.answers import compare_answers, expect_number, expect_tensor, near
from minivlm.exercises.returned import expect_ids, expect_parts
from minivlm.exercises.vqvae_more import (
    check_codes_to_cover,
    check_exact_straight_through,
    check_fsq,
    check_residual_quantize,
    pass_through,
)

__all__ = ["check_codes_to_cover", "check_exact_straight_through", "check_fsq"]
__all__ += ["check_residual_quantize"]


def expect_near(
    got: Tensor, right: Tensor, mistakes: dict[str, Tensor], case: str, rest: str
) -> None:
    """An answer that has to equal a tensor; else the mistake that explains it, or the rest."""
    known = (words for words, wrong in mistakes.items() if near(got, wrong))
    assert near(got, right), f"{case}: {next(known, rest)}"


# 2.2: the nearest code


def check_nearest(nearest: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Codes of very different lengths, more vectors than codes and fewer."""
    generator = torch.Generator().manual_seed(0)
    for n, k, d in [(40, 6, 3), (5, 9, 2), (1, 4, 5)]:
        vectors = torch.randn(n, d, generator=generator)
        lengths = torch.linspace(0.2, 3, k)[:, None]
        codebook = lengths * torch.randn(k, d, generator=generator)
        case = f"{n} vectors, {k} codes of {d} numbers"
        got = nearest(vectors.clone(), codebook.clone())
        two = "min gives two tensors, values and ids; return one tensor of ids, as by argmin"
        assert not isinstance(got, tuple), f"{case}: {two}"
        _check_form(got, n, k, d, case)
        _check_choice(expect_ids(got, (n,), case), vectors, codebook, case)


def _check_form(got: object, n: int, k: int, d: int, case: str) -> None:
    """The shapes of likely other things."""
    shape = tuple(got.shape) if isinstance(got, Tensor) else ()
    forms = {
        (k,): "one id a code: take the minimum over the codes, for each vector",
        (n, d): "these are codes; return their ids",
        (n, k): "these are all distances; return the position of the smallest in each row",
        (n, 1): "one column too many: shape (N,), not (N, 1)",
        (1, n): "one row too many: shape (N,), not (1, N)",
    }
    assert shape == (n,) or shape not in forms, f"{case}: {forms.get(shape)}"


def _check_choice(ids: Tensor, vectors: Tensor, codebook: Tensor, case: str) -> None:
    """The ids themselves."""
    products, squares = vectors @ codebook.T, codebook.pow(2).sum(1)
    right = torch.cdist(vectors, codebook).argmin(1)
    cosines = F.normalize(vectors, dim=1) @ F.normalize(codebook, dim=1).T
    mistakes = {
        "the farthest code, not the nearest": torch.cdist(vectors, codebook).argmax(1),
        "the largest product is not the smallest distance: |e|^2 is missing": products.argmax(1),
        "the product z e needs the factor -2, not -1": (squares - products).argmin(1),
        "|e| is the length; the formula has its square": (
            codebook.norm(dim=1) - 2 * products
        ).argmin(1),
        "the product z e is subtracted, not added": (squares + 2 * products).argmin(1),
        "by angle: lengths count too": cosines.argmax(1),
        "by |z - e| added up: square the differences": torch.cdist(vectors, codebook, 1).argmin(1),
        "differences are added before they are squared": (
            (vectors.sum(1, keepdim=True) - codebook.sum(1)).abs().argmin(1)
        ),
        "the shortest code for every vector: the vectors do not count": (
            squares.argmin().expand(len(vectors))
        ),
    }
    wrong = f"{int((ids != right).sum())} of {len(ids)} ids are wrong"
    expect_near(ids, right, mistakes, case, wrong)


# 2.3: straight through


def check_straight_through(straight_through: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Forward the codes, up to rounding; backward the gradient, for the vectors alone."""
    pass_through(straight_through, exact=False)


# 2.4: the losses of the quantizer

Loss = Callable[[Tensor, Tensor, float], Tensor]


def check_quantizer_loss(quantizer_loss: Loss) -> None:
    """The value, and who would move: two weights, since one alone tells no factor from another."""
    generator = torch.Generator().manual_seed(0)
    for beta in (0.25, 2.0):
        vectors, codes = (torch.randn(6, 3, generator=generator) for _ in range(2))
        given = vectors.clone().requires_grad_(), codes.clone().requires_grad_()
        got = expect_tensor(quantizer_loss(*given, beta), (), f"beta {beta}")
        error = (vectors - codes).pow(2).mean()
        mistakes = {
            "the commitment loss is missing, or beta is": error,
            "the codebook loss is missing": beta * error,
            "beta weighs the commitment loss only": 2 * beta * error,
            "both losses have the weight 1": 2 * error,
            "take the mean over all elements, not the sum": 18 * (1 + beta) * error,
            "take the mean over all elements; this is a sum over each vector": (
                3 * (1 + beta) * error
            ),
            "differences are not squared": (1 + beta) * (vectors - codes).abs().mean(),
        }
        mistakes["beta is an argument, here it is always 0.25"] = 1.25 * error
        said = f"the loss should be {(1 + beta) * error:.4g}, not {got:.4g}"
        expect_near(got, (1 + beta) * error, mistakes, f"beta {beta}", said)
        _check_pull(got, given, beta)


def _check_pull(loss: Tensor, given: Sequence[Tensor], beta: float) -> None:
    """The gradients, as multiples of the plain one."""
    assert loss.requires_grad, "neither vectors nor codes get a gradient: everything is detached"
    loss.backward()
    plain = 2 * (given[0] - given[1]).detach() / given[0].numel()
    pulls = [0 * plain if tensor.grad is None else tensor.grad for tensor in given]
    got = torch.stack([(pulls[0] / plain).mean(), (-pulls[1] / plain).mean()])  # weights
    known = {
        "nothing is detached: each loss may move one side only": (1 + beta, 1 + beta),
        "the two are swapped: beta weighs what moves the vectors": (1, beta),
        "both losses move the codes: the commitment loss detaches the codes": (0, 1 + beta),
        "both losses move the vectors: the codebook loss detaches the vectors": (1 + beta, 0),
        "the vectors get no gradient: the commitment loss detaches the codes alone": (0, 1),
        "the codes get no gradient: the codebook loss detaches the vectors alone": (beta, 0),
    }
    mistakes = {words: torch.tensor(weights).float() for words, weights in known.items()}
    case = f"beta {beta}, weight {got[0]:.3g} pulls the vectors, {got[1]:.3g} the codes"
    right = torch.tensor([beta, 1.0])
    expect_near(got, right, mistakes, case, f"it should be {beta} and 1")


# 2.5: a step of the moving averages

EmaStep = Callable[..., tuple[Tensor, Tensor, Tensor]]
CHOSEN = [3, 1, 1, 0, 1, 3, 0]  # of five codes; no vector chooses 2, or the last one


def check_ema_step(ema_step: EmaStep) -> None:
    """Counts, sums and codes; the smoothing is large, so that it can be seen."""
    generator = torch.Generator().manual_seed(0)
    ids, counts = torch.tensor(CHOSEN), torch.tensor([2.0, 1.0, 3.0, 0.5, 4.0])
    for decay, epsilon in [(0.8, 0.3), (0.95, 0.05), (0.0, 0.1)]:
        vectors, sums = (torch.randn(n, 3, generator=generator) for n in (7, 5))
        case = f"decay {decay}, epsilon {epsilon}"
        given = [vectors.clone(), ids.clone(), counts.clone(), sums.clone()]
        got = expect_parts(ema_step(*given, decay, epsilon), ("codes", "counts", "sums"), case)
        new_counts = _check_counts(got[1], counts, decay, epsilon, case)
        new_sums = _check_batch_sums(got[2], vectors, sums, decay, case)
        _check_quotient(got[0], (new_counts, counts), (new_sums, sums), epsilon, case)


def _smooth(counts: Tensor, epsilon: float) -> Tensor:
    """Laplace smoothing, which keeps the sum."""
    return (counts + epsilon) / (counts.sum() + len(counts) * epsilon) * counts.sum()


def _check_counts(got: Tensor, old: Tensor, decay: float, epsilon: float, case: str) -> Tensor:
    """The averaged number of vectors a code."""
    new = F.one_hot(torch.tensor(CHOSEN), len(old)).sum(0).float()
    right = decay * old + (1 - decay) * new
    mistakes = {
        "counts: decay and 1 - decay are swapped": (1 - decay) * old + decay * new,
        "counts: the new ones have the weight 1 - decay": decay * old + new,
        "counts: these are of this batch alone; keep decay of the old ones": new,
        "counts: return the averages themselves; smoothing is for the division": (
            _smooth(right, epsilon)
        ),
        "counts: these are the old ones": old,
        "counts: how many vectors chose a code, not whether one did": (
            decay * old + (1 - decay) * (new > 0)
        ),
        "counts: numbers of vectors, not shares of the batch": decay * old + (1 - decay) * new / 7,
    }
    got = expect_tensor(got, right.shape, f"{case}, counts")
    expect_near(got, right, mistakes, case, "the counts are wrong")
    return right


def _check_batch_sums(got: Tensor, vectors: Tensor, old: Tensor, decay: float, case: str) -> Tensor:
    """The averaged sum of the vectors of each code."""
    chosen = F.one_hot(torch.tensor(CHOSEN), len(old)).float()
    new, last = chosen.T @ vectors, torch.zeros_like(old)
    last[[3, 1, 0]] = vectors[[5, 4, 6]]
    right = decay * old + (1 - decay) * new
    means = new / chosen.sum(0).clamp(min=1)[:, None]
    mistakes = {
        "sums: decay and 1 - decay are swapped": (1 - decay) * old + decay * new,
        "sums: the new ones have the weight 1 - decay": decay * old + new,
        "sums: these are of this batch alone; keep decay of the old ones": new,
        "sums: these are the old ones": old,
        "sums: add up the vectors of a code; this is their mean": decay * old + (1 - decay) * means,
        "sums: sums[ids] = ... keeps one vector a code: add all of them": (
            decay * old + (1 - decay) * last
        ),
        "sums: a code without vectors keeps its old sum here; it shrinks by decay too": (
            torch.where(chosen.any(0)[:, None], right, old)
        ),
    }
    got = expect_tensor(got, right.shape, f"{case}, sums")
    expect_near(got, right, mistakes, case, "the sums are wrong")
    return right


def _check_quotient(
    got: Tensor, counts: Sequence[Tensor], sums: Sequence[Tensor], epsilon: float, case: str
) -> None:
    """The codes: (new, old) sums by (new, old) counts."""
    (n, old_n), (m, old_m) = counts, sums
    total, k = n.sum(), len(n)
    parts = {
        "codes: the counts are not smoothed": n,
        "codes: smoothed counts must add up to N again: multiply by N": (
            (n + epsilon) / (total + k * epsilon)
        ),
        "codes: epsilon is added, but the counts no longer add up to N": n + epsilon,
        "codes: divide by the new counts, not by the old counts": _smooth(old_n, epsilon),
        "codes: N is the sum of the averaged counts, not of this batch": (
            (n + epsilon) / (total + k * epsilon) * 7
        ),
        "codes: N is the sum of the averaged counts, not the number of vectors": (
            (n + epsilon) / (7 + k * epsilon) * 7
        ),
        "codes: N is the sum of the new counts, not of the old counts": (
            (n + epsilon) / (old_n.sum() + k * epsilon) * old_n.sum()
        ),
        "codes: K epsilon, one for each code, belongs to N below the line": (
            (n + epsilon) / (total + epsilon) * total
        ),
    }
    mistakes = {words: m / part[:, None] for words, part in parts.items()}
    mistakes["codes: these are the sums; divide them by the smoothed counts"] = m
    mistakes["codes: divide the new sums, not the old sums"] = old_m / _smooth(n, epsilon)[:, None]
    got = expect_tensor(got, m.shape, f"{case}, codes")
    lost = "codes: NaN or infinite; a code without vectors divides by zero: smooth the counts"
    assert got.isfinite().all(), f"{case}: {lost}"
    expect_near(got, m / _smooth(n, epsilon)[:, None], mistakes, case, "the codes are wrong")


# 2.6: dead codes

USED = [  # ids, number of codes, how often each occurs that does
    ([[2, 2], [2, 2]], 5, [4]),
    ([0, 1, 4, 5], 6, [1, 1, 1, 1]),
    ([[3, 3, 0, 7], [3, 3, 0, 7]], 9, [4, 2, 2]),
    ([6, 6, 6, 6, 6, 6, 6, 1], 8, [7, 1]),
]


def check_perplexity(perplexity: Callable[[Tensor, int], float]) -> None:
    """One code, some that share equally, some that do not; never all codes."""
    got, right = [], []
    mistakes: dict[str, list[float]] = {name: [] for name in PERPLEXITY_MISTAKES}
    cases = [f"ids {ids} of {k} codes" for ids, k, _ in USED]
    for case, (ids, k, counts) in zip(cases, USED, strict=True):
        answer = expect_number(perplexity(torch.tensor(ids), k), case)
        hint = "0 ln 0 counts as 0; leave out codes that do not occur"
        assert not math.isnan(answer), f"{case}: NaN ({hint})"
        shares = [count / sum(counts) for count in counts]
        got.append(answer)
        right.append(math.exp(_entropy(shares)))
        for name, count in PERPLEXITY_MISTAKES.items():
            mistakes[name].append(count(shares, k))
    compare_answers(cases, right, got, mistakes, same=lambda a, b: math.isclose(a, b, rel_tol=1e-3))


def _entropy(shares: Sequence[float]) -> float:
    """In nats."""
    return -sum(share * math.log(share) for share in shares)


PERPLEXITY_MISTAKES: dict[str, Callable[[list[float], int], float]] = {
    "this is the entropy; take exp of it": lambda shares, k: _entropy(shares),
    "the entropy has a minus sign": lambda shares, k: math.exp(-_entropy(shares)),
    "this is the number of codes in use, however often": lambda shares, k: len(shares),
    "bits need 2 ** entropy, nats exp": lambda s, k: math.exp(_entropy(s) / math.log(2)),
    "the entropy in bits; perplexity is exp of the entropy in nats": (
        lambda shares, k: _entropy(shares) / math.log(2)
    ),
    "the sum over the codes, not their mean": lambda s, k: math.exp(_entropy(s) / k),
    "not a share of the codebook": lambda s, k: math.exp(_entropy(s)) / k,
    "1 / sum of squares is another measure; use the entropy": (
        lambda s, k: 1 / sum(share**2 for share in s)
    ),
}

Restart = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def check_restart(restart: Restart) -> None:
    """Which codes move, where to, and how often; the random state is as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        for counts in ([5.0, 0.5, 3.0], [0.5, 0.5, 0.5]):
            _check_alive(restart, torch.tensor(counts))
        for seed in range(20):
            torch.manual_seed(seed)
            _check_landing(restart)
        torch.manual_seed(0)
        _check_odds(restart)


def _check_alive(restart: Restart, counts: Tensor) -> None:
    """Where no count is below the threshold, nothing moves."""
    codebook, vectors = torch.tensor([[0.0, 0], [9, 9], [2, 0]]), torch.tensor([[1.0, 1], [0, 3]])
    got = restart(vectors.clone(), codebook.clone(), counts.clone(), 0.5)
    got = expect_tensor(got, codebook.shape, "no dead code")
    hint = "a code is dead if its count is below the threshold, not at it or above"
    assert torch.equal(got, codebook), f"counts {counts.tolist()}, threshold 0.5: {hint}"


def _check_landing(restart: Restart) -> None:
    """Two dead codes, and one vector that no code is on."""
    codebook = torch.tensor([[0.0, 0], [50, 50], [4, 0], [-60, 0]])
    counts = torch.tensor([5.0, 0.2, 3.0, 0.1])
    vectors = torch.tensor([[0.0, 0]] * 6 + [[4.0, 3]] + [[4.0, 0]] * 3)
    got = restart(vectors.clone(), codebook.clone(), counts.clone(), 0.5)
    got = expect_tensor(got, codebook.shape, "two dead codes")
    for k in range(4):
        same = torch.equal(got[k], codebook[k])
        landed = (vectors == got[k]).all(1).any()
        where = f"code {k}, count {counts[k]:g}, threshold 0.5"
        if counts[k] >= 0.5:
            assert same, f"{where}: it is alive, and must stay where it is"
            continue
        assert not same, f"{where}: it is dead, and has not moved"
        hint = f"a dead code moves onto a vector of the batch, not to {got[k].tolist()}"
        assert landed, f"{where}: {hint}"
        hint = (
            "weigh vectors by their squared distance from the nearest code, draw with replacement"
        )
        right = torch.equal(got[k], vectors[6])
        assert right, f"{where}: it moved where a code is already ({hint})"


def _check_odds(restart: Restart) -> None:
    """Distances 1 and 3 from the nearest code: the odds are 1 to 9."""
    codebook = torch.full((401, 1), 1000.0)
    codebook[0] = 0
    counts = torch.tensor([9.0] + [0.0] * 400)
    got = restart(torch.tensor([[0.0], [1], [-3]]), codebook, counts, 0.5)
    share = float((got[1:] == -3).float().mean())
    one = "one draw for all dead codes: draw one for each of them"
    hint = {0.5: "all are equally likely", 0.75: "square the distance"}
    hint[1] = f"always the farthest, or {one}"
    hint |= {share: one} if share == 0 else {}
    closest = min(hint, key=lambda odds: abs(odds - share))
    said = f"vectors at distance 1 and 3: the farther one is drawn in {share:.0%} of cases, not 90%"
    assert abs(share - 0.9) < 0.06, f"{said} ({hint[closest]})"
