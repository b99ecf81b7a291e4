"""What all notebooks share: coloured source, reports on exercises, measured masks, diagrams.

`show_source` needs IPython to show colours; without it, the source is printed.
"""

import inspect
import linecache
import pathlib
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import combinations
from math import dist
from traceback import walk_tb
from types import CodeType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import Tensor, nn

from minivlm.diagrams import (
    GREY,
    SANS,
    SMALLEST,
    WIDTH,
    Arrow,
    Box,
    Canvas,
    Group,
    Item,
    Part,
    Picture,
    Tokens,
    color_of,
    tint,
)
from minivlm.plotting import KINDS, effective_mask

__all__ = ["Arrow", "Box", "Group", "Picture", "Tokens", "diagram", "feed", "obeyed"]
__all__ += ["replay", "report", "show_source", "verdict"]


# Source


class Source:
    """Python code that a notebook shows in colour, and everything else as it is."""

    def __init__(self, code: str):
        self.code = code

    def __repr__(self) -> str:
        return self.code

    def _repr_markdown_(self) -> str:
        longest = max(map(len, re.findall("`+", self.code)), default=0)
        fence = "`" * max(3, longest + 1)  # no backticks inside can close it
        return f"{fence}python\n{self.code}\n{fence}"


def show_source(*objects: Any) -> None:
    """Show the source of functions, classes, methods and properties, under the file it is from."""
    blocks, last = [], ""
    for thing in map(innermost, objects):
        place, code = origin(thing), unindented(inspect.getsource(thing)).rstrip()
        blocks.append(code if place == last else f"{place}\n{code}")
        last = place
    shown = Source("\n\n".join(blocks))
    try:
        from IPython.display import display
    except ImportError:
        print(shown)
    else:
        display(shown)  # prints, too, outside of IPython


def innermost(thing: Any) -> Any:
    """The function in a property, bound or class method, partial or decorated function."""
    for name in ("fget", "func", "__func__", "__wrapped__"):
        if not inspect.isclass(thing) and getattr(thing, name, None) is not None:
            return innermost(getattr(thing, name))
    return thing


def origin(thing: Any) -> str:
    """A comment: the file in which something is defined, and of a method the class."""
    if thing.__module__ == "__main__":
        raise ValueError(f"{thing.__qualname__} is defined in this notebook: its cell shows it")
    file, depth = pathlib.Path(inspect.getfile(thing)), thing.__module__.count(".") + 1
    path = "/".join(file.parts[-depth - (file.stem == "__init__") :])
    owner = thing.__qualname__.rpartition(".")[0]
    return f"# {path}" + (f", class {owner}" if owner and "<" not in owner else "")


def unindented(code: str) -> str:
    """Code moved left by the indentation of its first line."""
    lines = code.splitlines(keepends=True)
    indent = code[: len(code) - len(code.lstrip(" "))]
    return "".join(line.removeprefix(indent) for line in lines)


# Exercises


class Short(reprlib.Repr):
    """Values in a line: long ones cut, large tensors by their shape, no addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 12
        self.maxstring = self.maxlong = self.maxother = 80

    def repr_instance(self, x: object, level: int) -> str:
        if isinstance(x, Tensor) and x.numel() > self.maxlist:
            return f"a {str(x.dtype).removeprefix('torch.')} tensor {tuple(x.shape)}"
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(repr(x).split()))
        return text if len(text) <= self.maxother else text[: self.maxother] + "…"


SHORT = Short()


def report(check: Callable[[Any], object], function: Any) -> None:
    """Run a check on a reader's function (or class) and print how it went, in one line."""
    print(f"{getattr(function, '__name__', 'your function')}: {verdict(check, function)}")


def verdict(check: Callable[[Any], object], function: Any) -> str:
    """How it went: "correct", "not written yet", or what is wrong.

    A check takes the function and raises an AssertionError whose message says what is wrong. Any
    other exception is put into words: what was raised, at which line, for which input.
    """
    call: dict[str, Any] = {}  # the latest one: what was given, what was returned
    taken = function if inspect.isclass(function) else watched(function, call)
    try:
        check(taken)
    except NotImplementedError as error:
        return explained(error, check, function, call) if error.args else "not written yet"
    except AssertionError as error:
        return str(error) or explained(error, check, function, call)
    except Exception as error:
        return explained(error, check, function, call)
    return "correct"


def watched(function: Callable[..., Any], call: dict[str, Any]) -> Callable[..., Any]:
    """The same function, which writes down its latest call."""

    @wraps(function)
    def reader_function(*args: Any, **kwargs: Any) -> Any:
        call.clear()
        named = [f"{name}={SHORT.repr(value)}" for name, value in kwargs.items()]
        call["given"] = ", ".join([*map(SHORT.repr, args), *named])  # before it can be changed
        call["returned"] = function(*args, **kwargs)
        return call["returned"]

    return reader_function


