"""Objects -> an image: five shapes in six colours on paper, with a label if they have one."""

from collections.abc import Sequence
from functools import lru_cache
from math import cos, pi, sin

from PIL import Image, ImageDraw, ImageFont

from minivlm.scenes.grammar import Object

PALETTE = {  # distinguishable with normal vision and with each of the three dichromacies
    "red": (200, 16, 46),
    "yellow": (226, 178, 0),
    "green": (0, 168, 120),
    "blue": (0, 87, 184),
    "purple": (199, 124, 219),
    "black": (16, 16, 16),
}
BACKGROUND = (242, 242, 242)
DARK_INK_ON = ("yellow", "purple")  # other colours carry a white label
OVERSAMPLING = 8  # a shape is drawn at this many times its size, then averaged

# corners from the left upper one of the square around the shape, y downwards
POLYGONS = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "cross": [
        *[(1 / 3, 0), (2 / 3, 0), (2 / 3, 1 / 3), (1, 1 / 3), (1, 2 / 3), (2 / 3, 2 / 3)],
        *[(2 / 3, 1), (1 / 3, 1), (1 / 3, 2 / 3), (0, 2 / 3), (0, 1 / 3), (1 / 3, 1 / 3)],
    ],
}

Shift = tuple[int, int]  # pixels by which a moving object has moved: x, y


def render(objects: Sequence[Object], size: tuple[int, int], shift: Shift = (0, 0)) -> Image.Image:
    """Draw the objects, moved by ``shift`` pixels, on an image of ``size`` (width, height)."""
    image = Image.new("RGB", size, BACKGROUND)
    for thing in objects:
        left, top, right, _ = thing.box
        x, y, side = left + shift[0], top + shift[1], right - left
        image.paste(PALETTE[thing.color], (x, y), stencil(thing.shape, side))
        if thing.text:
            ink = "black" if thing.color in DARK_INK_ON else "white"
            font = _font(round(side / (0.5 + 0.6 * len(thing.text))))
            middle = (x + side / 2, y + side / 2)
            ImageDraw.Draw(image).text(middle, thing.text, ink, font, anchor="mm")
    return image


@lru_cache(maxsize=256)
def stencil(shape: str, side: int) -> Image.Image:
    """The coverage (0..255) of each pixel by a shape that fills a square of ``side`` pixels."""
    large = OVERSAMPLING * side
    canvas = Image.new("L", (large, large))
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        draw.ellipse((0, 0, large - 1, large - 1), fill=255)
    else:
        corners = _star() if shape == "star" else POLYGONS[shape]
        draw.polygon([(x * (large - 1), y * (large - 1)) for x, y in corners], fill=255)
    return canvas.resize((side, side), Image.Resampling.BOX)


def _star() -> list[tuple[float, float]]:
    """Ten corners, every second one nearer to the centre, stretched to the unit square."""
    polar = [(pi * i / 5, 1 if i % 2 == 0 else 0.45) for i in range(10)]
    across = _to_unit([radius * sin(angle) for angle, radius in polar])
    down = _to_unit([-radius * cos(angle) for angle, radius in polar])
    return list(zip(across, down, strict=True))


def _to_unit(values: list[float]) -> list[float]:
    """The same values, moved and scaled so that the least is 0 and the largest 1."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
