"""Images of scenes -> the pixel_values of the small models, and how training varies them."""

from collections.abc import Sequence

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
