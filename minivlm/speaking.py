"""Any checkpoint that speaks, with two calls: a caption of an image, and the answer to a question
about it.

The course's own checkpoints, and published LLaVA, BLIP-2 (with OPT) and BLIP (captioning) folders.
config.json says which one a folder holds. A published model is asked in the words of its authors;
its tokenizer.json is read with the tokenizers library.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from minivlm.clip import CLIP_MEAN, CLIP_STD
from minivlm.multimodal import IMAGE
from minivlm.parts.generation import generate
from minivlm.pretrained import from_pretrained
from minivlm.pretrained.checkpoints import read_json
from minivlm.scenes.pixels import pixels
from minivlm.toys.assistant import Assistant
from minivlm.toys.blip import ToyBlip
from minivlm.toys.captioner import Captioner
from minivlm.toys.common import SPEAKER
from minivlm.vit import as_rgb, to_pixels

LONGEST = 40  # tokens of an answer


class Speaker(Protocol):
    @property
    def model(self) -> nn.Module: ...

    def caption(self, image: Image.Image) -> str: ...

    def ask(self, image: Image.Image, question: str) -> str:
        """ValueError from a checkpoint that was never trained on questions."""

    def inputs(self, image: Image.Image, text: str) -> dict[str, Tensor]:
        """What ``model`` takes, and ``model.caption_logits`` of a BLIP: image, ids (1, T), mask.

        text: a question or, where none is answered, how a caption begins.
        """


def never_asked(folder: Path) -> ValueError:
    """The error of a checkpoint that describes."""
    return ValueError(
        f"the checkpoint in {folder} describes pictures and answers no question: "
        "it was never trained on questions"
    )


def prompt(ids: list[int], pixel_values: Tensor) -> dict[str, Tensor]:
    """One row of ids and its image, as a model takes them."""
    row = torch.tensor([ids])
    return {
        "input_ids": row,
        "pixel_values": pixel_values,
        "attention_mask": torch.ones_like(row),
    }


# The course's own


class OwnAssistant:
    def __init__(self, folder: Path, dtype: torch.dtype):
        self.assistant, self.dtype = Assistant.load(folder, dtype), dtype
        self.model = self.assistant.model

    def caption(self, image: Image.Image) -> str:
        return self.ask(image, "describe the picture.")

    def ask(self, image: Image.Image, question: str) -> str:
        seen = pixels([image]).to(self.dtype)
        return self.assistant.answer([self._messages(question)], seen)[0]

    def inputs(self, image: Image.Image, text: str) -> dict[str, Tensor]:
        messages = self._messages(text)
        row = self.assistant.processor.prepare(messages, [image], reply=True)
        del row["labels"]
        return row | {"pixel_values": row["pixel_values"].to(self.dtype)}

    def _messages(self, question: str) -> list[dict]:
        return [{"role": "user", "content": [IMAGE, {"type": "text", "text": question}]}]


class Describer:
    """The toy captioner or the toy BLIP, with what opens a caption: its placeholders or a mark."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, toy: Captioner | ToyBlip, start: list[int]
    ):
        self.folder, self.dtype, self.toy, self.start = folder, dtype, toy, start
        self.model = toy.model

    def caption(self, image: Image.Image) -> str:
        return self.toy.caption([image])[0]

    def ask(self, image: Image.Image, question: str) -> str:
        raise never_asked(self.folder)

    def inputs(self, image: Image.Image, text: str) -> dict[str, Tensor]:
        ids = self.start + self.toy.tokenizer.encode(text)
        return prompt(ids, pixels([image]).to(self.dtype))


def own_captioner(folder: Path, dtype: torch.dtype) -> Describer:
    toy = Captioner.load(folder, dtype)
    return Describer(folder, dtype, toy, toy.prompt())


def own_blip(folder: Path, dtype: torch.dtype) -> Describer:
    toy = ToyBlip.load(folder, dtype)
    return Describer(folder, dtype, toy, [toy.marks.dec])


# Published