def explained(error: Exception, check: Any, function: Any, call: dict[str, Any]) -> str:
    """An exception in words, and whose it is: the reader's, or the check's about a wrong result."""
    message = str(error).partition("\n")[0]
    raised = type(error).__name__ + (f": {message}" if message else "")
    given = f", for this input: {call['given']}" if call else ""
    line = line_in(function, error)
    if line is not None or (call and "returned" not in call):
        return f"your function raised {raised}{line or ''}{given}"
    if call:
        given = f"; your function returned {SHORT.repr(call['returned'])}{given}"
    return f"the check stopped with {raised}{line_in(check, error) or ''}{given}"


def line_in(function: Any, error: Exception) -> str | None:
    """The line of a function from which an exception came, None if it came from elsewhere.

    Empty where all cells share a made-up file name such as <cell>: its lines are another cell's.
    """
    codes, found = codes_of(function), None
    for frame, number in walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if frame.f_code in codes:
            line = "" if file.startswith("<") else linecache.getline(file, number).strip()
            found = f" at `{line}`" if line else ""
    return found


def codes_of(function: Any) -> set[CodeType]:
    """The compiled code of a function, or of the methods of a class."""
    thing = innermost(function)
    members = vars(thing).values() if inspect.isclass(thing) else [thing]
    return {member.__code__ for member in members if hasattr(member, "__code__")}


# Masks


@contextmanager
def feed(block: nn.Module, x: Tensor) -> Iterator[None]:
    """Inside `with`, x (1, T, D) enters a block in place of what the model computes.

    Where a model makes several passes, such as a prompt and then single tokens behind a cache,
    each takes its next positions. ValueError unless the passes take T positions in all.
    """
    taken = 0

    def enter(_: nn.Module, inputs: tuple) -> tuple:
        nonlocal taken
        start, taken = taken, taken + inputs[0].shape[1]
        if taken > x.shape[1]:
            raise ValueError(f"more than {x.shape[1]} positions enter the block")
        return x[:, start:taken], *inputs[1:]

    with block.register_forward_pre_hook(enter):
        yield
    if taken < x.shape[1]:
        raise ValueError(f"only {taken} of {x.shape[1]} positions entered the block")


def replay(blocks: Sequence[nn.Module], call: Callable[[], object], x: Tensor) -> Tensor:
    """What leaves the last block while x (1, T, D) is fed to the first: (1, T, D), all passes."""
    left: list[Tensor] = []
    hook = blocks[-1].register_forward_hook(lambda block, inputs, output: left.append(output))
    with hook, feed(blocks[0], x):
        call()
    return torch.cat(left, dim=1)


def obeyed(blocks: Sequence[nn.Module], call: Callable[[], object]) -> Tensor:
    """The mask (T, T) that the blocks of a model really obey while call() runs it on one sequence.

    From gradients: t may attend to s if what leaves the last block at t depends on what enters the
    first at s. Random vectors stand in for the embeddings, so that no two of them are alike.
    """
    entered: list[Tensor] = []
    hook = blocks[0].register_forward_pre_hook(lambda block, inputs: entered.append(inputs[0]))
    with hook, torch.no_grad():
        call()
    like = torch.cat(entered, dim=1)
    if len(like) != 1:
        raise ValueError(f"a mask is measured on one sequence; {len(like)} entered the blocks")
    x = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
    return effective_mask(lambda x: replay(blocks, call, x), x)


# Diagrams


def diagram(*parts: Any, columns: int | None = None, row: float = 0.95) -> Figure:
    """Draw parts, groups and arrows; a string "a -> (N, D) -> b" is an arrow with its label.

    columns (by default as many as the parts use) share the width; a row is in inches. ValueError
    with every text that is cut or covered, and everything that an arrow crosses.
    """
    canvas = drawn(parts, columns, row)
    found = list(problems(canvas))
    if found:
        plt.close(canvas.figure)
        raise ValueError("the diagram cannot be read:\n" + "\n".join(found))
    return canvas.figure


def drawn(parts: Sequence[Any], columns: int | None, row: float) -> Canvas:
    """The parts, then the groups around them, then arrows, and the page cut to what is on it."""
    right = max(part.at[0] for part in parts if isinstance(part, Part))
    canvas = Canvas(columns or int(right) + 1, row)
    arrows = [arrow for part in parts if isinstance(part, str) for arrow in along(part)]
    parts = [part for part in parts if not isinstance(part, str)] + arrows
    for part in sorted(parts, key=lambda part: (isinstance(part, Arrow), isinstance(part, Group))):
        part.draw(canvas)
    top, bottom = min(canvas.heights) - 0.05, max(canvas.heights) + 0.35
    canvas.ax.set_ylim(bottom, top)
    canvas.figure.set_size_inches(WIDTH, bottom - top)
    explain(canvas)
    return canvas


