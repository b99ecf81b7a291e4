"""Scenes on disk: PNG files and metadata.jsonl, the imagefolder convention; picture files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path, PureWindowsPath

from PIL import Image

from minivlm.scenes.drawing import BACKGROUND
from minivlm.scenes.grammar import COLORS, DIRECTIONS, SHAPES, SIZES, Object
from minivlm.scenes.sampling import SPLITS
from minivlm.scenes.scene import Scene
from minivlm.vit import as_rgb

DATA = Path(__file__).resolve().parents[2] / "data"  # scenes, texts, checkpoints, results
# Of picture files. Pillow knows more, and one of them (EPS) runs a program on what it reads.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


def save(scenes: Sequence[Scene], folder: Path) -> None:
    """Write the images and metadata.jsonl, one scene a line."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scene in enumerate(scenes):
        name = f"{number:05d}.png"
        scene.image.save(folder / name, optimize=True)
        lines.append(json.dumps(_row(scene, name), ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(scene: Scene, file_name: str) -> dict:
    return {
        "file_name": file_name,
        "caption": scene.caption,
        "caption_zh": scene.caption_zh,
        "cell": scene.cell,
        "objects": [asdict(thing) for thing in scene.objects],
        "questions": [asdict(question) for question in scene.questions + scene.probes],
    }


def load(split: str, folder: Path = DATA / "scenes") -> list[Scene]:
    """The scenes of a split.

    ValueError where the folder has no such split, and for a line of metadata.jsonl that is no
    scene: it names the line.
    """
    path = Path(folder) / split / "metadata.jsonl"
    if split not in SPLITS or not path.is_file():
        raise ValueError(f"no scenes of split {split!r} at {path}; splits: {list(SPLITS)}")
    scenes = []
    lines = path.read_bytes().split(b"\n")  # not splitlines: a caption may hold other line breaks
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                scenes.append(_scene(_read_row(line), path.parent))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    return scenes


def _read_row(line: bytes) -> dict:
    """A line of metadata.jsonl; ValueError for what ``_row`` does not write."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"no JSON object: {row!r}")
    for key, kind in (("file_name", str), ("caption", str), ("caption_zh", str), ("cell", int)):
        _require(row, key, isinstance(row.get(key), kind))
    _require(row, "cell", row["cell"] > 0)
    things = row.get("objects")
    _require(row, "objects", isinstance(things, list) and len(things) > 0)
    for thing in things:
        _check_object(thing)
    return row


def _check_object(thing: dict) -> None:
    """ValueError for what is no object of a scene."""
    if not isinstance(thing, dict) or thing.keys() - {field.name for field in fields(Object)}:
        raise ValueError(f"no object of a scene: {thing!r}")
    for key, known in (("shape", SHAPES), ("color", COLORS), ("size", SIZES)):
        _require(thing, key, thing.get(key) in known)
    box = thing.get("box")
    whole = isinstance(box, list) and [type(side) for side in box] == [int] * 4
    _require(thing, "box", whole and box[0] < box[2] and box[1] < box[3])
    _require(thing, "text", isinstance(thing.get("text", ""), str))
    motion = thing.get("motion", [])
    _require(thing, "motion", isinstance(motion, list) and all(m in DIRECTIONS for m in motion))


def _require(row: dict, key: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{key} = {row[key]!r}" if key in row else f"no {key!r}")


def _scene(row: dict, folder: Path) -> Scene:
    objects = tuple(
        Object(**thing | {"box": tuple(thing["box"]), "motion": tuple(thing.get("motion", []))})
        for thing in row["objects"]
    )
    image = _read_image(row["file_name"], folder)
    return Scene(objects, row["caption"], row["caption_zh"], image, row["cell"])


def _read_image(name: str, folder: Path) -> Image.Image:
    """An image of the folder; ValueError for a name that leads out of it, and for no image."""
    way = PureWindowsPath(name)  # it takes / and \\ for separators, here and there
    if way.anchor or ".." in way.parts:
        raise ValueError(f"file_name {name!r} leads out of the folder")
    return as_rgb(read_picture(folder / name), BACKGROUND)


def read_picture(path: str | Path) -> Image.Image:
    """A picture file of one of FORMATS, loaded, in its own mode.

    ValueError for what is none: no regular file (a pipe would never end), broken, too large.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError("no regular file")
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return image
    except Image.UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ValueError(f"{path}: not a picture that can be read (none of {formats})") from None
    except Exception as error:  # broken files raise anything: Pillow has no class of its own for it
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{path}: not a picture that can be read ({reason})") from error
