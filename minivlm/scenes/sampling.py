"""Random scenes: an endless stream for each split and seed.

(split, seed) -> objects in cells of a grid -> captions and an image (or the frames of a video). The
files in data/scenes are the head of each stream with seed 0.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from numbers import Integral
from random import Random

from minivlm.scenes import grammar
from minivlm.scenes.drawing import Shift, render
from minivlm.scenes.grammar import COLORS, DIRECTIONS, SHAPES, SIZES, Object
from minivlm.scenes.scene import Scene

SPLITS = {"train": 2000, "val": 250, "test": 250, "composition": 250}  # -> scenes in data/scenes

# the colour-shape pairs of the composition split; each colour and each shape alone is in train
HELD_OUT = (
    ("red", "triangle"),
    ("yellow", "square"),
    ("green", "circle"),
    ("blue", "star"),
    ("purple", "cross"),
    ("black", "circle"),
)
SEEN = tuple(
    (color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in HELD_OUT
)
PAIRINGS = ("split", "all", "close")
ROOMY = ("circle", "square")  # the shapes that have room for a label
LABEL_CHARACTERS = "23456789ACDEFHJKLMNPRTUVWXY"  # without look-alikes

EXTENT = {"small": 9 / 16, "large": 15 / 16}  # side of an object, in cells
JITTER = 2  # pixels that an object may be off the centre of its cell, for cells of 16


@dataclass(frozen=True)
class Options:
    """What ``sample`` draws."""

    rows: int = 4  # grid cells
    columns: int = 4
    cell: int = 16  # pixels a cell: the image is columns * cell wide and rows * cell high
    label: int = 0  # characters written on every object
    characters: str = LABEL_CHARACTERS  # what they are drawn from
    frames: int = 1  # above 1: a video of one moving object
    turns: int = 0  # changes of direction in a video
    # share of captions that are false: another scene's; the images do not depend on it
    noise: float = 0.0
    # Which colours and shapes go together. "split": as the split says. "all": any, for texts about
    # what no image shows. "close": two objects of one colour or of one shape, one of them as the
    # split says, so that neither feature alone tells what is where.
    pairs: str = "split"

    def __post_init__(self):
        counts = ("rows", "columns", "cell", "label", "frames", "turns")
        for name in counts:
            if not isinstance(getattr(self, name), Integral):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        if self.pairs not in PAIRINGS:
            raise ValueError(f"pairs must be one of {PAIRINGS}, got {self.pairs!r}")
        if self.pairs != "split" and (self.label or self.frames > 1):
            raise ValueError(f"pairs={self.pairs!r} has no labels and no frames; got {self}")
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise must lie in [0, 1), got {self.noise}")
        if min(self.rows, self.columns) < 2 or self.cell < 8:
            raise ValueError(f"need at least 2 rows and columns and cells of 8 pixels, got {self}")
        if not {*self.characters} <= {*LABEL_CHARACTERS} or not self.characters:
            raise ValueError(f"labels are made of {LABEL_CHARACTERS}, not of {self.characters!r}")
        too_short = self.turns and self.frames < self.turns + 2
        if self.label < 0 or self.turns < 0 or self.frames < 1 or too_short:
            raise ValueError(
                f"label and turns must be >= 0, frames >= 1, and turns + 2 <= frames; got {self}"
            )
        if self.frames > 1 and not self._has_room():
            raise ValueError(f"too many frames: in {self.frames}, objects leave {self.size} pixels")

    def _has_room(self) -> bool:
        """May an object move a pixel a frame, in whatever directions, and never leave the image?"""
        longest = math.ceil((self.frames - 1) / (self.turns + 1))  # way between two turns
        one_direction = (self.turns // 2 + 1) * longest  # no two neighbours lead the same way
        return one_direction <= min(self.size) - object_side("large", self.cell)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image in pixels."""
        return self.columns * self.cell, self.rows * self.cell


