"""Small text on wide images: seen as they are, or in a square of as many tokens.

Scenes of 2 x 8 cells with a digit on each object, to be read in reading order. Each training starts
from the same seed and sees the same scenes in the same order. Measured on the test stream with
seed 5. Some six minutes for a training; the first three rows share one.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from PIL import Image, ImageOps

from minivlm import scenes
from minivlm.qwen2_vl import Qwen2VL
from minivlm.scenes import Scene
from minivlm.scenes.drawing import BACKGROUND
from minivlm.scenes.grammar import reading_order
from minivlm.toys.qwen2_vl import AnySizeCaptioner, Way
from runner import Experiment, Measure, Settings, main

WIDE = {"rows": 2, "columns": 8, "label": 1, "characters": "23456789"}
SQUARE = (64, 64)  # pixels: as many as the wide image's 128 x 32


def stretched(image: Image.Image) -> Image.Image:
    return image.resize(SQUARE, Image.Resampling.BICUBIC)


def padded(image: Image.Image) -> Image.Image:
    return ImageOps.pad(image, SQUARE, Image.Resampling.BICUBIC, BACKGROUND)


WAYS: dict[str, Way | None] = {"as it is": None, "stretched": stretched, "padded": padded}
PAIRS = [("as it is", seen) for seen in WAYS] + [(way, way) for way in ("stretched", "padded")]
ROWS = {f"trained {trained}, seen {seen}": (trained, seen) for trained, seen in PAIRS}
COLUMNS = {
    "digits": "% of digits that are read in their place (a guess: 12.5)",
    "whole images": "% of images of which all digits are read",
}


def to_read(n: int, seed: int, split: str) -> list[Scene]:
    """Wide scenes whose caption is what is written on the objects, in reading order."""
    drawn = scenes.sample(n, seed, split, **WIDE)
    things = [reading_order(scene.objects, scene.cell) for scene in drawn]
    texts = [" ".join(thing.text for thing in row) for row in things]
    return [replace(scene, caption=text) for scene, text in zip(drawn, texts, strict=True)]


def in_place(said: Sequence[str], held_out: Sequence[Scene]) -> list[bool]:
    """Of each digit: is it read in its place?"""
    flags = []
    for text, scene in zip(said, held_out, strict=True):
        read, true = text.split(), scene.caption.split()
        flags += [i < len(read) and read[i] == digit for i, digit in enumerate(true)]
    return flags


def prepare(settings: Settings) -> Measure:
    train = to_read(settings.train_scenes, 0, "train")
    held_out = to_read(settings.test_scenes, 5, "test")

    @cache
    def trained(way: str, seed: int) -> AnySizeCaptioner:
        made = AnySizeCaptioner.new(Qwen2VL, [scene.caption for scene in train], seed)
        made.train(train, settings.steps, seed=seed, way=WAYS[way])
        return made

    def measure(row: str, seed: int) -> dict[str, float]:
        way, seen = ROWS[row]
        said = trained(way, seed).caption(held_out, WAYS[seen])
        flags = in_place(said, held_out)
        whole = [text == scene.caption for text, scene in zip(said, held_out, strict=True)]
        shares = {"digits": sum(flags) / len(flags), "whole images": sum(whole) / len(whole)}
        return {column: 100 * share for column, share in shares.items()}

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="Is small text read better at an image's own resolution than in a square?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=600, train_scenes=16_000, test_scenes=100),
    prepare=prepare,
    notes="64 images a step.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
