"""The dataset: small pictures of flat objects, with captions, questions and boxes that a program
can judge.

A scene is one object, two different objects in a relation, or two to four alike, on a grid of cells
of 16 pixels. ``sample`` draws as many as wanted from an endless stream; the files in data/scenes
are the head of each stream. What can be said about a scene is in grammar.py, what can be asked in
questions.py.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import accumulate
from math import cos, pi, sin
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

from minivlm.scenes import grammar, questions
from minivlm.scenes.grammar import COLORS, DIRECTIONS, SHAPES, SIZES, Object
from minivlm.scenes.questions import Question

DATA = Path(__file__).resolve().parents[2] / "data" / "scenes"
SPLITS = {"train": 2000, "val": 250, "test": 250, "composition": 250}  # scenes on disk
PALETTE = {  # distinguishable with normal vision and with each of the three dichromacies
    "red": (200, 16, 46),
    "yellow": (226, 178, 0),
    "green": (0, 168, 120),
    "blue": (0, 87, 184),
    "purple": (199, 124, 219),
    "black": (16, 16, 16),
}
BACKGROUND = (242, 242, 242)
EXTENT = {"small": 9 / 16, "large": 15 / 16}  # side of an object, in cells
JITTER = 2  # pixels that an object may lie off the centre of its cell, for cells of 16
HELD_OUT = (  # the colour-shape pairs of the composition split; each colour and each shape alone is in train
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
LABEL_CHARACTERS = "23456789ACDEFHJKLMNPRTUVWXY"  # without look-alikes


@dataclass(frozen=True)
class Scene:
    objects: tuple[Object, ...]
    caption: str
    caption_zh: str
    image: Image.Image = field(compare=False, repr=False)
    cell: int = 16  # pixels a grid cell
    frames: tuple[Image.Image, ...] = field(
        default=(), compare=False, repr=False
    )  # of a video; image is the first

    @property
    def captions(self) -> list[str]:
        """Every English wording that the dataset uses for this scene; each is true."""
        return grammar.captions(self.objects, self.cell)[0]

    @property
    def captions_zh(self) -> list[str]:
        """Every Chinese wording that the dataset uses for this scene; each is true."""
        return grammar.captions(self.objects, self.cell)[1]

    @property
    def questions(self) -> list[Question]:
        """Questions about colour, shape, size, count and relation."""
        return questions.questions(self.objects, self.cell)

    @property
    def probes(self) -> list[Question]:
        """Yes/no questions, as many with "yes" as with "no"."""
        return questions.probes(self.objects, self.cell)


def is_true(caption: str, scene: Scene) -> bool:
    """Is the caption (English or Chinese) a sentence of the grammar, true of the scene, and
    complete?

    It must account for every object: "a red circle" is false of a scene that also holds a blue
    square.
    """
    return grammar.holds(caption, scene.objects, scene.cell)


@dataclass(frozen=True)
class Options:
    """What ``sample`` renders."""

    rows: int = 4  # grid cells
    columns: int = 4
    cell: int = 16  # pixels a cell: the image is columns * cell wide and rows * cell high
    label: int = 0  # characters written on every object
    characters: str = LABEL_CHARACTERS  # what they are drawn from
    frames: int = 1  # above 1: a video of one moving object
    turns: int = 0  # changes of direction in a video
    noise: float = (
        0.0  # share of captions that are false: another scene's; the pictures do not depend on it
    )

    def __post_init__(self):
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise must lie in [0, 1), got {self.noise}")
        if min(self.rows, self.columns) < 2 or self.cell < 8:
            raise ValueError(f"need at least 2 rows and columns and cells of 8 pixels, got {self}")
        if not {*self.characters} <= {*LABEL_CHARACTERS} or not self.characters:
            raise ValueError(f"labels are made of {LABEL_CHARACTERS}, not of {self.characters!r}")
        if (
            self.label < 0
            or self.turns < 0
            or self.frames < 1
            or (self.turns and self.frames < self.turns + 2)
        ):
            raise ValueError(
                f"label and turns must be >= 0, frames >= 1, and turns + 2 <= frames; got {self}"
            )


def sample(n: int, seed: int, split: str = "train", **options) -> list[Scene]:
    """The first n scenes of the stream of a split and seed, rendered; the same arguments give the
    same scenes.

    Options: see ``Options``. Train, val and test share a distribution and no image; every object of
    composition has one of the HELD_OUT colour-shape pairs, which the other splits never show.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {list(SPLITS)}")
    if n < 0:
        raise ValueError(f"cannot sample {n} scenes")
    o = Options(**options)
    rng, noise_rng = Random(f"{split} {seed}"), Random(f"{split} {seed} noise")
    scenes = []
    while len(scenes) < n:
        objects, shifts = _draw(rng, split, o)
        if split != "composition" and split_of(objects) != split:
            continue
        english, chinese = _say(rng, objects, o.cell)
        if noise_rng.random() < o.noise:
            while grammar.holds(english, objects, o.cell):
                english, chinese = _say(noise_rng, _draw(noise_rng, split, o)[0], o.cell)
        images = tuple(
            render(objects, (o.columns * o.cell, o.rows * o.cell), shift) for shift in shifts
        )
        scenes.append(
            Scene(objects, english, chinese, images[0], o.cell, images if o.frames > 1 else ())
        )
    return scenes


