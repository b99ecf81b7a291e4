"""Fine-tuning the stored BLIP as a captioner: at the learning rates of its training, or lower.

LM alone, without erased colour channels. Measured on scenes of the composition stream with seed 5,
not on the files in data/scenes. Half a minute a row on one core.
"""

from pathlib import Path

from minivlm import scenes
from minivlm.scenes.pixels import pixels
from minivlm.toys.blip import ToyBlip, told_truly
from minivlm.toys.common import FROZEN, RATES
from runner import Experiment, Measure, Settings, main, percent

ROWS = {  # name -> learning rates
    "the learning rates of the training": RATES,
    "a seventh of them": {"muon_lr": 0.002, "adamw_lr": 3e-4},
}


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, seed=0)
    held_out = scenes.sample(settings.test_scenes, seed=5, split="composition")
    images, asked = (pixels([scene.image for scene in part]) for part in (train, held_out))
    captions = [scene.caption for scene in train]

    def measure(row: str, seed: int) -> dict[str, float]:
        toy = ToyBlip.load(FROZEN / "blip")
        how = {"losses": ("lm",), "erased": 0.0, "seed": seed}
        toy.train(images, captions, settings.steps, **how, **ROWS[row])
        return percent({"true captions": told_truly(toy, held_out, asked)})

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="At which learning rates is a trained BLIP fine-tuned as a captioner?",
    rows=[*ROWS],
    columns={"true captions": "% of greedy captions that are true"},
    settings=Settings(steps=100, train_scenes=8000, test_scenes=250),
    prepare=prepare,
)

if __name__ == "__main__":
    main(EXPERIMENT)
