"""What each part of BLIP's training brings, on scenes.

Every row trains a small BLIP from the same start on the same scenes with the same batches; only the
named thing differs. Measured on scenes of the composition stream with seed 5, not on the files in
data/scenes. Some two minutes a row on one core.
"""

from pathlib import Path

from minivlm import scenes
from minivlm.blip import LOSSES, SHARING
from minivlm.scenes.pixels import pixels
from minivlm.toys.blip import ToyBlip, judgements, retrieval, told_truly
from runner import Experiment, Measure, Settings, main, percent

ROWS = {  # name -> what differs from the first row
    "all three losses": {},
    "ITC alone": {"losses": ("itc",)},
    "ITM alone (random negatives)": {"losses": ("itm",), "random_negatives": True},
    "LM alone": {"losses": ("lm",)},
    "three losses, random negatives": {"random_negatives": True},
    "three losses, captions that contradict each other": {"alike": True},
    "three losses, all shared": {"sharing": SHARING[0]},
    "three losses, nothing shared": {"sharing": SHARING[2]},
}
RERANKED = "the nearest 16 by ITC judged again by ITM"
COLUMNS = {
    "parameters": "number of parameters",
    "image to text": "% of images whose nearest caption by ITC is true (R@1)",
    "image to text, re-ranked": f"% of the same, {RERANKED}",
    "text to image": "% of captions that are true of their nearest image by ITC (R@1)",
    "text to image, re-ranked": f"% of the same, {RERANKED}",
    "ITM, all": "% right about a caption, half of them with one word made false (chance 50)",
    **{
        f"ITM, {kind}": f"% of the same where the word is of the kind {kind}"
        for kind in ("color", "count", "relation", "shape", "size")
    },
    "true captions": "% of greedy captions that are true",
}


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, seed=0)
    held_out = scenes.sample(settings.test_scenes, seed=5, split="composition")
    images, asked = (pixels([scene.image for scene in part]) for part in (train, held_out))
    captions = [scene.caption for scene in train]

    def measure(row: str, seed: int) -> dict[str, float]:
        changed = {"losses": LOSSES, "sharing": SHARING[1]} | ROWS[row]
        toy = ToyBlip.new(captions, seed, sharing=changed.pop("sharing"))
        toy.train(images, captions, settings.steps, seed=seed, **changed)
        shares = retrieval(toy, held_out, asked)
        judged = judgements(toy, held_out, asked)
        shares |= {f"ITM, {kind}": share for kind, share in judged.items()}
        shares["true captions"] = told_truly(toy, held_out, asked)
        return {"parameters": sum(p.numel() for p in toy.model.parameters())} | percent(shares)

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What does each loss, the choice of negatives and the sharing bring to BLIP?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=400, train_scenes=8000, test_scenes=250),
    prepare=prepare,
)

if __name__ == "__main__":
    main(EXPERIMENT)
