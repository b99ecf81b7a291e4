"""Fine-tuning the stored BLIP as a captioner: at which rates, on images varied in what way.

A hundred steps from the same weights. Measured on scenes of the test and the composition stream
with seed 5, not on the files in data/scenes. Half a minute a row on one core.
"""

from functools import partial
from pathlib import Path

from minivlm import scenes
from minivlm.scenes.pixels import augment, pixels
from minivlm.toys.blip import ToyBlip, judgements, told_truly
from minivlm.toys.common import FROZEN, RATES
from runner import Experiment, Measure, Settings, main, percent

LOW = {"muon_lr": 0.002, "adamw_lr": 3e-4}
ROWS = {  # name -> options of the training
    "not tuned": None,
    "LM alone": LOW | {"losses": ("lm",)},
    "LM alone, images with black lose channels too": LOW
    | {"losses": ("lm",), "vary": partial(augment, spare_black=False)},
    "LM alone, at seven times the rates": RATES | {"losses": ("lm",)},
}
SPLITS = ("test", "composition")
COLUMNS = {f"true captions, {split}": "% of greedy captions that are true" for split in SPLITS}
COLUMNS["ITM, composition"] = "% right about a caption, half of them with one word made false"


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, seed=0)
    held_out = {split: scenes.sample(settings.test_scenes, 5, split) for split in SPLITS}
    asked = {split: pixels([scene.image for scene in part]) for split, part in held_out.items()}
    images, captions = pixels([scene.image for scene in train]), [scene.caption for scene in train]

    def measure(row: str, seed: int) -> dict[str, float]:
        toy = ToyBlip.load(FROZEN / "blip")
        if (how := ROWS[row]) is not None:
            toy.train(images, captions, settings.steps, seed=seed, **how)
        shares = {
            f"true captions, {split}": told_truly(toy, part, asked[split])
            for split, part in held_out.items()
        }
        judged = judgements(toy, held_out["composition"], asked["composition"])
        return percent(shares | {"ITM, composition": judged["all"]})

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What does fine-tuning as a captioner bring to a trained BLIP?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=100, train_scenes=8000, test_scenes=250),
    prepare=prepare,
)

if __name__ == "__main__":
    main(EXPERIMENT)
