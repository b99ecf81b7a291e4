"""05 · Checks of how notebook 05's reader pools a text, builds a classifier and counts recall."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.exercises.answers import compare_answers, expect_number, expect_tensor, near
from minivlm.exercises.clip_losses import close

# Where a text ends


TEXTS = {  # what is special: ids (B, T), the id that ends a text
    "padding repeats the end": ([[9, 4, 12, 12, 12, 12], [9, 4, 7, 8, 3, 12]], 12),
    "an id larger than the end's": ([[9, 30, 12, 0, 0], [2, 12, 0, 0, 0], [4, 6, 8, 31, 12]], 12),
    "padding is larger than the end": ([[5, 1, 3, 3], [1, 3, 3, 3], [7, 5, 6, 1]], 1),
}
POOLING_MISTAKES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "that is the last position, which may be padding": lambda x, ids, end: x[:, -1],
    "that is the first position, which has seen itself alone": lambda x, ids, end: x[:, 0],
    "the largest id need not be the end: compare the ids with eos_id": (
        lambda x, ids, end: x[torch.arange(len(x)), ids.argmax(1)]
    ),
    "that is the last eos_id; padding may repeat it, take the first": (
        lambda x, ids, end: x[torch.arange(len(x)), _last(ids, end)]
    ),
    "one position too early: take the end token itself": (
        lambda x, ids, end: x[torch.arange(len(x)), _first(ids, end) - 1]
    ),
    "one position too late: take the end token itself": (
        lambda x, ids, end: x[torch.arange(len(x)), (_first(ids, end) + 1) % ids.shape[1]]
    ),
    "that is a mean over all positions; CLIP reads one": lambda x, ids, end: x.mean(1),
    "that is a mean up to the end; CLIP reads the end token alone": (
        lambda x, ids, end: torch.stack(
            [row[: at + 1].mean(0) for row, at in zip(x, _first(ids, end).tolist(), strict=True)]
        )
    ),
    "every row is read where the first row ends": lambda x, ids, end: x[:, _first(ids, end)[0]],
}


def _first(ids: Tensor, end: int) -> Tensor:
    """Where each row holds the end for the first time."""
    return (ids == end).int().argmax(1)


def _last(ids: Tensor, end: int) -> Tensor:
    """Where each row holds the end for the last time."""
    return ids.shape[1] - 1 - (ids == end).flip(1).int().argmax(1)


def check_pool_text(pool_text: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """Rows that end at different places; batch, length and width differ."""
    generator, got, right = torch.Generator().manual_seed(0), [], []
    known: dict[str, list[Tensor]] = {words: [] for words in POOLING_MISTAKES}
    for case, (rows, end) in TEXTS.items():
        ids = torch.tensor(rows)
        count, length = ids.shape
        x = torch.randn(count, length, 7, generator=generator)
        answer = pool_text(x.clone(), ids.clone(), end)
        square = isinstance(answer, Tensor) and tuple(answer.shape) == (count, count, 7)
        hint = "; x[:, at] takes every position of `at` from every row: index the rows as well"
        assert not square, f"{case}: shape {(count, 7)}, not {(count, count, 7)}{hint}"
        every = int((ids == end).sum())
        repeated = isinstance(answer, Tensor) and count != every and answer.shape == (every, 7)
        hint = "; that takes every eos_id, repeated ones too: take the first of each row"
        assert not repeated, f"{case}: shape {(count, 7)}, not {tuple(answer.shape)}{hint}"
        got.append(expect_tensor(answer, (count, 7), case))
        right.append(x[torch.arange(count), _first(ids, end)])
        for words, mistake in POOLING_MISTAKES.items():
            known[words].append(mistake(x, ids, end))
    refuse_tensors([*TEXTS], right, got, known)


def refuse_tensors(
    cases: Sequence[str], right: list[Tensor], got: list[Tensor], known: Mapping[str, Iterable]
) -> None:
    """As ``compare_answers``, for tensors: which case, and which mistake explains all of them."""
    wrong = [
        case for case, a, b in zip(cases, right, got, strict=True) if not near(b.detach(), a, 1e-4)
    ]
    for words, answers in known.items():
        if wrong and all(
            a.shape == b.shape and near(b.detach(), a) for a, b in zip(answers, got, strict=True)
        ):
            raise AssertionError(f"{wrong[0]}: {words}")
    assert not wrong, f"{wrong[0]}: other vectors than expected"


# A classifier made of sentences


def _classes(first: bool, last: bool, dim: int = -1) -> Callable[[list[Tensor]], Tensor]:
    """Prompts -> classes, with or without a normalisation before and after the mean."""

    def build(prompts: list[Tensor]) -> Tensor:
        rows = [(F.normalize(p, dim=dim) if first else p).mean(0) for p in prompts]
        return F.normalize(torch.stack(rows), dim=dim) if last else torch.stack(rows)

    return build


CLASSIFIER_MISTAKES = {
    "a long prompt vector outweighs the others: normalise each prompt before the mean": (
        _classes(first=False, last=True)
    ),
    "a mean of unit vectors is shorter than one: normalise again after the mean": (
        _classes(first=True, last=False)
    ),
    "nothing is normalised": _classes(first=False, last=False),
    "normalise along the features (dim=-1), not along the prompts or classes": (
        _classes(True, True, dim=0)
    ),
    "normalise along the features (dim=-1) before the mean too, not along the prompts": (
        lambda prompts: F.normalize(_classes(True, last=False, dim=0)(prompts), dim=-1)
    ),
    "normalise along the features (dim=-1) after the mean too, not along the classes": (
        lambda prompts: F.normalize(_classes(True, last=False)(prompts), dim=0)
    ),
    "only the first prompt of each class counts here": (
        lambda prompts: torch.stack([F.normalize(p[0], dim=0) for p in prompts])
    ),
    "only the last prompt of each class counts here": (
        lambda prompts: torch.stack([F.normalize(p[-1], dim=0) for p in prompts])
    ),
    "that is the largest value of each feature; take the mean": (
        lambda prompts: torch.stack(
            [F.normalize(F.normalize(p, dim=1).amax(0), dim=0) for p in prompts]
        )
    ),
}


def check_build_classifier(build_classifier: Callable[[list[Tensor]], Tensor]) -> None:
    """Unequal numbers of prompts, vectors of very different length."""
    generator, got, right, cases = torch.Generator().manual_seed(1), [], [], []
    known: dict[str, list[Tensor]] = {words: [] for words in CLASSIFIER_MISTAKES}
    for counts, width in (((3, 2, 5, 1), 6), ((2, 4), 9)):
        cases.append(f"{len(counts)} classes of {', '.join(map(str, counts))} prompts")
        prompts = [torch.randn(count, width, generator=generator) for count in counts]
        prompts = [p * torch.arange(1, len(p) + 1)[:, None] ** 2 for p in prompts]
        given = [p.clone() for p in prompts]
        got.append(expect_tensor(build_classifier(given), (len(counts), width), cases[-1]))
        right.append(_classes(first=True, last=True)(prompts))
        for words, mistake in CLASSIFIER_MISTAKES.items():
            known[words].append(mistake(prompts))
    refuse_tensors(cases, right, got, known)


# Recall


def _hits(scores: Tensor, true: Tensor, k: int) -> Tensor:
    """Which of the k best are true, (N, k)."""
    return true.gather(1, scores.topk(k, dim=1).indices)


def _own_only(scores: Tensor, true: Tensor, k: int) -> float:
    """Row i is right only with column i."""
    own = torch.zeros_like(true)
    own.fill_diagonal_(True)
    return _hits(scores, own, k).any(1).float().mean().item()


RECALL_MISTAKES: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "only column i counts as right for row i; `true` says which columns are": _own_only,
    "that is the share of the k that are true; one true among them is enough": (
        lambda scores, true, k: _hits(scores, true, k).float().mean().item()
    ),
    "that is the share of the true ones that were found; one of them is enough": (
        lambda scores, true, k: (_hits(scores, true, k).sum(1) / true.sum(1)).mean().item()
    ),
    "all k have to be true here; one is enough": (
        lambda scores, true, k: _hits(scores, true, k).all(1).float().mean().item()
    ),
    "those are the k smallest scores": (
        lambda scores, true, k: _hits(-scores, true, k).any(1).float().mean().item()
    ),
    "only the best counts here; k of them may": (
        lambda scores, true, k: _hits(scores, true, 1).any(1).float().mean().item()
    ),
    "the columns ask here; each row asks": (
        lambda scores, true, k: _hits(scores.T, true.T, k).any(1).float().mean().item()
    ),
    "a count; divide by the number of rows": (
        lambda scores, true, k: _hits(scores, true, k).any(1).sum().item()
    ),
    "a share in percent; give it between 0 and 1": (
        lambda scores, true, k: 100 * _hits(scores, true, k).any(1).float().mean().item()
    ),
    "one true column anywhere is not enough: it has to be among the k best": (
        lambda scores, true, k: true.any(1).float().mean().item()
    ),
}


def check_recall_at(recall_at: Callable[[Tensor, Tensor, int], float]) -> None:
    """More columns than rows, several true columns in a row, k of 1 and more."""
    generator, cases, got, right = torch.Generator().manual_seed(3), [], [], []
    known: dict[str, list[float]] = {words: [] for words in RECALL_MISTAKES}
    for rows, columns, k in ((12, 17, 1), (12, 17, 3), (9, 6, 2)):
        scores = torch.randn(rows, columns, generator=generator)
        true = torch.rand(rows, columns, generator=generator) < 0.25
        true[:, 1] |= ~true.any(1)
        cases.append(f"{rows} rows, {columns} columns, k = {k}")
        answer = recall_at(scores.clone(), true.clone(), k)
        got.append(expect_number(answer, cases[-1]))
        right.append(_hits(scores, true, k).any(1).float().mean().item())
        for words, mistake in RECALL_MISTAKES.items():
            known[words].append(mistake(scores, true, k))
    compare_answers(cases, right, got, known, close)
