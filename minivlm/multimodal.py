"""04 · One sequence of text and image, as codes or as vectors, and three ways to fuse them.

Papers: Ramesh et al. 2021 (DALL-E) and Chameleon Team 2024, discrete codes after the text's ids;
Liu et al. 2023 (LLaVA), section 4.1, vectors at placeholders; Alayrac et al. 2022 (Flamingo),
section 2.2, gated cross-attention.

Data: messages (dicts of role and content, in ChatML) and PIL images -> input_ids, labels and
attention_mask (B, T), pixel_values (M, C, H, W), M images in the order of their placeholders.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minivlm.bpe import BPETokenizer
from minivlm.parts.decoder import Cache, Decoder, DecoderConfig, KVCache, NextToken, visible
from minivlm.parts.generation import check_prompts
from minivlm.parts.layers import MLP, Attention, Maybe, init_weights
from minivlm.vit import ViT, ViTConfig

CONTROL = ("<|im_start|>", "<|im_end|>", "<|image_start|>", "<|image|>", "<|image_end|>", "<|pad|>")
ROLES = ("system", "user", "assistant")
IMAGE = {"type": "image"}  # as a part of a message
IGNORE = -100  # the label of a token that is not trained on: what F.cross_entropy leaves out
Piece = tuple[int, bool]  # an id, and whether it is trained on


def count_images(messages: Sequence[dict]) -> int:
    """How many images the messages have places for; one told in words has none."""
    contents = [message["content"] for message in messages]
    parts = [part for content in contents if not isinstance(content, str) for part in content]
    return sum(part["type"] == "image" and "text" not in part for part in parts)


def as_row(pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """Tokens -> input_ids, labels and attention_mask, (1, T) each."""
    ids = torch.tensor([[i for i, _ in pieces]])
    trained = torch.tensor([[flag for _, flag in pieces]])
    labels = ids.masked_fill(~trained, IGNORE)
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def joined_images(rows: Sequence[dict]) -> dict[str, Tensor]:
    """The images of all rows, or their numbers, in their order; nothing where no row has any."""
    images = {}
    for name in ("pixel_values", "image_numbers"):
        if parts := [row[name] for row in rows if name in row]:
            images[name] = torch.cat(parts)
    return images


@dataclass(frozen=True)
class Processor:
    """Messages and images <-> what a model takes.

    A turn is <|im_start|>role, newline, content, <|im_end|>, newline (ChatML). Trained on are what
    the assistant says and the <|im_end|> after it. A control token in a text is a ValueError or,
    with ``refuse=False``, text like any other.
    """

    tokenizer: BPETokenizer  # with CONTROL among its special tokens
    image_tokens: int  # placeholders an image
    to_pixels: Callable[[Sequence[Image.Image]], Tensor]
    refuse: bool = True

    def prepare(
        self,
        messages: Sequence[dict],
        images: Sequence[Image.Image] = (),
        *,
        numbers: Sequence[int] = (),
        reply: bool = False,
    ) -> dict:
        """One conversation -> input_ids, labels, attention_mask (1, T), pixel_values (M, C, H, W).

        The last only with images. A content is a text or a list of parts, {"type": "text",
        "text": ...} or {"type": "image"}, which may have a "text" too: words in the place of the
        image. ``numbers`` are those of the images in a stack that the caller keeps: the row then
        has image_numbers (M,) instead. ``reply`` opens the assistant's turn for generation.
        ValueError for an unknown role or part, or another number of images.
        """
        pieces = [piece for message in messages for piece in self._turn(message)]
        if reply:
            pieces += self._open("assistant")
        given = len(images) + len(numbers)
        if (places := count_images(messages)) != given:
            raise ValueError(
                f"the messages have places for {places} images, but {given} images are given"
            )
        if not pieces:
            raise ValueError("no message, no reply: nothing to prepare")
        row = as_row(pieces)
        if numbers:
            return row | {"image_numbers": torch.tensor(numbers)}
        return row | {"pixel_values": self.to_pixels(images)} if images else row

    def collate(self, rows: Sequence[dict], side: str = "right") -> dict:
        """Rows of ``prepare`` -> one batch, padded on the right (training) or left (generation)."""
        if side not in ("left", "right"):
            raise ValueError(f"padding goes to the left or the right, not {side!r}")
        fills = {"input_ids": self._id("<|pad|>"), "labels": IGNORE, "attention_mask": 0}
        if not rows:
            raise ValueError("no row given: nothing to collate")
        longest = max(row["input_ids"].shape[1] for row in rows)
        batch = {}
        for name, fill in fills.items():
            padded = []
            for row in rows:
                gap = longest - row[name].shape[1]
                ends = (gap, 0) if side == "left" else (0, gap)
                padded.append(F.pad(row[name], ends, value=fill))
            batch[name] = torch.cat(padded)
        return batch | joined_images(rows)

    def pack(self, rows: Sequence[dict], length: int) -> dict:
        """Rows of ``prepare``, several in one -> input_ids, labels, segment_ids, position_ids.

        Of shape (R, length), in their order: one that no longer fits begins the next row.
        Positions count anew in each; ``segments`` (with ``causal``) keeps them apart; the padding
        is a segment of its own. ValueError for a row longer than ``length``.
        """
        if not rows:
            raise ValueError("no row given: nothing to pack")
        packed: list[list[Tensor]] = []
        used = length
        for number, row in enumerate(rows):
            ids = row["input_ids"][0]
            if len(ids) > length:
                raise ValueError(f"row {number} has {len(ids)} tokens, but only {length} fit")
            if used + len(ids) > length:
                packed.append([])
                used = 0
            label = row["labels"][0].clone()
            label[0] = IGNORE  # nothing before it predicts it
            place = torch.arange(len(ids))
            packed[-1].append(torch.stack([ids, label, torch.full_like(ids, number), place]))
            used += len(ids)
        names = ("input_ids", "labels", "segment_ids", "position_ids")
        fills = (self._id("<|pad|>"), IGNORE, -1, 0)
        whole = [torch.cat(parts, dim=1) for parts in packed]  # (4, up to length) each
        columns = zip(*whole, strict=True)
        batch = {
            name: torch.stack([F.pad(t, (0, length - len(t)), value=fill) for t in column])
            for name, fill, column in zip(names, fills, columns, strict=True)
        }
        return batch | joined_images(rows)

    def kinds(self, input_ids: Sequence[int]) -> list[str]:
        """What each token is: text, image, special or padding (the KINDS of plotting.py)."""
        names = {self._id("<|image|>"): "image", self._id("<|pad|>"): "padding"}
        special = set(self.tokenizer.special_tokens.values())
        return [names.get(int(i), "special" if int(i) in special else "text") for i in input_ids]

    def messages(self, input_ids: Sequence[int]) -> list[dict]:
        """Undo ``prepare``: ids (T,), padded or not -> messages. ValueError unless whole turns."""
        rest = [int(i) for i in input_ids if int(i) != self._id("<|pad|>")]
        end, newline = self._id("<|im_end|>"), self._text("\n")
        turns: list[dict] = []
        while rest:
            stop = rest.index(end) if end in rest else len(rest)
            after = stop + 1 + len(newline)
            if rest[0] != self._id("<|im_start|>") or rest[stop:after] != [end, *newline]:
                raise ValueError(
                    f"turn {len(turns)} is not between <|im_start|> and <|im_end|> with a newline"
                )
            parts = self._parts(rest[1:stop]) or [{}]
            role, _, text = parts[0].get("text", "").partition("\n")
            if role not in ROLES:
                raise ValueError(f"unknown role {role!r}; known: {list(ROLES)}")
            parts = parts[1:]
            if text or not parts:
                parts = [{"type": "text", "text": text}, *parts]
            plain = len(parts) == 1 and parts[0]["type"] == "text"
            turns.append({"role": role, "content": parts[0]["text"] if plain else parts})
            rest = rest[after:]
        return turns

    def _parts(self, ids: list[int]) -> list[dict]:
        """The ids of a turn -> parts: a run of text ids is one, an image with its marks is one."""
        first, last = self._id("<|image_start|>"), self._id("<|image_end|>")
        if first not in ids:
            return [{"type": "text", "text": self.tokenizer.decode(ids)}] if ids else []
        at = ids.index(first)
        if last not in ids[at:]:
            raise ValueError(
                "an image begins with <|image_start|> and never ends with <|image_end|>"
            )
        end = ids.index(last, at)
        words = [i for i in ids[at + 1 : end] if i != self._id("<|image|>")]
        image = {"type": "image"} | ({"text": self.tokenizer.decode(words)} if words else {})
        return [*self._parts(ids[:at]), image, *self._parts(ids[end + 1 :])]

    def _turn(self, message: dict) -> list[Piece]:
        role, content = message.get("role"), message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple):
            raise ValueError(f"a content is a text or a list of parts, not {content!r}")
        body = [i for part in parts for i in self._part(part)] + [self._id("<|im_end|>")]
        image = self._id("<|image|>")
        said = [(i, role == "assistant" and i != image) for i in body]
        return self._open(role) + said + [(i, False) for i in self._text("\n")]

    def _open(self, role: str | None) -> list[Piece]:
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}; known: {list(ROLES)}")
        return [(i, False) for i in [self._id("<|im_start|>"), *self._text(f"{role}\n")]]

    def _part(self, part: dict) -> list[int]:
        given = part if isinstance(part, dict) else {}
        kind, words = given.get("type"), given.get("text")
        if kind == "text" and isinstance(words, str):
            return self._text(words)
        if kind != "image" or ("text" in given and not isinstance(words, str)):
            raise ValueError(f"unknown part of a content: {part!r}")
        placeholders = [self._id("<|image|>")] * self.image_tokens
        run = placeholders if words is None else self._text(words)
        return [self._id("<|image_start|>"), *run, self._id("<|image_end|>")]

    def _text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text) if self.refuse else self.tokenizer.encode_ordinary(text)

    def _id(self, name: str) -> int:
        if name not in self.tokenizer.special_tokens:
            raise ValueError(f"the tokenizer has no control token {name!r}")
        return self.tokenizer.special_tokens[name]


def splice(embeds: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    """Vectors (M, N, D) put, in order, at the places (B, T) of embeds (B, T, D).

    ValueError unless there is one place a vector, and every row holds whole images.
    """
    images, each = vectors.shape[:2]
    per_row = places.sum(dim=1)
    if vectors.shape[2:] != embeds.shape[2:]:
        raise ValueError(f"vectors {tuple(vectors.shape)} do not fit into {tuple(embeds.shape)}")
    if per_row.sum() != images * each or (per_row % each).any():
        raise ValueError(
            f"{images} images take {images * each} placeholders, {each} each; "
            f"the rows hold {per_row.tolist()}"
        )
    return embeds.masked_scatter(places[..., None], vectors.to(embeds.dtype))


class Prompted(NextToken):
    """A language model in whose prompts every image is a run of placeholder ids.

    A subclass has the ``decoder``, the ``image_token_id``, in its table or not, and
    ``encode_images``.
    """

    decoder: Any  # called as ``Decoder`` is; a Blip2 may have none
    image_token_id: int
    new_cache = KVCache

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, N, D) in the language model's width."""
        raise NotImplementedError

    def mask(self, input_ids: Tensor) -> Maybe:
        """Ids (B, T) of a prompt -> who sees whom (B, 1, T, T), or None for causal."""
        return None

    def embed(self, input_ids: Tensor, pixel_values: Tensor, **inputs: Maybe) -> Tensor:
        """(B, T), (M, C, H, W) -> (B, T, D): text embeddings, image vectors at the placeholders."""
        places = input_ids == self.image_token_id  # (B, T)
        text = input_ids.masked_fill(places, 0)  # the id may lie outside the table
        return splice(self.decoder.embed(text), places, self.encode_images(pixel_values, **inputs))

    def states(
        self,
        input_ids: Tensor,
        pixel_values: Maybe = None,
        attention_mask: Maybe = None,
        cache: Cache = None,
        **inputs: Maybe,
    ) -> Tensor:
        """Ids (B, T), images (M, C, H, W) or None, attention_mask (B, S) -> states (B, T, D).

        They are the language model's, after its final norm.
        """
        if pixel_values is not None:
            embeds = self.embed(input_ids, pixel_values, **inputs)
            mask = self.mask(input_ids)
            return self.decoder.states(None, attention_mask, cache, embeds=embeds, mask=mask)
        fresh = cache is None or cache.length == 0  # later, the model may have said a placeholder
        if fresh and (input_ids == self.image_token_id).any():
            raise ValueError(
                f"input_ids hold placeholders (id {self.image_token_id}), but no image is given"
            )
        return self.decoder.states(input_ids, attention_mask, cache)


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the tokens whose label (B, T) is not IGNORE; logits (B, T, V)."""
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    if (labels == IGNORE).all():
        raise ValueError(f"nothing to learn: every label after the first is {IGNORE}")
    return F.cross_entropy(logits, labels, ignore_index=IGNORE)


@dataclass(frozen=True)
class ImageVocabulary:
    """Discrete route: code c is token ``text_size + c``, so text and image share one table."""

    text_size: int  # ids of the text vocabulary
    codes: int  # entries of the codebook
    grid: tuple[int, int]  # rows and columns of codes an image
    start: int  # id of <|image_start|>
    end: int  # id of <|image_end|>

    @property
    def size(self) -> int:
        """Rows of the embedding table."""
        return self.text_size + self.codes

    def to_ids(self, codes: Tensor) -> Tensor:
        """Codes (B, rows, columns) -> (B, 1 + N + 1) ids, row by row, between the marks."""
        outside = codes[(codes < 0) | (codes >= self.codes)].tolist()
        if tuple(codes.shape[1:]) != self.grid or outside:
            need = f"codes (B, *{self.grid}) in 0..{self.codes - 1}"
            raise ValueError(f"need {need}, got shape {tuple(codes.shape)}, outside {outside[:5]}")
        started = F.pad(codes.flatten(1) + self.text_size, (1, 0), value=self.start)
        return F.pad(started, (0, 1), value=self.end)

    def to_codes(self, ids: Tensor) -> Tensor:
        """Ids (B, N) between the marks -> codes (B, rows, columns).

        ValueError names an id that is no code.
        """
        rows, columns = self.grid
        wrong = ids[(ids < self.text_size) | (ids >= self.size)]
        if len(wrong) or ids.ndim != 2 or ids.shape[1] != rows * columns:
            culprit = f"{ids.shape[-1]} tokens of shape {tuple(ids.shape)}"
            if len(wrong):
                culprit = f"token {wrong[0].item()} is no image code"
            raise ValueError(
                f"{culprit}: an image is {rows} x {columns} of {self.text_size}..{self.size - 1}"
            )
        return (ids - self.text_size).unflatten(1, self.grid)


def align_questions(
    input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor
) -> tuple[Tensor, Tensor]:
    """Padded questions (B, T) -> with their padding on the left: the last token gives the answer.

    ValueError unless each has its image.
    """
    if len(pixel_values) != len(input_ids):
        raise ValueError(f"{len(pixel_values)} images for {len(input_ids)} questions")
    ids, mask = check_prompts(input_ids, attention_mask)
    return ids, torch.ones_like(ids) if mask is None else mask


class EarlyFusion(nn.Module):
    """One sequence: patch vectors, then the question, in one causal transformer (Fuyu, LLaVA)."""

    def __init__(self, vision: ViTConfig, text: DecoderConfig):
        super().__init__()
        self.vision, self.decoder = ViT(vision), Decoder(text)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """Padded questions (B, T), images (B, C, H, W) -> (B, V), the logits of the answer."""
        input_ids, attention_mask = align_questions(input_ids, attention_mask, pixel_values)
        image = self.vision(pixel_values)  # (B, 1 + N, D)
        embeds = torch.cat([image, self.decoder.embed(input_ids)], dim=1)
        mask = torch.cat([attention_mask.new_ones(image.shape[:2]), attention_mask], dim=1)
        positions = mask.cumsum(dim=1) - 1  # padding after the image takes no position
        return self.decoder.next_logits(embeds=embeds, attention_mask=mask, positions=positions)


class LateFusion(nn.Module):
    """Two towers that meet at the end: one vector of the image, one of the question, one MLP."""

    def __init__(self, vision: ViTConfig, text: DecoderConfig, hidden: int):
        super().__init__()
        self.vision, self.decoder = ViT(vision), Decoder(text)
        self.merge = MLP(vision.width + text.width, hidden, out=text.width).apply(init_weights)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """As ``EarlyFusion``."""
        input_ids, attention_mask = align_questions(input_ids, attention_mask, pixel_values)
        question = self.decoder.states(input_ids, attention_mask)[:, -1]  # (B, D)
        image = self.vision(pixel_values)[:, 0]
        return self.decoder.head(self.merge(torch.cat([image, question], dim=1)))


class GatedCrossAttention(nn.Module):
    """x + tanh(a) attention(norm(x), memory), then x + tanh(b) mlp(norm(x)): Flamingo, figure 4.

    The gates a and b start at zero: a block put into a trained language model changes nothing at
    first.
    """

    def __init__(self, width: int, heads: int, hidden: int, memory_width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, bias=False, memory_width=memory_width)
        self.mlp = MLP(width, hidden, bias=False)
        self.gate1, self.gate2 = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.apply(init_weights)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D), memory (B, S, memory width), mask (T, S) -> (B, T, D)."""
        x = x + self.gate1.tanh() * self.attention(self.norm1(x), mask, memory)
        return x + self.gate2.tanh() * self.mlp(self.norm2(x))


class CrossFusion(nn.Module):
    """The text asks, the image answers: gated cross-attention to the patches before each block."""

    def __init__(self, vision: ViTConfig, text: DecoderConfig, hidden: int):
        super().__init__()
        self.vision, self.decoder = ViT(vision), Decoder(text)
        self.cross = nn.ModuleList(
            GatedCrossAttention(text.width, text.heads, hidden, vision.width)
            for _ in range(text.layers)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """As ``EarlyFusion``."""
        input_ids, attention_mask = align_questions(input_ids, attention_mask, pixel_values)
        image = self.vision(pixel_values)
        x = self.decoder.embed(input_ids)
        mask, rotary = visible(x, attention_mask), self.decoder.rotary(x)
        for cross, block in zip(self.cross, self.decoder.blocks, strict=True):
            x = block(cross(x, image), mask, rotary)
        return self.decoder.head(self.decoder.norm(x)[:, -1])
