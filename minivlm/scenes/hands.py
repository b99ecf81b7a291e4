"""Scenes as other people draw them: the same objects in other shades, with other edges.

Everyone's red is another red: a paint program offers (237, 28, 36) or (255, 0, 0), the course draws
(200, 16, 46). A model that has seen one shade of each colour calls the others by the name of what
they happen to be near to.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
from PIL import Image

from minivlm.scenes.drawing import BACKGROUND, stencil
from minivlm.scenes.grammar import Object
from minivlm.scenes.scene import Scene

# colour -> ranges of hue in degrees, saturation and value that bear its name
SHADES = {
    "red": ((-12, 10), (0.75, 1.0), (0.55, 1.0)),
    "yellow": ((44, 61), (0.75, 1.0), (0.85, 1.0)),
    "green": ((90, 165), (0.6, 1.0), (0.45, 1.0)),
    "blue": ((196, 245), (0.65, 1.0), (0.45, 1.0)),
    "purple": ((270, 312), (0.4, 1.0), (0.5, 1.0)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.22)),
}
FINE = 4  # an uneven edge is drawn at this many times its size
ROOMY = 13  # pixels a side: in a smaller shape a dark outline leaves nothing of the colour
OUTLINED, HOLLOW = 0.2, 0.15  # shares of the images
UNEVEN, HARD = 0.5, 0.3  # shares of the objects
SHIFT = 5  # pixels; with the 2 of the course's own, less than half a cell


def redrawn(scenes: Sequence[Scene], seed: int, every: int = 1) -> list[Scene]:
    """The same scenes, of which every n-th is drawn by another hand; objects keep their boxes, give
    or take a pixel.

    Shades vary within ``SHADES``, sides by a pixel or two; some images have dark outlines, some
    nothing but outlines; edges are uneven, or hard instead of smooth. All objects of an image are
    up to ``SHIFT`` pixels away from where the course puts them, so that they lie anywhere on the
    grid of patches; each is still nearest to its own cell.
    """
    rng = Random(f"redrawn {seed}")
    return [
        scene
        if number % every
        else replace(scene, image=by_hand(scene.objects, scene.image.size, rng))
        for number, scene in enumerate(scenes)
    ]


def by_hand(objects: Sequence[Object], size: tuple[int, int], rng: Random) -> Image.Image:
    """Draw the objects on an image of ``size`` (width, height), each in a way of its own."""
    image = Image.new("RGB", size, BACKGROUND)
    across, down = shifted(objects, size, rng)
    outlined, hollow = rng.random() < OUTLINED, rng.random() < HOLLOW
    for thing in objects:
        left, top, right, _ = thing.box
        side = right - left + rng.choice((-1, 0, 0, 1, 2))
        margin = (right - left - side) // 2
        at = left + margin + across, top + margin + down
        filled = edged(stencil(thing.shape, side * FINE), rng)
        color = shade(thing.color, rng)
        edge = side >= ROOMY and outlined
        inner = shrunk(filled, 1.2 + 0.8 * rng.random())
        hard = rng.random() < HARD
        if hollow:
            image.paste(color, at, covered(np.maximum(filled - inner, 0), side, hard))
            continue
        image.paste((20, 20, 20) if edge else color, at, covered(filled, side, hard))
        if edge:
            image.paste(color, at, covered(inner, side, hard))
    return image


def shifted(objects: Sequence[Object], size: tuple[int, int], rng: Random) -> tuple[int, int]:
    """A shift (x, y) in pixels of all objects, which leaves them on an image of ``size``."""
    shift = []
    for axis in (0, 1):
        least = max(-SHIFT, -min(thing.box[axis] for thing in objects))
        most = min(SHIFT, size[axis] - max(thing.box[axis + 2] for thing in objects))
        shift.append(rng.randint(min(least, 0), max(most, 0)))
    return shift[0], shift[1]


def shade(color: str, rng: Random) -> tuple[int, int, int]:
    """A random RGB of a colour's name."""
    hue, saturation, value = (rng.uniform(*limits) for limits in SHADES[color])
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def edged(mask: Image.Image, rng: Random) -> np.ndarray:
    """Coverage (H, W), 0 to 1, of a shape; its edges wave where the hand is not steady."""
    cover = np.asarray(mask, dtype=np.float32) / 255
    if rng.random() >= UNEVEN:
        return cover
    side = len(cover)
    grid = np.arange(side)
    moved = []
    for _ in range(2):  # across, down: a slow wave along the other axis
        waves, phase = rng.uniform(1, 2.5), rng.uniform(0, 2 * np.pi)
        moved.append(0.035 * side * np.sin(2 * np.pi * waves * grid / side + phase))
    rows = np.clip(np.rint(grid[:, None] + moved[0][None, :]), 0, side - 1).astype(int)
    columns = np.clip(np.rint(grid[None, :] + moved[1][:, None]), 0, side - 1).astype(int)
    return cover[rows, columns]


def shrunk(cover: np.ndarray, pixels: float) -> np.ndarray:
    """The part of a shape that is further than ``pixels`` from its edge."""
    reach = round(FINE * pixels)
    padded = np.pad(cover, reach)
    side = len(cover)
    for _ in range(2):
        views = [padded[i : len(padded) - 2 * reach + i] for i in range(2 * reach + 1)]
        padded = np.min(views, axis=0).T
    return padded[:side, :side]


def covered(cover: np.ndarray, side: int, hard: bool) -> Image.Image:
    """The coverage of each pixel, 0 to 255, all or nothing if ``hard``."""
    means = cover.reshape(side, FINE, side, FINE).mean(axis=(1, 3))
    return Image.fromarray(np.uint8(255 * (means > 0.5) if hard else 255 * means))
