"""What each stage in the training of data/checkpoints/blip brings.

A row is one stage, trained on from the row before it. Measured on scenes of the composition stream
with seed 5, not on the files in data/scenes. Some 20 minutes for all stages on one core; the state
of each stage is kept in the folder of temporary files, so that a run which was stopped goes on.
"""

from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from zlib import crc32

from minivlm import scenes
from minivlm.scenes.pixels import pixels
from minivlm.toys.blip import BLIP_STAGES, ToyBlip, judgements, retrieval, told_truly
from minivlm.toys.common import rates
from runner import Experiment, Measure, Settings, main, percent

COLUMNS = {
    "true captions": "% of greedy captions that are true",
    "ITM, all": "% right about a caption, half of them with one word made false (chance 50)",
    "ITM, relation": "% of the same where the word is the relation of two objects",
    "image to text": "% of images whose nearest caption by ITC is true (R@1)",
    "text to image": "% of captions that are true of their nearest image by ITC (R@1)",
    "image to text, re-ranked": "% of images whose best caption is true (R@1): the nearest 16 by "
    "ITC judged again by ITM",
}


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, seed=0)
    held_out = scenes.sample(settings.test_scenes, seed=5, split="composition")
    images, asked = (pixels([scene.image for scene in part]) for part in (train, held_out))
    captions, names = [scene.caption for scene in train], [*BLIP_STAGES]
    states = Path(gettempdir()) / f"minivlm_06_stages_{crc32(repr(settings).encode()):08x}"

    @cache
    def after(stage: int, seed: int) -> ToyBlip:
        """The model after the first stages."""
        if stage == 0:
            return ToyBlip.new(captions, seed)
        toy, name = deepcopy(after(stage - 1, seed)), names[stage - 1]
        losses, _, batch, alike, rate, start = BLIP_STAGES[name]
        how = {"losses": losses, "batch": batch, "alike": alike, "seed": start + 100 * seed}
        how |= {"checkpoint": states / f"seed {seed}, stage {stage}", "every": 50}
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
    rows=[*BLIP_STAGES],
    columns=COLUMNS,
    settings=Settings(
        {name: steps for name, (_, steps, *_) in BLIP_STAGES.items()},
        train_scenes=24_000,
        test_scenes=250,
    ),
    prepare=prepare,
    notes="Stages 1, 2 and 5 have 64 pairs a step, 3 and 4 have 128. From stage 2 on every second "
    "batch holds captions that contradict each other side by side.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
