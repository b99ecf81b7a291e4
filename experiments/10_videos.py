"""M-RoPE against 1-D positions on videos of one moving object.

Trained on 6 and 8 frames, tested on up to 16. Both rows start from the same seed and see the same
videos in the same order. Measured on the test stream with seed 5. Some five minutes a row.
"""

from functools import partial
from pathlib import Path

from minivlm import scenes
from minivlm.qwen2_vl import Qwen2VL
from minivlm.toys.qwen2_vl import VIDEOS, AnySizeCaptioner, FlatQwen2VL, mixed, tells_motion
from runner import Experiment, Measure, Settings, main

ROWS = {  # name -> what makes the untrained captioner of texts and a seed
    "M-RoPE": partial(AnySizeCaptioner.new, Qwen2VL),
    "1-D": partial(AnySizeCaptioner.new, FlatQwen2VL),
}
LONGER = {
    f"{frames} frames, {way}": [{"frames": frames, "turns": turns}]
    for turns, way in enumerate(("one direction", "two directions"))
    for frames in (6, 8, 12, 16)
}
COLUMNS = {f"motion, {kind}": "% of captions whose motion is right" for kind in LONGER}
COLUMNS |= {f"caption, {kind}": "% of captions that are true as a whole" for kind in LONGER}


def prepare(settings: Settings) -> Measure:
    train = mixed(settings.train_scenes, 0, "train", VIDEOS)
    texts = [scene.caption for scene in train]
    tests = {name: mixed(settings.test_scenes, 5, "test", kinds) for name, kinds in LONGER.items()}

    def measure(row: str, seed: int) -> dict[str, float]:
        made, figures = ROWS[row](texts, seed), {}
        made.train(train, settings.steps, batch=48, seed=seed)
        for name, held_out in tests.items():
            said = made.caption(held_out)
            moved, true = (
                sum(map(judge, said, held_out)) for judge in (tells_motion, scenes.is_true)
            )
            figures[f"motion, {name}"] = 100 * moved / len(held_out)
            figures[f"caption, {name}"] = 100 * true / len(held_out)
        return {column: figures[column] for column in COLUMNS}

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What does M-RoPE bring to videos that are longer than those of the training?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=250, train_scenes=8000, test_scenes=100),
    prepare=prepare,
    notes="48 videos a step.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
