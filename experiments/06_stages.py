"""What each stage in the training of data/checkpoints/blip brings.

A row is one stage, trained on from the row before it. Measured on scenes of the composition stream
with seed 5, not on the files in data/scenes. Some 16 minutes for all stages on one core; a run that
was stopped trains the earlier stages again, without measuring them.
"""

from copy import deepcopy
from functools import cache
from pathlib import Path

from minivlm import scenes
from minivlm.blip import LOSSES
from minivlm.scenes.pixels import pixels
from minivlm.toys.blip import ToyBlip, judgements, retrieval, told_truly
from minivlm.toys.common import rates
from runner import Experiment, Measure, Settings, main, percent

# name -> losses, pairs a step, captions that contradict each other side by side, Muon's rate, seed
ROWS = {
    "1: all three losses": (LOSSES, 64, False, 0.015, 0),
    "2: LM alone": (("lm",), 64, False, 0.015, 2),
    "3: all three, contradicting captions": (LOSSES, 64, True, 0.015, 10),
    "4: the same, batch 128": (LOSSES, 128, True, 0.02, 10),
    "5: the same, longer": (LOSSES, 128, True, 0.015, 10),
}
STEPS = dict(zip(ROWS, (1000, 700, 500, 500, 650), strict=True))
COLUMNS = {
    "true captions": "% of greedy captions that are true",
    "ITM, all": "% right about a caption, half of them with one word made false (chance 50)",
    "ITM, relation": "% of the same where the word is the relation of two objects",
    "image to text, re-ranked": "% of images whose best caption is true (R@1): the nearest 16 by "
    "ITC judged again by ITM",
}


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, seed=0)
    held_out = scenes.sample(settings.test_scenes, seed=5, split="composition")
    images, asked = (pixels([scene.image for scene in part]) for part in (train, held_out))
    captions, names = [scene.caption for scene in train], [*ROWS]

    @cache
    def after(stage: int, seed: int) -> ToyBlip:
        """The model after the first stages."""
        if stage == 0:
            return ToyBlip.new(captions, seed)
        toy, name = deepcopy(after(stage - 1, seed)), names[stage - 1]
        losses, batch, alike, rate, start = ROWS[name]
        how = {"losses": losses, "batch": batch, "alike": alike, "seed": start + 100 * seed}
        toy.train(images, captions, settings.steps[name], **how, **rates(rate))
        return toy

    def measure(row: str, seed: int) -> dict[str, float]:
        toy = after(names.index(row) + 1, seed)
        judged = judgements(toy, held_out, asked)
        shares = {f"ITM, {kind}": share for kind, share in judged.items()}
        shares |= retrieval(toy, held_out, asked)
        shares["true captions"] = told_truly(toy, held_out, asked)
        return percent({name: shares[name] for name in COLUMNS if name in shares})

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What can BLIP do after each stage of a longer training?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(STEPS, train_scenes=8000, test_scenes=250),
    prepare=prepare,
    notes="Stages 1 to 3 have 64 pairs a step, 4 and 5 have 128. From stage 3 on every second "
    "batch holds captions that contradict each other side by side.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
