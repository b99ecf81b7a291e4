"""Scenes on disk: PNG files and metadata.jsonl, the imagefolder convention."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from minivlm.scenes.grammar import Object
from minivlm.scenes.sampling import SPLITS
from minivlm.scenes.scene import Scene

DATA = Path(__file__).resolve().parents[2] / "data"  # scenes, texts, checkpoints, results


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
    """The scenes of a split; ValueError where the folder has no such split."""
    path = Path(folder) / split / "metadata.jsonl"
    if split not in SPLITS or not path.is_file():
        raise ValueError(f"no scenes of split {split!r} at {path}; splits: {list(SPLITS)}")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_scene(json.loads(line), path.parent) for line in lines]


def _scene(row: dict, folder: Path) -> Scene:
    objects = tuple(
        Object(**thing | {"box": tuple(thing["box"]), "motion": tuple(thing["motion"])})
        for thing in row["objects"]
    )
    with Image.open(folder / row["file_name"]) as image:
        return Scene(objects, row["caption"], row["caption_zh"], image.convert("RGB"), row["cell"])
