"""Architecture diagrams: boxes, images and rows of tokens on a grid, arrows with shapes on them.

A part has its centre at (column, row), counted from 0 at the upper left; fractions are fine.
`diagram(*parts)` draws them 9.3 inches wide, at most 952 pixels in a notebook, with no type below
8 points, and refuses a picture in which a text is cut, covered or crossed. It does not choose
places: the author does, and the refusal names the two things that are in each other's way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import dist
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from minivlm.plotting import CYCLE, KINDS

WIDTH = 9.3  # inches at 100 dots; a notebook adds a border of 0.1 on each side
SMALLEST = 8  # points
SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"  # both come with matplotlib
GREY = "#555555"
MARKS = {KINDS[kind][1].strip(): kind for kind in ("image", "special", "padding")}
LETTER, LINE, HIGH = 0.067, 0.15, 0.28  # inches: an 8-point monospaced letter, a line, a token
BACK = 0.07  # inches from a sheet of a stack to the next one
CORNER = 0.06  # inches: no arrow is nearer to the corner of a part

Kind = str | int | None  # of KINDS; a number picks a colour of CYCLE, for groups without a kind
Point = tuple[float, float]
Style = dict[str, Any]  # keywords of matplotlib


# The canvas


def color_of(kind: Kind) -> str:
    """The course's colour of a kind. ValueError for an unknown one."""
    if isinstance(kind, int):
        return CYCLE[kind % len(CYCLE)]
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {list(KINDS)}")
    return KINDS[kind][0] if kind else GREY


def tint(color: str, share: float = 0.14) -> tuple[float, float, float]:
    """A colour thinned with white: opaque, unlike one with an alpha."""
    red, green, blue = (1 - share * (1 - channel) for channel in to_rgb(color))
    return red, green, blue


def around(centre: Point, width: float, height: float) -> Bbox:
    """The rectangle with this centre; y runs downwards, so y0 is its top."""
    return Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)


def middle(rect: Bbox) -> Point:
    """The centre of a rectangle."""
    return (rect.x0 + rect.x1) / 2, (rect.y0 + rect.y1) / 2


@dataclass(frozen=True)
class Item:
    """A part or a text on the page, which nothing foreign may touch."""

    words: str
    at: Any  # the Bbox of a part; the artist of a text, which only the renderer can measure
    home: str  # the part or the arrow that it belongs to
    kind: Kind = None
    frame: Bbox | None = None  # what has to contain it; None: the page
    holds: frozenset[str] = frozenset()  # of a group: the parts in it