def _say(rng: Random, objects: Sequence[Object], cell: int) -> tuple[str, str]:
    """A caption in English and in Chinese: 19 times out of 20 in reading order, three out of four
    plain.
    """
    order = grammar.reading_order(objects, cell)
    if rng.random() < 0.05:
        order.reverse()
    plain = rng.random() < 0.75
    wordings = (grammar.wordings_en(order, cell), grammar.wordings_zh(order, cell))
    english, chinese = (rng.choice(language[0] if plain else language[1]) for language in wordings)
    return english, chinese


def split_of(objects: Sequence[Object]) -> str:
    """The one of train (90 %), val and test (5 % each) that may show these objects, by a hash of
    what they are.
    """
    facts = sorted((thing.box, thing.shape, thing.color) for thing in objects)
    bucket = zlib.crc32(repr(facts).encode()) % 20
    return {18: "val", 19: "test"}.get(bucket, "train")


Shift = tuple[int, int]  # pixels by which a moving object has moved: x, y


def _draw(rng: Random, split: str, o: Options) -> tuple[tuple[Object, ...], list[Shift]]:
    """The objects of one scene, and how far they have moved in each frame."""
    pairs = HELD_OUT if split == "composition" else SEEN
    if o.label:  # a label needs room
        pairs = tuple(pair for pair in pairs if pair[1] in ("circle", "square"))
    if o.frames > 1:
        return _draw_moving(rng, pairs, o)
    kind = rng.choice(("single", "pair", "pair", "pair", "alike"))
    count = {"single": 1, "pair": 2, "alike": rng.randint(2, 4)}[kind]
    chosen = rng.sample(pairs, 2) if kind == "pair" else [rng.choice(pairs)] * count
    size = rng.choice(SIZES)
    sizes = [rng.choice(SIZES) if kind == "pair" else size for _ in chosen]
    text = _label(rng, o)
    texts = [_label(rng, o) if kind == "pair" else text for _ in chosen]
    places = rng.sample(range(o.rows * o.columns), count)
    objects = [
        Object(shape, color, size, _box(rng, size, divmod(place, o.columns), o.cell), text)
        for (color, shape), size, place, text in zip(chosen, sizes, places, texts, strict=True)
    ]
    return tuple(objects), [(0, 0)]


def _label(rng: Random, o: Options) -> str:
    return "".join(rng.choice(o.characters) for _ in range(o.label))


def _side(size: str, cell: int) -> int:
    return round(EXTENT[size] * cell)


