"""07 · OPT (Zhang et al. 2022): the language model that BLIP-2 was published with.

Data: token ids (B, T) or their embeddings (B, T, D) -> logits (B, T, V), called as ``Decoder`` is.
Older than Llama's recipe: learned positions, LayerNorm before ReLU MLPs, biases, a tied output
layer.
"""

import torch
from torch import Tensor, nn

from minivlm.clip import TextConfig, encoder_blocks
from minivlm.parts.decoder import Cache, NextToken, visible
from minivlm.parts.layers import Maybe, check_ids, init_weights

OFFSET = 2  # the first rows of the position table are no positions; padding takes row 1


class Opt(NextToken):
    """Embedding and learned positions, pre-norm blocks, causal mask, tied output layer."""

    def __init__(self, config: TextConfig):
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.width)
        self.positions = nn.Parameter(torch.empty(c.length + OFFSET, c.width))
        self.norm = nn.LayerNorm(c.width, c.eps)
        self.apply(init_weights)
        nn.init.normal_(self.positions, std=0.01)
        self.blocks = encoder_blocks(c).apply(init_weights)
        self.head = nn.Linear(c.width, c.vocab_size, bias=False)
        self.head.weight = self.embedding.weight

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D), without positions; an id outside the table is a ValueError."""
        check_ids(input_ids, self.config.vocab_size)
        return self.embedding(input_ids)

    def place(self, x: Tensor, attention_mask: Maybe, cache: Cache) -> Tensor:
        """The positions of new tokens, (B, T, D) as x; they count the ones of the mask (B, S)."""
        past = cache.length if cache else 0
        if attention_mask is None:
            attention_mask = x.new_ones((len(x), past + x.shape[1]), dtype=torch.long)
        seen = attention_mask.long()
        if (tokens := seen.sum(dim=1).max()) > self.config.length:
            raise ValueError(f"{tokens.item()} tokens, but {self.config.length} positions")
        return self.positions[(seen.cumsum(dim=1) * seen - 1 + OFFSET)[:, past:]]

    def states(
        self,
        input_ids: Maybe = None,
        attention_mask: Maybe = None,
        cache: Cache = None,
        *,
        embeds: Maybe = None,
        mask: Maybe = None,
    ) -> Tensor:
        """As ``Decoder.states``: ids (B, T), or embeddings (B, T, D) -> (B, T, D)."""
        if embeds is None:
            assert input_ids is not None, "neither ids nor their embeddings"
            embeds = self.embed(input_ids)
        mask = visible(embeds, attention_mask, cache, mask)
        x = embeds + self.place(embeds, attention_mask, cache)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, cache.layer(i) if cache else None)
        return self.norm(x)
