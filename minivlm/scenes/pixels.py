"""Scenes as numbers: images -> the pixel_values that the small models take, and how training varies
them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from minivlm.scenes.drawing import BACKGROUND
from minivlm.vit import as_rgb, to_pixels

IMAGE_SIZE = 64  # pixels a side
MEAN, STD = (
    tuple(value / 255 for value in BACKGROUND),
    (0.125, 0.125, 0.125),
)  # the empty image is zero


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """PIL images of any mode and size -> (B, 3, 64, 64); wide and tall ones are padded to a square."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    square = [
        image
        if image.size == size
        else ImageOps.pad(image, size, Image.Resampling.BICUBIC, BACKGROUND)
        for image in map(as_rgb, images)
    ]
    return to_pixels(square, mean=MEAN, std=STD)


def vary_channels(pixel_values: Tensor, erased: float = 0.2) -> Tensor:
    """Images (B, 3, H, W) with each colour channel up to 20 % stronger or weaker, and one in five
    without one channel.

    Zero is the background, so a channel without contrast is zero. Why: circles and squares are both
    shown in red, blue and purple, which differ from the paper by 118 to 226 of 255 in green. A
    reader of shapes may rest on that channel alone, and yellow, of which no square is shown,
    differs by 64 there. With channels missing, each must do.
    """
    contrast = 1 + 0.2 * (2 * torch.rand(len(pixel_values), 3) - 1)
    missing = F.one_hot(torch.randint(3, (len(pixel_values),)), 3) * (
        torch.rand(len(pixel_values), 1) < erased
    )
    return pixel_values * (contrast * (1 - missing))[..., None, None].to(pixel_values)
