"""What positions, queries and resolution bring to a small Qwen-VL: the tables of notebook 09, section 4.

    python tools/qwen_vl_ablations.py grounding [--steps 400] [--seeds 0]
    python tools/qwen_vl_ablations.py reading

grounding: a name -> its boxes, on pictures of 64 x 64 pixels, with the resampler's positions in two dimensions, in one
and with none, and with 4, 16 and 64 queries. reading: scenes with a character on each object, one question for what is
written or one for a box of each, on pictures of 64 and of 128 pixels a side, with 4, 16 and 64 queries; image tower and
language model are those of data/checkpoints/qwen_vl, the resampler is new.

Every row of a table starts from the same seed and sees the same scenes in the same order, all parts being trained; only
the named thing differs. Measured on streams with seed 5, not on the files in data/scenes.
"""

import argparse
import time
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from minivlm import grounding, scenes
from minivlm.captioner import MEAN, STD
from minivlm.questions import Question
from minivlm.scenes import Scene
from minivlm.train_qwen_vl import Pointer
from minivlm.vit import to_pixels

Ask = Callable[[Scene, Random], Question]
LABELLED = {"cell": 32, "label": 1, "characters": "23456789"}
POINTING = {  # name -> what differs
    "2-D positions, 16 queries": {},
    "1-D positions, 16 queries": {"positions": "1d"},
    "no positions, 16 queries": {"positions": "none"},
    "2-D positions, 4 queries": {"side": 2},
    "2-D positions, 64 queries": {"side": 8},
}
READING = {  # name -> pixels a side, and what differs
    "64 pixels, 4 queries": (64, {"side": 2}),
    "64 pixels, 16 queries": (64, {}),
    "128 pixels, 4 queries": (128, {"side": 2}),
    "128 pixels, 16 queries": (128, {}),
    "128 pixels, 64 queries": (128, {"side": 8}),
}


def pixels(found: list[Scene], side: int) -> Tensor:
    """The pictures at ``side`` x ``side`` pixels: (B, 3, side, side)."""
    return to_pixels([scene.image for scene in found], (side, side), mean=MEAN, std=STD)


def either(scene: Scene, rng: Random) -> Question:
    return rng.choice((grounding.grounding, grounding.reading))(scene, rng)


def start(seed: int, warm: bool, changes: dict) -> Pointer:
    """Image tower and language model from nothing and from data/checkpoints/decoder, or both from qwen_vl (warm)."""
    made = Pointer.new(seed, **changes)
    if warm:
        trained = Pointer.load()
        for part in ("vision", "decoder"):
            getattr(made.model, part).load_state_dict(getattr(trained.model, part).state_dict())
    return made


def table(rows: dict, kinds: tuple[Ask, ...], ask: Ask, options: dict, o: argparse.Namespace) -> None:
    train = scenes.sample(o.scenes, 0, **options)
    tests = {split: scenes.sample(o.test, 5, split, **options) for split in ("test", "composition")}
    names = [
        name for kind in kinds for name in {grounding.grounding: ("IoU >= 0.5", "mean IoU")}.get(kind, ("reading",))
    ]
    print(
        "| model | seed | " + " | ".join(f"{name}, {split}" for split in tests for name in names) + " | CPU seconds |"
    )
    print("|---" * (3 + len(tests) * len(names)) + "|", flush=True)
    for what, (side, changes) in [[*rows.items()][number] for number in o.rows]:
        images = pixels(train, side)
        for seed in o.seeds:
            made, began = start(seed, o.table == "reading", changes), time.process_time()
            make = lambda i, rng, made=made: made.row(ask(train[i], rng), i)
            made.train(make, images, o.steps, stage=2, batch=o.batch, seed=seed)
            seconds, cells = time.process_time() - began, []
            for found in tests.values():
                rng = Random("test")
                asked = [(i, kind(scene, rng)) for i, scene in enumerate(found) for kind in kinds]
                shares = made.measure(asked, found, pixels(found, side))
                cells += [f"{shares[name]:.3f}" if name == "mean IoU" else f"{shares[name]:.1%}" for name in names]
            print(f"| {what} | {seed} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=("grounding", "reading"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64, help="questions a step")
    parser.add_argument("--scenes", type=int, default=16_000, help="of training")
    parser.add_argument("--test", type=int, default=250, help="scenes of each test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[*range(5)], help="numbers of rows")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.table == "grounding":
        rows = {name: (64, changes) for name, changes in POINTING.items()}
        table(rows, (grounding.grounding,), grounding.grounding, {}, chosen)
    else:
        table(READING, (grounding.grounding, grounding.reading), either, LABELLED, chosen)


if __name__ == "__main__":
    main()
