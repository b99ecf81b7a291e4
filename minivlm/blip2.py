"""07 · BLIP-2 (Li et al. 2023): learned queries between frozen models.

Paper: section 3.1 (the Q-Former), 3.2 (stage 1), 3.3 (stage 2); Dai et al. 2023 (InstructBLIP),
section 2.2, for queries that see an instruction.

Data: pixel_values (B, C, H, W) -> image states (B, N, M) -> query states (B, Q, D), whatever N is.
With texts (B, T): similarities (B, B), matching logits (B, 2), next-token logits (B, T, V). The
mask says who sees whom, Q + T tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.blip import MedConfig, Words, caption_loss, first, matching_loss
from minivlm.clip import ClipVision
from minivlm.multimodal import IGNORE, Prompted, answer_loss
from minivlm.parts.decoder import Cache, KVCache
from minivlm.parts.layers import MLP, Attention, LayerCache, Maybe, check_ids, init_weights
from minivlm.parts.masks import bidirectional, causal, count_positions, multimodal_causal, padding
from minivlm.vit import ViT, ViTConfig


@dataclass(frozen=True)
class QFormerConfig(MedConfig):
    """The sizes of a ``QFormer``."""

    queries: int = 32
    every: int = 2  # cross-attention in the layers 0, every, 2 every, ...


class QFormerBlock(nn.Module):
    """Self-attention over queries and text, then the queries ask the image; an MLP for each.

    Post-norm, as in BERT.
    """

    def __init__(self, c: QFormerConfig, layer: int):
        super().__init__()
        self.queries, crossed = c.queries, layer % c.every == 0
        norm = partial(nn.LayerNorm, c.width, c.eps)
        self.attention, self.attention_norm = Attention(c.width, c.heads), norm()
        self.cross = Attention(c.width, c.heads, memory_width=c.memory) if crossed else None
        self.cross_norm = norm() if crossed else nn.Identity()
        self.mlp, self.mlp_norm = MLP(c.width, c.hidden, c.act), norm()  # of the text
        self.query_mlp, self.query_norm = MLP(c.width, c.hidden, c.act), norm()

    def forward(
        self, x: Tensor, mask: Tensor, image: Maybe = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Text (B, T, D) or, with an image (B, N, memory), queries and text (B, Q + T, D)."""
        x = self.attention_norm(x + self.attention(x, mask, cache=cache))
        if image is None:
            return self.mlp_norm(x + self.mlp(x))
        queries, text = x.tensor_split([self.queries], dim=1)
        if self.cross is not None:
            queries = self.cross_norm(queries + self.cross(queries, memory=image))
        queries = self.query_norm(queries + self.query_mlp(queries))
        if not text.shape[1]:  # and perhaps no MLP for it
            return queries
        return torch.cat([queries, self.mlp_norm(text + self.mlp(text))], dim=1)


