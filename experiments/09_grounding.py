"""What positions and the number of queries bring to a small Qwen-VL that points at what is named.

Every row starts from the same seed, with an untrained image tower and resampler, and sees the same
scenes in the same order, in stage 2, all parts being trained; only the named thing differs.
Measured on streams with seed 5, not on the files in data/scenes. Four to eight minutes a row.
"""

from pathlib import Path
from random import Random

from minivlm import scenes
from minivlm.scenes import tasks
from minivlm.scenes.pixels import pixels
from minivlm.toys.qwen_vl import Pointer
from runner import Experiment, Measure, Settings, main

ROWS = {  # name -> what differs
    "2-D positions, 16 queries": {},
    "1-D positions, 16 queries": {"positions": "1d"},
    "no positions, 16 queries": {"positions": "none"},
    "2-D positions, 4 queries": {"side": 2},
    "2-D positions, 64 queries": {"side": 8},
}
SPLITS = ("test", "composition")
COLUMNS = {f"IoU ≥ 0.5, {split}": "% of boxes with such an overlap" for split in SPLITS}
COLUMNS |= {f"mean IoU, {split}": "of the boxes, 0 to 1" for split in SPLITS}


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, 0, "train")
    tests = {split: scenes.sample(settings.test_scenes, 5, split) for split in SPLITS}
    images = pixels([scene.image for scene in train])

    def measure(row: str, seed: int) -> dict[str, float]:
        made, figures = Pointer.new(seed, **ROWS[row]), {}
        make = lambda i, rng: made.row(tasks.grounding(train[i], rng), i)
        made.train(make, images, settings.steps, stage=2, seed=seed)
        for split, held_out in tests.items():
            rng = Random("test")
            asked = [(i, tasks.grounding(scene, rng)) for i, scene in enumerate(held_out)]
            shares = made.measure(asked, held_out, pixels([scene.image for scene in held_out]))
            figures[f"IoU ≥ 0.5, {split}"] = 100 * shares["IoU >= 0.5"]
            figures[f"mean IoU, {split}"] = shares["mean IoU"]
        return {column: figures[column] for column in COLUMNS}

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What do the resampler's positions and its number of queries bring to grounding?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=400, train_scenes=16_000, test_scenes=250),
    prepare=prepare,
    notes="64 questions a step.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
