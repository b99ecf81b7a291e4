"""09 · Qwen-VL (Bai et al. 2023): a resampler that knows places, three stages, answers that point.

Paper: section 2.1 (the model), 2.2 (inputs and outputs), 3 (the stages), appendix B (data). Boxes
as text are in boxes.py, the tasks in scenes/tasks.py.

Data: pixel_values (M, C, H, W) -> patch states (M, N, memory) -> resampled (M, Q, D), whatever N
is; with the ids (B, T), in which every image takes Q places, logits (B, T, V).

What is verified: resampler and image encoder against computations made of torch's own layers, after
the released visual.py; their parameter counts; the labels against the rule of the released
finetune.py. What is not: a released checkpoint (transformers has no port of Qwen-VL, so
``from_pretrained`` reads none) and the language model Qwen-7B, whose part ``Decoder`` plays;
Qwen-7B has biases on q, k and v alone, and scales attention beyond its training length.
"""

from collections.abc import Sequence
from itertools import count
from math import isqrt

import torch
from PIL import Image
from torch import Tensor, nn

from minivlm.boxes import TAGS
from minivlm.clip import VisionConfig, encoder_blocks
from minivlm.multimodal import IMAGE, Piece, Processor, Prompted, as_row
from minivlm.parts.decoder import Decoder
from minivlm.parts.layers import (
    Attention,
    attend,
    attention_weights,
    init_weights,
    merge_heads,
    split_heads,
)
from minivlm.parts.masks import causal, segments
from minivlm.vit import Patches, resize_positions, sincos_2d

EPS = 1e-6  # of every norm
BIGG = VisionConfig(
    224, patch=14, width=1664, layers=48, heads=16, hidden=8192, eps=EPS, act="gelu"
)


