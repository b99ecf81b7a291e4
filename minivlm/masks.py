"""Every attention mask of the course, as a boolean function of positions.

Convention: ``True`` = the query (row) may attend to the key (column), as in
``torch.nn.functional.scaled_dot_product_attention``. Masks combine with ``&``.
"""

import torch
from torch import Tensor


def bidirectional(length: int) -> Tensor:
    """Every position sees every position (ViT, BERT): (T, T), all True."""
    return torch.ones(length, length, dtype=torch.bool)


def causal(length: int, past: int = 0) -> Tensor:
    """A position sees itself and what came before it: (T, past + T).

    ``past`` counts the keys that a cache already holds; all of them lie before the first query.
    """
    query = torch.arange(past, past + length)[:, None]
    key = torch.arange(past + length)[None, :]
    return key <= query


def prefix(length: int, prefix_length: int) -> Tensor:
    """Prefix-LM: the first ``prefix_length`` positions see each other, the rest is causal: (T, T).

    Raffel et al. 2020 (T5), section 3.2.1.
    """
    if not 0 <= prefix_length <= length:
        raise ValueError(f"prefix_length must lie in 0..{length}, got {prefix_length}")
    return causal(length) | (torch.arange(length) < prefix_length)[None, :]


def padding(attention_mask: Tensor) -> Tensor:
    """Nobody attends to padding: (B, T) of 1 (token) and 0 (padding) -> (B, 1, 1, T), for every head and query."""
    if attention_mask.ndim != 2:
        raise ValueError(f"attention_mask must be (B, T), got shape {tuple(attention_mask.shape)}")
    values = set(attention_mask.unique().tolist())
    if not values <= {0, 1}:
        raise ValueError(f"attention_mask must hold 0 and 1 only, got {sorted(values)}")
    return attention_mask.bool()[:, None, None, :]
