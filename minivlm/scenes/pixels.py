"""Images of scenes -> the pixel_values of the small models, and how training varies them.

A file says the same scene in many ways: on white paper or grey, sharp or blurred, in millions of
colours or dithered from a few. A model that has seen one of them reads only that one: trained on
paper of exactly 242, the captioner says hardly anything true of white paper
(experiments/08_stored_images.py).
"""

import io
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from minivlm.scenes.drawing import BACKGROUND
from minivlm.vit import as_rgb, to_pixels

IMAGE_SIZE = 64  # pixels a side
MEAN = tuple(value / 255 for value in BACKGROUND)  # so the empty image is zero
STD = (0.125, 0.125, 0.125)


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """PIL images of any mode and size -> (B, 3, 64, 64), padded to a square if wide or tall.

    Paper fills the square, and lies under what is transparent.
    """
    shown = [_square(as_rgb(image, BACKGROUND)) for image in images]
    return to_pixels(shown, mean=MEAN, std=STD)


def _square(image: Image.Image) -> Image.Image:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if image.size == size:
        return image
    return ImageOps.pad(image, size, Image.Resampling.BICUBIC, BACKGROUND)


def on_paper(image: Image.Image, grey: int) -> Image.Image:
    """The drawing of a scene on paper of another grey, 0 to 255."""
    drawn = np.asarray(image).copy()
    drawn[(drawn == BACKGROUND).all(axis=-1)] = grey
    return Image.fromarray(drawn)


def as_jpeg(image: Image.Image, quality: int = 25) -> Image.Image:
    """Through a JPEG and back."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def in_web_colours(image: Image.Image) -> Image.Image:
    """Dithered from the 216 colours of the web."""
    return image.convert("P", palette=Image.Palette.WEB).convert("RGB")


def enlarged(image: Image.Image) -> Image.Image:
    """With 256 pixels a side, as a smooth resize makes it."""
    return image.resize((256, 256), Image.Resampling.BICUBIC)


# How the drawing of a scene may come: on the course's paper or others, compressed, in few colours.
FORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as drawn": lambda image: image,
    "white paper": partial(on_paper, grey=255),
    "paper of 200": partial(on_paper, grey=200),
    "JPEG, quality 25": as_jpeg,
    "web colours": in_web_colours,
    "four times as large": enlarged,
}


def vary_channels(pixel_values: Tensor, erased: float = 0.2) -> Tensor:
    """Images (B, 3, H, W) with each channel up to 20 % stronger or weaker, and some without one.

    ``erased`` is the share of images that lose a channel. Zero is the background, so a channel
    without contrast is zero.

    Why: circles and squares are both shown in red, blue and purple, which differ from the
    background by 118 to 226 of 255 in the green channel. A model that reads shapes may rely on that
    channel alone, and yellow, of which no square is shown, differs by 64 there. With channels
    missing, each of them must do.
    """
    batch = len(pixel_values)
    contrast = 1 + 0.2 * (2 * torch.rand(batch, 3) - 1)
    channel = F.one_hot(torch.randint(3, (batch,)), 3)
    missing = channel * (torch.rand(batch, 1) < erased)
    return pixel_values * (contrast * (1 - missing))[..., None, None].to(pixel_values)


# Steps between the levels of a stored channel, and the shares of the images that have so many: 5
# are the palette of the web, 255 leave the noise of rounding.
STEPS, SHARES = torch.tensor([5.0, 17.0, 51.0, 255.0]), torch.tensor([0.15, 0.15, 0.35, 0.35])


def augment(pixel_values: Tensor, erased: float = 0.2, *, spare_black: bool = True) -> Tensor:
    """Images (B, 3, H, W) as they might have been drawn and stored otherwise: the same scenes.

    Each channel is up to 20 % stronger or weaker, three in four papers are another light grey or
    white, a share ``erased`` loses a channel (``lose_channel``), half of the images are a little
    blurred, and all are dithered, three in ten from few colours.
    """
    batch, device = len(pixel_values), pixel_values.device
    covered = (pixel_values.abs().amax(dim=1, keepdim=True) / 0.8).clamp(max=1)  # 0 on the paper
    contrast = 1 + 0.2 * (2 * torch.rand(batch, 3, 1, 1, device=device) - 1)
    varied = pixel_values * contrast + paper(batch, device) * (1 - covered)
    varied = varied * lose_channel(pixel_values, erased, spare_black)
    soft = torch.rand(batch, device=device) < 0.5
    varied[soft] = blur(varied[soft])
    return dither(varied)


def paper(batch: int, device: torch.device) -> Tensor:
    """What other papers add to the course's: (B, 3, 1, 1), for a quarter nothing.

    Grey of 185 to 255, slightly tinted.
    """
    grey = torch.randint(185, 256, (batch, 1), device=device)
    tinted = (grey + 4 * torch.randn(batch, 3, device=device)).clamp(max=255) / 255
    other = torch.rand(batch, 1, device=device) < 0.75
    added = (tinted - torch.tensor(MEAN, device=device)) / torch.tensor(STD, device=device)
    return (added * other)[..., None, None]


def lose_channel(pixel_values: Tensor, erased: float, spare_black: bool = True) -> Tensor:
    """Factors (B, 3, 1, 1): 0 for the channel that an image loses, else 1.

    Why: circles and squares are both shown in red, blue and purple, which differ from the
    background by 118 to 226 of 255 in the green channel. A model that reads shapes may rely on that
    channel alone, and yellow, of which no square is shown, differs by 64 there. With channels
    missing, each of them must do. Images with black are spared: without its red channel a black
    thing looks red, and the caption would still say "black".
    """
    batch, device = len(pixel_values), pixel_values.device
    losing = torch.rand(batch, device=device) < erased
    if spare_black:
        losing &= ~(pixel_values < -3).all(dim=1).flatten(1).any(dim=1)
    channel = F.one_hot(torch.randint(3, (batch,), device=device), 3)
    return (1 - channel * losing[:, None]).to(pixel_values)[..., None, None]


def blur(pixel_values: Tensor) -> Tensor:
    """Each image mixed with the mean of 3 x 3 pixels, which makes up to 80 % of it."""
    x = F.pad(pixel_values, (1, 1, 1, 1), mode="replicate")
    x = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]  # faster than a pooling
    around = (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / 9
    share = 0.8 * torch.rand(len(pixel_values), 1, 1, 1, device=pixel_values.device)
    return pixel_values.lerp(around, share)


def dither(pixel_values: Tensor) -> Tensor:
    """Each image with few or many levels, rounded up or down at random: the mean stays."""
    chosen = torch.multinomial(SHARES, len(pixel_values), replacement=True)
    steps = STEPS[chosen].to(pixel_values)[:, None, None, None]
    mean, std = (torch.tensor(x).to(pixel_values)[:, None, None] for x in (MEAN, STD))
    light = (pixel_values * std).add_(mean).mul_(steps)
    return light.add_(torch.rand_like(light)).floor_().div_(steps).sub_(mean).div_(std)