def _box(rng: Random, size: str, place: tuple[int, int], cell: int) -> tuple[int, int, int, int]:
    """The bounding box of an object in the cell (row, column), a little off its centre."""
    side = _side(size, cell)
    slack = cell - side
    reach = min(slack // 2, JITTER * cell // 16)
    x, y = (index * cell + slack // 2 + rng.randint(-reach, reach) for index in reversed(place))
    return x, y, x + side, y + side


def _draw_moving(
    rng: Random, pairs: Sequence[tuple[str, str]], o: Options
) -> tuple[tuple[Object], list[Shift]]:
    """One object and its path: ``turns`` + 1 straight parts, in steps of half a cell or what the
    image has room for.
    """
    color, shape = rng.choice(pairs)
    size = rng.choice(SIZES)
    motion = [rng.choice(DIRECTIONS)]
    while len(motion) <= o.turns:
        motion.append(rng.choice([d for d in DIRECTIONS if d != motion[-1]]))
    steps = o.frames - 1
    room = min(o.rows, o.columns) * o.cell - _side("large", o.cell)
    pace = max(1, min(o.cell // 2, room // steps))
    unit = {"left": (-pace, 0), "right": (pace, 0), "up": (0, -pace), "down": (0, pace)}
    moves = [unit[motion[i * len(motion) // steps]] for i in range(steps)]
    shifts = [(0, 0), *accumulate(moves, lambda at, move: (at[0] + move[0], at[1] + move[1]))]
    side, corner = _side(size, o.cell), []
    for axis, length in enumerate((o.columns * o.cell, o.rows * o.cell)):
        low, high = (edge(shift[axis] for shift in shifts) for edge in (min, max))
        corner.append(rng.randint(-low, length - side - high))
    x, y = corner
    return (
        Object(shape, color, size, (x, y, x + side, y + side), _label(rng, o), tuple(motion)),
    ), shifts


@lru_cache(maxsize=256)
def stencil(shape: str, side: int) -> Image.Image:
    """The coverage (0..255) of a shape that fills a square of ``side`` pixels, drawn at 8 times the
    size.
    """
    big = 8 * side
    canvas = Image.new("L", (big, big))
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
    else:
        draw.polygon([(x * (big - 1), y * (big - 1)) for x, y in _outline(shape)], fill=255)
    return canvas.resize((side, side), Image.Resampling.BOX)


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape in the unit square, y downwards."""
    if shape == "star":  # ten corners, every second one nearer to the centre
        polar = [(pi * i / 5, 1 if i % 2 == 0 else 0.45) for i in range(10)]
        x, y = (
            [radius * sin(angle) for angle, radius in polar],
            [-radius * cos(angle) for angle, radius in polar],
        )
        return [
            ((a - min(x)) / (max(x) - min(x)), (b - min(y)) / (max(y) - min(y)))
            for a, b in zip(x, y, strict=True)
        ]
    return {
        "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
        "triangle": [(0.5, 0), (1, 1), (0, 1)],
        "cross": [(x / 3, y / 3) for x, y in _CROSS],
    }[shape]


_CROSS = (
    (1, 0),
    (2, 0),
    (2, 1),
    (3, 1),
    (3, 2),
    (2, 2),
    (2, 3),
    (1, 3),
    (1, 2),
    (0, 2),
    (0, 1),
    (1, 1),
)


def render(objects: Sequence[Object], size: tuple[int, int], shift: Shift = (0, 0)) -> Image.Image:
    """Draw the objects, moved by ``shift`` pixels, on an image of ``size`` (width, height)."""
    image = Image.new("RGB", size, BACKGROUND)
    for thing in objects:
        x, y, side = thing.box[0] + shift[0], thing.box[1] + shift[1], thing.box[2] - thing.box[0]
        image.paste(PALETTE[thing.color], (x, y), stencil(thing.shape, side))
        if thing.text:
            ink = "black" if thing.color in ("yellow", "purple") else "white"
            font = _font(round(side / (0.5 + 0.6 * len(thing.text))))
            ImageDraw.Draw(image).text(
                (x + side / 2, y + side / 2), thing.text, ink, font, anchor="mm"
            )
    return image


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def save(scenes: Sequence[Scene], folder: Path) -> None:
    """Write pictures and metadata.jsonl in the imagefolder layout."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, scene in enumerate(scenes):
        name = f"{i:05d}.png"
        scene.image.save(folder / name, optimize=True)
        asked = [asdict(asked) for asked in scene.questions + scene.probes]
        row = {
            "file_name": name,
            "caption": scene.caption,
            "caption_zh": scene.caption_zh,
            "cell": scene.cell,
        }
        row |= {"objects": [asdict(thing) for thing in scene.objects], "questions": asked}
        lines.append(json.dumps(row, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(split: str, folder: Path = DATA) -> list[Scene]:
    """The scenes of a split as they lie in data/scenes."""
    path = Path(folder) / split / "metadata.jsonl"
    if split not in SPLITS or not path.is_file():
        raise ValueError(f"no scenes of split {split!r} at {path}; splits: {list(SPLITS)}")
    return [
        _read(json.loads(line), path.parent)
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def _read(row: dict, folder: Path) -> Scene:
    objects = tuple(
        Object(**thing | {"box": tuple(thing["box"]), "motion": tuple(thing["motion"])})
        for thing in row["objects"]
    )
    with Image.open(folder / row["file_name"]) as image:
        return Scene(objects, row["caption"], row["caption_zh"], image.convert("RGB"), row["cell"])