class Canvas:
    """A figure whose unit is the inch, and a record of what is drawn on it."""

    def __init__(self, columns: int, row: float):
        self.figure = plt.figure(figsize=(WIDTH, WIDTH), dpi=100)
        self.ax = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(WIDTH, 0))
        self.ax.axis("off")
        self.column, self.row = WIDTH / columns, row  # inches
        self.parts: dict[str, Item] = {}  # where arrows can begin and end
        self.texts: list[Item] = []
        self.lines: list[tuple[str, list[Point], set[str]]] = []  # an arrow, its two homes
        self.legend: dict[str, str] = {}  # a kind, or a way to draw, and what it means
        self.heights: list[float] = []  # everything lies between the least and the greatest

    def place(self, at: Point) -> Point:
        """Grid -> inches."""
        return (at[0] + 0.5) * self.column, at[1] * self.row

    def register(self, name: str, rect: Bbox, kind: Kind, home: str = "", **more: Any) -> None:
        """Let arrows begin and end at this rectangle. ValueError for a name that is taken."""
        if name in self.parts:
            raise ValueError(f"two parts are called {name!r}")
        self.parts[name] = Item(name, rect, home or name, kind, **more)
        self.heights += [rect.y0, rect.y1]

    def color(self, kind: Kind) -> str:
        """The colour of a kind, which the legend will explain."""
        color = color_of(kind)
        if isinstance(kind, str):
            self.legend[kind] = KINDS[kind][1] + kind
        return color

    def text(self, at: Point, text: str, on: str, frame: Bbox | None = None, **style: Any) -> None:
        """Plain text (a dollar sign is a dollar sign), centred unless the style says otherwise."""
        usual: Style = {"fontsize": SMALLEST, "family": SANS, "ha": "center", "va": "center"}
        if text:
            artist = self.ax.text(*at, text, parse_math=False, zorder=6, **usual | style)
            self.texts.append(Item(text, artist, on, frame=frame))
        half = LINE * (text.count("\n") + 1)  # enough, however it is aligned
        self.heights += [at[1] - half, at[1] + half]

    def badge(self, at: Point, section: str, on: str, ha: str = "right") -> None:
        """The number of a section in a pill."""
        pill = {"boxstyle": "round,pad=0.3,rounding_size=0.8", "fc": "white", "ec": GREY, "lw": 0.8}
        self.text(at, section, on, ha=ha, color=GREY, bbox=pill)

    def shape(self, rect: Bbox, face: Any, edge: Any, radius: float = 0.0, **style: Any) -> None:
        """A rectangle, its corners rounded."""
        usual: Style = {"facecolor": face, "edgecolor": edge, "linewidth": 1.3, "zorder": 2}
        box = (rect.p0, rect.width, rect.height, f"round,pad=0,rounding_size={radius}")
        self.ax.add_patch(FancyBboxPatch(*box, **usual | style))

    def cell(self, rect: Bbox, text: str, kind: Kind, filled: bool, on: str) -> None:
        """A token: pale, or filled with its colour."""
        color = self.color(kind)
        face, ink = (color, "white") if filled else (tint(color), color)
        self.shape(rect, face, color, linewidth=1)
        self.text(middle(rect), text, on, rect, family=MONO, color=ink, va="center_baseline")


# The parts


@dataclass(frozen=True, kw_only=True)
class Part:
    """Whatever has a place on the grid. Arrows know it by its name; readers see its title."""

    name: str = field(kw_only=False)
    at: Point = field(kw_only=False)
    kind: Kind = None
    section: str = ""
    title: str | None = None  # None: the name

    def finish(self, canvas: Canvas, rect: Bbox) -> None:
        """Of an image or of tokens: register it; title and section go above it."""
        canvas.register(self.name, rect, self.kind)
        title = self.name if self.title is None else self.title
        style: Style = {"ha": "left", "weight": "bold", "color": canvas.color(self.kind)}
        canvas.text((rect.x0, rect.y0 - 0.13), title, self.name, **style)
        canvas.badge((rect.x1, rect.y0 - 0.13), self.section, self.name)


@dataclass(frozen=True)
class Box(Part):
    """A module or a step: filled if it is trained, hatched if frozen (False), white if neither."""

    lines: str = ""  # below the title
    trained: bool | None = None
    size: Point = (0.58, 0.7)  # of a column, of a row
    outline: bool = True  # False: only the text

    def draw(self, canvas: Canvas) -> None:
        width, height = self.size[0] * canvas.column, self.size[1] * canvas.row
        rect = around(canvas.place(self.at), width, height)
        canvas.register(self.name, rect, self.kind)
        if self.outline:
            self._outline(canvas, rect)
        self._write(canvas, rect.padded(-0.1 if self.trained is False else -0.03))
        canvas.badge((rect.x1 - 0.08, rect.y0 - 0.02), self.section, self.name)

    def _outline(self, canvas: Canvas, rect: Bbox) -> None:
        """The frame and what fills it."""
        color = canvas.color(self.kind)
        canvas.shape(rect, tint(color) if self.trained else "white", color, 0.08)
        if self.trained:
            canvas.legend["trained"] = "trained part"
        elif self.trained is False:
            canvas.legend["frozen"] = "frozen part"
            canvas.shape(rect, "none", tint(color, 0.7), 0.08, hatch="/////", linewidth=0)
            canvas.shape(rect.padded(-0.09), "white", "none", 0.03)

    def _write(self, canvas: Canvas, frame: Bbox) -> None:
        """The title, bold, and the lines below it, together in the middle."""
        title = self.name if self.title is None else self.title
        color = "black" if self.outline else canvas.color(self.kind)
        head: Style = {"fontsize": 9.5, "weight": "bold", "color": color}
        rows = [(line, 0.18, head) for line in title.splitlines()]
        rows += [(line, LINE, {"color": "#333333"}) for line in self.lines.splitlines()]
        x, y = middle(frame)
        y -= sum(height for _, height, _ in rows) / 2
        for line, height, style in rows:
            canvas.text((x, y + height / 2), line, self.name, frame, **style)
            y += height


