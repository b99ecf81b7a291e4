"""Any checkpoint that speaks, with two calls: a caption of an image, and the answer to a question
about it.

The course's own checkpoints, and published LLaVA, BLIP-2 (with OPT) and BLIP (captioning) folders.
config.json says which one a folder holds. A published model is asked in the words of its authors;
its tokenizer.json is read with the tokenizers library.
"""

import reprlib
from collections.abc import Callable, Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from minivlm.clip import CLIP_MEAN, CLIP_STD
from minivlm.multimodal import IMAGE
from minivlm.parts.generation import generate
from minivlm.pretrained import from_pretrained
from minivlm.pretrained.checkpoints import read_json
from minivlm.pretrained.config import TOKEN, Number, Several, read_setting, refuse, section
from minivlm.pretrained.qwen_processor import PublishedQwen
from minivlm.scenes.pixels import pixels
from minivlm.toys.assistant import Assistant
from minivlm.toys.blip import ToyBlip
from minivlm.toys.captioner import Captioner
from minivlm.toys.common import SPEAKER
from minivlm.vit import as_rgb, to_pixels

Said = Sequence[tuple[str, str]]  # the questions of a conversation so far, and what was answered

LONGEST = 40  # tokens of an answer
MOST_PIXELS = 2**24  # of an image that is made for a model
FACTOR = Number(1e-9, 1e9, whole=False)  # from bytes to what is normalised


class Speaker(Protocol):
    @property
    def model(self) -> nn.Module: ...

    def caption(self, image: Image.Image) -> str: ...

    def ask(self, image: Image.Image, question: str, before: Said = ()) -> str:
        """The answer to a question that follows others about the same image.

        ValueError from a checkpoint that was never trained on questions.
        """

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


def check_length(ids: Tensor, folder: Path) -> Tensor:
    """The prompt (1, T) of a LLaVA; ValueError if its language model is not made for so many."""
    text = section(read_json(folder / "config.json"), "text_config")
    longest = read_setting(text, "max_position_embeddings", 2048)  # as transformers' LlamaConfig
    if ids.shape[1] > longest:
        raise ValueError(f"a prompt of {ids.shape[1]} tokens, but the model reads {longest}")
    return ids


# The course's own


class OwnAssistant:
    def __init__(self, folder: Path, dtype: torch.dtype):
        self.assistant, self.dtype, self.folder = Assistant.load(folder, dtype), dtype, folder
        self.model = self.assistant.model

    def caption(self, image: Image.Image) -> str:
        return self.ask(image, "describe the picture.")

    def ask(self, image: Image.Image, question: str, before: Said = ()) -> str:
        seen = self.inputs(image, question, before)["pixel_values"]
        return self.assistant.answer([self._messages(question, before)], seen)[0]

    def inputs(self, image: Image.Image, text: str, before: Said = ()) -> dict[str, Tensor]:
        messages = self._messages(text, before)
        row = self.assistant.processor.prepare(messages, [image], reply=True)
        del row["labels"]
        check_length(row["input_ids"], self.folder)
        return row | {"pixel_values": row["pixel_values"].to(self.dtype)}

    def _messages(self, question: str, before: Said) -> list[dict]:
        """The image in the first turn, and the conversation so far before the question."""
        texts = [*chain.from_iterable(before), question]
        messages: list[dict] = [
            {"role": role, "content": text}
            for role, text in zip(cycle(("user", "assistant")), texts, strict=False)
        ]
        messages[0]["content"] = [IMAGE, {"type": "text", "text": texts[0]}]
        return messages


