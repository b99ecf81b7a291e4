"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL asked: from pictures and questions to words.

In: PIL images of any size, a question, and what was said before it. Out: what the model takes,
token ids (1, T) with as many placeholders as an image has tokens, its patches and its grid; and the
words that the model says. Conversations are written as the published chat templates write them;
sizes of images, end tokens and the penalty for repetition are those of the folder's files.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minivlm.parts.training import default_device
from minivlm.pretrained.chat_templates import Message, warn_of_template
from minivlm.pretrained.checkpoints import read_json
from minivlm.pretrained.config import (
    TOKEN,
    Number,
    Several,
    read_setting,
    section,
)
from minivlm.pretrained.loading import from_pretrained
from minivlm.pretrained.preprocessing import Images, listed, read_image_settings
from minivlm.pretrained.processing import (
    Said,
    alternate,
    one_row,
    plain_tokens,
    spoken_ids,
)
from minivlm.pretrained.qwen2_vl import image_options, qwen_config
from minivlm.pretrained.speakers import moved, said_after
from minivlm.pretrained.tokenizers import PublishedTokenizer, open_tokenizer
from minivlm.qwen2_vision import TowerConfig, preprocess
from minivlm.qwen2_vl import MRopeCache, Qwen2VL, image_text

SYSTEM = {  # what a conversation begins with, by model_type
    "qwen2_vl": "You are a helpful assistant.",
    "qwen2_5_vl": "You are a helpful assistant.",
    "qwen3_vl": "",
}
LONGEST_PROMPT = {"qwen2_vl": 32_768, "qwen2_5_vl": 32_768, "qwen3_vl": 128_000}  # tokens
IMAGE_PAD = "<|image_pad|>"
MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_PAD)
LONGEST_ANSWER = 128  # tokens, unless the caller says otherwise
PENALTY = Number(1e-3, 1e3, whole=False)
ONLY = {  # what published folders say of their images, and all that ``preprocess`` does
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": int(Image.Resampling.BICUBIC),
    "rescale_factor": 1 / 255,
}


def qwen_chat(kind: str, texts: Sequence[str], images: int) -> str:
    """A conversation as the family's template writes it, up to where the assistant's turn begins.

    texts: question, answer, question, ... to the last question. images: how many the first question
    is asked about; each stands before its text as one placeholder between two marks.
    """
    first = image_text((1, 1, 1), IMAGE_PAD, merge=1) * images + texts[0]
    turns = alternate(("user", "assistant"), [first, *texts[1:]])
    if SYSTEM[kind]:
        turns = [("system", SYSTEM[kind]), *turns]
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{said}<|im_start|>assistant\n"


def qwen_ids(
    tokenizer: PublishedTokenizer, kind: str, texts: Sequence[str], counts: Sequence[int]
) -> list[int]:
    """The ids of ``qwen_chat``, with as many placeholders for each image as ``counts`` says.

    ValueError for a special token in one of the texts. Those that are read aloud (<think>) may be
    in an answer.
    """
    aloud = plain_tokens(tokenizer)
    for question, answer in zip_longest(texts[::2], texts[1::2], fillvalue=""):
        tokenizer.encode(question)
        tokenizer.encode(answer, aloud)
    pad, left = tokenizer.special_tokens[IMAGE_PAD], iter(counts)
    ids = tokenizer.encode(qwen_chat(kind, texts, len(counts)), {*MARKS, *aloud})
    return [*chain.from_iterable([i] * next(left) if i == pad else [i] for i in ids)]


def qwen_images(folder: Path, tower: TowerConfig) -> dict[str, Any]:
    """``image_options`` of a folder; ValueError where they are not those of its tower, or ask for
    what ``preprocess`` does not do.
    """
    settings = read_image_settings(folder)
    sizes = {"patch_size": tower.patch, "merge_size": tower.merge}
    for key, only in (ONLY | sizes | {"temporal_patch_size": tower.depth}).items():
        said = settings.get(key)
        if said is not None and said != only:
            raise ValueError(f"{folder}: images with {key} = {said!r}, not {only!r}")
    options = image_options(folder) | {"patch": tower.patch, "merge": tower.merge}
    for key in ("mean", "std"):
        if options[key] not in Several(Number(-1e3, 1e3, whole=False), 3):
            raise ValueError(f"{folder}: image_{key} = {options[key]!r} is not three numbers")
    return options


def end_tokens(folder: Path, tokenizer: PublishedTokenizer) -> list[int]:
    """The ids that end an answer: of generation_config.json, else of config.json, else <|im_end|>.

    ValueError for what is no id.
    """
    config = read_json(folder / "config.json")
    for where in (generation_settings(folder), section(config, "text_config"), config):
        said: Any = where.get("eos_token_id")
        ids = said if isinstance(said, list) else [said]
        if said is not None and ids not in Several(TOKEN):
            raise ValueError(f"{folder}: eos_token_id = {said!r} is no id of a token")
        if said is not None and ids:
            return ids
    return [tokenizer.special_tokens["<|im_end|>"]]


