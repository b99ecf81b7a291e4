"""Whether a small Qwen-VL reads a digit: at two resolutions, with three numbers of queries.

Scenes of 2 x 2 cells with one digit in all, on one object or on two to four alike; patches of 8 x 8
pixels. Every row starts from the same seed, with an untrained image tower and resampler, and sees
the same scenes in the same order, in stage 2, all parts being trained. Measured on streams with
seed 5. Some four minutes a row.
"""

from pathlib import Path

from torch import Tensor

from minivlm import scenes
from minivlm.scenes import Scene
from minivlm.scenes.grammar import alike
from minivlm.scenes.pixels import MEAN, STD
from minivlm.scenes.questions import Question
from minivlm.toys.qwen_vl import Pointer
from minivlm.vit import to_pixels
from runner import Experiment, Measure, Settings, main

LABELLED = {"rows": 2, "columns": 2, "label": 1, "characters": "23456789"}
ROWS = {  # name -> pixels a side, and what differs
    "32 pixels, 16 queries": (32, {}),
    "16 pixels, 16 queries": (16, {}),
    "32 pixels, 4 queries": (32, {"side": 2}),
    "32 pixels, 64 queries": (32, {"side": 8}),
}
SPLITS = ("test", "composition")
COLUMNS = {f"read, {split}": "% of digits read right (a guess: 12.5)" for split in SPLITS}


def readable(n: int, seed: int, split: str) -> list[Scene]:
    """Scenes with one digit, on one object or on all of two to four alike: two of five."""
    drawn = scenes.sample(3 * n, seed, split, **LABELLED)
    return [scene for scene in drawn if alike(scene.objects)][:n]


def shown(held_out: list[Scene], side: int) -> Tensor:
    """The images at side x side pixels: (B, 3, side, side)."""
    return to_pixels([scene.image for scene in held_out], (side, side), mean=MEAN, std=STD)


def asked(scene: Scene) -> Question:
    return Question("what is written?", (scene.objects[0].text,), "reading")


def prepare(settings: Settings) -> Measure:
    train = readable(settings.train_scenes, 0, "train")
    tests = {split: readable(settings.test_scenes, 5, split) for split in SPLITS}

    def measure(row: str, seed: int) -> dict[str, float]:
        side, changes = ROWS[row]
        made, figures = Pointer.new(seed, image_size=side, patch=8, **changes), {}
        make = lambda i, rng: made.row(asked(train[i]), i)
        made.train(make, shown(train, side), settings.steps, stage=2, seed=seed)
        for split, held_out in tests.items():
            questions = [(i, asked(scene)) for i, scene in enumerate(held_out)]
            shares = made.measure(questions, held_out, shown(held_out, side))
            figures[f"read, {split}"] = 100 * shares["reading"]
        return figures

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="At which resolution, and with how many queries, does a small Qwen-VL read a digit?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=400, train_scenes=16_000, test_scenes=250),
    prepare=prepare,
    notes="64 questions a step.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