def sample(n: int, seed: int, split: str = "train", **options) -> list[Scene]:
    """The first n scenes of the stream of a split and seed.

    The same arguments give the same scenes. Options: see ``Options``. Train, val and test share a
    distribution and no image; every object of composition has one of the HELD_OUT colour-shape
    pairs, which the other splits never show.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {list(SPLITS)}")
    if not isinstance(n, Integral) or n < 0:
        raise ValueError(f"cannot sample {n} scenes")
    chosen = Options(**options)
    rng, noise_rng = Random(f"{split} {seed}"), Random(f"{split} {seed} noise")
    scenes = []
    while len(scenes) < n:
        objects, shifts = _objects(rng, split, chosen)
        if split != "composition" and split_of(objects) != split:
            continue
        texts = _captions(rng, objects, chosen.cell)
        if noise_rng.random() < chosen.noise:
            texts = _false_captions(noise_rng, objects, split, chosen)
        frames = tuple(render(objects, chosen.size, shift) for shift in shifts)
        video = frames if chosen.frames > 1 else ()
        scenes.append(Scene(objects, *texts, frames[0], chosen.cell, video))
    return scenes


def split_of(objects: Sequence[Object]) -> str:
    """The one of train (90 %), val and test (5 % each) that may show these objects.

    It is chosen by a hash of their boxes, shapes and colours.
    """
    facts = sorted((thing.box, thing.shape, thing.color) for thing in objects)
    bucket = zlib.crc32(repr(facts).encode()) % 20
    return {18: "val", 19: "test"}.get(bucket, "train")


# What is said


def _captions(rng: Random, objects: Sequence[Object], cell: int) -> tuple[str, str]:
    """A caption in English and one in Chinese.

    19 times out of 20 in reading order, three times out of four in a plain wording.
    """
    order = grammar.reading_order(objects, cell)
    if rng.random() < 0.05:
        order.reverse()
    which = 0 if rng.random() < 0.75 else 1  # plain ones, or variations
    english, chinese = grammar.wordings_en(order, cell), grammar.wordings_zh(order, cell)
    return rng.choice(english[which]), rng.choice(chinese[which])


def _false_captions(
    rng: Random, objects: Sequence[Object], split: str, options: Options
) -> tuple[str, str]:
    """The captions of another scene that are not true of these objects."""
    while True:
        others, _ = _objects(rng, split, options)
        english, chinese = _captions(rng, others, options.cell)
        if not grammar.holds(english, objects, options.cell):
            return english, chinese


# What is shown


def _objects(rng: Random, split: str, options: Options) -> tuple[tuple[Object, ...], list[Shift]]:
    """The objects of one scene, and how far they have moved in each frame."""
    pairs = HELD_OUT if split == "composition" else SEEN
    if options.pairs == "all":
        pairs = SEEN + HELD_OUT
    if options.label:
        pairs = tuple((color, shape) for color, shape in pairs if shape in ROOMY)
    if options.frames > 1:
        return _moving_object(rng, pairs, options)
    return _still_objects(rng, pairs, options), [(0, 0)]


def _still_objects(
    rng: Random, pairs: Sequence[tuple[str, str]], options: Options
) -> tuple[Object, ...]:
    """One object, two different ones, or two to four alike, each in a cell of its own."""
    kind = rng.choice(("single", "pair", "pair", "pair", "alike"))
    if options.pairs == "close":
        kind = "pair"
    count = {"single": 1, "pair": 2, "alike": rng.randint(2, 4)}[kind]
    chosen = rng.sample(pairs, 2) if kind == "pair" else [rng.choice(pairs)] * count
    if options.pairs == "close":
        chosen = _close(rng, chosen[0], pairs)
    size = rng.choice(SIZES)
    sizes = [rng.choice(SIZES) if kind == "pair" else size for _ in chosen]
    text = _label(rng, options)
    texts = [_label(rng, options) if kind == "pair" else text for _ in chosen]
    places = rng.sample(range(options.rows * options.columns), count)
    objects = []
    for (color, shape), size, text, place in zip(chosen, sizes, texts, places, strict=True):
        row, column = divmod(place, options.columns)
        box = _box(rng, size, row, column, options.cell)
        objects.append(Object(shape, color, size, box, text))
    return tuple(objects)


def _close(
    rng: Random, first: tuple[str, str], pairs: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The pair and another one that has its colour or its shape, in any order."""
    others = [*pairs, *SEEN] if pairs is HELD_OUT else pairs
    near = [other for other in others if (other[0] == first[0]) != (other[1] == first[1])]
    return rng.sample([first, rng.choice(near)], 2)


def _label(rng: Random, options: Options) -> str:
    return "".join(rng.choice(options.characters) for _ in range(options.label))


def _box(rng: Random, size: str, row: int, column: int, cell: int) -> tuple[int, int, int, int]:
    """The bounding box of an object in a cell, a little off its centre."""
    x = column * cell + rng.choice(offsets(size, cell))
    y = row * cell + rng.choice(offsets(size, cell))
    side = object_side(size, cell)
    return x, y, x + side, y + side


def object_side(size: str, cell: int) -> int:
    """Pixels a side of a small or large object."""
    return round(EXTENT[size] * cell)


def offsets(size: str, cell: int) -> range:
    """The pixels of a cell, along one axis, at which an object may begin."""
    slack = cell - object_side(size, cell)
    reach = min(slack // 2, JITTER * cell // 16)
    return range(slack // 2 - reach, slack // 2 + reach + 1)


# What moves


def _moving_object(
    rng: Random, pairs: Sequence[tuple[str, str]], options: Options
) -> tuple[tuple[Object], list[Shift]]:
    """One object that never leaves the image, and how far it has moved in each frame."""
    color, shape = rng.choice(pairs)
    size = rng.choice(SIZES)
    motion = _motion(rng, options.turns)
    shifts = _shifts(motion, options)
    side = object_side(size, options.cell)
    corner = []
    for axis, length in enumerate(options.size):
        moved = [shift[axis] for shift in shifts]
        corner.append(rng.randint(-min(moved), length - side - max(moved)))
    x, y = corner
    box = (x, y, x + side, y + side)
    return (Object(shape, color, size, box, _label(rng, options), motion),), shifts


def _motion(rng: Random, turns: int) -> tuple[str, ...]:
    """``turns`` + 1 directions, of which no two neighbours are the same."""
    motion = [rng.choice(DIRECTIONS)]
    while len(motion) <= turns:
        motion.append(rng.choice([way for way in DIRECTIONS if way != motion[-1]]))
    return tuple(motion)


def _shifts(motion: Sequence[str], options: Options) -> list[Shift]:
    """Where the object is in each frame, counted from the first.

    It moves by half a cell a frame, or by as much as the image has room for.
    """
    steps = options.frames - 1
    room = min(options.size) - object_side("large", options.cell)
    pace = max(1, min(options.cell // 2, room // steps))
    move = {"left": (-pace, 0), "right": (pace, 0), "up": (0, -pace), "down": (0, pace)}
    moves = [move[motion[step * len(motion) // steps]] for step in range(steps)]
    across = accumulate((x for x, _ in moves), initial=0)
    down = accumulate((y for _, y in moves), initial=0)
    return list(zip(across, down, strict=True))
