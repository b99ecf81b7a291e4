"""What positions, queries and resolution bring to a small Qwen-VL: the tables of notebook 09,
section 4.

    python tools/qwen_vl_ablations.py grounding [--steps 400] [--seeds 0]
    python tools/qwen_vl_ablations.py reading
    python tools/qwen_vl_ablations.py talking [--steps 400]

grounding: a name -> its boxes, on pictures of 64 x 64 pixels, with the resampler's positions in two
dimensions, in one and with none, and with 4, 16 and 64 queries. reading: the digit that is written
on an object, or on two to four alike, in scenes of 2 x 2 cells; pictures of 32 and of 16 pixels a
side, both in patches of 8, and 4, 16 and 64 queries.

talking: stage 3 of the stored model, on conversations in ChatML about one picture or two. Right
first answers about one and about two pictures, and boxes in the bare format of stage 2, before and
after.

Every row of the first two tables starts from the same seed and sees the same scenes in the same
order, all parts being trained; only the named thing differs. Measured on streams with seed 5, not
on the files in data/scenes.
"""

import argparse
import time
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from minivlm import scenes
from minivlm.scenes import Scene, tasks
from minivlm.scenes.grammar import alike
from minivlm.scenes.pixels import MEAN, STD
from minivlm.scenes.questions import Question
from minivlm.toys.qwen_vl import Pointer
from minivlm.vit import to_pixels

Ask = Callable[[Scene, Random], Question]
LABELLED = {"rows": 2, "columns": 2, "label": 1, "characters": "23456789"}
POINTING = {  # name -> what differs
    "2-D positions, 16 queries": {},
    "1-D positions, 16 queries": {"positions": "1d"},
    "no positions, 16 queries": {"positions": "none"},
    "2-D positions, 4 queries": {"side": 2},
    "2-D positions, 64 queries": {"side": 8},
}
READING = {  # name -> pixels a side, and what differs
    "32 pixels, 16 queries": (32, {"image_size": 32, "patch": 8}),
    "16 pixels, 16 queries": (16, {"image_size": 16, "patch": 8}),
    "32 pixels, 4 queries": (32, {"image_size": 32, "patch": 8, "side": 2}),
    "32 pixels, 64 queries": (32, {"image_size": 32, "patch": 8, "side": 8}),
}


def pixels(found: list[Scene], side: int) -> Tensor:
    """The pictures at ``side`` x ``side`` pixels: (B, 3, side, side)."""
    return to_pixels([scene.image for scene in found], (side, side), mean=MEAN, std=STD)


def written(scene: Scene, rng: Random) -> Question:
    return Question("what is written?", (scene.objects[0].text,), "reading")


def readable(n: int, seed: int, split: str) -> list[Scene]:
    """Scenes with one digit, on one object or on all of two to four alike: two of five."""
    return [
        scene for scene in scenes.sample(3 * n, seed, split, **LABELLED) if alike(scene.objects)
    ][:n]


def table(
    rows: dict, ask: Ask, draw: Callable[[int, int, str], list[Scene]], o: argparse.Namespace
) -> None:
    train = draw(o.scenes, 0, "train")
    tests = {split: draw(o.test, 5, split) for split in ("test", "composition")}
    names = ("IoU >= 0.5", "mean IoU") if ask is tasks.grounding else ("reading",)
    columns = [f"{name}, {split}" for split in tests for name in names]
    print(f"| model | seed | {' | '.join(columns)} | CPU seconds |")
    print("|---" * (3 + len(tests) * len(names)) + "|", flush=True)
    for what, (side, changes) in [[*rows.items()][number] for number in o.rows or range(len(rows))]:
        images = pixels(train, side)
        for seed in o.seeds:
            made, began = Pointer.new(seed, **changes), time.process_time()
            make = lambda i, rng, made=made: made.row(ask(train[i], rng), i)
            made.train(make, images, o.steps, stage=2, batch=o.batch, seed=seed)
            seconds, cells = time.process_time() - began, []
            for found in tests.values():
                rng = Random("test")
                asked = [(i, ask(scene, rng)) for i, scene in enumerate(found)]
                shares = made.measure(asked, found, pixels(found, side))
                cells += [
                    f"{shares[name]:.3f}" if name == "mean IoU" else f"{shares[name]:.1%}"
                    for name in names
                ]
            print(f"| {what} | {seed} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def answered(made: Pointer, found: list[Scene], images: Tensor, count: int) -> float:
    """Share of right first answers about ``count`` pictures."""
    rng = Random(count)
    shown = [[(i + j) % len(found) for j in range(count)] for i in range(len(found))]
    talks = [made.talk(found, numbers, rng, reply=True) for numbers in shown]
    answers = made.answer([row for _, row in talks], images, end="<|im_end|>")
    firsts = [
        (question, numbers[which])
        for ([(which, question), *_], _), numbers in zip(talks, shown, strict=True)
    ]
    right = [
        tasks.is_solved(question, said, found[i])
        for (question, i), said in zip(firsts, answers, strict=True)
    ]
    return sum(right) / len(right)


def talking(o: argparse.Namespace) -> None:
    train = scenes.sample(o.scenes, 0)
    tests = {split: scenes.sample(o.test, 5, split) for split in ("test", "composition")}
    made, images = Pointer.load(), pixels(train, 64)

    def chat(i: int, rng: Random) -> dict:
        return made.talk(train, [i, rng.randrange(len(train))][: rng.randint(1, 2)], rng)[1]

    print("| | scenes | one picture | two pictures | boxes, bare format |\n" + "|---" * 5 + "|")
    for when in ("before", "after"):
        if when == "after":
            made.train(chat, images, o.steps, stage=3, batch=o.batch // 2, seed=o.seeds[0])
        for split, found in tests.items():
            seen, rng = pixels(found, 64), Random("test")
            asked = [(i, tasks.grounding(scene, rng)) for i, scene in enumerate(found)]
            shares = [answered(made, found, seen, 1), answered(made, found, seen, 2)]
            shares.append(made.measure(asked, found, seen)["IoU >= 0.5"])
            print(
                f"| {when} | {split} | " + " | ".join(f"{share:.1%}" for share in shares) + " |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=("grounding", "reading", "talking"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64, help="questions a step")
    parser.add_argument("--scenes", type=int, default=16_000, help="of training")
    parser.add_argument("--test", type=int, default=250, help="scenes of each test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of rows; all")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.table == "talking":
        talking(chosen)
    elif chosen.table == "grounding":
        rows = {name: (64, changes) for name, changes in POINTING.items()}
        table(rows, tasks.grounding, scenes.sample, chosen)
    else:
        table(READING, written, readable, chosen)


if __name__ == "__main__":
    main()
