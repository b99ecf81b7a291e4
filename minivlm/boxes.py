"""09 · Boxes as text (Bai et al. 2023, Qwen-VL, section 2.2): places in an image, spelled out.

Data: a box in pixels <-> four integers in [0, 1000) <-> "<ref>the red
star</ref><box>(78,94),(250,265)</box>". Of the paper's formats, four corners (<quad>) are left out.
The tasks that ask for boxes are in scenes/tasks.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

Box = tuple[float, float, float, float]  # x1, y1, x2, y2: left upper and right lower corner

TAGS = ("<ref>", "</ref>", "<box>", "</box>")
LARGEST = 999
_TAG = re.compile("|".join(TAGS))
_ELEMENT = re.compile(r"<(?P<tag>ref|box)>(?P<body>((?!</?(ref|box)>).)+)</(?P=tag)>", re.DOTALL)
_NUMBER = r"(0|[1-9]\d{0,2})"  # up to LARGEST, without leading zeros
_BOX = re.compile(rf"\({_NUMBER},{_NUMBER}\),\({_NUMBER},{_NUMBER}\)", re.ASCII)


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
    (x1, y1, x2, y2), (width, height) = box, size
    if not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
        raise ValueError(f"the box {box} does not lie in an image of {width} x {height} pixels")
    left, right = round(LARGEST * x1 / width), round(LARGEST * x2 / width)
    top, bottom = round(LARGEST * y1 / height), round(LARGEST * y2 / height)
    return left, top, right, bottom


def from_thousandths(box: Box, size: tuple[int, int]) -> Box:
    """Undo ``to_thousandths``, but for the rounding."""
    (x1, y1, x2, y2), (width, height) = box, size
    return x1 * width / LARGEST, y1 * height / LARGEST, x2 * width / LARGEST, y2 * height / LARGEST


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 where both are empty."""
    across = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = across * down
    areas = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
    return both / (areas - both) if areas else 0.0


def write_regions(parts: Sequence[str | Region]) -> str:
    """Texts and regions -> one text, of which ``read_regions`` makes the same regions.

    ValueError for a tag in a text or across texts, for what is no box, and for a region without a
    name that has no box or follows another region: its boxes would be read as the other's.
    """
    text = "".join(map(_write, parts))
    meant, read = (
        [(part.text, len(part.boxes)) for part in some if isinstance(part, Region)]
        for some in (parts, read_regions(text))
    )
    if read != meant:
        raise ValueError(f"the regions {meant} would be read as {read}: {text!r}")
    return text


def _write(part: str | Region) -> str:
    text = part if isinstance(part, str) else part.text
    if _TAG.search(text):
        raise ValueError(f"a text must not hold {TAGS}: {text!r}")
    if isinstance(part, str):
        return text
    name = f"<ref>{text}</ref>" if text else ""
    return name + "".join(f"<box>{_write_box(box)}</box>" for box in part.boxes)


def _write_box(box: Box) -> str:
    text = "({},{}),({},{})".format(*box) if len(box) == 4 else str(box)
    _read_box(text)  # ValueError for what is no box
    return text


def read_regions(text: str) -> list[str | Region]:
    """Undo ``write_regions``: a box belongs to what is named right before it.

    ValueError that names the piece for a tag that is not closed, is empty or is in another one, and
    for what is no box.
    """
    parts: list[str | Region] = []
    end = 0
    for element in _ELEMENT.finditer(text):
        parts += _plain(text, end, element.start())
        if element["tag"] == "ref":
            parts.append(Region(element["body"]))
        else:
            _add_box(parts, _read_box(element["body"]))
        end = element.end()
    parts += _plain(text, end, len(text))
    return parts


def _add_box(parts: list[str | Region], box: Box) -> None:
    """Give the box to the region at the end or, after a text, to a new one without a name."""
    last = parts[-1] if parts else ""
    if isinstance(last, Region):
        parts[-1] = replace(last, boxes=(*last.boxes, box))
    else:
        parts.append(Region(boxes=(box,)))


def _plain(text: str, start: int, end: int) -> list[str]:
    """The text from start to end, if there is any; ValueError for a tag in it."""
    stray = _TAG.search(text, start, end)
    if stray:
        piece = text[stray.start() :][:60]
        raise ValueError(f"a tag is not closed, empty or in another one: {piece!r}")
    return [text[start:end]] if start < end else []


def _read_box(text: str) -> Box:
    """ "(78,94),(250,265)" -> four integers."""
    match = _BOX.fullmatch(text)
    if match:
        x1, y1, x2, y2 = map(int, match.groups())
        if x1 <= x2 and y1 <= y2:
            return x1, y1, x2, y2
    expected = f"(x1,y1),(x2,y2), x1 <= x2 and y1 <= y2, of integers in 0..{LARGEST}"
    raise ValueError(f"a box is {expected}; not {text!r}")


def boxes_of(text: str) -> list[Box]:
    """All boxes in a text; none where ``read_regions`` refuses it."""
    try:
        parts = read_regions(text)
    except ValueError:
        return []
    return [box for part in parts if isinstance(part, Region) for box in part.boxes]
