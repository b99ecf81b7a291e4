"""Every attention mask of the course, as a boolean function of positions.

Convention: ``True`` = the query (row) may attend to the key (column), as in
``torch.nn.functional.scaled_dot_product_attention``. Masks combine with ``&``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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


def unimodal(queries: int, text: int) -> Tensor:
    """Q-Former, ITC: queries see queries, text sees text: (Q + T, Q + T).

    Li et al. 2023 (BLIP-2), figure 2.
    """
    is_text = torch.arange(queries + text) >= queries
    return is_text[:, None] == is_text[None, :]


def multimodal_causal(queries: int, text: int) -> Tensor:
    """Q-Former, ITG: a prefix mask, queries first, then causal text: (Q + T, Q + T).

    No query sees text, so the image is read without it. Li et al. 2023 (BLIP-2), figure 2.
    """
    return prefix(queries + text, queries)


def padding(attention_mask: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Nobody attends to padding: (B, T) of 1 (token) and 0 (padding) -> (B, 1, 1, T).

    ValueError for other values, and unless it is of the ``shape`` given.
    """
    got, expected = tuple(attention_mask.shape), tuple(shape or ())
    if len(got) != 2 or (expected and got != expected):
        raise ValueError(f"attention_mask must be {expected or '(B, T)'}, got {got}")
    values = set(attention_mask.unique().tolist())
    if not values <= {0, 1}:
        raise ValueError(f"attention_mask must hold 0 and 1 only, got {sorted(values)}")
    return attention_mask.bool()[:, None, None, :]


def count_positions(seen: Tensor) -> Tensor:
    """The place of each token among the real ones: (B, T) of 1 and 0 -> (B, T), from 0 on.

    So padding moves nothing, whichever side it is on; its own place is its column.
    """
    columns = torch.arange(seen.shape[1], device=seen.device)
    return torch.where(seen.bool(), seen.long().cumsum(dim=1) - 1, columns)


def segments(segment_ids: Tensor) -> Tensor:
    """Packing: a position sees its own segment alone: segment numbers (B, T) -> (B, 1, T, T).

    With ``& causal(T)``, several short examples fill one row without seeing each other (Raffel et
    al. 2020, section 3.1.1).
    """
    if segment_ids.ndim != 2:
        raise ValueError(f"segment_ids must be (B, T), got shape {tuple(segment_ids.shape)}")
    return (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]


def windows(places: Tensor, side: int) -> Tensor:
    """A patch sees its own window of side x side patches: rows and columns (2, N) -> (N, N).

    For ``&`` with the mask of the frames: Qwen2.5-VL (Bai et al. 2025), section 2.1.1. Windows
    count from the upper left; those at the edges are smaller.
    """
    window = places // side
    return (window[:, :, None] == window[:, None, :]).all(dim=0)


def runs(places: Tensor) -> Tensor:
    """Tokens of an unbroken run of True see each other, both ways: (B, T) -> (B, 1, T, T).

    With ``| causal(T)``, an image's tokens are read as a prefix, as in PaliGemma (Beyer et
    al. 2024, section 3.1).
    """
    starts = places & ~F.pad(places, (1, 0))[:, :-1]
    number = starts.cumsum(dim=1) * places  # 0 = outside
    return ((number[:, :, None] == number[:, None, :]) & places[:, :, None])[:, None]


def cross(query_image: Tensor, key_image: Tensor) -> Tensor:
    """Cross-attention to one image: its number for each query (T,) and key (S,) -> (T, S).

    In Flamingo (Alayrac et al. 2022, section 2.3) a token's image is the last one before it: the
    running count of image marks in the text. A token before any image has number 0, sees no key,
    and its attention is zero.
    """
    if query_image.ndim != 1 or key_image.ndim != 1:
        raise ValueError(
            f"need (T,) and (S,), got {tuple(query_image.shape)} and {tuple(key_image.shape)}"
        )
    return query_image[:, None] == key_image[None, :]
