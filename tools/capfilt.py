"""CapFilt on scenes, the whole loop (BLIP, section 3.3): the second table of notebook 06.

    python tools/capfilt.py [--pairs 8000] [--noise 0.4] [--clean 400] [--steps 300] [--tune 100]
    [--seeds 0]

Some ten minutes on one core a seed. A BLIP is pre-trained on web pairs of which a known share is
false. A captioner and a filter are fine-tuned from it on a few clean pairs. A new BLIP is then
trained from scratch on each of the data sets, with the same number of steps, and fine-tuned as a
captioner on the same clean pairs, as in the paper. Measured on scenes of the val and the
composition stream with seed 5 (250 each, not the files in data/scenes): true greedy captions.
"""

import argparse

import torch

from minivlm import scenes
from minivlm.scenes import is_true
from minivlm.scenes.pixels import pixels
from minivlm.toys.blip import ToyBlip, bootstrap, told_truly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8000)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--clean", type=int, default=400)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tune", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    truth = scenes.sample(chosen.pairs + chosen.clean, seed=0)
    truth, few = truth[: chosen.pairs], truth[chosen.pairs :]
    web = [scene.caption for scene in scenes.sample(chosen.pairs, seed=0, noise=chosen.noise)]
    images, clean = (
        pixels([s.image for s in truth]),
        (pixels([s.image for s in few]), [s.caption for s in few]),
    )
    held_out = {split: scenes.sample(250, seed=5, split=split) for split in ("val", "composition")}
    asked = {split: pixels([s.image for s in found]) for split, found in held_out.items()}
    print("| data | seed | pairs | false | true captions, val | composition |")
    print("|---|---|---|---|---|---|")
    for seed in chosen.seeds:
        base = ToyBlip.new(web, seed)
        base.train(images, web, chosen.steps, seed=seed)
        sets = bootstrap(base, images, web, clean, chosen.tune, seed)
        sets["clean"] = list(enumerate(scene.caption for scene in truth))
        for name, pairs in sets.items():
            rows, captions = (list(side) for side in zip(*pairs, strict=True))
            false = sum(not is_true(text, truth[i]) for i, text in pairs) / len(pairs)
            toy = ToyBlip.new(web, seed)
            toy.train(images[rows], captions, chosen.steps, seed=seed)
            toy.train(*clean, chosen.tune, losses=("lm",), seed=seed)
            told = " | ".join(
                f"{told_truly(toy, held_out[split], asked[split]):.0%}" for split in held_out
            )
            print(f"| {name} | {seed} | {len(pairs):,} | {false:.1%} | {told} |", flush=True)


if __name__ == "__main__":
    main()
