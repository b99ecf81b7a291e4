"""Rotary position embedding (Su et al. 2021, RoFormer): a position is an angle, not a vector.

Each pair of features of a query or key is turned by position * frequency; the dot product of two
turned vectors then depends on the distance between their positions only. The pairs are
(i, i + d/2), as in Llama. Of several positions (row and column; time, row and column) each pair
turns by one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Tables = tuple[Tensor, Tensor]  # cos and sin


def inverse_frequencies(head_dim: int, theta: float = 10_000.0) -> Tensor:
    """theta^(-2i/d) for i < d/2: (d/2,), radians per position (RoFormer, section 3.2.2)."""
    if head_dim % 2:
        raise ValueError(f"rotary embedding turns pairs of features; head_dim {head_dim} is odd")
    exponents = torch.arange(0, head_dim, 2).float() / head_dim
    return 1 / theta**exponents  # to the last digit as in transformers


def tables(angles: Tensor) -> Tables:
    """cos and sin of angles (..., T, d/2) -> two (..., T, d): i and i + d/2 share an angle."""
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotary_tables(positions: Tensor, head_dim: int, theta: float = 10_000.0) -> Tables:
    """cos and sin of every angle: positions (..., T) of integers -> two (..., T, d), float32."""
    frequencies = inverse_frequencies(head_dim, theta).to(positions.device)  # (d/2,)
    return tables(positions[..., None].float() * frequencies)


def axial_tables(places: Tensor, head_dim: int, theta: float = 10_000.0) -> Tables:
    """2-D RoPE: half of the pairs turn by the row, half by the column: (2, N) -> two (N, d).

    Both halves have the same d/4 frequencies (Qwen2-VL, section 2.1: Wang et al. 2024).
    """
    if head_dim % 4:
        raise ValueError(
            f"2-D rotary embedding halves the pairs of features; head_dim {head_dim} is not 4 n"
        )
    frequencies = inverse_frequencies(head_dim // 2, theta).to(places.device)  # (d/4,)
    rows, columns = places[..., None].float() * frequencies  # (N, d/4) each
    return tables(torch.cat([rows, columns], dim=-1))


def mrope_axes(sections: Sequence[int], count: int, interleaved: bool = False) -> list[int]:
    """What each of ``count`` frequencies, fastest first, turns by: 0 time, 1 row, 2 column.

    In sections, as in Qwen2-VL: sections[0] frequencies for time, then the rows', then the
    columns'. Interleaved, as in Qwen3-VL: time, row, column in turn, until the rows and the columns
    have theirs, and the rest is time.
    """
    if interleaved and len(sections) == 3:
        return [i % 3 if i < 3 * sections[i % 3] else 0 for i in range(count)]
    if len(sections) != 3 or sum(sections) != count:
        raise ValueError(
            f"mrope_section {list(sections)} does not share out {count} frequencies to three axes"
        )
    return [axis for axis, number in enumerate(sections) for _ in range(number)]


def mrope_tables(positions: Tensor, axes: Sequence[int], theta: float = 10_000.0) -> Tables:
    """M-RoPE: positions (3, B, T) of time, row, column -> two (B, T, d), d/2 = len(axes).

    Qwen2-VL, section 2.1. A text token has three equal positions: it is turned as by plain RoPE.
    """
    frequencies = inverse_frequencies(2 * len(axes), theta).to(positions.device)
    return tables(positions[list(axes)].movedim(0, -1).float() * frequencies)  # (B, T, d/2)


def rotate_half(x: Tensor) -> Tensor:
    """(x1, x2) -> (-x2, x1): a quarter turn of every pair (i, i + d/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([-x2, x1], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys x (B, h, T, d) by the angles of the tables (T, d) or (B, 1, T, d).

    It is done in the tables' float32, and given back in the precision of x.
    """
    return (x * cos + rotate_half(x) * sin).to(x.dtype)