@dataclass(frozen=True)
class Picture(Part):
    """An image with the lines of a grid over it. Several (the frames of a video) form a stack."""

    image: Any  # PIL, an array (H, W, 3), or a list of them, equal in size
    grid: tuple[int, int] = (1, 1)  # rows and columns of patches
    width: float = 0.5  # of a column
    apart: bool = False  # cut at the grid, the patches side by side in reading order
    kind: Kind = field(default="image", kw_only=True)

    def draw(self, canvas: Canvas) -> None:
        tiles, width = self._tiles(), self.width * canvas.column
        step = np.array([width / len(tiles), 0.0] if self.apart else [BACK, -BACK])
        width = 0.85 * step[0] if self.apart else width
        x, y = np.array(canvas.place(self.at)) - step * (len(tiles) - 1) / 2
        front = around((x, y), width, width * tiles[0].shape[0] / tiles[0].shape[1])
        rects = [front.translated(*(i * step)) for i in range(len(tiles))]
        for i in range(len(tiles)):  # the first one lies in front
            self._show(canvas, tiles[i], rects[i], 2 - 0.01 * i)
        self.finish(canvas, Bbox.union(rects))

    def _tiles(self) -> list[np.ndarray]:
        """The images, or the patches of all of them."""
        images = self.image if isinstance(self.image, list) else [self.image]
        images = [np.asarray(image) for image in images]
        if not self.apart:
            return images
        bands = [band for image in images for band in np.split(image, self.grid[0])]
        return [patch for band in bands for patch in np.split(band, self.grid[1], axis=1)]

    def _show(self, canvas: Canvas, image: np.ndarray, rect: Bbox, z: float) -> None:
        """One image in its rectangle, with the lines of the grid."""
        place: Style = {"extent": (rect.x0, rect.x1, rect.y1, rect.y0), "aspect": "auto"}
        canvas.ax.imshow(image, interpolation="nearest", zorder=z, **place)
        rows, columns = (1, 1) if self.apart else self.grid
        style: Style = {"color": "#888888", "linewidth": 0.7, "zorder": z + 0.005}
        canvas.ax.vlines(np.linspace(rect.x0, rect.x1, columns + 1), rect.y0, rect.y1, **style)
        canvas.ax.hlines(np.linspace(rect.y0, rect.y1, rows + 1), rect.x0, rect.x1, **style)