class Describer:
    """The toy captioner or the toy BLIP, with what opens a caption: its placeholders or a mark."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, toy: Captioner | ToyBlip, start: list[int]
    ):
        self.folder, self.dtype, self.toy, self.start = folder, dtype, toy, start
        self.model = toy.model

    def caption(self, image: Image.Image) -> str:
        return self.toy.caption([image])[0]

    def ask(self, image: Image.Image, question: str, before: Said = ()) -> str:
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
        config = read_json(folder / "config.json")
        self.text = section(config, "text_config")
        side: Any = section(config, "vision_config").get("image_size", self.side)
        if isinstance(side, list) and len(side) == 2:
            side = {"height": side[0], "width": side[1]}
        self.side = side
        self.settings = read_image_settings(folder)

    def pixel_values(self, image: Image.Image) -> Tensor:
        """As the folder's image processor makes them: resized, cropped, normalised (1, 3, H, W)."""
        settings, image = self.settings, as_rgb(image)
        if settings.get("do_pad") and settings.get("image_processor_type") in PADDING:
            image = _pad_to_square(image, self._mean())
        if settings.get("do_resize", True):
            size = self._resized(image.size)
            image = image.resize(_within(size), settings.get("resample", Image.Resampling.BICUBIC))
        if settings.get("do_center_crop", self.crop):
            size = _width_and_height("crop_size", settings.get("crop_size", self.side))
            image = _crop_middle(image, size)
        mean, std = self._normalisation()
        return to_pixels([image], mean=mean, std=std).to(self.dtype)

    def _normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and std as ``to_pixels`` takes them, which makes (bytes / 255 - mean) / std.

        Published settings make (bytes * factor - mean) / std, and may leave out either step.
        """
        mean, std = self._mean(), _three(self.settings.get("image_std", CLIP_STD))
        if not self.settings.get("do_normalize", True):
            mean, std = [0.0] * 3, [1.0] * 3
        factor = self.settings.get("rescale_factor", 1 / 255)
        if factor not in FACTOR:
            raise ValueError(f"rescale_factor = {factor!r} must be {FACTOR}")
        scale = 255 * factor if self.settings.get("do_rescale", True) else 255
        return [value / scale for value in mean], [value / scale for value in std]

    def _mean(self) -> list[float]:
        return _three(self.settings.get("image_mean", CLIP_MEAN))

    def _resized(self, old: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after the resize; old: before it."""
        said = self.settings.get("size", self.side)
        if isinstance(said, int) and self.crop:  # of a family that crops, the shorter side
            said = {"shortest_edge": said}
        if not isinstance(said, dict) or "shortest_edge" not in said:
            return _width_and_height("size", said)
        short, _ = _width_and_height("size", said["shortest_edge"])
        long = int(short * max(old) / min(old))
        return (short, long) if old[0] <= old[1] else (long, short)

    def refuse_special_tokens(self, text: str) -> None:
        """ValueError for a text that contains one."""
        for added in self.tokenizer.get_added_tokens_decoder().values():
            if added.special and added.content in text:
                raise ValueError(f"the question contains the special token {added.content!r}")

    def token(self, key: str, default: int) -> Any:
        """An id of text_config, or several; null is none."""
        value = self.text.get(key, default)
        if value is not None and value not in TOKEN and value not in Several(TOKEN):
            raise refuse(self.text, key, TOKEN)
        return value

    def say(self, **inputs: Any) -> str:
        """What the model says after a prompt, greedily."""
        end = self.token(self.end_key, self.end)
        new = generate(self.model, max_new_tokens=LONGEST, eos_id=end, **inputs)
        return self.tokenizer.decode(new[0].tolist()).strip()


class PublishedLlava(Published):
    crop = True

    def caption(self, image: Image.Image) -> str:
        return self.ask(image, "Describe the image.")

    def ask(self, image: Image.Image, question: str, before: Said = ()) -> str:
        return self.say(**self.inputs(image, question, before))

    def inputs(self, image: Image.Image, text: str, before: Said = ()) -> dict[str, Tensor]:
        turns = [f"{question} ASSISTANT: {answer}</s>" for question, answer in before]
        turns.append(f"{text} ASSISTANT:")
        ids = self.tokenizer.encode("USER: <image>\n" + "USER: ".join(turns)).ids
        token = self.model.image_token_id
        if ids.count(token) != 1:
            raise ValueError(
                f"a prompt has one place for the image; this one has {ids.count(token)}: {text!r}"
            )
        self.refuse_special_tokens(text)
        at = ids.index(token)
        ids[at : at + 1] = [token] * self.model.image_tokens
        check_length(torch.tensor([ids]), self.folder)
        return prompt(ids, self.pixel_values(image))


