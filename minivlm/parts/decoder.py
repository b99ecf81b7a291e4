"""A causal language model in the Llama manner (Touvron et al. 2023): the half of a VLM that speaks.

Data: token ids (B, T) or their embeddings (B, T, D) -> logits (B, T, V).
Pre-norm blocks of RMSNorm, rotary positions, grouped-query attention (Ainslie et al. 2023) and
SwiGLU, no biases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minivlm.parts.layers import (
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


class KVCache:
    """The keys and values of all tokens so far, one pair a layer: generation then computes one
    token a step.
    """

    def __init__(self):
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> (B, kv heads, S, d) twice
        self.next_position: Tensor | int = (
            0  # (B, 1), of a model whose positions do not count the tokens (M-RoPE)
        )

    @property
    def length(self) -> int:
        """Tokens held (S)."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values (B, kv heads, T, d) of a layer, return all of them."""
        if layer in self.layers:
            old_k, old_v = self.layers[layer]
            k, v = torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)
        self.layers[layer] = (k, v)
        return k, v


Cache = KVCache | None  # None: every token is computed anew


class GroupedQueryAttention(nn.Module):
    """Attention with rotary positions in which several query heads share one key-value head."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        if config.heads % config.kv_heads:
            raise ValueError(
                f"{config.heads} query heads do not divide into {config.kv_heads} key-value heads"
            )
        self.layer, self.heads, self.kv_heads = layer, config.heads, config.kv_heads
        d = config.head_dim or config.width // config.heads
        self.q = nn.Linear(config.width, config.heads * d, bias=config.attention_bias)
        self.k = nn.Linear(config.width, config.kv_heads * d, bias=config.attention_bias)
        self.v = nn.Linear(config.width, config.kv_heads * d, bias=config.attention_bias)
        out_bias = config.attention_bias if config.out_bias is None else config.out_bias
        self.out = nn.Linear(config.heads * d, config.width, bias=out_bias)
        self.q_norm, self.k_norm = (
            RMSNorm(d, config.eps) if config.qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(
        self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None = None
    ) -> Tensor:
        """x (B, T, D), mask (..., T, S), rotary tables (T, d) -> (B, T, D); S = cached + T."""
        q = rotate(self.q_norm(split_heads(self.q(x), self.heads)), *rotary)  # (B, h, T, d)
        k = rotate(
            self.k_norm(split_heads(self.k(x), self.kv_heads)), *rotary
        )  # (B, kv heads, T, d)
        v = split_heads(self.v(x), self.kv_heads)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (B, h, S, d)
        return self.out(merge_heads(attend(q, k, v, mask)))


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.norm1 = RMSNorm(config.width, config.eps)
        self.attention = GroupedQueryAttention(config, layer)
        self.norm2 = RMSNorm(config.width, config.eps)
        self.mlp = SwiGLU(config.width, config.hidden, config.act, bias=config.mlp_bias)

    def forward(
        self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None = None
    ) -> Tensor:
        x = x + self.attention(self.norm1(x), mask, rotary, cache)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Embedding, blocks, final norm, output layer."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.apply(init_weights)
        if config.tied:
            self.head.weight = self.embedding.weight

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D); an id outside the table is a ValueError."""
        check_ids(input_ids, self.config.vocab_size)
        return self.embedding(input_ids)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args,
        **options,
    ) -> Tensor:
        """As ``states``, -> logits (B, T, V)."""
        return self.head(self.states(input_ids, attention_mask, *args, **options))

    def states(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        embeds: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        rotary: Tables | None = None,
        before_block: Callable[[int, Tensor], Tensor] | None = None,
        add: Sequence[Tensor] = (),
    ) -> Tensor:
        """Ids (B, T), or embeddings (B, T, D) in their stead, -> the states after the final norm
        (B, T, D).

        attention_mask: (B, S) of 1 (token) and 0 (padding), S = cached + T. mask: (..., T, S) in
        place of the causal one. positions: (T,) or (B, T) in place of cached, cached + 1, ...;
        rotary: or their tables, two (B, T, d). before_block(i, x): what block i gets for x. add:
        (B, T, D) each, to what blocks 0, 1, ... return (DeepStack).
        """
        x = self.embed(input_ids) if embeds is None else embeds
        past, length = cache.length if cache else 0, x.shape[1]
        mask = causal(length, past) if mask is None else mask
        mask = mask.to(x.device)
        if attention_mask is not None:
            mask = mask & padding(attention_mask, (len(x), past + length))  # (B, 1, T, S)
        d = self.config.head_dim or self.config.width // self.config.heads
        positions = torch.arange(past, past + length) if positions is None else positions
        rotary = rotary or rotary_tables(positions.to(x.device), d, self.config.theta)
        rotary = tuple(
            t[:, None] if t.ndim == 3 else t for t in rotary
        )  # (B, 1, T, d): the same for every head
        for i, block in enumerate(self.blocks):
            x = block(before_block(i, x) if before_block else x, mask, rotary, cache)
            x = x + add[i] if i < len(add) else x
        return self.norm(x)