def generation_settings(folder: Path) -> dict[str, Any]:
    """What a folder says of decoding; nothing without a generation_config.json."""
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}


class Unrepeated:
    """A model that is penalised for tokens which are there already, in the prompt too.

    Their logits are divided by ``penalty`` or, below 0, multiplied (Keskar et al. 2019, CTRL,
    section 4.1). For one call of ``generate``.
    """

    new_cache = MRopeCache

    def __init__(self, model: Qwen2VL, penalty: float):
        self.model, self.penalty, self.seen = model, penalty, torch.empty(1, 0, dtype=torch.long)

    def __call__(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """As ``next_logits``, with a position: (1, 1, V)."""
        return self.next_logits(input_ids, **inputs)[:, None]

    def next_logits(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Those of what follows new ids (1, T): (1, V), float32."""
        self.seen = torch.cat([self.seen.to(input_ids.device), input_ids], dim=1)
        logits = self.model.next_logits(input_ids, **inputs).float()
        there = logits.gather(1, self.seen)
        there = torch.where(there < 0, there * self.penalty, there / self.penalty)
        return logits.scatter(1, self.seen, there)


class PublishedQwen:
    """A folder of the family, asked in its authors' words.

    dtype: of the weights. ValueError where the folder's files are broken or do not fit each other.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        self.folder, said = folder, read_json(folder / "config.json")
        self.kind = said["model_type"]
        self.config, text = qwen_config(self.kind, said), section(said, "text_config") or said
        self.longest = read_setting(text, "max_position_embeddings", LONGEST_PROMPT[self.kind])
        self.tokenizer = open_tokenizer(folder)
        self.images = qwen_images(folder, self.config.vision)
        self._check_marks()
        self.ends = end_tokens(folder, self.tokenizer)
        self.penalty = generation_settings(folder).get("repetition_penalty") or 1.0
        if self.penalty not in PENALTY:
            raise ValueError(f"{folder}: repetition_penalty = {self.penalty!r} must be {PENALTY}")
        self._compare_template()
        model = from_pretrained(folder, dtype, default_device())  # last, for it takes the longest
        assert isinstance(model, Qwen2VL)
        self.model = model

    def caption(self, image: Images, **how: Any) -> str:
        """What the image, or several, show. how: as for ``ask``."""
        return self.ask(image, "Describe this image.", **how)

    def ask(self, image: Images, question: str, before: Said = (), **how: Any) -> str:
        """The answer to a question about an image, or several, after what was said ``before``.

        how: max_tokens (128), temperature (0, which is greedy), top_p (1), seed (0) of a draw.
        ValueError for a special token in a text, and for a prompt longer than the model reads.
        """
        given = self.inputs(image, question, before)
        model = self.model if self.penalty == 1 else Unrepeated(self.model, self.penalty)
        return self.words(
            said_after(model, given, self.ends, **{"max_tokens": LONGEST_ANSWER} | how)
        )

    def inputs(self, image: Images, text: str, before: Said = ()) -> dict[str, Tensor]:
        """What the model takes, on its device: input_ids and attention_mask (1, T), for n images of
        N patches pixel_values (N, C * 2 * P * P) and image_grid_thw (n, 3).
        """
        pixels, grids = preprocess(listed(image), **self.images)
        counts = (grids.prod(dim=1) // self.config.vision.merge**2).tolist()
        texts = [*chain.from_iterable(before), text]
        row = one_row(qwen_ids(self.tokenizer, self.kind, texts, counts), pixels)
        if (length := row["input_ids"].shape[1]) > self.longest:
            raise ValueError(f"a prompt of {length} tokens, but the model reads {self.longest}")
        return moved(row | {"image_grid_thw": grids}, self.model)

    def words(self, ids: Iterable[int]) -> str:
        """The text of what was said, without special tokens and rows that stand for no token."""
        return self.tokenizer.decode(spoken_ids(self.tokenizer, ids)).strip()

    def _check_marks(self) -> None:
        """ValueError unless the tokenizer has the template's tokens, under the model's ids."""
        special = self.tokenizer.special_tokens
        if missing := [mark for mark in MARKS if mark not in special]:
            raise ValueError(f"{self.folder}: the tokenizer has no special token {missing[0]!r}")
        if (token := self.config.image_token_id) != special[IMAGE_PAD]:
            raise ValueError(
                f"{self.folder}: image_token_id = {token}, but the tokenizer's {IMAGE_PAD} is "
                f"{special[IMAGE_PAD]}"
            )

    def _compare_template(self) -> None:
        """A line of warning if the folder's template does not write a conversation as ours."""
        texts = ["What is it?", "A star.", "Where?"]
        first = [{"type": "image"}, {"type": "text", "text": texts[0]}]
        messages: list[Message] = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": texts[1]},
            {"role": "user", "content": texts[2]},
        ]
        warn_of_template(self.folder, messages, qwen_chat(self.kind, texts, images=1))