class QFormer(nn.Module):
    """A BERT in which learned queries, without positions, come before the text."""

    def __init__(self, config: QFormerConfig):
        super().__init__()
        c = self.config = config
        self.words = nn.Embedding(c.vocab_size, c.width)
        self.positions = nn.Embedding(c.length, c.width)
        self.norm = nn.LayerNorm(c.width, c.eps)
        self.apply(init_weights)
        self.queries = nn.Parameter(torch.empty(1, c.queries, c.width))
        nn.init.normal_(self.queries, std=0.02)
        blocks = (QFormerBlock(c, layer) for layer in range(c.layers))
        self.blocks = nn.ModuleList(blocks).apply(init_weights)

    def drop_text(self, mlps: bool = True) -> None:
        """Leave the text parts out, as for stage 2: the embeddings and, with ``mlps``, the MLPs."""
        for part in ("words", "positions"):
            self.register_module(part, None)
        for block in self.blocks if mlps else ():
            block.register_module("mlp", None)
            block.register_module("mlp_norm", None)

    def embed(self, input_ids: Tensor, past: int = 0, seen: Maybe = None) -> Tensor:
        """(B, T) ids that follow ``past`` others -> (B, T, D), normalised.

        seen: the attention mask (B, past + T) of a text to go on with: positions count its ones,
        and not, as where a text is read, every column.
        """
        if self.words is None:
            raise ValueError("this Q-Former reads no text: it has no embeddings for it")
        check_ids(input_ids, self.config.vocab_size, self.config.length - past)
        positions = self.positions.weight[past : past + input_ids.shape[1]]
        if seen is not None:
            positions = self.positions(count_positions(seen)[:, past:])
        return self.norm(self.words(input_ids) + positions)

    def run(self, x: Tensor, mask: Tensor, image: Maybe = None, cache: Cache = None) -> Tensor:
        """The blocks alone: (B, Q + T, D), or (B, T, D) without an image, -> the same."""
        mask = mask.to(x.device)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, image, cache.layer(i) if cache else None)
        return x

    def hide_padding(self, mask: Tensor, seen: Maybe, rows: int) -> Tensor:
        """Mask (..., Q + T) without the padding of the texts; seen: (B, T) or None, rows: B."""
        if seen is None:
            return mask
        queries = self.config.queries
        text = padding(seen, (rows, mask.shape[-1] - queries))  # (B, 1, 1, T)
        return mask.to(seen.device) & F.pad(text, (queries, 0), value=True)

    def states(
        self,
        image: Tensor,
        ids: Maybe = None,
        seen: Maybe = None,
        mask: Maybe = None,
        cache: Cache = None,
    ) -> Tensor:
        """Image states (B, N, memory), texts (B, T) or None -> (B, Q + T, D).

        mask: (Q + T, Q + T), None = all see all. seen: the attention mask (B, T) of the texts.
        cache: keeps the keys and values. ValueError for image states of another width, and for
        another number of texts or of mask entries.
        """
        c = self.config
        if image.ndim != 3 or image.shape[2] != c.memory:
            raise ValueError(f"image states must be (B, N, {c.memory}), got {tuple(image.shape)}")
        x = self.norm(self.queries).expand(len(image), -1, -1)
        if ids is not None:
            if len(ids) != len(image):
                raise ValueError(f"{len(image)} images for {len(ids)} texts")
            x = torch.cat([x, self.embed(ids, seen=None if mask is None else seen)], dim=1)
        mask = bidirectional(x.shape[1]) if mask is None else mask
        return self.run(x, self.hide_padding(mask, seen, len(x)), image, cache)

    @torch.no_grad()
    def attention_maps(self, image: Tensor) -> Tensor:
        """Which image states (B, N, memory) each query reads: (blocks, B, h, Q, N).

        Only the blocks with cross-attention count.
        """
        x, maps = self.norm(self.queries).expand(len(image), -1, -1), []
        mask = bidirectional(x.shape[1]).to(x.device)
        for block in self.blocks:
            if block.cross is not None:
                asking = block.attention_norm(x + block.attention(x, mask))
                maps.append(block.cross.weights(asking, memory=image))
            x = block(x, mask, image)
        return torch.stack(maps)

    def forward(
        self, image: Tensor, input_ids: Maybe = None, attention_mask: Maybe = None
    ) -> Tensor:
        """Image states (B, N, memory) -> query states (B, Q, D).

        With texts (B, T) the queries see them: so BLIP-2 matches, and so InstructBLIP reads its
        instruction.
        """
        return self.states(image, input_ids, attention_mask)[:, : self.config.queries]

    def read(self, input_ids: Tensor, attention_mask: Maybe = None) -> Tensor:
        """Texts (B, T) alone -> (B, T, D)."""
        mask = bidirectional(input_ids.shape[-1]).to(input_ids.device)
        if attention_mask is not None:
            mask = mask & padding(attention_mask, input_ids.shape)
        return self.run(self.embed(input_ids), mask)

    def speak(self, input_ids: Tensor, attention_mask: Maybe, image: Maybe, cache: Cache) -> Tensor:
        """Texts (B, T) that see the queries and themselves causally -> (B, T, D).

        The queries never see the text. So a cache holds their keys and values after one pass over
        the image, and then those of the text so far: ids are the new ones alone, attention_mask is
        of the whole text.
        """
        queries, length = self.config.queries, input_ids.shape[-1]
        if cache is None or not cache.length:
            assert image is not None, "no image, and no cache of what the queries read in one"
            if cache is None:
                mask = multimodal_causal(queries, length)
                return self.states(image, input_ids, attention_mask, mask)[:, queries:]
            self.states(image, cache=cache)
        x = self.embed(input_ids, cache.length - queries, attention_mask)
        mask = self.hide_padding(causal(length, cache.length), attention_mask, len(x))
        return self.run(x, mask, cache=cache)


