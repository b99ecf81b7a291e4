"""06 · BLIP (Li et al. 2022): one text transformer in three modes, three losses, CapFilt.

Paper: section 3.1 (the mixture of encoder-decoder, MED), 3.2 (losses), 3.3 (CapFilt: see
toys/blip.py).

Data: pixel_values (B, C, H, W) and input_ids (B, T) -> unit vectors (B, D) for retrieval, matching
logits (B, 2), or next-token logits (B, T, V). The first token says which: [CLS], [ENC] or [DEC].
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.parts.decoder import Cache
from minivlm.parts.layers import MLP, Attention, Maybe, activation, check_ids, init_weights
from minivlm.parts.masks import bidirectional, causal, count_positions, padding
from minivlm.vit import ViT, ViTConfig

SHARING = ("all", "all but self-attention", "none")  # what the two roles share (table 3)


@dataclass(frozen=True)
class MedConfig:
    """The sizes of a ``Med``."""

    vocab_size: int
    length: int  # positions
    width: int
    layers: int
    heads: int
    hidden: int
    memory: int  # width of the image states
    eps: float = 1e-12
    act: str = "gelu"


class MedBlock(nn.Module):
    """Self-attention, cross-attention where there is an image, MLP.

    The norm comes after each sum, as in BERT.
    """

    def __init__(self, c: MedConfig):
        super().__init__()
        self.attention = Attention(c.width, c.heads)
        self.attention_norm = nn.LayerNorm(c.width, c.eps)
        self.cross = Attention(c.width, c.heads, memory_width=c.memory)
        self.cross_norm = nn.LayerNorm(c.width, c.eps)
        self.mlp = MLP(c.width, c.hidden, c.act)
        self.mlp_norm = nn.LayerNorm(c.width, c.eps)

    def forward(self, x: Tensor, mask: Tensor, image: Maybe = None) -> Tensor:
        """x (B, T, D), mask broadcastable to (B, h, T, T), image (B, N, memory) -> (B, T, D)."""
        x = self.attention_norm(x + self.attention(x, mask))
        if image is not None:
            x = self.cross_norm(x + self.cross(x, memory=image))
        return self.mlp_norm(x + self.mlp(x))


class Med(nn.Module):
    """The text transformer of one role: BERT with cross-attention in every block."""

    def __init__(self, config: MedConfig):
        super().__init__()
        c = self.config = config
        self.words = nn.Embedding(c.vocab_size, c.width)
        self.positions = nn.Embedding(c.length, c.width)
        self.norm = nn.LayerNorm(c.width, c.eps)
        self.blocks = nn.ModuleList(MedBlock(c) for _ in range(c.layers))
        self.apply(init_weights)

    def embed(self, input_ids: Tensor, seen: Maybe = None) -> Tensor:
        """(B, T) ids -> (B, T, D), normalised; positions count the ones of ``seen``, or all."""
        check_ids(input_ids, self.config.vocab_size, self.config.length)
        places = count_positions(torch.ones_like(input_ids) if seen is None else seen)
        return self.norm(self.words(input_ids) + self.positions(places))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Maybe,
        mask: Tensor,
        image: Maybe = None,
        *,
        counted: bool = False,
    ) -> Tensor:
        """Ids, attention_mask (B, T), mask (T, T), image states (B, N, memory) -> (B, T, D).

        Positions are columns, padding or not; ``counted``: those of the real tokens alone.
        """
        mask = mask.to(input_ids.device)
        if attention_mask is not None:
            mask = mask & padding(attention_mask, input_ids.shape)
        x = self.embed(input_ids, attention_mask if counted else None)
        if image is not None and len(image) != len(x):
            raise ValueError(f"{len(image)} images for {len(x)} texts")
        for block in self.blocks:
            x = block(x, mask, image)
        return x

    def share(self, other: "Med", what: str = "all but self-attention") -> None:
        """Use the weights of ``other``: one of SHARING (the paper's: all but self-attention)."""
        if what not in SHARING:
            raise ValueError(f"sharing must be one of {SHARING}, got {what!r}")
        if what == "none":
            return
        self.words, self.positions, self.norm = other.words, other.positions, other.norm
        for mine, theirs in zip(self.blocks, other.blocks, strict=True):
            mine.cross, mine.cross_norm = theirs.cross, theirs.cross_norm
            mine.mlp, mine.mlp_norm = theirs.mlp, theirs.mlp_norm
            if what == "all":
                mine.attention, mine.attention_norm = theirs.attention, theirs.attention_norm


class Words(nn.Module):
    """BERT's language-model head: Linear, activation, norm, then the word embeddings and a bias."""

    def __init__(self, c: MedConfig, words: nn.Embedding):
        super().__init__()
        self.dense, self.norm = nn.Linear(c.width, c.width), nn.LayerNorm(c.width, c.eps)
        self.act = activation(c.act)
        self.out = nn.Linear(c.width, c.vocab_size)
        self.apply(init_weights)
        self.out.weight, self.bias = words.weight, self.out.bias  # published under two names

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        return self.out(self.norm(self.act(self.dense(x))))


class Blip(nn.Module):
    """A ViT and one or both roles of MED: encoder (retrieval, matching) and decoder (captions)."""

    def __init__(
        self,
        vision: ViTConfig,
        text: MedConfig,
        width: int,
        *,
        roles: tuple[str, ...] = ("encoder", "decoder"),
        sharing: str = "all but self-attention",
    ):
        super().__init__()
        self.vision = ViT(vision)
        self.encoder = self.decoder = None
        if "encoder" in roles:
            self.encoder = Med(text)
            self.image_projection = nn.Linear(vision.width, width)
            self.text_projection = nn.Linear(text.width, width)
            self.match_head = nn.Linear(text.width, 2)  # 1 = they match
            for head in (self.image_projection, self.text_projection, self.match_head):
                head.apply(init_weights)
        if "decoder" in roles:
            self.decoder = Med(text)
            if self.encoder:
                self.decoder.share(self.encoder, sharing)
            self.head = Words(text, self.decoder.words)

    def _role(self, name: str) -> Med:
        role = getattr(self, name)
        if role is None:
            kind = "image-text retrieval" if self.encoder else "captioning"
            raise ValueError(f"this BLIP is one for {kind}: it has no text {name}")
        return role

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> unit vectors (B, D), read from the class token."""
        self._role("encoder")
        return F.normalize(self.image_projection(self.vision(pixel_values)[:, 0]), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T) -> unit vectors (B, D), read from the first token ([CLS]), without the image."""
        x = self._role("encoder")(input_ids, attention_mask, bidirectional(input_ids.shape[-1]))
        return F.normalize(self.text_projection(x[:, 0]), dim=-1)

    def match_states(
        self, image: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Image states (B, N, D), texts (B, T) from [ENC] on -> logits (B, 2): no match, match."""
        mask = bidirectional(input_ids.shape[-1])
        x = self._role("encoder")(input_ids, attention_mask, mask, image)
        return self.match_head(x[:, 0])

    def match(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W), (B, T) -> logits (B, 2): no match, match; the caller sets [ENC] first."""
        return self.match_states(self.vision(pixel_values), input_ids, attention_mask)

    def forward(
        self, input_ids: Tensor, image: Tensor, attention_mask: Maybe = None, cache: Cache = None
    ) -> Tensor:
        """Texts (B, T) from [DEC] on, image states (B, N, D) -> next-token logits (B, T, V)."""
        if cache is not None:
            raise ValueError("BLIP decodes without a cache here: generate(..., use_cache=False)")
        decoder, mask = self._role("decoder"), causal(input_ids.shape[-1])
        states = decoder(input_ids, attention_mask, mask, image, counted=True)
        return self.head(states)

    def caption_logits(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W) and (B, T) -> next-token logits (B, T, V).

        As published, padding on the left moves the positions; ``forward`` counts real tokens.
        """
        decoder, mask = self._role("decoder"), causal(input_ids.shape[-1])
        return self.head(decoder(input_ids, attention_mask, mask, self.vision(pixel_values)))


@dataclass(frozen=True)
class Marks:
    """The ids that BLIP puts first in a text ([CLS], [ENC] or [DEC]), and the padding."""

    cls: int
    enc: int
    dec: int
    pad: int


LOSSES = ("itc", "itm", "lm")


class Pretraining(nn.Module):
    """The three losses of one batch (section 3.2); their plain sum is minimised.

    A copy of the two towers follows the weights slowly, as a moving average. Its features fill two
    queues, and its opinion softens the contrastive targets, because a caption may well describe
    another image too.
    """

    images: Tensor  # the two queues, (queue, D) each
    texts: Tensor

    def __init__(
        self,
        model: Blip,
        marks: Marks,
        *,
        queue: int = 57_600,
        momentum: float = 0.995,
        soften: float = 0.4,  # alpha, reached after ``ramp`` steps
        ramp: int = 1,
        smoothing: float = 0.1,  # of the labels of the language model
    ):
        super().__init__()
        self.model, self.marks, self.step = model, marks, 0
        self.momentum, self.soften, self.ramp = momentum, soften, ramp
        self.smoothing = smoothing
        self.temperature = nn.Parameter(torch.tensor(0.07))  # logits are divided by it
        self.slow = deepcopy(self.towers()).requires_grad_(False)
        width = model.image_projection.out_features
        self.register_buffer("images", F.normalize(torch.randn(queue, width), dim=-1))
        self.register_buffer("texts", F.normalize(torch.randn(queue, width), dim=-1))

    def towers(self) -> nn.ModuleList:
        """What a slow copy is kept of."""
        m = self.model
        encoder = m._role("encoder")
        return nn.ModuleList([m.vision, m.image_projection, encoder, m.text_projection])

    @torch.no_grad()
    def follow(self) -> None:
        """Move the copy a small step towards the model: slow <- m slow + (1 - m) model.

        The temperature stays between 0.001 and 0.5.
        """
        self.temperature.clamp_(0.001, 0.5)
        fast = self.towers()
        for ours, theirs in zip(self.slow.parameters(), fast.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.momentum)

    @torch.no_grad()
    def slow_features(
        self, pixel_values: Tensor, ids: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, D) of images and texts by the slow copy."""
        vision, image_projection, encoder, text_projection = self.slow
        text = encoder(ids, seen, bidirectional(ids.shape[1]))[:, 0]
        image = vision(pixel_values)[:, 0]
        vectors = image_projection(image), text_projection(text)
        return F.normalize(vectors[0], dim=-1), F.normalize(vectors[1], dim=-1)

    def contrast(
        self, states: Tensor, pixel_values: Tensor, ids: Tensor, seen: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """ITC -> loss, and two (B, B): how alike images are to the texts, and texts to the images.

        Each image is compared with the slow texts of the batch and of the queue, each text with the
        slow images.
        """
        self.follow()
        m = self.model
        pair = F.normalize(m.image_projection(states[:, 0]), dim=-1), m.encode_text(ids, seen)
        slow = self.slow_features(pixel_values, ids, seen)
        alpha = self.soften * min(1.0, self.step / self.ramp)
        losses, similarities = [], []
        for own, own_slow, other_slow, queue in zip(
            pair, slow, slow[::-1], (self.texts, self.images), strict=True
        ):
            others = torch.cat([other_slow, queue]).T
            logits = own @ others / self.temperature
            with torch.no_grad():
                target = alpha * (own_slow @ others / self.temperature).softmax(dim=1)
                target[:, : len(own)] += (1 - alpha) * torch.eye(len(own), device=own.device)
            losses.append(F.cross_entropy(logits, target))
            similarities.append(logits[:, : len(own)])
        self.images = torch.cat([slow[0], self.images])[: len(self.images)]
        self.texts = torch.cat([slow[1], self.texts])[: len(self.texts)]
        self.step += 1
        return (losses[0] + losses[1]) / 2, similarities

    def matching(
        self, states: Tensor, ids: Tensor, seen: Tensor, similarities: list[Tensor]
    ) -> Tensor:
        """ITM, with [ENC] as the first token."""
        texts = first(ids, self.marks.enc)
        return matching_loss(self.model.match_states, states, texts, seen, similarities)

    def captioning(self, states: Tensor, ids: Tensor, seen: Tensor) -> Tensor:
        """LM: every token of the caption from those before it and the image."""
        logits = self.model(first(ids, self.marks.dec), states, seen)
        return caption_loss(logits, ids, seen, self.smoothing)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        losses: Sequence[str] = LOSSES,
        *,
        random_negatives: bool = False,
    ) -> dict[str, Tensor]:
        """Images (B, C, H, W), right-padded texts (B, T) from [CLS] on -> losses by name."""
        if not losses or (unknown := {*losses} - {*LOSSES}):
            name = repr(min(unknown)) if losses else losses
            raise ValueError(f"unknown loss {name}; known: {LOSSES}")
        if len(pixel_values) != len(input_ids):
            raise ValueError(f"{len(pixel_values)} images for {len(input_ids)} texts")
        seen = (input_ids != self.marks.pad).long()
        states, values = self.model.vision(pixel_values), {}
        batch = pixel_values, input_ids, seen
        similarities = [states.new_zeros(len(states), len(states))] * 2  # all alike
        if "itc" in losses:
            values["itc"], similar = self.contrast(states, *batch)
            similarities = similarities if random_negatives else similar
        if "itm" in losses:
            values["itm"] = self.matching(states, input_ids, seen, similarities)
        if "lm" in losses:
            values["lm"] = self.captioning(states, input_ids, seen)
        return values


def matching_loss(
    match: Callable[..., Tensor],
    states: Tensor,
    ids: Tensor,
    seen: Tensor,
    similarities: list[Tensor],
) -> Tensor:
    """ITM: every true pair, every image with a wrong text, every text with a wrong image.

    match: image states (P, N, D), texts (P, T) and their attention mask -> logits (P, 2).
    similarities: of images to texts and of texts to images, (B, B) each; they say which pair is
    hard to tell from a true one.
    """
    wrong_text, wrong_image = (draw_negatives(s) for s in similarities)
    logits = match(
        torch.cat([states, states, states[wrong_image]]),
        torch.cat([ids, ids[wrong_text], ids]),
        torch.cat([seen, seen[wrong_text], seen]),
    )
    target = (torch.arange(len(logits), device=logits.device) < len(ids)).long()
    return F.cross_entropy(logits, target)


def caption_loss(logits: Tensor, ids: Tensor, seen: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of all tokens but the first and padding: logits (B, T, V), ids, seen (B, T)."""
    target = ids[:, 1:].masked_fill(seen[:, 1:] == 0, -100).flatten()
    if (target == -100).all():
        raise ValueError("nothing to learn: no text has a token after its first")
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), target, label_smoothing=smoothing)


def first(ids: Tensor, mark: int) -> Tensor:
    """Texts (B, T) with the first id replaced: it says in which mode they are read."""
    return torch.cat([torch.full_like(ids[:, :1], mark), ids[:, 1:]], dim=1)


@torch.no_grad()
def draw_negatives(similarities: Tensor) -> Tensor:
    """For each row of (B, B) another column, the likelier the more similar it is: (B,).

    Where all are alike, it is a random one.
    """
    if len(similarities) < 2:
        raise ValueError(f"a wrong pair needs another: {len(similarities)} in the batch")
    weights = similarities.softmax(dim=1) + 1e-4
    return torch.multinomial(weights.fill_diagonal_(0), 1)[:, 0]