class Published:
    """What the published families share: a folder's model, tokenizer and image settings."""

    side, crop, end_key, end = 224, False, "eos_token_id", 2  # where the folder does not say

    def __init__(self, folder: Path, dtype: torch.dtype):
        self.folder, self.dtype = folder, dtype
        self.model = from_pretrained(folder, dtype)
        self.tokenizer = read_tokenizer(folder / "tokenizer.json")
        config, file = read_json(folder / "config.json"), folder / "preprocessor_config.json"
        self.settings = read_json(file) if file.exists() else {}
        self.text = config.get("text_config", {})
        self.side = config.get("vision_config", {}).get("image_size", self.side)

    def pixel_values(self, image: Image.Image) -> Tensor:
        """Made as large as the model sees it, and normalised: (1, 3, H, W)."""
        square, settings = (self.side, self.side), self.settings
        if settings.get("do_center_crop", self.crop):
            image = ImageOps.fit(as_rgb(image), square, Image.Resampling.BICUBIC)
        mean, std = settings.get("image_mean", CLIP_MEAN), settings.get("image_std", CLIP_STD)
        return to_pixels([image], square, mean=mean, std=std).to(self.dtype)

    def refuse_special_tokens(self, text: str) -> None:
        """ValueError for a text that contains one."""
        for added in self.tokenizer.get_added_tokens_decoder().values():
            if added.special and added.content in text:
                raise ValueError(f"the question contains the special token {added.content!r}")

    def say(self, **inputs: Any) -> str:
        """What the model says after a prompt, greedily."""
        end = self.text.get(self.end_key, self.end)
        new = generate(self.model, max_new_tokens=LONGEST, eos_id=end, **inputs)
        return self.tokenizer.decode(new[0].tolist()).strip()


class PublishedLlava(Published):
    crop = True

    def caption(self, image: Image.Image) -> str:
        return self.ask(image, "Describe the image.")

    def ask(self, image: Image.Image, question: str) -> str:
        return self.say(**self.inputs(image, question))

    def inputs(self, image: Image.Image, text: str) -> dict[str, Tensor]:
        ids = self.tokenizer.encode(f"USER: <image>\n{text} ASSISTANT:").ids
        token = self.model.image_token_id
        if ids.count(token) != 1:
            raise ValueError(
                f"a prompt has one place for the image; this one has {ids.count(token)}: {text!r}"
            )
        self.refuse_special_tokens(text)
        at = ids.index(token)
        ids[at : at + 1] = [token] * self.model.image_tokens
        return prompt(ids, self.pixel_values(image))


class PublishedBlip2(Published):
    def caption(self, image: Image.Image) -> str:
        return self.say(**self._after_queries(image, self.tokenizer.encode("").ids))

    def ask(self, image: Image.Image, question: str) -> str:
        return self.say(**self.inputs(image, question))

    def inputs(self, image: Image.Image, text: str) -> dict[str, Tensor]:
        self.refuse_special_tokens(text)
        return self._after_queries(image, self.tokenizer.encode(f"Question: {text} Answer:").ids)

    def _after_queries(self, image: Image.Image, ids: list[int]) -> dict[str, Tensor]:
        queries = [self.model.image_token_id] * self.model.qformer.config.queries
        return prompt(queries + ids, self.pixel_values(image))


class PublishedBlip(Published):
    side, end_key, end = 384, "sep_token_id", 102

    @torch.no_grad()
    def caption(self, image: Image.Image) -> str:
        given = self.inputs(image, "")
        states = self.model.vision(given["pixel_values"])  # its decoder looks there at every step
        return self.say(input_ids=given["input_ids"], image=states, use_cache=False)

    def ask(self, image: Image.Image, question: str) -> str:
        raise never_asked(self.folder)

    def inputs(self, image: Image.Image, text: str) -> dict[str, Tensor]:
        self.refuse_special_tokens(text)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return prompt([self.text.get("bos_token_id", 30522), *ids], self.pixel_values(image))


def read_tokenizer(path: Path) -> Any:
    """A published tokenizer.json -> tokenizers.Tokenizer.

    ValueError for a file that is none, and where the library is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError(
            "a published tokenizer.json is read with tokenizers: pip install tokenizers"
        ) from None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own for it
        raise ValueError(f"{path} is no tokenizer that can be read: {error}") from None


Open = Callable[[Path, torch.dtype], Speaker]
OWN: dict[str, Open] = {  # what ``save`` wrote under the key SPEAKER
    "assistant": OwnAssistant,
    "captioner": own_captioner,
    "blip": own_blip,
}
PUBLISHED: dict[str, Open] = {  # model_type of config.json
    "llava": PublishedLlava,
    "blip": PublishedBlip,
    "blip-2": PublishedBlip2,
}


def open_checkpoint(folder: str | Path, dtype: torch.dtype = torch.float32) -> Speaker:
    """The speaker that config.json names; dtype: of its weights.

    ValueError for a folder that ``from_pretrained`` does not read, and for a model that writes no
    text.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {str(folder)!r}")
    config = read_json(folder / "config.json")
    own, kind = config.get(SPEAKER), config.get("model_type")
    if own is not None and own not in OWN:
        raise ValueError(f"config.json: {SPEAKER} = {own!r} is unknown; known: {sorted(OWN)}")
    if kind not in PUBLISHED:
        raise ValueError(
            f"a checkpoint of model_type {kind!r} writes no text; {', '.join(PUBLISHED)} do"
        )
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json")
    return (OWN[own] if own else PUBLISHED[kind])(folder, dtype)
