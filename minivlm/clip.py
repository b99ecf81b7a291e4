"""05 · CLIP and SigLIP (Radford et al. 2021; Zhai et al. 2023): images and sentences in one space.

CLIP's paper: section 2 and figure 3. SigLIP's: section 3 and algorithm 1.

Data: pixel_values (B, C, H, W) and input_ids (B, T) -> unit vectors (B, D), and the logits of all
pairs (B, B). CLIP's image tower is a ViT with a norm before the blocks, no bias on the patch
projection, and QuickGELU.
"""

from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.parts.layers import MLP, attend, check_ids, init_weights, merge_heads, split_heads
from minivlm.parts.masks import causal, padding
from minivlm.vit import EncoderBlock, Patches

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of its pixels, by channel
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """The sizes of an image tower."""

    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    channels: int = 3
    eps: float = 1e-5
    act: str = "quick_gelu"


@dataclass(frozen=True)
class TextConfig:
    """The sizes of a text tower."""

    vocab_size: int
    length: int  # positions
    width: int
    layers: int
    heads: int
    hidden: int
    eps: float = 1e-5
    act: str = "quick_gelu"
    eos_id: int = 49407


def encoder_blocks(c: VisionConfig | TextConfig) -> nn.ModuleList:
    """The pre-norm blocks of a tower, (B, T, D) -> (B, T, D) each."""
    blocks = (
        EncoderBlock(c.width, c.heads, c.hidden, eps=c.eps, act=c.act) for _ in range(c.layers)
    )
    return nn.ModuleList(blocks)


class ClipVision(nn.Module):
    """CLIP's image tower: a ViT with a norm before the blocks."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        c = self.config = config
        self.patches = (c.image_size // c.patch) ** 2
        self.patch = Patches(c.channels, c.width, c.patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(c.width))
        self.positions = nn.Parameter(torch.empty(1 + self.patches, c.width))
        self.pre_norm = nn.LayerNorm(c.width, c.eps)
        self.blocks = encoder_blocks(c)
        self.post_norm = nn.LayerNorm(c.width, c.eps)
        self.apply(init_weights)
        nn.init.normal_(self.class_token, std=c.width**-0.5)
        nn.init.normal_(self.positions, std=0.02)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D), normalised."""
        check_size(pixel_values, self.config)
        patches = self.patch(pixel_values).flatten(2).transpose(1, 2)  # (B, N, D)
        token = self.class_token.expand(len(patches), 1, -1)
        return self.pre_norm(torch.cat([token, patches], dim=1) + self.positions)

    def hidden_states(self, pixel_values: Tensor) -> list[Tensor]:
        """What enters the first block, then what leaves each: L + 1 times (B, 1 + N, D)."""
        states = [self.embed(pixel_values)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states


class TextTower(nn.Module):
    """Token and position embeddings, pre-norm blocks, a final norm; the mask is the model's."""

    def __init__(self, config: TextConfig):
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.width)
        self.positions = nn.Parameter(torch.empty(c.length, c.width))
        self.blocks = encoder_blocks(c)
        self.norm = nn.LayerNorm(c.width, c.eps)
        self.apply(init_weights)
        nn.init.normal_(self.positions, std=0.01)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, T) ids, (B, T) of 1 and 0, mask (T, T) -> (B, T, D)."""
        check_ids(input_ids, self.config.vocab_size, self.config.length)
        if attention_mask is not None:
            seen = padding(attention_mask, input_ids.shape)
            mask = seen if mask is None else mask & seen
        x = self.embedding(input_ids) + self.positions[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


def end_of_text(input_ids: Tensor, eos_id: int) -> Tensor:
    """The position that CLIP reads in each row: (B, T) -> (B,).

    The first eos_id, since padding may repeat it; where there is none, position 0, as
    in transformers. Checkpoints whose config says 2 are older than that field: OpenAI's
    rule, the largest id, which is the end in their vocabulary.
    """
    if eos_id == 2:
        return input_ids.argmax(dim=1)
    return (input_ids == eos_id).int().argmax(dim=1)


class Clip(nn.Module):
    """Two towers, each with a projection into the shared space, and a learned scale."""

    def __init__(
        self, vision: VisionConfig, text: TextConfig, width: int, scale: float = log(1 / 0.07)
    ):
        super().__init__()
        self.vision, self.text = ClipVision(vision), TextTower(text)
        self.image_projection = nn.Linear(vision.width, width, bias=False)
        self.text_projection = nn.Linear(text.width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(scale))  # the log of what multiplies the cosine
        init_clip(self)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> unit vectors (B, D), read from the class token."""
        x = self.vision.hidden_states(pixel_values)[-1][:, 0]
        return F.normalize(self.image_projection(self.vision.post_norm(x)), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T) -> unit vectors (B, D), read from the end-of-text token: it has seen all."""
        mask = causal(input_ids.shape[-1]).to(input_ids.device)
        x = self.text(input_ids, attention_mask, mask)
        rows, at = torch.arange(len(x)), end_of_text(input_ids, self.text.config.eos_id)
        return F.normalize(self.text_projection(x[rows.to(x.device), at]), dim=-1)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """-> logits_per_image (images, texts): exp(scale) * cosine."""
        texts = self.encode_text(input_ids, attention_mask)
        return self.scale.exp() * self.encode_image(pixel_values) @ texts.T


@torch.no_grad()
def init_clip(model: Clip) -> None:
    """Standard deviations by width d and depth L, as in OpenAI's code; the paper has no numbers."""
    nn.init.normal_(model.text.embedding.weight, std=0.02)
    for tower in (model.vision, model.text):
        d, layers = tower.config.width, tower.config.layers
        for block in tower.blocks:
            for project in (block.attention.q, block.attention.k, block.attention.v):
                nn.init.normal_(project.weight, std=d**-0.5)
            for out in (block.attention.out, block.mlp.down):
                nn.init.normal_(out.weight, std=(2 * layers * d) ** -0.5)
            nn.init.normal_(block.mlp.up.weight, std=(2 * d) ** -0.5)
    d = model.vision.config.width
    nn.init.normal_(model.vision.positions, std=d**-0.5)
    nn.init.normal_(model.image_projection.weight, std=d**-0.5)
    nn.init.normal_(model.text_projection.weight, std=model.text.config.width**-0.5)


