"""Text and images in one sequence of tokens, as discrete codes or as continuous vectors, and three
ways to fuse them.

Papers: Ramesh et al. 2021 (DALL-E) and Chameleon Team 2024, discrete codes behind the text's ids;
Liu et al. 2023 (LLaVA), section 4.1, vectors at placeholders; Alayrac et al. 2022 (Flamingo),
section 2.2, gated cross-attention.
Notebook: 04_multimodal_tokens.

Data: messages (dicts of role and content, in ChatML) and PIL images -> input_ids, labels and
attention_mask (B, T), pixel_values (M, C, H, W), M images in the order of their placeholders.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minivlm.bpe import BPETokenizer
from minivlm.parts.decoder import Cache, Decoder, DecoderConfig
from minivlm.parts.layers import MLP, Attention, Maybe, init_weights
from minivlm.vit import ViT, ViTConfig

CONTROL = ("<|im_start|>", "<|im_end|>", "<|image_start|>", "<|image|>", "<|image_end|>", "<|pad|>")
ROLES = ("system", "user", "assistant")
IMAGE = {"type": "image"}  # as a part of a message
IGNORE = -100  # the label of a token that is not learned: what F.cross_entropy leaves out
Piece = tuple[int, bool]  # an id, and whether it is learned


@dataclass(frozen=True)
class Processor:
    """Messages and images <-> what a model takes.

    A turn is <|im_start|>role, newline, content, <|im_end|>, newline (ChatML). Learned is what the
    assistant says and the <|im_end|> behind it. A control token in a text is a ValueError or, with
    ``refuse=False``, text like any other.
    """

    tokenizer: BPETokenizer  # with CONTROL among its special tokens
    image_tokens: int  # placeholders an image
    to_pixels: Callable[[Sequence[Image.Image]], Tensor]
    refuse: bool = True

    def prepare(
        self, messages: Sequence[dict], images: Sequence[Image.Image] = (), *, reply: bool = False
    ) -> dict:
        """One conversation -> input_ids, labels, attention_mask (1, T) and, with images,
        pixel_values (M, C, H, W).

        A content is a text or a list of parts, {"type": "text", "text": ...} or {"type": "image"},
        which may have a "text" too: words in the place of the image. ``reply`` opens the
        assistant's turn for generation. ValueError for an unknown role or part, or another number
        of images.
        """
        pieces = [piece for message in messages for piece in self._turn(message)]
        if reply:
            pieces += self._open("assistant")
        contents = [message.get("content") for message in messages]
        parts = [part for content in contents if not isinstance(content, str) for part in content]
        places = sum(part["type"] == "image" and "text" not in part for part in parts)
        if places != len(images):
            raise ValueError(
                f"the messages have places for {places} images, but {len(images)} images are given"
            )
        if not pieces:
            raise ValueError("no message, no reply: nothing to prepare")
        ids = torch.tensor([[i for i, _ in pieces]])
        learned = torch.tensor([[flag for _, flag in pieces]])
        row = {
            "input_ids": ids,
            "labels": ids.masked_fill(~learned, IGNORE),
            "attention_mask": torch.ones_like(ids),
        }
        return row | {"pixel_values": self.to_pixels(images)} if images else row

    def collate(self, rows: Sequence[dict], side: str = "right") -> dict:
        """Rows of ``prepare`` -> one batch, padded on the right (training) or the left
        (generation).
        """
        if side not in ("left", "right"):
            raise ValueError(f"padding goes to the left or the right, not {side!r}")
        fills = {"input_ids": self._id("<|pad|>"), "labels": IGNORE, "attention_mask": 0}
        longest = max(row["input_ids"].shape[1] for row in rows)
        batch = {}
        for name, fill in fills.items():
            gaps = [longest - row[name].shape[1] for row in rows]
            ends = [(gap, 0) if side == "left" else (0, gap) for gap in gaps]
            batch[name] = torch.cat(
                [F.pad(row[name], end, value=fill) for row, end in zip(rows, ends, strict=True)]
            )
        pixels = [row["pixel_values"] for row in rows if "pixel_values" in row]
        return batch | {"pixel_values": torch.cat(pixels)} if pixels else batch

    def pack(self, rows: Sequence[dict], length: int) -> dict:
        """Rows of ``prepare``, several behind each other, -> input_ids, labels, segment_ids,
        position_ids (R, length).

        In their order: one that no longer fits begins the next row. Positions count anew in each;
        ``segments`` (with ``causal``) keeps them apart; the padding is a segment of its own.
        ValueError for a row longer than ``length``.
        """
        packed, used = [], length
        for number, row in enumerate(rows):
            ids = row["input_ids"][0]
            if len(ids) > length:
                raise ValueError(f"row {number} has {len(ids)} tokens, but only {length} fit")
            if used + len(ids) > length:
                packed.append([])
                used = 0
            label = row["labels"][0].clone()
            label[0] = IGNORE  # nothing before it foretells it
            place = torch.arange(len(ids))
            packed[-1].append(torch.stack([ids, label, torch.full_like(ids, number), place]))
            used += len(ids)
        fills = {
            "input_ids": self._id("<|pad|>"),
            "labels": IGNORE,
            "segment_ids": -1,
            "position_ids": 0,
        }
        whole = [torch.cat(parts, dim=1) for parts in packed]  # (4, up to length) each
        columns = zip(*whole, strict=True)
        batch = {
            name: torch.stack([F.pad(t, (0, length - len(t)), value=fill) for t in column])
            for (name, fill), column in zip(fills.items(), columns, strict=True)
        }
        pixels = [row["pixel_values"] for row in rows if "pixel_values" in row]
        return batch | {"pixel_values": torch.cat(pixels)} if pixels else batch

    def kinds(self, input_ids: Sequence[int]) -> list[str]:
        """What each token is: text, image, special or padding (the KINDS of plotting.py)."""
        names = {self._id("<|image|>"): "image", self._id("<|pad|>"): "padding"}
        special = set(self.tokenizer.special_tokens.values())
        return [names.get(int(i), "special" if int(i) in special else "text") for i in input_ids]

    def messages(self, input_ids: Sequence[int]) -> list[dict]:
        """Undo ``prepare``: ids (T,), padded or not, -> the messages. ValueError where they are no
        whole turns.
        """
        rest = [int(i) for i in input_ids if int(i) != self._id("<|pad|>")]
        end, newline, found = self._id("<|im_end|>"), self._text("\n"), []
        while rest:
            stop = rest.index(end) if end in rest else len(rest)
            after = stop + 1 + len(newline)
            if rest[0] != self._id("<|im_start|>") or rest[stop:after] != [end, *newline]:
                raise ValueError(
                    f"turn {len(found)} is not between <|im_start|> and <|im_end|> with a newline"
                )
            parts = self._parts(rest[1:stop]) or [{}]
            role, _, text = parts[0].get("text", "").partition("\n")
            if role not in ROLES:
                raise ValueError(f"unknown role {role!r}; known: {list(ROLES)}")
            parts = (
                [{"type": "text", "text": text}, *parts[1:]]
                if text or len(parts) == 1
                else parts[1:]
            )
            plain = len(parts) == 1 and parts[0]["type"] == "text"
            found.append({"role": role, "content": parts[0]["text"] if plain else parts})
            rest = rest[after:]
        return found

    def _parts(self, ids: list[int]) -> list[dict]:
        """The ids of a turn -> parts; a run of text ids is one part, an image with its marks is
        one.
        """
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
        body = [i for part in parts for i in self._part(part)]
        said = [
            (i, role == "assistant" and i != self._id("<|image|>"))
            for i in [*body, self._id("<|im_end|>")]
        ]
        return self._open(role) + said + [(i, False) for i in self._text("\n")]

    def _open(self, role: str) -> list[Piece]:
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}; known: {list(ROLES)}")
        return [(i, False) for i in [self._id("<|im_start|>"), *self._text(f"{role}\n")]]

    def _part(self, part: dict) -> list[int]:
        if (
            isinstance(part, dict)
            and part.get("type") == "image"
            and isinstance(part.get("text", ""), str)
        ):
            run = (
                self._text(part["text"])
                if "text" in part
                else [self._id("<|image|>")] * self.image_tokens
            )
            return [self._id("<|image_start|>"), *run, self._id("<|image_end|>")]
        if (
            isinstance(part, dict)
            and part.get("type") == "text"
            and isinstance(part.get("text"), str)
        ):
            return self._text(part["text"])
        raise ValueError(f"unknown part of a content: {part!r}")

    def _text(self, text: str) -> list[int]:
        return self.tokenizer.encode(text) if self.refuse else self.tokenizer.encode_ordinary(text)

    def _id(self, name: str) -> int:
        return self.tokenizer.special_tokens[name]


def splice(embeds: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    """Continuous route: embeds (B, T, D) with image vectors (M, N, D) put, in order, where places
    (B, T) is True.

    ValueError unless there is exactly one place a vector, and every row holds whole images.
    """
    per_row = places.sum(dim=1)
    need = vectors.shape[0] * vectors.shape[1]
    if per_row.sum() != need or (per_row % vectors.shape[1]).any():
        raise ValueError(
            f"{len(vectors)} images take {need} placeholders, {vectors.shape[1]} each; the rows hold {per_row.tolist()}"
        )
    return embeds.masked_scatter(places[..., None], vectors)


class Prompted(nn.Module):
    """A language model in whose prompts every image stands as a run of placeholder ids.

    A subclass has the ``decoder``, the ``image_token_id``, in its table or not, and
    ``encode_images``.
    """

    def embed(self, input_ids: Tensor, pixel_values: Tensor, **inputs: Tensor) -> Tensor:
        """(B, T) and (M, C, H, W) -> (B, T, D): text embeddings, with the image vectors at the
        placeholders.
        """
        places = input_ids == self.image_token_id  # (B, T)
        embeds = self.decoder.embed(
            input_ids.masked_fill(places, 0)
        )  # the id may lie outside the table
        return splice(embeds, places, self.encode_images(pixel_values, **inputs))

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Maybe = None,
        attention_mask: Maybe = None,
        cache: Cache = None,
        **inputs,
    ) -> Tensor:
        """Ids (B, T), images (M, C, H, W) or None, attention_mask (B, S) -> logits (B, T, V)."""
        if pixel_values is None:
            fresh = (
                cache is None or cache.length == 0
            )  # later, a placeholder can only be a token that was generated
            if fresh and (input_ids == self.image_token_id).any():
                raise ValueError(
                    f"input_ids hold placeholders (id {self.image_token_id}), but no image is given"
                )
            return self.decoder(input_ids, attention_mask, cache)
        embeds, mask = self.embed(input_ids, pixel_values, **inputs), self.mask(input_ids)
        options = {} if mask is None else {"mask": mask}
        return self.decoder(embeds=embeds, attention_mask=attention_mask, cache=cache, **options)

    def mask(self, input_ids: Tensor) -> Maybe:
        """Ids (B, T) of a prompt -> who sees whom (B, 1, T, T), or None for causal."""


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each learned token given all before it: logits (B, T, V), labels (B, T) with
    IGNORE.
    """
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE)


