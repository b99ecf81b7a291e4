"""Rotary position embedding (Su et al. 2021, RoFormer): a position is an angle, not a vector that is added.

Each pair of features of a query or key is turned by position * frequency; the dot product of two turned
vectors then depends on the distance between their positions only. The pairs are (i, i + d/2), as in Llama.
"""

import torch
from torch import Tensor


def inverse_frequencies(head_dim: int, theta: float = 10_000.0) -> Tensor:
    """theta^(-2i/d) for i = 0 .. d/2 - 1: (d/2,), radians per position (RoFormer, section 3.2.2)."""
    if head_dim % 2:
        raise ValueError(f"rotary embedding turns pairs of features; head_dim {head_dim} is odd")
    return 1 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)  # to the last digit as in transformers


def rotary_tables(positions: Tensor, head_dim: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle: positions (..., T) of integers -> two (..., T, d), float32."""
    angles = positions[..., None].float() * inverse_frequencies(head_dim, theta).to(positions.device)
    angles = torch.cat([angles, angles], dim=-1)  # (..., T, d): feature i and i + d/2 share an angle
    return angles.cos(), angles.sin()


def rotate_half(x: Tensor) -> Tensor:
    """(x1, x2) -> (-x2, x1): a quarter turn of every pair (i, i + d/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([-x2, x1], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the queries or keys x (B, h, T, d) by the angles of the tables (T, d) or (B, 1, T, d)."""
    return x * cos + rotate_half(x) * sin
