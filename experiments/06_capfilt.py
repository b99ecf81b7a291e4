"""CapFilt on scenes, the whole loop (BLIP, section 3.3).

A BLIP is pre-trained on web pairs of which a known share is false. A captioner and a filter are
fine-tuned from it on a few clean pairs. A new BLIP is then trained from scratch on each of the data
sets, with the same number of steps, and fine-tuned as a captioner on the same clean pairs, as in
the paper. Measured on scenes of the val and the composition stream with seed 5, not on the files in
data/scenes. Some twelve minutes a seed on one core; the first row of a run also makes the workers.
"""

from functools import cache
from pathlib import Path

from minivlm import scenes
from minivlm.scenes.pixels import pixels
from minivlm.toys.blip import ToyBlip, bootstrap, told_truly
from runner import Experiment, Measure, Settings, main, percent

NOISE, CLEAN = 0.4, 400  # share of the web's pairs that get another image's caption; clean pairs
ROWS = {  # name -> data set, p of the nucleus that captions are drawn from (0: greedy)
    "web as it is": ("web", 0.9),
    "F: web, filtered": ("F", 0.9),
    "C: web and captioner, unfiltered": ("C", 0.9),
    "C+F: both, filtered": ("C+F", 0.9),
    "C+F, greedy captions": ("C+F", 0),
    "clean (upper bound)": ("clean", 0.9),
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
    def base(seed: int) -> ToyBlip:
        """Pre-trained on the web."""
        toy = ToyBlip.new(web, seed)
        toy.train(images, web, long, seed=seed)
        return toy

    @cache
    def cleaned(top_p: float, seed: int) -> dict[str, list[tuple[int, str]]]:
        """Name of a data set -> (number of an image, caption)."""
        return bootstrap(base(seed), images, web, clean, short, seed, top_p=top_p)

    def measure(row: str, seed: int) -> dict[str, float]:
        name, top_p = ROWS[row]
        whole = {"web": web, "clean": [scene.caption for scene in truth]}
        pairs = list(enumerate(whole[name])) if name in whole else cleaned(top_p, seed)[name]
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
