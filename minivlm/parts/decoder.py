"""A causal language model in the Llama manner (Touvron et al. 2023): the half of a VLM that speaks.

Data: token ids (B, T) or their embeddings (B, T, D) -> logits (B, T, V).
Pre-norm blocks of RMSNorm, rotary positions, grouped-query attention (Ainslie et al. 2023) and
SwiGLU, no biases.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minivlm.parts.layers import (
    LayerCache,
    Maybe,
    RMSNorm,
    SwiGLU,
    attend,
    check_ids,
    init_weights,
    merge_heads,
    split_heads,
)
from minivlm.parts.masks import causal, padding
from minivlm.parts.rope import Tables, rotary_tables, rotate


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of a ``Decoder``; the defaults are Llama's."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int  # divides heads; kv_heads == heads is plain multi-head attention
    hidden: int  # width of the MLP
    head_dim: int | None = None  # default: width / heads
    theta: float = 10_000.0  # base of the rotary frequencies
    eps: float = 1e-6
    act: str = "silu"
    attention_bias: bool = False
    out_bias: bool | None = None  # of the attention's output layer; default: attention_bias
    qk_norm: bool = False  # an RMSNorm on every head's queries and keys, as in Qwen3
    mlp_bias: bool = False
    tied: bool = False  # the output layer is the embedding table

    @property
    def rotary_dim(self) -> int:
        """Features of a head, all of which are turned by its position."""
        return self.head_dim or self.width // self.heads


class KVCache:
    """The keys and values of all tokens so far: generation then computes one token a step."""

    def __init__(self) -> None:
        self.layers: list[LayerCache] = []

    @property
    def length(self) -> int:
        """Tokens held (S)."""
        return self.layers[0].length if self.layers else 0

    def layer(self, number: int) -> LayerCache:
        """The cache of one layer; layers are asked for from 0 on."""
        if number == len(self.layers):
            self.layers.append(LayerCache())
        return self.layers[number]


Cache = KVCache | None  # None: every token is computed anew


def visible(
    x: Tensor, attention_mask: Maybe = None, cache: Cache = None, mask: Maybe = None
) -> Maybe:
    """Who sees whom, for new tokens x (B, T, D): (..., T, S), S = cached + T; None = everything.

    ``mask`` (..., T, S), or else the causal one, without the keys that attention_mask (B, S) says
    are padding.
    """
    past, length = cache.length if cache else 0, x.shape[1]
    if mask is None and attention_mask is None and length == 1:
        return None  # the newest token sees all before it
    mask = causal(length, past) if mask is None else mask
    mask = mask.to(x.device)
    if attention_mask is not None:
        mask = mask & padding(attention_mask, (len(x), past + length))  # (B, 1, T, S)
    return mask


class GroupedQueryAttention(nn.Module):
    """Attention with rotary positions in which several query heads share one key-value head."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        c, d = config, config.rotary_dim
        if c.heads % c.kv_heads:
            raise ValueError(
                f"{c.heads} query heads do not divide into {c.kv_heads} key-value heads"
            )
        self.heads, self.kv_heads = c.heads, c.kv_heads
        self.q = nn.Linear(c.width, c.heads * d, bias=c.attention_bias)
        self.k = nn.Linear(c.width, c.kv_heads * d, bias=c.attention_bias)
        self.v = nn.Linear(c.width, c.kv_heads * d, bias=c.attention_bias)
        out_bias = c.attention_bias if c.out_bias is None else c.out_bias
        self.out = nn.Linear(c.heads * d, c.width, bias=out_bias)
        self.q_norm = RMSNorm(d, c.eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(d, c.eps) if c.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, mask: Maybe, rotary: Tables, cache: LayerCache | None = None
    ) -> Tensor:
        """x (B, T, D), mask (..., T, S), rotary tables (T, d) -> (B, T, D); S = cached + T."""
        q = rotate(self.q_norm(split_heads(self.q(x), self.heads)), *rotary)  # (B, h, T, d)
        # k and v: (B, kv heads, T, d)
        k = rotate(self.k_norm(split_heads(self.k(x), self.kv_heads)), *rotary)
        v = split_heads(self.v(x), self.kv_heads)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, kv heads, S, d)
        return self.out(merge_heads(attend(q, k, v, mask)))


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.norm1 = RMSNorm(config.width, config.eps)
        self.attention = GroupedQueryAttention(config)
        self.norm2 = RMSNorm(config.width, config.eps)
        self.mlp = SwiGLU(config.width, config.hidden, config.act, bias=config.mlp_bias)

    def forward(
        self, x: Tensor, mask: Maybe, rotary: Tables, cache: LayerCache | None = None
    ) -> Tensor:
        """As ``GroupedQueryAttention.forward``."""
        x = x + self.attention(self.norm1(x), mask, rotary, cache)
        return x + self.mlp(self.norm2(x))


class NextToken(nn.Module):
    """A model that has ``states``, (B, T, D) of its arguments, and an output layer ``head``.

    The head is its own or, where it has one, its ``decoder``'s.
    """

    states: Callable[..., Tensor]

    def forward(self, *args: Any, **inputs: Any) -> Tensor:
        """As ``states`` -> logits (B, T, V)."""
        states = self.states(*args, **inputs)
        return getattr(self, "decoder", self).head(states)

    def next_logits(self, *args: Any, **inputs: Any) -> Tensor:
        """As ``forward``, of the last position alone: (B, V)."""
        states = self.states(*args, **inputs)
        return getattr(self, "decoder", self).head(states[:, -1])


class Decoder(NextToken):
    """Embedding, blocks, final norm, output layer."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.apply(init_weights)
        if config.tied:
            self.head.weight = self.embedding.weight

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D); an id outside the table is a ValueError."""
        check_ids(input_ids, self.config.vocab_size)
        return self.embedding(input_ids)

    def rotary(self, x: Tensor, cache: Cache = None, positions: Maybe = None) -> Tables:
        """cos and sin for the new tokens x (B, T, D), which follow the cached ones.

        positions: (T,) or (B, T) in place of cached, cached + 1, ...
        """
        if positions is None:
            past = cache.length if cache else 0
            positions = torch.arange(past, past + x.shape[1])
        tables = rotary_tables(positions.to(x.device), self.config.rotary_dim, self.config.theta)
        return per_head(tables)

    def states(
        self,
        input_ids: Maybe = None,
        attention_mask: Maybe = None,
        cache: Cache = None,
        *,
        embeds: Maybe = None,
        mask: Maybe = None,
        positions: Maybe = None,
    ) -> Tensor:
        """Ids (B, T), or embeddings (B, T, D) -> the states after the final norm (B, T, D).

        attention_mask: (B, S) of 1 (token) and 0 (padding), S = cached + T. mask: (..., T, S) in
        place of the causal one. positions: (T,) or (B, T) in place of cached, cached + 1, ...
        """
        if embeds is None:
            assert input_ids is not None, "neither ids nor their embeddings"
            embeds = self.embed(input_ids)
        x, rotary = embeds, self.rotary(embeds, cache, positions)
        mask = visible(x, attention_mask, cache, mask)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, rotary, cache.layer(i) if cache else None)
        return self.norm(x)


def per_head(tables: Tables) -> Tables:
    """Tables of one row (T, d) or of each (B, T, d) -> such that they fit (B, h, T, d)."""
    cos, sin = tables
    return (cos[:, None], sin[:, None]) if cos.ndim == 3 else (cos, sin)
