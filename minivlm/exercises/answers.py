"""What checks ask of any answer: is it a number, a tensor, a list; which mistake explains it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from operator import eq
from typing import Any

import torch
from torch import Tensor


def named_kind(got: object) -> str:
    """What a result is, in a reader's words."""
    if got is None:
        return "None (is there a return?)"
    name = type(got).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def expect_number(got: Any, case: str) -> float:
    """The number in an answer: an int, a float, a tensor of one element; nothing else."""
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    right = isinstance(got, Real) and not isinstance(got, bool)
    assert right, f"{case}: give a number, not {named_kind(got)}"
    return got


def expect_tensor(got: Any, shape: Sequence[int], case: str) -> Tensor:
    """An answer that has to be a tensor of this shape."""
    assert isinstance(got, Tensor), f"{case}: give a tensor, not {named_kind(got)}"
    found = f"shape {tuple(shape)}, not {tuple(got.shape)}"
    assert tuple(got.shape) == tuple(shape), f"{case}: {found}"
    return got


def expect_items(got: Any, case: str, count: int | None = None) -> list:
    """An answer that has to be a list, a tuple or a tensor, of ``count`` items, as a list."""
    if isinstance(got, Tensor) and got.ndim:
        got = got.tolist()
    assert isinstance(got, list | tuple), f"{case}: give a list or tuple, not {named_kind(got)}"
    found = f"{count} items, not {len(got)}"
    assert count is None or len(got) == count, f"{case}: {found}"
    return list(got)


def near(got: Tensor, right: Tensor, atol: float = 1e-4) -> bool:
    """Whether two tensors of one shape are equal up to rounding, whatever their precision."""
    return not got.is_complex() and torch.allclose(got.double(), right.double(), atol=atol, rtol=0)


def brief(answer: Any) -> str:
    """An answer in a message: floats with few digits."""
    if isinstance(answer, float) and not answer.is_integer():
        return f"{answer:.4g}"
    if isinstance(answer, float | int):
        return f"{int(answer):,}"
    return str(answer)


def compare_answers(
    cases: Sequence[str],
    right: Sequence,
    got: Sequence,
    mistakes: Mapping[str, Iterable],
    same: Callable[[Any, Any], bool] = eq,
) -> None:
    """Refuse the first wrong answer; say which mistake it is if one explains the answers to all.

    A list for each mistake: what it answers in each case. So a coincidence in one case, where two
    mistakes give the same number, misleads nobody.
    """
    wrong = [i for i, (a, b) in enumerate(zip(right, got, strict=True)) if not same(a, b)]
    known = (what for what, answers in mistakes.items() if all(map(same, answers, got)))
    if wrong:
        at, hint = wrong[0], next(known, "")
        said = f"{cases[at]}: {brief(right[at])}, not {brief(got[at])}"
        raise AssertionError(f"{said} ({hint})" if hint else said)
