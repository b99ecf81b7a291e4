"""M-RoPE against 1-D positions, and DeepStack, on captions of images of many sizes.

Trained on scenes of seven shapes, at most 16 cells; tested on shapes like these and on larger and
longer ones. Every row starts from the same seed and sees the same scenes in the same order; only
the named thing differs. Measured on streams with seed 5. Two to three minutes a row.
"""

from functools import partial
from pathlib import Path

from minivlm import scenes
from minivlm.qwen2_vl import Qwen2VL, Qwen3VL
from minivlm.scenes.grammar import alike
from minivlm.toys.qwen2_vl import GRIDS, AnySizeCaptioner, FlatQwen2VL, mixed
from runner import Experiment, Measure, Settings, main

ROWS = {  # name -> what makes the untrained captioner of texts and a seed
    "M-RoPE": partial(AnySizeCaptioner.new, Qwen2VL),
    "1-D": partial(AnySizeCaptioner.new, FlatQwen2VL),
    "Qwen3-VL, DeepStack": partial(AnySizeCaptioner.new, Qwen3VL, deep=(0, 1)),
    "Qwen3-VL, without": partial(AnySizeCaptioner.new, Qwen3VL),
}
LARGER = {f"{r} × {c}": [{"rows": r, "columns": c}] for r, c in ((5, 5), (6, 6), (2, 10), (10, 2))}
HELD_OUT = {"as trained": GRIDS} | LARGER
SPLITS = ("test", "composition")
COLUMNS = {f"{what}, {split}": "% of true captions" for what in HELD_OUT for split in SPLITS}
COLUMNS |= {"relations": "% of true captions of two different objects, as trained, both splits"}


def prepare(settings: Settings) -> Measure:
    train = mixed(settings.train_scenes, 0, "train", GRIDS)
    texts = [scene.caption for scene in train]
    tests = {
        f"{what}, {split}": mixed(settings.test_scenes, 5, split, kinds)
        for what, kinds in HELD_OUT.items()
        for split in SPLITS
    }

    def measure(row: str, seed: int) -> dict[str, float]:
        made = ROWS[row](texts, seed)
        made.train(train, settings.steps, seed=seed)
        right = {
            column: [*map(scenes.is_true, made.caption(held_out), held_out)]
            for column, held_out in tests.items()
        }
        right["relations"] = [
            flag
            for split in SPLITS
            for flag, scene in zip(
                right[f"as trained, {split}"], tests[f"as trained, {split}"], strict=True
            )
            if not alike(scene.objects)
        ]
        return {column: 100 * sum(flags) / len(flags) for column, flags in right.items()}

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What do M-RoPE and DeepStack bring to captions of images of any size?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=250, train_scenes=16_000, test_scenes=100),
    prepare=prepare,
    notes="64 images a step.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
