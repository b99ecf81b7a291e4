"""CapFilt on scenes, the whole loop (BLIP, section 3.3).

A BLIP is pre-trained on web pairs of which a known share is false. A captioner and a filter are
fine-tuned from it on a few clean pairs. A new BLIP is then trained from scratch on each of the data
sets, with the same number of steps, and fine-tuned as a captioner on the same clean pairs, as in
the paper. Measured on scenes of the val and the composition stream with seed 5, not on the files in
data/scenes. Some ten minutes a seed on one core; the first row of a seed also makes the workers.
"""

from functools import cache
from pathlib import Path

from minivlm import scenes
from minivlm.scenes.pixels import pixels
from minivlm.toys.blip import ToyBlip, bootstrap, told_truly
from runner import Experiment, Measure, Settings, main, percent

NOISE, CLEAN = 0.4, 400  # share of the web's pairs that get another image's caption; clean pairs
ROWS = {  # name -> data set
    "web as it is": "web",
    "F: web, filtered": "F",
    "C: web and captioner, unfiltered": "C",
    "C+F: both, filtered": "C+F",
    "clean (upper bound)": "clean",
}
COLUMNS = {
    "pairs": "number of pairs the new model is trained on",
    "false": "% of these whose caption is false",
    "true captions, val": "% of greedy captions that are true",
    "true captions, composition": "% of the same, of unseen colour-shape pairs",
}


def prepare(settings: Settings) -> Measure:
    count, (long, short) = settings.train_scenes, settings.steps.values()
    drawn = scenes.sample(count + CLEAN, seed=0)
    truth, few = drawn[:count], drawn[count:]
    web = [scene.caption for scene in scenes.sample(count, seed=0, noise=NOISE)]
    images = pixels([scene.image for scene in truth])
    clean = pixels([scene.image for scene in few]), [scene.caption for scene in few]
    held_out = {
        split: scenes.sample(settings.test_scenes, seed=5, split=split)
        for split in ("val", "composition")
    }
    asked = {split: pixels([scene.image for scene in part]) for split, part in held_out.items()}

    @cache
    def data(seed: int) -> dict[str, list[tuple[int, str]]]:
        """Name of a data set -> (number of an image, caption)."""
        base = ToyBlip.new(web, seed)
        base.train(images, web, long, seed=seed)
        sets = bootstrap(base, images, web, clean, short, seed)
        return sets | {"clean": list(enumerate(scene.caption for scene in truth))}

    def measure(row: str, seed: int) -> dict[str, float]:
        pairs = data(seed)[ROWS[row]]
        if not pairs:  # a filter that has learned nothing may let nothing pass
            return {"pairs": 0}
        numbers, captions = (list(side) for side in zip(*pairs, strict=True))
        false = sum(not scenes.is_true(text, truth[i]) for i, text in pairs) / len(pairs)
        toy = ToyBlip.new(web, seed)
        toy.train(images[numbers], captions, long, seed=seed)
        toy.train(*clean, short, losses=("lm",), seed=seed)
        shares = {
            f"true captions, {split}": told_truly(toy, shown, asked[split])
            for split, shown in held_out.items()
        }
        return {"pairs": len(pairs)} | percent({"false": false} | shares)

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What do a filter and a captioner make of noisy pairs from the web?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings({"pre-training": 300, "fine-tuning": 100}, 8000, 250),
    prepare=prepare,
    notes=f"{NOISE:.0%} of the web's pairs get another image's caption (some are true of both); "
    f"{CLEAN} clean pairs for the fine-tuning.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
