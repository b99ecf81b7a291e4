"""Images as published: from PIL images to the numbers that a CLIP, SigLIP, BLIP or LLaVA takes.

A folder says in processor_config.json or, an older one, in preprocessor_config.json which steps its
image processor takes, in this order: pad to a square, resize, crop the middle, rescale, normalise.
The steps are those of transformers with Pillow, to the last bit.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minivlm.clip import CLIP_MEAN, CLIP_STD
from minivlm.pretrained.checkpoints import read_json
from minivlm.pretrained.config import FLAG, Number, Section
from minivlm.vit import as_rgb

Images = Image.Image | Sequence[Image.Image]  # one or, where a family allows it, several

MOST_PIXELS = 2**24  # of an image that is made for a model
FACTOR = Number(1e-9, 1e9, whole=False)  # from bytes to what is normalised
FILTER = Number(0, 5)  # as Pillow counts them
HALF = (0.5, 0.5, 0.5)

# Kind of image processor -> what it does where a folder does not say.
CROPPED = {"do_center_crop": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
WHOLE = {"do_center_crop": False, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
IMAGE_KINDS: dict[str, dict[str, Any]] = {
    "CLIP": CROPPED,
    "Llava": CROPPED,
    "Blip": WHOLE,
    "Siglip": WHOLE | {"image_mean": HALF, "image_std": HALF},
}
ENDINGS = re.compile(r"(FeatureExtractor|ImageProcessor(Fast|Pil)?)$")  # of their class names


def listed(images: Images) -> list[Image.Image]:
    """One image or several, as a list; ValueError for none, and for what is no PIL image."""
    several: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    for image in several:
        if not isinstance(image, Image.Image):
            raise ValueError(f"not a PIL image: {image!r:.200}")
    if not several:
        raise ValueError("no image given")
    return several


def read_image_settings(folder: str | Path) -> Section:
    """What a folder says of its images, without what is null.

    In processor_config.json, under "image_processor", or in preprocessor_config.json. A folder
    without either says nothing. ValueError for a broken file.
    """
    new, old = (Path(folder) / f"{name}_config.json" for name in ("processor", "preprocessor"))
    settings = read_json(new).get("image_processor") if new.is_file() else None
    if settings is None:
        settings = read_json(old) if old.is_file() else {}
    if not isinstance(settings, dict):
        raise ValueError(f"{new}: image_processor must be an object, not {settings!r:.200}")
    return Section({key: value for key, value in settings.items() if value is not None})


class ImageProcessor:
    """What prepares the images of a folder.

    kind: of IMAGE_KINDS, where the folder names none. side: the (height, width) that the model is
    for, which is the size where the folder says none. ValueError for settings that cannot be.
    """

    def __init__(self, folder: str | Path, kind: str, side: tuple[int, int]):
        said = read_image_settings(folder)
        self.side, self.kind = side, image_kind(said, kind)
        self.settings = said.over(IMAGE_KINDS[self.kind])
        self.square = self.flag("do_pad", False)
        if self.square and self.kind != "Llava":  # others fill a batch of several sizes
            self.square = False
            if "pad_size" in said:
                raise ValueError(f"pad_size = {said['pad_size']!r} is not supported")
        self.filter = said.get("resample", int(Image.Resampling.BICUBIC))
        if self.filter not in FILTER:
            raise ValueError(f"resample = {self.filter!r} must be {FILTER}")
        self.factor = said.get("rescale_factor", 1 / 255)
        if self.factor not in FACTOR:
            raise ValueError(f"rescale_factor = {self.factor!r} must be {FACTOR}")
        self.mean, self.std = self._channels("image_mean"), self._channels("image_std")
        if 0 in self.std:
            raise ValueError(f"image_std = {self.settings['image_std']!r} divides by 0")
        self.crop = None
        if self.flag("do_center_crop"):
            size = self.settings.get("crop_size", {"height": side[0], "width": side[1]})
            self.crop = width_and_height("crop_size", size)
        self.resize = self.flag("do_resize", True)
        self.resized((1, 1))

    def __call__(self, images: Images) -> Tensor:
        """One PIL image or several, of any mode -> pixel_values (B, 3, H, W), float32.

        A camera's EXIF turn is undone, and transparency is laid on white: ``as_rgb``.
        """
        rows = [self._normalised(self._sized(as_rgb(image))) for image in listed(images)]
        sizes = sorted({tuple(row.shape[1:]) for row in rows})
        if len(sizes) > 1:
            raise ValueError(f"images of one batch need one size (height, width), got {sizes}")
        return torch.stack(rows)

    def _sized(self, image: Image.Image) -> Image.Image:
        if self.square:
            image = pad_to_square(image, [int(value * 255) for value in self.mean])
        if self.resize:
            image = image.resize(allowed_size(self.resized(image.size)), self.filter)
        return crop_middle(image, self.crop) if self.crop else image

    def _normalised(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if self.flag("do_rescale", True):
            pixels = pixels.double() * self.factor
        pixels = pixels.float()
        if not self.flag("do_normalize", True):
            return pixels
        mean, std = (torch.tensor(three)[:, None, None] for three in (self.mean, self.std))
        return (pixels - mean) / std

    def resized(self, old: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after the resize; old: before it."""
        said = self.settings.get("size")
        if said is None and self.kind not in ("CLIP", "Llava"):
            return self.side[1], self.side[0]
        said = self.side[0] if said is None else said
        if type(said) is int and self.kind != "Blip":  # whose size of one number is of both sides
            said = {"shortest_edge": said}
        if not isinstance(said, dict) or "shortest_edge" not in said:
            return width_and_height("size", said)
        if said.get("longest_edge"):
            raise ValueError(f"size = {said!r} with a longest_edge is not supported")
        short, _ = width_and_height("size", said["shortest_edge"])
        long = int(short * max(old) / min(old))
        return (short, long) if old[0] <= old[1] else (long, short)

    def flag(self, key: str, default: bool = False) -> bool:
        """A setting that is true or false."""
        value = self.settings.get(key, default)
        if value not in FLAG:
            raise ValueError(f"{key} = {value!r} must be {FLAG}")
        return value

    def _channels(self, key: str) -> list[float]:
        """A number for each channel."""
        values = self.settings[key]
        three = [values] * 3 if isinstance(values, int | float) else values
        numbers = Number(-1e9, 1e9, whole=False)
        if not isinstance(three, list | tuple) or len(three) != 3:
            raise ValueError(f"{key}: not a number for each of three channels: {values!r}")
        if any(value not in numbers for value in three):
            raise ValueError(f"{key}: not a number for each of three channels: {values!r}")
        return [float(value) for value in three]


