"""Images of the dataset, read back into objects: the inverse of ``render``.

It judges a model that draws: read the drawing, then ask ``is_true`` whether the caption holds.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

from minivlm.scenes.drawing import BACKGROUND, render
from minivlm.scenes.grammar import COLORS, SHAPES, SIZES, Object
from minivlm.scenes.sampling import object_side, offsets
from minivlm.vit import as_rgb


def read_objects(
    image: Image.Image, cell: int = 16, tolerance: float = 0.25
) -> tuple[Object, ...] | None:
    """The objects in an image on the dataset's grid, in reading order; None if it is unreadable.

    Every cell is compared with the empty one and with all renderings of one object. If the nearest
    leaves more than ``tolerance`` of an object's energy unexplained (squared differences to the
    background), the cell is unreadable. What is transparent shows the paper. ValueError for an
    image that is no grid of such cells.
    """
    image = as_rgb(image, BACKGROUND)
    pixels = np.asarray(image, dtype=np.float32) - BACKGROUND
    rows, columns = (side // max(1, cell) for side in pixels.shape[:2])
    if cell < 1 or pixels.shape[:2] != (rows * cell, columns * cell):
        raise ValueError(
            f"an image of {image.width} x {image.height} is no grid of cells of {cell} pixels"
        )
    grid = pixels.reshape(rows, cell, columns, cell, 3).transpose(0, 2, 1, 3, 4)
    cells = grid.reshape(rows * columns, -1)
    templates, renderings = _templates(cell)
    energy = (renderings**2).sum(axis=1)
    distance = (cells**2).sum(axis=1)[:, None] - 2 * cells @ renderings.T + energy  # (cells, K)
    objects = []
    for place, (shown, distances) in enumerate(zip(cells, distance, strict=True)):
        best, empty = int(distances.argmin()), float((shown**2).sum())
        if min(distances[best], empty) > tolerance * energy[best]:
            return None
        if distances[best] < empty:
            row, column = divmod(place, columns)
            objects.append(_moved(templates[best], column * cell, row * cell))
    return tuple(objects)


@lru_cache
def _templates(cell: int) -> tuple[list[Object], np.ndarray]:
    """Every object in every place within one cell, and the renderings less the background.

    The renderings are (K, cell * cell * 3) for K objects.
    """
    objects = []
    for size in SIZES:
        side, corners = object_side(size, cell), offsets(size, cell)
        boxes = [(x, y, x + side, y + side) for x in corners for y in corners]
        objects += [
            Object(shape, color, size, box) for shape in SHAPES for color in COLORS for box in boxes
        ]
    images = [np.asarray(render([thing], (cell, cell)), dtype=np.float32) for thing in objects]
    return objects, (np.stack(images) - BACKGROUND).reshape(len(objects), -1)


def _moved(thing: Object, x: int, y: int) -> Object:
    """The same object, moved by (x, y) pixels."""
    left, top, right, bottom = thing.box
    box = (left + x, top + y, right + x, bottom + y)
    return Object(thing.shape, thing.color, thing.size, box)
