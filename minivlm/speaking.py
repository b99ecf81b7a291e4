"""Any checkpoint that speaks, behind two calls: a caption of a picture, and the answer to a
question about it.

The course's own checkpoints, and published LLaVA, BLIP-2 (with OPT) and BLIP (captioning) folders.
A published one is asked in the words of its authors, its tokenizer.json is read with the tokenizers
library.
"""

from pathlib import Path
from typing import Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor

from minivlm.bpe import BPETokenizer
from minivlm.clip import CLIP_MEAN, CLIP_STD
from minivlm.multimodal import CONTROL, IMAGE
from minivlm.parts.generation import generate
from minivlm.pretrained import from_pretrained
from minivlm.pretrained.checkpoints import read_json
from minivlm.scenes.pixels import pixels
from minivlm.toys import captioner, common
from minivlm.toys.assistant import Assistant
from minivlm.toys.blip import ToyBlip
from minivlm.toys.captioner import Captioner
from minivlm.vit import as_rgb, to_pixels

TEMPLATES = {"llava": "USER: <image>\n{} ASSISTANT:", "blip-2": "Question: {} Answer:"}
LONGEST = 40  # tokens of an answer


class Speaker(Protocol):
    def caption(self, image: Image.Image) -> str: ...

    def ask(self, image: Image.Image, question: str) -> str:
        """ValueError from a checkpoint that was trained to describe only."""


class OwnAssistant:
    def __init__(self, folder: Path):
        self.assistant = Assistant.load(folder)

    def caption(self, image: Image.Image) -> str:
        return self.ask(image, "describe the picture.")

    def ask(self, image: Image.Image, question: str) -> str:
        messages = [{"role": "user", "content": [IMAGE, {"type": "text", "text": question}]}]
        return self.assistant.answer([messages], pixels([image]))[0]


class Describer:
    """The toy captioner, or the toy BLIP."""

    def __init__(self, folder: Path, kind: type[Captioner] | type[ToyBlip]):
        self.model, self.folder = kind.load(folder), folder

    def caption(self, image: Image.Image) -> str:
        if isinstance(self.model, Captioner):
            return self.model.caption([image])[0]
        return self.model.captions(pixels([image]))[0]

    def ask(self, image: Image.Image, question: str) -> str:
        raise ValueError(
            f"the checkpoint in {self.folder} describes pictures, it was never trained on questions"
        )


class Published:
    def __init__(self, folder: Path, config: dict):
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ValueError(
                "a published tokenizer.json is read with tokenizers: pip install tokenizers"
            ) from None
        self.model, self.kind, self.folder = from_pretrained(folder), config["model_type"], folder
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library has no class of its own for it
            raise ValueError(
                f"{folder / 'tokenizer.json'} is no tokenizer that can be read: {error}"
            ) from None
        file, text = folder / "preprocessor_config.json", config.get("text_config", {})
        self.image, self.text = read_json(file) if file.exists() else {}, text
        self.side = config.get("vision_config", {}).get(
            "image_size", {"blip": 384}.get(self.kind, 224)
        )

    def caption(self, image: Image.Image) -> str:
        if self.kind == "llava":
            return self.ask(image, "Describe the image.")
        if self.kind == "blip-2":
            return self._say([*self._queries(), *self.tokenizer.encode("").ids], image)
        return self._say([self.text.get("bos_token_id", 30522)], image)

    def ask(self, image: Image.Image, question: str) -> str:
        if self.kind not in TEMPLATES:
            raise ValueError(
                f"the checkpoint in {self.folder} describes pictures, it answers no question"
            )
        ids, token = (
            self.tokenizer.encode(TEMPLATES[self.kind].format(question)).ids,
            self.model.image_token_id,
        )
        if self.kind == "llava" and ids.count(token) != 1:
            raise ValueError(
                f"a prompt has one place for the image; this one has {ids.count(token)}: {question!r}"
            )
        for added in self.tokenizer.get_added_tokens_decoder().values():
            if added.special and added.content in question:
                raise ValueError(f"the question contains the special token {added.content!r}")
        if self.kind == "blip-2":
            return self._say([*self._queries(), *ids], image)
        at = ids.index(token)
        return self._say(ids[:at] + [token] * self.model.image_tokens + ids[at + 1 :], image)

    def _queries(self) -> list[int]:
        return [self.model.image_token_id] * self.model.qformer.config.queries

    @torch.no_grad()
    def _say(self, ids: list[int], image: Image.Image) -> str:
        prompt, seen = torch.tensor([ids]), self._pixels(image)
        if self.kind == "blip":  # its decoder takes the image states at every step
            end, inputs = (
                self.text.get("sep_token_id", 102),
                {"image": self.model.vision(seen), "use_cache": False},
            )
        else:
            end, inputs = self.text.get("eos_token_id", 2), {"pixel_values": seen}
        new = generate(self.model, prompt, LONGEST, eos_id=end, **inputs)
        return self.tokenizer.decode(new[0].tolist()).strip()

    def _pixels(self, image: Image.Image) -> Tensor:
        square = (self.side, self.side)
        if self.image.get("do_center_crop", self.kind == "llava"):
            image = ImageOps.fit(as_rgb(image), square, Image.Resampling.BICUBIC)
        mean, std = self.image.get("image_mean", CLIP_MEAN), self.image.get("image_std", CLIP_STD)
        return to_pixels([image], square, mean=mean, std=std)


def open_checkpoint(folder: str | Path) -> Speaker:
    """ValueError for a folder that ``from_pretrained`` does not read, and for a model that writes
    no text.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {str(folder)!r}")
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("llava", "blip", "blip-2"):
        raise ValueError(
            f"a checkpoint of model_type {kind!r} writes no text; llava, blip and blip-2 do"
        )
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json")
    try:
        special = BPETokenizer.load(folder / "tokenizer.json").special_tokens
    except ValueError:  # not of the kind that this course trains
        return Published(folder, config)
    if {*CONTROL} <= {*special}:
        return OwnAssistant(folder)
    for own, marks in ((Captioner, captioner.SPECIAL), (ToyBlip, common.BERT_MARKS)):
        if {*marks} == {*special}:
            return Describer(folder, own)
    return Published(folder, config)