class PublishedBlip2(Published):
    def caption(self, image: Image.Image) -> str:
        return self.say(**self._after_queries(image, self.tokenizer.encode("").ids))

    def ask(self, image: Image.Image, question: str, before: Said = ()) -> str:
        return self.say(**self.inputs(image, question, before))

    def inputs(self, image: Image.Image, text: str, before: Said = ()) -> dict[str, Tensor]:
        self.refuse_special_tokens(text)
        turns = [f"Question: {question} Answer: {answer}. " for question, answer in before]
        said = "".join(turns) + f"Question: {text} Answer:"
        return self._after_queries(image, self.tokenizer.encode(said).ids)

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

    def ask(self, image: Image.Image, question: str, before: Said = ()) -> str:
        raise never_asked(self.folder)

    def inputs(self, image: Image.Image, text: str) -> dict[str, Tensor]:
        self.refuse_special_tokens(text)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        start = self.token("bos_token_id", 30522)
        return prompt([30522 if start is None else start, *ids], self.pixel_values(image))


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


PADDING = ("LlavaImageProcessor", "LlavaImageProcessorFast")  # others pad to the batch's largest


def read_image_settings(folder: Path) -> dict[str, Any]:
    """What the folder says of its images: in processor_config.json, under "image_processor" or, in
    older folders, in preprocessor_config.json.
    """
    new, old = folder / "processor_config.json", folder / "preprocessor_config.json"
    settings = read_json(new).get("image_processor") if new.exists() else None
    if settings is None:
        settings = read_json(old) if old.exists() else {}
    if not isinstance(settings, dict):
        raise ValueError(f"{new}: image_processor must be an object, not {settings!r}")
    return {key: value for key, value in settings.items() if value is not None}


def _three(values: float | Sequence[float]) -> list[float]:
    """A number for each channel; ValueError for what is none."""
    three = [values] * 3 if isinstance(values, int | float) else values
    if len(three) != 3 or any(value not in Number(-1e9, 1e9, whole=False) for value in three):
        raise ValueError(f"not a number for each of three channels: {values!r}")
    return [float(value) for value in three]


def _width_and_height(key: str, said: Any) -> tuple[int, int]:
    """A size of the settings, a number or an object; ValueError for what is none."""
    given = said if isinstance(said, dict) else {"width": said, "height": said}
    sides: list[Any] = [given.get("width"), given.get("height")]
    if not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{key} = {said!r} is no size of an image")
    return sides[0], sides[1]


def _pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The image in the middle of a square of the mean's colour."""
    side = max(image.size)
    square = Image.new("RGB", _within((side, side)), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _crop_middle(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle, ``size`` (width, height) large; black where the image is smaller."""
    width, height = _within(size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _within(size: tuple[int, int]) -> tuple[int, int]:
    """The size of an image; ValueError for more pixels than any model is shown."""
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"an image would have {size[0]} x {size[1]} pixels, too many to be read")
    return size


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
    "qwen2_vl": PublishedQwen,
    "qwen2_5_vl": PublishedQwen,
    "qwen3_vl": PublishedQwen,
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
    if own is not None and own not in list(OWN):
        said = reprlib.repr(own)
        raise ValueError(f"config.json: {SPEAKER} = {said} is unknown; known: {sorted(OWN)}")
    if kind not in list(PUBLISHED):
        raise ValueError(
            f"a checkpoint of model_type {reprlib.repr(kind)} writes no text; "
            f"{', '.join(PUBLISHED)} do"
        )
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json")
    return (OWN[own] if own else PUBLISHED[kind])(folder, dtype)