class ClipFeatures(nn.Module):
    """The paper's other image encoder (section 3.4): CLIP without its last block, then a norm."""

    def __init__(self, tower: ClipVision):
        super().__init__()
        self.tower, self.norm = tower, nn.LayerNorm(tower.config.width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D)."""
        return self.norm(self.tower.hidden_states(pixel_values)[-2])


PARTS = {
    "match_head": "heads for retrieval",
    "head": "language-model head",
    "decoder": "language model",
}


class Blip2(Prompted):
    """An image encoder and a Q-Former, with the heads of stage 1 or a language model (stage 2).

    vision: a ViTConfig, or an encoder with a last ``norm``. width: of the space that images and
    texts share. decoder: an Opt, or a Decoder. token: the id that holds the place of a query in its
    prompts, in its table or not.
    """

    def __init__(
        self,
        vision: ViTConfig | nn.Module,
        c: QFormerConfig,
        width: int = 0,
        decoder: nn.Module | None = None,
        token: int = -1,
    ):
        super().__init__()
        self.vision = ViT(vision) if isinstance(vision, ViTConfig) else vision
        self.qformer, self.image_token_id = QFormer(c), token
        self.match_head = self.head = self.decoder = None
        linear = lambda width, out: nn.Linear(width, out).apply(init_weights)
        if width:
            self.image_projection, self.text_projection = (linear(c.width, width) for _ in range(2))
            self.match_head = linear(c.width, 2)  # 1 = they match
            self.head = Words(c, self.qformer.words)
        if decoder is not None:
            self.projection, self.decoder = linear(c.width, decoder.config.width), decoder

    def _need(self, part: str) -> nn.Module:
        if getattr(self, part) is None:
            raise ValueError(f"this BLIP-2 has no {PARTS[part]}")
        return getattr(self, part)

    def _text(self, input_ids: Tensor, attention_mask: Maybe) -> tuple[Tensor, Maybe]:
        """Texts without the placeholders that transformers' processor writes before them."""
        queries = self.qformer.config.queries
        places = input_ids[..., :queries] == self.image_token_id
        if input_ids.ndim != 2 or input_ids.shape[1] <= queries or not places.all():
            return input_ids, attention_mask
        if attention_mask is not None:
            attention_mask = attention_mask[:, queries:]
        return input_ids[:, queries:], attention_mask

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> unit vectors (B, Q, width), one for each query."""
        self._need("match_head")
        return F.normalize(self.image_projection(self.qformer(self.vision(pixel_values))), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Maybe = None) -> Tensor:
        """(B, T) -> unit vectors (B, width), read from the first token ([CLS])."""
        self._need("match_head")
        x = self.qformer.read(*self._text(input_ids, attention_mask))
        return F.normalize(self.text_projection(x[:, 0]), dim=-1)

    def similarity(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Maybe = None
    ) -> Tensor:
        """-> (images, texts): the cosine of the text and the query that is closest to it."""
        texts = self.encode_text(input_ids, attention_mask)
        return max_over_queries(self.encode_image(pixel_values), texts)

    def match_states(
        self, image: Tensor, input_ids: Tensor, attention_mask: Maybe = None
    ) -> Tensor:
        """Image states (B, N, M), texts (B, T) -> logits (B, 2): no match, match.

        The mean over the queries.
        """
        head = self._need("match_head")
        return head(self.qformer(image, *self._text(input_ids, attention_mask))).mean(dim=1)

    def match(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Maybe = None
    ) -> Tensor:
        """(B, C, H, W) and (B, T) -> logits (B, 2); the text begins with [CLS]."""
        return self.match_states(self.vision(pixel_values), input_ids, attention_mask)

    def itg(
        self,
        input_ids: Tensor,
        image: Maybe = None,
        attention_mask: Maybe = None,
        cache: Cache = None,
    ) -> Tensor:
        """Texts (B, T) from [DEC] on, image states (B, N, M) -> next-token logits (B, T, V).

        With a cache as in ``QFormer.speak``; ``generate(model.itg, ids, n, image=states)`` says a
        caption.
        """
        return self._need("head")(self.qformer.speak(input_ids, attention_mask, image, cache))

    def encode_images(
        self, pixel_values: Tensor, instruction: Maybe = None, instruction_mask: Maybe = None
    ) -> Tensor:
        """(M, C, H, W) -> the soft prompt (M, Q, D) in the language model's width.

        instruction: ids (M, T) for a Q-Former that sees them (InstructBLIP), and their attention
        mask (M, T).
        """
        self._need("decoder")
        image = self.vision(pixel_values)
        return self.projection(self.qformer(image, instruction, instruction_mask))

    def states(self, input_ids: Tensor, *args: Any, **inputs: Any) -> Tensor:
        """As ``Prompted.states``: ids (B, T), pixel_values (M, C, H, W), ... -> (B, T, D).

        instruction, instruction_mask: as in ``encode_images``; the ids are then the language
        model's own prompt.
        """
        self._need("decoder")
        return super().states(input_ids, *args, **inputs)


def max_over_queries(image: Tensor, text: Tensor) -> Tensor:
    """Unit vectors of queries (B, Q, D), texts (B', D) -> (B, B'): the queries' largest cosine."""
    return (image @ text.T).amax(dim=1)