@dataclass(frozen=True)
class Tokens(Part):
    """A row of tokens, each as wide as its text, or a matrix of equal cells, such as all pairs of
    a batch. Each has the colour and the mark of its kind.

    Without kinds, the marks themselves (▪ ◆ ·) are tokens of their kinds, every other word is text.
    spans: name -> the first token and the one after the last. A bracket below the row names them,
    and arrows can begin and end there. depth: so many planes, one behind the other.
    """

    tokens: str | Sequence[str] | Sequence[Sequence[str]]  # a string is split at its spaces
    kinds: Any = None  # of the same shape, each of Kind
    filled: Any = None  # of the same shape, bool
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    meaning: str = "token trained on"  # of the filled ones, for the legend
    depth: int = 1

    def draw(self, canvas: Canvas) -> None:
        words, kinds, filled = self._tables()
        texts = [marked(word, kind) for word, kind in zip(words.flat, kinds.flat, strict=True)]
        cells = self._cells(canvas.place(self.at), texts, len(words))
        planes = [Bbox.union(cells).translated(BACK * i, -BACK * i) for i in range(self.depth)]
        for plane in planes[:0:-1]:
            canvas.shape(plane, "white", canvas.color(self.kind), linewidth=1)
        for i, rect in enumerate(cells):
            canvas.cell(rect, texts[i], kinds.flat[i], filled.flat[i], self.name)
        if filled.any():
            canvas.legend["filled"] = self.meaning
        self.finish(canvas, Bbox.union(planes))
        for name, (first, end) in self.spans.items():
            self._bracket(canvas, name, Bbox.union(cells[first:end]), kinds.flat[first])

    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Words, kinds and whether each is filled: (rows, columns) each."""
        split = self.tokens.split() if isinstance(self.tokens, str) else self.tokens
        words = np.array(split, dtype=object, ndmin=2)
        known = [[MARKS.get(word, "text") for word in row] for row in words]
        kinds = np.array(known if self.kinds is None else self.kinds, dtype=object, ndmin=2)
        filled = np.asarray(np.zeros(words.shape) if self.filled is None else self.filled)
        filled = np.atleast_2d(filled).astype(bool)
        if not words.shape == kinds.shape == filled.shape:
            raise ValueError(f"tokens {words.shape}, kinds {kinds.shape}, filled {filled.shape}")
        return words, kinds, filled

    def _cells(self, centre: Point, texts: list[str], rows: int) -> list[Bbox]:
        """The rectangles of the tokens, in reading order."""
        widths = [LETTER * len(text) + 0.1 for text in texts]
        if rows > 1:
            widths = [max(widths)] * (len(texts) // rows)
        x, y = centre[0] - sum(widths) / 2, centre[1] - rows * HIGH / 2
        columns = list(pairwise(accumulate(widths, initial=x)))
        tops, gap = [y + HIGH * row for row in range(rows)], 0.02 * (rows == 1)
        return [Bbox.from_extents(a, top, b - gap, top + HIGH) for top in tops for a, b in columns]

    def _bracket(self, canvas: Canvas, name: str, rect: Bbox, kind: Kind) -> None:
        """Below some tokens, with its name; the tokens and the name together are its rectangle."""
        x0, x1, y = rect.x0 + 0.03, rect.x1 - 0.03, rect.y1 + 0.05
        style: Style = {"color": canvas.color(kind), "linewidth": 1}
        canvas.ax.plot([x0, x0, x1, x1], [y, y + 0.06, y + 0.06, y], **style)
        canvas.text((middle(rect)[0], y + 0.15), name, self.name, color=canvas.color(kind))
        whole = Bbox.from_extents(rect.x0, rect.y0, rect.x1, y + 0.24)
        canvas.register(name, whole, kind, home=self.name)


def marked(token: str, kind: Kind) -> str:
    """A token with the mark of its kind, which it may be already."""
    mark = KINDS[kind][1] if isinstance(kind, str) else ""
    return token if token == mark.strip() else (mark + token).strip()


@dataclass(frozen=True)
class Group:
    """A dashed frame around parts or smaller groups; its label, such as × 12, is on its lower edge.

    Arrows can begin and end at it, by its label.
    """

    label: str
    members: Sequence[str]
    section: str = ""

    def draw(self, canvas: Canvas) -> None:
        members = [canvas.parts[name] for name in self.members]
        holds = frozenset(self.members).union(*(member.holds for member in members))
        margin = 0.14 if len(holds) == len(members) else 0.26  # around a group with its label
        rect = Bbox.union([member.at for member in members]).padded(margin)
        canvas.shape(rect, "none", GREY, 0.1, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        canvas.register(self.label, rect, None, holds=holds)
        style: Style = {"ha": "right", "weight": "bold", "color": GREY, "backgroundcolor": "white"}
        canvas.text((rect.x1 - 0.12, rect.y1), self.label, self.label, **style)
        canvas.badge((rect.x1 - 0.08, rect.y0), self.section, self.label)


# Arrows


@dataclass(frozen=True)
class Arrow:
    """From part to part, straight or with one elbow; the label is usually a shape.

    row (or column): where an arrow runs that has to go around something, with two elbows.
    """

    source: str
    target: str
    label: str = ""
    kind: Kind = None  # None: the source's
    section: str = ""
    row: float | None = None
    column: float | None = None
    bend: str = "hv"  # of one elbow: first horizontal, or "vh"
    shift: Point = (0.0, 0.0)  # inches along the edges that it leaves and reaches
    dashed: str = ""  # what a dashed line means, for the legend

    def draw(self, canvas: Canvas) -> None:
        for end in (self.source, self.target):
            if end not in canvas.parts:
                raise ValueError(f"no part is called {end!r}; there are {list(canvas.parts)}")
        source, target = canvas.parts[self.source], canvas.parts[self.target]
        points = self._route(canvas, source.at, target.at)
        color = canvas.color(source.kind if self.kind is None else self.kind)
        style: Style = {"arrowstyle": "-|>", "mutation_scale": 10, "zorder": 4, "linewidth": 1.4}
        if self.dashed:
            style["linestyle"], canvas.legend["dashed"] = (0, (3, 2)), self.dashed
        canvas.ax.add_patch(FancyArrowPatch(path=rounded(points), color=color, **style))
        canvas.heights += [y for _, y in points]
        canvas.lines.append((self.name, points, {source.home, target.home}))
        self._label(canvas, points, color)

    @property
    def name(self) -> str:
        return f"{self.source} -> {self.target}"

    def _route(self, canvas: Canvas, a: Bbox, b: Bbox) -> list[Point]:
        """The line from one part to the other, from edge to edge: its ends and its elbows."""
        leave, arrive = self.shift
        ax, ay = middle(a.translated(leave, leave))
        bx, by = middle(b.translated(arrive, arrive))
        level, upright = shared(a.intervaly, b.intervaly), shared(a.intervalx, b.intervalx)
        elbows: list[Point] = []
        if self.row is not None:
            y = self.row * canvas.row
            elbows = [(ax, y), (bx, y)]
        elif self.column is not None:
            x = canvas.place((self.column, 0))[0]
            elbows = [(x, ay), (x, by)]
        elif level is not None:
            ay = by = level + leave
        elif upright is not None:
            ax = bx = upright + leave
        else:
            elbows = [(bx, ay) if self.bend == "hv" else (ax, by)]
        line = [(ax, ay), *elbows, (bx, by)]
        return [clamp(a, line[1]), *elbows, clamp(b, line[-2])]

    def _label(self, canvas: Canvas, points: list[Point], color: str) -> None:
        """The label beside the longest stretch, the section on the line itself."""
        start, end = max(pairwise(points), key=lambda ends: dist(*ends))
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        level, half = start[1] == end[1], LETTER * len(self.section) / 2
        style: Style = {"color": color, "family": MONO if self.label.endswith(")") else SANS}
        style |= {"va": "bottom"} if level else {"ha": "left"}
        at = (x, y - 0.05 - 0.06 * bool(half)) if level else (x + 0.07 + 1.3 * half, y)
        canvas.text(at, self.label, self.name, **style)
        canvas.badge((x, y), self.section, self.name, ha="center")


def shared(a: Sequence[float], b: Sequence[float]) -> float | None:
    """A coordinate that two intervals have in common: if possible, the middle of the shorter."""
    low, high = max(a[0], b[0]) + CORNER, min(a[1], b[1]) - CORNER
    shorter = min(a, b, key=lambda ends: ends[1] - ends[0])
    return None if high < low else min(max((shorter[0] + shorter[1]) / 2, low), high)


def clamp(rect: Bbox, point: Point) -> Point:
    """The point of a rectangle that is nearest to another point."""
    return min(max(point[0], rect.x0), rect.x1), min(max(point[1], rect.y0), rect.y1)


def rounded(points: list[Point], radius: float = 0.08) -> Path:
    """A line through points, its elbows rounded."""
    path = [points[0]]
    for before, corner, after in zip(points[:-2], points[1:-1], points[2:], strict=True):
        box = around(corner, 2 * radius, 2 * radius)
        path += [clamp(box, before), corner, clamp(box, after)]
    elbows = [Path.LINETO, Path.CURVE3, Path.CURVE3] * (len(points) - 2)
    return Path([*path, points[-1]], [Path.MOVETO, *elbows, Path.LINETO])
