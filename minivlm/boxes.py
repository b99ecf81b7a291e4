"""09 · Boxes as text (Bai et al. 2023, Qwen-VL, section 2.2): a place in an image, written and read
back.

Data: a box in pixels <-> four integers in [0, 1000) <-> "<ref>the red
star</ref><box>(78,94),(250,265)</box>". Of the paper's formats, four corners (<quad>) are left out.
The tasks that ask for boxes are in scenes/tasks.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

TAGS = ("<ref>", "</ref>", "<box>", "</box>")
Box = tuple[
    float, float, float, float
]  # x1, y1, x2, y2: the left upper corner and the right lower one
LARGEST = 999
_TAG = re.compile("|".join(TAGS))
_ELEMENT = re.compile(r"<(?P<tag>ref|box)>(?P<body>((?!</?(ref|box)>).)+)</(?P=tag)>", re.DOTALL)
_BOX = re.compile(r"\((\d{1,4}),(\d{1,4})\),\((\d{1,4}),(\d{1,4})\)", re.ASCII)


@dataclass(frozen=True)
class Region:
    """What is named ("": nothing) and where it is: any number of boxes in thousandths."""

    text: str = ""
    boxes: tuple[Box, ...] = ()


def to_thousandths(box: Box, size: tuple[int, int]) -> Box:
    """A box in pixels of an image of ``size`` (width, height) -> integers in [0, 1000).

    An edge at x becomes 999 x / width, rounded: the far edge of the image is 999, as the authors'
    evaluation reads it (their drawing code divides by 1000). At most 1/1998 of the side is lost,
    0.03 pixels of 64. ValueError for a box that leaves the image.
    """
    x1, y1, x2, y2 = box
    if not (0 <= x1 <= x2 <= size[0] and 0 <= y1 <= y2 <= size[1]):
        raise ValueError(f"the box {box} does not lie in an image of {size[0]} x {size[1]} pixels")
    return tuple(
        round(LARGEST * edge / side) for edge, side in zip(box, (*size, *size), strict=True)
    )


def to_pixels(box: Box, size: tuple[int, int]) -> Box:
    """Undo ``to_thousandths``, but for the rounding."""
    return tuple(number * side / LARGEST for number, side in zip(box, (*size, *size), strict=True))


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 where both are empty."""
    across, down = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
    return across * down / (areas - across * down) if areas else 0.0


def write(parts: Sequence[str | Region]) -> str:
    """Texts and regions -> one text. ValueError for a tag in a text, and for what is no box."""
    text = ""
    for part in parts:
        region = Region(part) if isinstance(part, str) else part
        if _TAG.search(region.text):
            raise ValueError(f"a text must not hold {TAGS}: {region.text!r}")
        boxes = [_spell(box) for box in region.boxes]
        text += f"<ref>{region.text}</ref>" if region.text and region is part else region.text
        text += "".join(f"<box>{spelled}</box>" for spelled in boxes if _numbers(spelled))
    return text


def read(text: str) -> list[str | Region]:
    """Undo ``write``: a box belongs to what is named right before it.

    ValueError that names the piece for a tag that is not closed, is empty or stands in another, and
    for what is no box.
    """
    parts, at = [], 0
    for found in [*_ELEMENT.finditer(text), None]:
        plain = text[at : found.start() if found else None]
        stray = _TAG.search(plain)
        if stray:
            raise ValueError(
                f"a tag is not closed, empty or in another one: {text[at + stray.start() :][:60]!r}"
            )
        parts += [plain] if plain else []
        if found and found["tag"] == "ref":
            parts.append(Region(found["body"]))
        elif found:
            named = parts.pop() if parts and isinstance(parts[-1], Region) else Region()
            parts.append(replace(named, boxes=(*named.boxes, _numbers(found["body"]))))
        at = found.end() if found else at
    return parts


def _spell(box: Box) -> str:
    return "({},{}),({},{})".format(*box)


def _numbers(text: str) -> Box:
    """ "(78,94),(250,265)" -> four integers."""
    found = _BOX.fullmatch(text)
    x1, y1, x2, y2 = box = tuple(map(int, found.groups())) if found else (0, 0, -1, -1)
    if not (x1 <= x2 <= LARGEST and y1 <= y2 <= LARGEST) or _spell(box) != text:
        raise ValueError(
            f"a box is (x1,y1),(x2,y2), x1 <= x2 and y1 <= y2, of integers in 0..{LARGEST}; not {text!r}"
        )
    return box


def boxes_of(text: str) -> list[Box]:
    """All boxes in a text; none where ``read`` refuses it."""
    try:
        return [box for part in read(text) if isinstance(part, Region) for box in part.boxes]
    except ValueError:
        return []