class ImageTower(nn.Module):
    """OpenCLIP's ViT-bigG as in Qwen-VL: no class token, a norm before the blocks, none after."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        c = self.config = config
        self.side = c.image_size // c.patch
        self.patch = Patches(c.channels, c.width, c.patch, bias=False)
        self.positions = nn.Parameter(torch.empty(self.side**2, c.width))
        self.pre_norm = nn.LayerNorm(c.width, c.eps)
        self.blocks = encoder_blocks(c)
        self.apply(init_weights)
        nn.init.normal_(self.positions, std=c.width**-0.5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Square images (B, C, S, S) of any size that the patches divide -> (B, N, D).

        The positions are resized.
        """
        c, (*_, height, width) = self.config, pixel_values.shape
        if height != width or height % c.patch:
            raise ValueError(
                f"images must be square, in whole patches of {c.patch}; "
                f"got {height} x {width} pixels"
            )
        grid = (height // c.patch,) * 2
        x = self.patch(pixel_values).flatten(2).transpose(1, 2)  # (B, N, D)
        x = self.pre_norm(x + resize_positions(self.positions[None], (self.side, self.side), grid))
        for block in self.blocks:
            x = block(x)
        return x


def position_table(kind: str, side: int, width: int) -> Tensor:
    """Sin-cos positions of side x side queries: (Q, D).

    "2d": half of the features tell the column, then half the row, as released; "1d": all tell the
    number in reading order; "none": zero. Width is divisible by 4. ValueError for another kind.
    """
    if kind == "2d":
        return sincos_2d(side, side, width).roll(width // 2, dims=1)  # the other half first
    if kind == "1d":
        return sincos_2d(1, side**2, 2 * width)[:, width:]
    if kind == "none":
        return torch.zeros(side**2, width)
    raise ValueError(f"positions are '2d', '1d' or 'none', not {kind!r}")


class Resampler(nn.Module):
    """One cross-attention from learned queries to the patches (section 2.1); no residual, no MLP.

    Positions are added to queries and keys, never to values. No ``kv_proj`` where memory == width,
    as released.
    """

    def __init__(self, memory: int, width: int, heads: int, side: int = 16, positions: str = "2d"):
        super().__init__()
        self.side, self.kind = side, positions
        self.queries = nn.Parameter(torch.empty(side**2, width))
        self.kv_proj = nn.Identity() if memory == width else nn.Linear(memory, width, bias=False)
        self.ln_q, self.ln_kv = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attention = Attention(width, heads)
        self.register_buffer("positions", position_table(positions, side, width), persistent=False)
        self.apply(init_weights)
        nn.init.normal_(self.queries, std=0.02)

    def key_positions(self, patches: int) -> Tensor:
        """The queries' table, resized to the patches, not computed anew: (N, D)."""
        n, q = isqrt(patches), self.side
        if n * n != patches:
            raise ValueError(
                f"the released resampler reads square grids; {patches} patches are none"
            )
        old, new = ((1, q * q), (1, patches)) if self.kind == "1d" else ((q, q), (n, n))
        return resize_positions(self.positions[None], old, new)[0]

    def _project(self, image: Tensor) -> list[Tensor]:
        """(B, N, memory) -> q (B, h, Q, d), k and v (B, h, N, d)."""
        x, attention = self.ln_kv(self.kv_proj(image)), self.attention
        q = attention.q(self.ln_q(self.queries) + self.positions).expand(len(x), -1, -1)
        k = attention.k(x + self.key_positions(x.shape[1]))
        return [split_heads(t, attention.heads) for t in (q, k, attention.v(x))]

    def forward(self, image: Tensor) -> Tensor:
        """Patch states (B, N, memory) of a square grid -> (B, Q, D); a query sees all patches."""
        return self.attention.out(merge_heads(attend(*self._project(image))))

    @torch.no_grad()
    def attention_maps(self, image: Tensor) -> Tensor:
        """Where each query looks: (B, N, memory) -> (B, h, Q, N), rows sum to 1."""
        q, k, _ = self._project(image)
        return attention_weights(q, k)


class QwenVL(Prompted):
    """An image encoder, the resampler with a norm and a projection after it, a language model.

    vision: (M, C, H, W) -> (M, N, memory), with a ``config`` that tells the width: ``ImageTower``.
    token: the placeholder's id. heads: of the resampler; the released one has 128 features a head.
    """

    def __init__(
        self,
        vision: nn.Module,
        decoder: Decoder,
        *,
        token: int,
        heads: int,
        side: int = 16,
        positions: str = "2d",
    ):
        super().__init__()
        width = decoder.config.width
        self.vision, self.decoder, self.image_token_id = vision, decoder, token
        self.resampler = Resampler(vision.config.width, width, heads, side, positions)
        self.norm, self.projection = nn.LayerNorm(width, EPS), nn.Linear(width, width, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    @property
    def image_tokens(self) -> int:
        """Placeholders that one image takes."""
        return self.resampler.side**2

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, Q, D)."""
        return self.projection(self.norm(self.resampler(self.vision(pixel_values))))

    def attention_maps(self, pixel_values: Tensor) -> Tensor:
        """Where each query looks: (M, C, H, W) -> (M, h, Q, N)."""
        return self.resampler.attention_maps(self.vision(pixel_values))


def packed_logits(model: Prompted, batch: dict[str, Tensor]) -> Tensor:
    """What ``Processor.pack`` returns, with its pixel_values -> logits (R, T, V).

    No example sees another, and positions count anew in each.
    """
    mask, own = segments(batch["segment_ids"]), model.mask(batch["input_ids"])
    mask = mask & (causal(mask.shape[-1]).to(mask.device) if own is None else own)
    embeds = model.embed(batch["input_ids"], batch["pixel_values"])
    return model.decoder(embeds=embeds, mask=mask, positions=batch["position_ids"])


def train_qwen_vl_stage(model: QwenVL, stage: int) -> None:
    """Of the stages (section 3): 1 freezes the language model, 2 nothing, 3 the image encoder.

    In stage 3 the norm and the projection after the resampler rest too: the released code counts
    them to the image encoder.
    """
    if stage not in (1, 2, 3):
        raise ValueError(f"Qwen-VL has stages 1, 2 and 3, not {stage!r}")
    model.requires_grad_(True)
    frozen = {1: [model.decoder], 2: [], 3: [model.vision, model.norm, model.projection]}
    for part in frozen[stage]:
        part.requires_grad_(False)


QWEN_VL_MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *TAGS,
    "<img>",
    "</img>",
    "<imgpad>",
)
QWEN_VL_NAMES = {
    "<|image_start|>": "<img>",
    "<|image|>": "<imgpad>",
    "<|image_end|>": "</img>",
    "<|pad|>": "<|endoftext|>",
}


class QwenProcessor(Processor):
    """Messages and tasks in Qwen-VL's tokens (QWEN_VL_MARKS).

    The tags of boxes are tokens, whatever text they are in.
    """

    def task(
        self,
        prompt: str,
        answer: str,
        image: Image.Image | None = None,
        *,
        number: int | None = None,
        reply: bool = False,
    ) -> dict:
        """A row of stage 2 (appendix B): image, prompt, answer, <|endoftext|>.

        Trained on are the answer and the end; ``reply`` leaves them out, for generation. ``number``
        in place of the image: see ``Processor.prepare``.
        """
        if prompt.endswith("?"):
            prompt += " Answer:"
        if not answer.startswith("<"):
            answer = f" {answer}"
        pieces = [(i, False) for i in [*self._part(IMAGE), *self._text(prompt)]]
        if not reply:
            pieces += [(i, True) for i in [*self._text(answer), self._id("<|endoftext|>")]]
        if image is None:
            return as_row(pieces) | {"image_numbers": torch.tensor([number])}
        return as_row(pieces) | {"pixel_values": self.to_pixels([image])}

    def _turn(self, message: dict) -> list[Piece]:
        """Of every turn, <|im_start|>, <|im_end|> and the newline after it are trained on too.

        So does the released finetune.py, whichever role speaks.
        """
        pieces, end = super()._turn(message), 1 + len(self._text("\n"))
        marks = {0, *range(len(pieces) - end, len(pieces))}
        return [(i, trained or place in marks) for place, (i, trained) in enumerate(pieces)]

    def _text(self, text: str) -> list[int]:
        if not self.refuse:
            return super()._text(text)
        return self.tokenizer.encode(text, allowed_special=TAGS)

    def _id(self, name: str) -> int:
        return super()._id(QWEN_VL_NAMES.get(name, name))


def number_images(messages: Sequence[dict]) -> list[dict]:
    """Number the images through a conversation, as the released demo does.

    Each is "Picture 1: ", the image, a newline.
    """
    numbers, numbered = count(1), []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            numbered.append(dict(message))
            continue
        parts = []
        for part in content:
            if part == IMAGE:
                opening = {"type": "text", "text": f"Picture {next(numbers)}: "}
                parts += [opening, part, {"type": "text", "text": "\n"}]
            else:
                parts.append(part)
        numbered.append(message | {"content": parts})
    return numbered
