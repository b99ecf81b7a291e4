"""What each part of BLIP's training brings, on scenes: the first table of notebook 06.

    python tools/blip_ablations.py [--steps 300] [--seeds 0]

Some eight minutes on one core. Every row trains a small BLIP from the same start on the same 8,000
scenes with the same batches; only the named thing differs. Measured on 250 scenes of the
composition stream with seed 5 (not the files in data/scenes): recall at 1 both ways by ITC alone
and with the best 16 judged again by ITM; how often ITM is right about a caption, half of them with
one word made false (chance 50 %); how many greedy captions are true.
"""

import argparse
import time

import torch

from minivlm import scenes
from minivlm.blip import LOSSES, SHARING
from minivlm.scenes.pixels import pixels
from minivlm.toys.blip import ToyBlip, judgements, retrieval, told_truly

ROWS = {  # name -> (losses, negatives drawn at random, sharing)
    "all three losses": (LOSSES, False, SHARING[1]),
    "ITC alone": (("itc",), False, SHARING[1]),
    "ITM alone (random negatives)": (("itm",), True, SHARING[1]),
    "LM alone": (("lm",), False, SHARING[1]),
    "three losses, random negatives": (LOSSES, True, SHARING[1]),
    "three losses, all shared": (LOSSES, False, SHARING[0]),
    "three losses, nothing shared": (LOSSES, False, SHARING[2]),
}


def percent(values: dict[str, float]) -> str:
    return " | ".join(f"{value:.0%}" for value in values.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    train, held_out = scenes.sample(8000, seed=0), scenes.sample(250, seed=5, split="composition")
    images, asked = pixels([s.image for s in train]), pixels([s.image for s in held_out])
    captions = [s.caption for s in train]
    header = (
        "| training | seed | parameters | image to text | re-ranked | text to image | re-ranked "
    )
    print(
        header
        + "| ITM: color | count | relation | shape | size | all | true captions | CPU seconds |"
    )
    print("|" + "---|" * 15)
    for name, (losses, random_negatives, sharing) in ROWS.items():
        for seed in chosen.seeds:
            toy, began = ToyBlip.new(captions, seed, sharing=sharing), time.process_time()
            toy.train(
                images,
                captions,
                chosen.steps,
                losses=losses,
                random_negatives=random_negatives,
                seed=seed,
            )
            seconds = time.process_time() - began
            size = sum(p.numel() for p in toy.model.parameters())
            found = (
                percent(retrieval(toy, held_out, asked)),
                percent(judgements(toy, held_out, asked)),
            )
            told = told_truly(toy, held_out, asked)
            print(
                f"| {name} | {seed} | {size:,} | {' | '.join(found)} | {told:.0%} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