def along(text: str) -> list[Arrow]:
    """The arrows of paths "part -> label -> part -> label -> part", with ; between the paths.

    A label may be empty, or end in [the number of a section].
    """
    arrows = []
    for path in text.split(";"):
        steps = [step.strip() for step in path.split("->")]
        if len(steps) % 2 == 0 or len(steps) == 1:
            raise ValueError(f"a path is part -> label -> part ..., not {path.strip()!r}")
        for source, label, target in zip(steps[:-1:2], steps[1::2], steps[2::2], strict=True):
            label, _, section = label.removesuffix("]").partition("[")
            arrows.append(Arrow(source, target, label.strip(), section=section))
    return arrows


def explain(canvas: Canvas) -> None:
    """A legend of the colours, fillings and dashes that occur."""
    handles: dict[str, Patch | Line2D] = {kind: Patch(color=color_of(kind)) for kind in KINDS}
    handles["frozen"] = Patch(hatch="/////", facecolor="white", edgecolor=GREY)
    handles["trained"] = Patch(facecolor=tint(GREY), edgecolor=GREY)
    handles["filled"] = Patch(color=GREY)
    handles["dashed"] = Line2D([], [], color=GREY, linestyle="--")
    for name, label in canvas.legend.items():
        handles[name].set_label(label)
    found = [handle for name, handle in handles.items() if name in canvas.legend]
    style: dict[str, Any] = {"prop": {"size": SMALLEST, "family": SANS}, "columnspacing": 1.4}
    legend = canvas.ax.legend(handles=found, loc="lower left", ncols=9, frameon=False, **style)
    canvas.texts += [Item(text.get_text(), text, "the legend") for text in legend.texts]


def problems(canvas: Canvas) -> Iterator[str]:
    """What cannot be read, a sentence each, measured with the renderer that draws it."""
    canvas.figure.draw_without_rendering()  # puts the legend in its place
    page = Bbox.from_extents(0, canvas.ax.get_ylim()[1], WIDTH, canvas.ax.get_ylim()[0])
    items = [(item, measured(item)) for item in (*canvas.parts.values(), *canvas.texts)]
    for item, rect in items:
        if not inside(rect, item.frame or page):
            yield f"{item.words!r} does not fit into {item.home if item.frame else 'the page'!r}"
    for (item, rect), (other, second) in combinations(items, 2):
        if rect.overlaps(second) and not tolerated(item, rect, other, second):
            yield f"{item.words!r} and {other.words!r} overlap"
    paths = [(name, Path(points), homes) for name, points, homes in canvas.lines]
    for name, path, homes in paths:
        for item, rect in items:
            own = item.home == name if isinstance(item.at, Text) else item.home in homes
            if path.intersects_bbox(rect, filled=False) and not own and not item.holds:
                yield f"the arrow {name} crosses {item.words!r}"
    for (name, path, homes), (other_name, other_path, others) in combinations(paths, 2):
        if path.intersects_path(other_path, filled=False) and not homes & others:
            yield f"the arrows {name} and {other_name} cross"
    for name, points, _ in canvas.lines:
        if dist(points[0], points[-1]) < 0.15:
            yield f"the arrow {name} is too short"


def measured(item: Item) -> Bbox:
    """Where an item is, in inches; 0.01 less on every side, for rounding."""
    if isinstance(item.at, Bbox):
        return item.at.padded(-0.01)
    artist = item.at.get_bbox_patch() or item.at  # a badge reaches further than its text
    box = artist.get_window_extent().transformed(item.at.axes.transData.inverted())
    return Bbox([box.min, box.max]).padded(-0.01)  # y runs downwards


def inside(inner: Bbox, outer: Bbox) -> bool:
    """Whether the second rectangle contains the first."""
    return bool(np.all(outer.min <= inner.min) and np.all(inner.max <= outer.max))


def tolerated(item: Item, rect: Bbox, other: Item, second: Bbox) -> bool:
    """Whether two items may overlap: a text and its own part, a group and what is in it."""
    texts = isinstance(item.at, Text) and isinstance(other.at, Text)
    own = item.home == other.home and not texts
    return own or grouped(item, rect, other, second) or grouped(other, second, item, rect)


def grouped(item: Item, rect: Bbox, group: Item, frame: Bbox) -> bool:
    """Whether an item is wholly inside a group; a part has to be one of its members."""
    member = isinstance(item.at, Text) or item.home in group.holds
    return bool(group.holds) and member and inside(rect, frame)
