"""What the captioner of ``python -m minivlm`` says of scenes that are drawn or stored otherwise.

The same weights at the start, the same scenes in the same order; only what training does to the
images differs. Measured on streams with seed 5. Some three minutes a row.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from minivlm import scenes
from minivlm.scenes.pixels import FORMS, augment, vary_channels
from minivlm.toys.captioner import Captioner
from runner import Experiment, Measure, Settings, main

ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "one paper": vary_channels,  # contrast, and a fifth of the images without one channel
    "many papers": augment,
    "many papers, black loses channels too": partial(augment, spare_black=False),
}
SPLITS = ("test", "composition")


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, 0)
    tests = {split: scenes.sample(settings.test_scenes, 5, split) for split in SPLITS}

    def measure(row: str, seed: int) -> dict[str, float]:
        made, figures = Captioner.new([scene.caption for scene in train], seed), {}
        made.train(train, settings.steps, vary=ROWS[row], seed=seed)
        for split, held_out in tests.items():
            for name, stored in FORMS.items():
                said = made.caption([stored(scene.image) for scene in held_out])
                true = map(scenes.is_true, said, held_out)
                figures[f"{name}, {split}"] = 100 * sum(true) / len(held_out)
        return figures

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="Does a caption depend on the paper that a scene is drawn on and on how it is stored?",
    rows=[*ROWS],
    columns={f"{form}, {split}": "% of true captions" for form in FORMS for split in SPLITS},
    settings=Settings(steps=1100, train_scenes=24_000, test_scenes=250),
    prepare=prepare,
    notes="64 scenes a step.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
