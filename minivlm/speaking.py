"""Any checkpoint with words: what it says of a picture, or how well a text goes with it.

A speaker captions an image and answers questions about it; a scorer compares images with texts. The
course's own checkpoints and published folders are opened alike: config.json says which one it is.
"""

import reprlib
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, Siglip
from minivlm.formats.tokenizer_files import load_json
from minivlm.multimodal import IMAGE
from minivlm.parts.training import default_device
from minivlm.pretrained.blip import looked_at
from minivlm.pretrained.checkpoints import read_json
from minivlm.pretrained.preprocessing import Images, listed
from minivlm.pretrained.processing import (
    Said,
    alternate,
    check_length,
    never_asked,
    one_row,
    single,
)
from minivlm.pretrained.qwen_processor import PublishedQwen
from minivlm.pretrained.speakers import (
    SCORING,
    SPEAKING,
    PublishedSpeaker,
    Scorer,
    moved,
    published_scorer,
    said_after,
)
from minivlm.scenes.pixels import pixels
from minivlm.toys.assistant import Assistant
from minivlm.toys.blip import ToyBlip
from minivlm.toys.captioner import Captioner
from minivlm.toys.clip import END, PAD, sentences
from minivlm.toys.common import SPEAKER, load_toy

SHORT = 24  # tokens of what the course's own models say


class Speaker(Protocol):
    """how: max_tokens, temperature (0 is greedy), top_p, seed (of a draw)."""

    @property
    def model(self) -> nn.Module: ...

    def caption(self, image: Images, **how: Any) -> str: ...

    def ask(self, image: Images, question: str, before: Said = (), **how: Any) -> str:
        """The answer to a question that follows others about the same image.

        ValueError from a checkpoint that was never trained on questions.
        """

    def inputs(self, image: Images, text: str, before: Said = ()) -> dict[str, Tensor]:
        """What ``model`` takes, and ``model.caption_logits`` of a BLIP: image, ids (1, T), mask.

        text: a question or, where none is answered, how a caption begins.
        """


# The course's own


class OwnAssistant:
    def __init__(self, folder: Path, dtype: torch.dtype):
        self.assistant = Assistant.load(folder, dtype)
        self.config = read_json(folder / "config.json")
        self.model = self.assistant.model.to(default_device())

    def caption(self, image: Images, **how: Any) -> str:
        return self.ask(image, "describe the picture.", **how)

    def ask(self, image: Images, question: str, before: Said = (), **how: Any) -> str:
        tokenizer = self.assistant.processor.tokenizer
        end = tokenizer.special_tokens["<|im_end|>"]
        given = self.inputs(image, question, before)
        new = said_after(self.model, given, end, **{"max_tokens": SHORT} | how)
        return tokenizer.decode([i for i in new if i != end])

    def inputs(self, image: Images, text: str, before: Said = ()) -> dict[str, Tensor]:
        messages = self._messages(text, before)
        row = self.assistant.processor.prepare(messages, [single(image)], reply=True)
        del row["labels"]
        check_length(self.config, row["input_ids"])
        return moved(row, self.model)

    def _messages(self, question: str, before: Said) -> list[dict]:
        """The image in the first turn, and the conversation so far before the question."""
        texts = [*chain.from_iterable(before), question]
        messages: list[dict] = [
            {"role": role, "content": text}
            for role, text in alternate(("user", "assistant"), texts)
        ]
        messages[0]["content"] = [IMAGE, {"type": "text", "text": texts[0]}]
        return messages