class AttentionPool(nn.Module):
    """SigLIP's head: a learned probe asks all patches, then x + mlp(norm(x)).

    Zhai et al. 2022, section 3.3.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        c, self.heads = config, config.heads
        self.probe = nn.Parameter(torch.empty(1, 1, c.width))
        self.qkv = nn.Linear(c.width, 3 * c.width)  # as published: one matrix, q for the probe
        self.out = nn.Linear(c.width, c.width)
        self.norm = nn.LayerNorm(c.width, c.eps)
        self.mlp = MLP(c.width, c.hidden, c.act)
        nn.init.normal_(self.probe, std=c.width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        sources = (self.probe.expand(len(x), -1, -1), x, x)
        parts = zip(sources, self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        q, k, v = (split_heads(F.linear(source, w, b), self.heads) for source, w, b in parts)
        y = self.out(merge_heads(attend(q, k, v)))[:, 0]
        return y + self.mlp(self.norm(y))


class SiglipVision(nn.Module):
    """A ViT with a bias on the patch projection, no class token, and an attention-pooling head."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        c = self.config = config
        self.patch = Patches(c.channels, c.width, c.patch)
        self.positions = nn.Parameter(torch.empty((c.image_size // c.patch) ** 2, c.width))
        self.blocks = encoder_blocks(c)
        self.post_norm = nn.LayerNorm(c.width, c.eps)
        self.head = AttentionPool(c)
        self.apply(init_weights)
        nn.init.normal_(self.positions, std=c.width**-0.5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D) after the final norm."""
        check_size(pixel_values, self.config)
        x = self.patch(pixel_values).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.post_norm(x)


class Siglip(nn.Module):
    """Two towers, a learned scale and a learned bias of all pairs."""

    def __init__(self, vision: VisionConfig, text: TextConfig, width: int | None = None):
        super().__init__()
        self.vision, self.text = SiglipVision(vision), TextTower(text)
        self.text_head = nn.Linear(text.width, width or text.width)
        self.text_head.apply(init_weights)
        self.scale = nn.Parameter(torch.tensor([log(10.0)]))  # t' of algorithm 1
        self.bias = nn.Parameter(torch.tensor([-10.0]))  # b: nearly every pair is a negative

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> unit vectors (B, D)."""
        return F.normalize(self.vision.head(self.vision(pixel_values)), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T) -> unit vectors (B, D), from the last position, be it padding; no mask."""
        x = self.text(input_ids, attention_mask)[:, -1]
        return F.normalize(self.text_head(x), dim=-1)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """-> logits_per_image (images, texts): exp(scale) * cosine + bias."""
        cosine = self.encode_image(pixel_values) @ self.encode_text(input_ids, attention_mask).T
        return self.scale.exp() * cosine + self.bias


def check_size(pixel_values: Tensor, c: VisionConfig) -> None:
    """ValueError unless the pixels (B, C, H, W) have the size that the positions are for."""
    got, expected = tuple(pixel_values.shape), (c.channels, c.image_size, c.image_size)
    if len(got) != 4 or got[1:] != expected:
        raise ValueError(f"pixel_values must be (B, *{expected}), got {got}")


def check_pairs(image: Tensor, text: Tensor, least: int) -> None:
    """ValueError unless the vectors are (B, D) each, B pairs and at least so many."""
    got, other = tuple(image.shape), tuple(text.shape)
    if got != other or len(got) != 2 or got[0] < least:
        raise ValueError(f"need vectors (B, D) of B pairs, {least} or more; got {got} and {other}")


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss (figure 3): unit vectors (B, D) each -> cross-entropy, both ways.

    The scale enters as its logarithm; clamp it to ln 100 after each step, as the paper
    does (section 2.5). ValueError for fewer than two pairs, which no vectors tell apart.
    """
    check_pairs(image, text, least=2)
    logits = scale.exp() * image @ text.T  # (B, B)
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss (algorithm 1): every pair alone is yes or no.

    Of unit vectors (B, D) each. It is summed over all pairs and divided by B, not by B * B.
    """
    check_pairs(image, text, least=1)
    logits = scale.exp() * image @ text.T + bias
    sign = 2 * torch.eye(len(image), device=image.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(image)