def image_kind(settings: Section, default: str) -> str:
    """The kind of image processor that a folder names; ValueError for one that is unknown."""
    name = settings.get("image_processor_type", settings.get("feature_extractor_type", default))
    kind = ENDINGS.sub("", name) if isinstance(name, str) else name
    if kind not in list(IMAGE_KINDS):
        raise ValueError(f"image processor {name!r:.200} is unknown; known: {[*IMAGE_KINDS]}")
    return kind


def vision_side(vision: Section, default: int) -> tuple[int, int]:
    """(height, width) of the images that a vision_config is for."""
    side: Any = vision.get("image_size", default)
    height, width = side if isinstance(side, list | tuple) and len(side) == 2 else (side, side)
    return height, width


def width_and_height(key: str, said: Any) -> tuple[int, int]:
    """A size of the settings, a number or an object; ValueError for what is none."""
    given = said if isinstance(said, dict) else {"width": said, "height": said}
    sides: list[Any] = [given.get("width"), given.get("height")]
    if not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{key} = {said!r} is no size of an image")
    return sides[0], sides[1]


def pad_to_square(image: Image.Image, color: Sequence[int]) -> Image.Image:
    """The image in the middle of a square of one colour."""
    side = max(image.size)
    square = Image.new("RGB", allowed_size((side, side)), tuple(color))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def crop_middle(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle, ``size`` (width, height) large; black where the image is smaller."""
    width, height = allowed_size(size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def allowed_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size of an image; ValueError for more pixels than any model is shown."""
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"an image would have {size[0]} x {size[1]} pixels, too many to be read")
    return size
