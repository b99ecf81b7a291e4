"""Read a picture of the dataset back into objects: the inverse of ``scenes.render``, by comparison
with templates.

A model that draws is judged with it: read the drawing, then ask ``is_true`` whether the caption
holds.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

from minivlm.scenes.drawing import BACKGROUND, EXTENT, JITTER, render
from minivlm.scenes.grammar import COLORS, SHAPES, SIZES, Object


@lru_cache
def _templates(cell: int) -> tuple[list[Object], np.ndarray]:
    """Every object in every place within one cell, and its rendering less the background: (K, cell
    * cell * 3).
    """
    objects = []
    for size in SIZES:
        side = round(EXTENT[size] * cell)
        slack = cell - side
        reach = min(slack // 2, JITTER * cell // 16)
        corners = range(slack // 2 - reach, slack // 2 + reach + 1)
        boxes = [(x, y, x + side, y + side) for x in corners for y in corners]
        objects += [
            Object(shape, color, size, box) for shape in SHAPES for color in COLORS for box in boxes
        ]
    pictures = np.stack(
        [np.asarray(render([thing], (cell, cell)), dtype=np.float32) for thing in objects]
    )
    return objects, (pictures - BACKGROUND).reshape(len(objects), -1)


def read_objects(
    image: Image.Image, cell: int = 16, tolerance: float = 0.25
) -> tuple[Object, ...] | None:
    """The objects in a picture on the dataset's grid, in reading order, or None where it cannot be
    read.

    Every cell is compared with the empty one and with all renderings of one object. If the nearest
    leaves more than ``tolerance`` of an object's energy unexplained (squared differences to the
    background), the cell is unreadable.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) - BACKGROUND
    rows, columns = (side // cell for side in pixels.shape[:2])
    if pixels.shape[:2] != (rows * cell, columns * cell):
        raise ValueError(
            f"an image of {image.width} x {image.height} is no grid of cells of {cell} pixels"
        )
    cells = (
        pixels.reshape(rows, cell, columns, cell, 3)
        .transpose(0, 2, 1, 3, 4)
        .reshape(rows * columns, -1)
    )
    objects, templates = _templates(cell)
    energy = (templates**2).sum(axis=1)
    distance = (cells**2).sum(axis=1)[:, None] - 2 * cells @ templates.T + energy  # (cells, K)
    found = []
    for place, (here, costs) in enumerate(zip(cells, distance, strict=True)):
        best, empty = int(costs.argmin()), float((here**2).sum())
        if min(costs[best], empty) > tolerance * energy[best]:
            return None
        if costs[best] < empty:
            thing, (row, column) = objects[best], divmod(place, columns)
            x, y = column * cell, row * cell
            box = tuple(edge + corner for edge, corner in zip(thing.box, (x, y, x, y), strict=True))
            found.append(Object(thing.shape, thing.color, thing.size, box))
    return tuple(found)