class Describer:
    """The toy captioner or the toy BLIP.

    start: what opens a caption, its placeholders or a mark. ends: the mark at its end, and those
    that are no words.
    """

    def __init__(
        self, folder: Path, toy: Captioner | ToyBlip, start: list[int], ends: Sequence[int]
    ):
        self.folder, self.toy, self.start, self.ends = folder, toy, start, ends
        self.model = toy.model.to(default_device())

    def caption(self, image: Images, **how: Any) -> str:
        given = self.inputs(image, "")
        prompt = looked_at(self.model, given) if isinstance(self.toy, ToyBlip) else given
        new = said_after(self.model, prompt, self.ends[0], **{"max_tokens": SHORT} | how)
        return self.toy.tokenizer.decode([i for i in new if i not in self.ends])

    def ask(self, image: Images, question: str, before: Said = (), **how: Any) -> str:
        raise never_asked(self.folder)

    def inputs(self, image: Images, text: str, before: Said = ()) -> dict[str, Tensor]:
        if before:
            raise never_asked(self.folder)
        ids = self.start + self.toy.tokenizer.encode(text)
        return moved(one_row(ids, pixels([single(image)])), self.model)


def own_captioner(folder: Path, dtype: torch.dtype) -> Describer:
    toy = Captioner.load(folder, dtype)
    return Describer(folder, toy, toy.prompt(), [toy.tokenizer.special_tokens["<|end|>"]])


def own_blip(folder: Path, dtype: torch.dtype) -> Describer:
    toy = ToyBlip.load(folder, dtype)
    marks = toy.tokenizer.special_tokens
    return Describer(folder, toy, [toy.marks.dec], [marks["[SEP]"], *marks.values()])


class OwnPairs:
    """How the toy CLIP is shown scenes and told sentences."""

    def __init__(self, tokenizer: BPETokenizer, longest: int):
        self.tokenizer, self.longest = tokenizer, longest

    def images(self, images: Images) -> Tensor:
        return pixels(listed(images))

    def texts(self, texts: str | Sequence[str]) -> dict[str, Tensor]:
        several = [texts] if isinstance(texts, str) else texts
        for text in several:
            if (length := len(self.tokenizer.encode(text)) + 1) > self.longest:
                shown = reprlib.repr(text)
                raise ValueError(f"{length} tokens, but the model reads {self.longest}: {shown}")
        return {"input_ids": sentences(several, self.tokenizer)}


def open_scorer(folder: Path, dtype: torch.dtype) -> Scorer:
    """The toy's tokenizer has <|end|> and <|pad|>, which no published one has."""
    said = load_json(folder / "tokenizer.json", optional=True).get("added_tokens")
    added = [token.get("content") for token in said or [] if isinstance(token, dict)]
    if not {END, PAD} <= {*added}:
        return published_scorer(folder, dtype)
    model, tokenizer = load_toy(folder, dtype)
    assert isinstance(model, Clip | Siglip)
    return Scorer(model.to(default_device()), OwnPairs(tokenizer, model.text.config.length))


Open = Callable[[Path, torch.dtype], Speaker | Scorer]
OWN: dict[str, Open] = {  # what ``save`` wrote under the key SPEAKER
    "assistant": OwnAssistant,
    "captioner": own_captioner,
    "blip": own_blip,
}
PUBLISHED: dict[str, Open] = {  # model_type of config.json
    **dict.fromkeys(SPEAKING, PublishedSpeaker),
    **dict.fromkeys(SCORING, open_scorer),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), PublishedQwen),
}


def open_checkpoint(folder: str | Path, dtype: torch.dtype = torch.float32) -> Speaker | Scorer:
    """The speaker or scorer that config.json names; dtype: of its weights.

    It lies on the device of MINIVLM_DEVICE. ValueError for a folder that ``from_pretrained`` does
    not read, and for a model without words.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {str(folder)!r}")
    config = read_json(folder / "config.json")
    own, kind = config.get(SPEAKER), config.get("model_type")
    if own is not None and own not in list(OWN):
        said = reprlib.repr(own)
        raise ValueError(f"config.json: {SPEAKER} = {said} is unknown; known: {sorted(OWN)}")
    if kind not in list(PUBLISHED):
        raise ValueError(
            f"a checkpoint of model_type {reprlib.repr(kind)} has no words; "
            f"{', '.join(PUBLISHED)} do"
        )
    return (OWN[own] if own else PUBLISHED[kind])(folder, dtype)