@dataclass(frozen=True)
class ImageVocabulary:
    """Discrete route: code c of the codebook is token ``text_size + c``, so text and image share
    one table.
    """

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
        if tuple(codes.shape[1:]) != self.grid or codes.min() < 0 or codes.max() >= self.codes:
            raise ValueError(
                f"need codes (B, *{self.grid}) in 0..{self.codes - 1}, got shape {tuple(codes.shape)}"
            )
        return F.pad(
            F.pad(codes.flatten(1) + self.text_size, (1, 0), value=self.start),
            (0, 1),
            value=self.end,
        )

    def to_codes(self, ids: Tensor) -> Tensor:
        """Ids (B, N) between the marks -> codes (B, rows, columns); ValueError names an id that is
        no code.
        """
        wrong = ids[(ids < self.text_size) | (ids >= self.size)]
        if len(wrong) or ids.shape[1] != self.grid[0] * self.grid[1]:
            named = (
                f"token {wrong[0].item()} is no image code"
                if len(wrong)
                else f"{ids.shape[1]} tokens"
            )
            raise ValueError(
                f"{named}: an image is {self.grid[0]} x {self.grid[1]} of {self.text_size}..{self.size - 1}"
            )
        return (ids - self.text_size).unflatten(1, self.grid)


class EarlyFusion(nn.Module):
    """One sequence: patch vectors before the question in one causal transformer (Chameleon, Fuyu,
    LLaVA).
    """

    def __init__(self, vision: ViTConfig, text: DecoderConfig):
        super().__init__()
        self.vision, self.decoder = ViT(vision), Decoder(text)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """Left-padded questions (B, T), images (B, C, H, W) -> (B, V), the logits of the answer."""
        image = self.vision(pixel_values)  # (B, 1 + N, D)
        embeds = torch.cat([image, self.decoder.embed(input_ids)], dim=1)
        mask = torch.cat([attention_mask.new_ones(image.shape[:2]), attention_mask], dim=1)
        positions = (
            mask.cumsum(dim=1) - 1
        )  # the padding between image and question takes no position
        return self.decoder(embeds=embeds, attention_mask=mask, positions=positions)[:, -1]


class LateFusion(nn.Module):
    """Two towers that meet at the end: one vector of the image, one of the question, one MLP."""

    def __init__(self, vision: ViTConfig, text: DecoderConfig, hidden: int):
        super().__init__()
        self.vision, self.decoder = ViT(vision), Decoder(text)
        self.merge = MLP(vision.width + text.width, hidden, out=text.width).apply(init_weights)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """As ``EarlyFusion``."""
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
    """The text asks, the image answers: before each block of the decoder, gated cross-attention to
    the patches.
    """

    def __init__(self, vision: ViTConfig, text: DecoderConfig, hidden: int):
        super().__init__()
        self.vision, self.decoder = ViT(vision), Decoder(text)
        self.cross = nn.ModuleList(
            GatedCrossAttention(text.width, text.heads, hidden, vision.width)
            for _ in range(text.layers)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """As ``EarlyFusion``."""
        image = self.vision(pixel_values)
        x = self.decoder.states(
            input_ids, attention_mask, before_block=lambda i, x: self.cross[i](x, image)
        )
        return self.decoder.head(x[:, -1])
