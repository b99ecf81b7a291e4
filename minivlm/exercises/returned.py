"""What checks ask of answers that are ids, or several things at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minivlm.exercises.answers import expect_tensor, named_kind


def expect_ids(got: Any, shape: Sequence[int], case: str) -> Tensor:
    """An answer that has to be a tensor of integers, of any width, as int64."""
    got = expect_tensor(got, shape, case)
    whole = not got.is_floating_point() and got.dtype != torch.bool
    assert whole, f"{case}: give integers, not {got.dtype}"
    return got.long()


def expect_parts(got: Any, names: Sequence[str], case: str) -> Sequence:
    """An answer of several parts, which the message names."""
    wanted = f"{case}: give {len(names)} results ({', '.join(names)})"
    assert isinstance(got, tuple | list), f"{wanted}, not {named_kind(got)}"
    assert len(got) == len(names), f"{wanted}, not {len(got)}"
    return got