def freeze(model: Blip2) -> None:
    """Train all but the language model and the image encoder, whose last norm trains too."""
    model.vision.requires_grad_(False)
    model.vision.norm.requires_grad_(True)
    if model.decoder is not None:
        model.decoder.requires_grad_(False)


def second_stage(model: Blip2) -> None:
    """From stage 1 to 2 (section 3.3): drop the heads and the Q-Former's text parts, ``freeze``."""
    model.qformer.drop_text()
    model.match_head = model.head = None
    for part in ("image_projection", "text_projection"):
        model.register_module(part, None)
    freeze(model)


class FirstStage(nn.Module):
    """Stage 1 (section 3.2): BLIP's three losses of one batch; no slow copy, no queue."""

    def __init__(self, model: Blip2, *, dec: int, pad: int, smoothing: float = 0.1):
        super().__init__()
        self.model, self.dec, self.pad, self.smoothing = model, dec, pad, smoothing
        self.temperature = nn.Parameter(torch.tensor(0.07))  # logits are divided by it
        freeze(model)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W), right-padded texts (B, T) from [CLS] on -> "itc", "itm", "itg"."""
        model, cache = self.model, KVCache()
        seen = (input_ids != self.pad).long()
        states = model.vision(pixel_values)
        queries = model.qformer.states(states, cache=cache)  # ITG uses their keys and values again
        image = F.normalize(model.image_projection(queries), dim=-1)
        similarity = max_over_queries(image, model.encode_text(input_ids, seen)) / self.temperature
        both, pairs = [similarity, similarity.T], torch.arange(len(states), device=states.device)
        cross_entropy = partial(F.cross_entropy, target=pairs, label_smoothing=self.smoothing)
        itc = (cross_entropy(both[0]) + cross_entropy(both[1])) / 2
        itm = matching_loss(model.match_states, states, input_ids, seen, both)
        logits = model.itg(first(input_ids, self.dec), attention_mask=seen, cache=cache)
        itg = caption_loss(logits, input_ids, seen, self.smoothing)
        return {"itc": itc, "itm": itm, "itg": itg}


def prompt_loss(
    model: Blip2,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Maybe = None,
    **instruction: Tensor,
) -> Tensor:
    """Stage 2 (section 3.3): images (B, C, H, W), texts (B, T) -> the loss of the text alone.

    The queries, projected, are a soft prompt before the text; ``freeze`` the model first.
    instruction: see ``Blip2.encode_images``.
    """
    queries, token = model.qformer.config.queries, model.image_token_id
    seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    labels = F.pad(input_ids.masked_fill(seen == 0, IGNORE), (queries, 0), value=IGNORE)
    ids, seen = F.pad(input_ids, (queries, 0), value=token), F.pad(seen, (queries, 0), value=1)
    return answer_loss(model(ids, pixel_values, seen, **instruction), labels)
