"""OPT (Zhang et al. 2022): the language model that BLIP-2 was published with.

Data: token ids (B, T) or their embeddings (B, T, D) -> logits (B, T, V), called as
``decoder.Decoder`` is. Older than Llama's recipe: learned positions, LayerNorm before ReLU MLPs,
biases, the output layer tied.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from minivlm.clip import TextConfig, TextTower
from minivlm.parts.decoder import Cache
from minivlm.parts.layers import Extend, Maybe, check_ids, init_weights
from minivlm.parts.masks import causal, padding
from minivlm.vit import EncoderBlock

OFFSET = 2  # the first rows of the position table are no positions; padding takes row 1


class OptBlock(EncoderBlock):
    """ViT's pre-norm block, whose attention may look back into a cache."""

    def forward(self, x: Tensor, mask: Tensor, extend: Extend | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask, extend=extend)
        return x + self.mlp(self.norm2(x))


class Opt(TextTower):
    """CLIP's kind of text tower with a causal mask, a cache, and its embeddings as the output
    layer.
    """

    def __init__(self, config: TextConfig):
        super().__init__(replace(config, layers=0, length=config.length + OFFSET))
        c = self.config = config
        blocks = (
            OptBlock(c.width, c.heads, c.hidden, eps=c.eps, act=c.act) for _ in range(c.layers)
        )
        self.blocks = nn.ModuleList(blocks).apply(init_weights)
        self.head = nn.Linear(c.width, c.vocab_size, bias=False)
        self.head.weight = self.embedding.weight

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D), without positions; an id outside the table is a ValueError."""
        check_ids(input_ids, self.config.vocab_size)
        return self.embedding(input_ids)

    def forward(
        self,
        input_ids: Maybe = None,
        attention_mask: Maybe = None,
        cache: Cache = None,
        *,
        embeds: Maybe = None,
    ) -> Tensor:
        """Ids (B, T), or embeddings (B, T, D) in their stead, -> logits (B, T, V).

        attention_mask: (B, S) of 1 (token) and 0 (padding), S = cached + T; positions count its
        ones.
        """
        x = self.embed(input_ids) if embeds is None else embeds
        past = cache.length if cache else 0
        expected = (len(x), past + x.shape[1])
        seen = (
            x.new_ones(expected, dtype=torch.long)
            if attention_mask is None
            else attention_mask.long()
        )
        mask = causal(x.shape[1], past).to(x.device) & padding(seen, expected)  # (B, 1, T, S)
        if (tokens := seen.sum(dim=1).max()) > self.config.length:
            raise ValueError(f"{tokens.item()} tokens, but {self.config.length} positions")
        x = x + self.positions[(seen.cumsum(dim=1) * seen - 1 + OFFSET)[:, past:]]
        for i, block in enumerate(self.blocks):
            x = block(x, mask, partial(cache.extend, i) if cache else None)
        return self.head(self.norm(x))
