"""What native resolution, M-RoPE and DeepStack bring to toys of their kind: the tables of notebook
10, section 4.

    python tools/qwen2_vl_ablations.py sizes [--steps 250] [--seeds 0]
    python tools/qwen2_vl_ablations.py videos --batch 48 --scenes 8000 --save
    data/checkpoints/qwen2_vl python tools/qwen2_vl_ablations.py text --steps 600

sizes: captions of scenes of seven shapes, at most 16 cells; tested on shapes like these and on
larger and longer ones.
videos: captions of one moving object, 6 and 8 frames; tested on up to 16. text: to read the digits,
one on each object of a wide scene, in reading order; the picture as it is, or squeezed or padded
into a square of as many tokens.

Every row of a table starts from the same seed and sees the same scenes in the same order; only the
named thing differs. Measured on streams with seed 5, not on the files in data/scenes.
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps

from minivlm import scenes
from minivlm.qwen2_vl import Qwen2VL, Qwen3VL
from minivlm.scenes import Scene
from minivlm.scenes.drawing import BACKGROUND
from minivlm.scenes.grammar import alike, reading_order
from minivlm.toys.qwen2_vl import SHAPES, VIDEOS, Captioner, FlatQwen2VL, Way, mixed, tells_motion

MROPE, FLAT, DEEP, PLAIN = "M-RoPE", "1-D", "Qwen3-VL, DeepStack", "Qwen3-VL, without"
MODELS = {
    MROPE: partial(Captioner.new, Qwen2VL),
    FLAT: partial(Captioner.new, FlatQwen2VL),
    DEEP: partial(Captioner.new, Qwen3VL, deep=(0, 1)),
    PLAIN: partial(Captioner.new, Qwen3VL),
}
HELD_OUT = {"as trained": SHAPES} | {
    f"{r} x {c}": [{"rows": r, "columns": c}] for r, c in ((5, 5), (6, 6), (2, 10), (10, 2))
}
LONGER = [{"frames": frames, "turns": turns} for turns in (0, 1) for frames in (6, 8, 12, 16)]
WIDE = {"rows": 2, "columns": 8, "label": 1, "characters": "23456789"}
SQUARE = (64, 64)  # pixels: as many as the wide picture's 128 x 32


def stretched(image: Image.Image) -> Image.Image:
    return image.resize(SQUARE, Image.Resampling.BICUBIC)


def padded(image: Image.Image) -> Image.Image:
    return ImageOps.pad(image, SQUARE, Image.Resampling.BICUBIC, BACKGROUND)


WAYS: dict[str, Way | None] = {"as it is": None, "stretched": stretched, "padded": padded}


def share(flags: list[bool]) -> str:
    return f"{sum(flags) / len(flags):.1%}"


def true(said: list[str], found: list[Scene]) -> list[bool]:
    return [scenes.is_true(text, scene) for text, scene in zip(said, found, strict=True)]


def moved(said: list[str], found: list[Scene]) -> list[bool]:
    return [tells_motion(text, scene) for text, scene in zip(said, found, strict=True)]


def to_read(n: int, seed: int, split: str) -> list[Scene]:
    """Wide scenes whose caption is what is written on the objects, in reading order."""
    found = scenes.sample(n, seed, split, **WIDE)
    texts = [
        " ".join(thing.text for thing in reading_order(scene.objects, scene.cell))
        for scene in found
    ]
    return [replace(scene, caption=text) for scene, text in zip(found, texts, strict=True)]


def read(said: list[str], found: list[Scene]) -> list[bool]:
    """Of each digit: does it stand in its place?"""
    pairs = [(text.split(), scene.caption.split()) for text, scene in zip(said, found, strict=True)]
    return [
        digit == (text[i] if i < len(text) else "")
        for text, true in pairs
        for i, digit in enumerate(true)
    ]


def row(name: str, seed: int, cells: list[str]) -> None:
    print(f"| {name} | {seed} | {' | '.join(cells)} |", flush=True)


def header(columns: list[str]) -> None:
    print(f"| model | seed | {' | '.join(columns)} |\n" + "|---" * (len(columns) + 2) + "|")


def trained(
    name: str, seed: int, train: list[Scene], o: argparse.Namespace, way: Way | None = None
) -> tuple[Captioner, str]:
    """-> the captioner, and the CPU seconds it took."""
    made, began = MODELS[name]([scene.caption for scene in train], seed), time.process_time()
    made.train(train, o.steps, batch=o.batch, seed=seed, way=way)
    return made, f"{time.process_time() - began:.0f}"


def sizes(o: argparse.Namespace) -> None:
    train = mixed(o.scenes, 0, "train", SHAPES)
    tests = {
        (what, split): mixed(o.test, 5, split, kinds)
        for what, kinds in HELD_OUT.items()
        for split in ("test", "composition")
    }
    header([f"{what}, {split}" for what, split in tests] + ["relations, as trained", "CPU seconds"])
    for name in MODELS:
        for seed in o.seeds:
            made, seconds = trained(name, seed, train, o)
            right = [true(made.caption(found), found) for found in tests.values()]
            seen = zip(
                right[0] + right[1],
                [scene for found in [*tests.values()][:2] for scene in found],
                strict=True,
            )
            relations = [flag for flag, scene in seen if not alike(scene.objects)]
            row(name, seed, [share(flags) for flags in [*right, relations]] + [seconds])


def videos(o: argparse.Namespace) -> None:
    train = mixed(o.scenes, 0, "train", VIDEOS)
    tests = {(kind["frames"], kind["turns"]): mixed(o.test, 5, "test", [kind]) for kind in LONGER}
    header(
        [f"{frames} frames, {turns} turns: motion (caption)" for frames, turns in tests]
        + ["CPU seconds"]
    )
    for name in (MROPE, FLAT):
        for seed in o.seeds:
            made, seconds = trained(name, seed, train, o)
            if o.save and name == MROPE:
                made.save(o.save)
            said = [(made.caption(found), found) for found in tests.values()]
            row(
                name,
                seed,
                [f"{share(moved(*pair))} ({share(true(*pair))})" for pair in said] + [seconds],
            )


def text(o: argparse.Namespace) -> None:
    train, found = to_read(o.scenes, 0, "train"), to_read(o.test, 5, "test")
    header(["digits read", "whole pictures", "CPU seconds"])
    for name, way in WAYS.items():
        for seed in o.seeds:
            made, seconds = trained(MROPE, seed, train, o, way)
            for seen, other in WAYS.items() if way is None else [(name, way)]:
                said = made.caption(found, other)
                whole = [text == scene.caption for text, scene in zip(said, found, strict=True)]
                row(
                    f"trained {name}, seen {seen}",
                    seed,
                    [share(read(said, found)), share(whole), seconds],
                )


TABLES = {"sizes": sizes, "videos": videos, "text": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=64, help="scenes a step")
    parser.add_argument("--scenes", type=int, default=16_000, help="of training")
    parser.add_argument("--test", type=int, default=100, help="scenes of each test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--save", type=Path, help="folder for the M-RoPE model of the videos")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    TABLES[chosen.table](chosen)


if __name__ == "__main__":
    main()
