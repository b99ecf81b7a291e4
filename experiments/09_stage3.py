"""Stage 3 of the stored Qwen-VL: conversations in ChatML about one image or two.

Right first answers about one and about two images, and boxes in the bare format of stage 2, before
and after. Measured on streams with seed 5, not on the files in data/scenes. Some ten minutes a seed
on two cores.
"""

from pathlib import Path
from random import Random

from torch import Tensor

from minivlm import scenes
from minivlm.scenes import Scene, tasks
from minivlm.scenes.pixels import pixels
from minivlm.toys.qwen_vl import Pointer
from runner import Experiment, Measure, Settings, main, percent

ROWS = ("before", "after")
SPLITS = ("test", "composition")
COLUMNS = {
    f"{what}, {split}": f"% {meaning}"
    for what, meaning in (
        ("one image", "of first answers about one image that are right"),
        ("two images", "of first answers about two images that are right"),
        ("boxes", "of boxes with an IoU of 0.5 or more, asked for in the bare format of stage 2"),
    )
    for split in SPLITS
}


def answered(made: Pointer, held_out: list[Scene], images: Tensor, count: int) -> float:
    """Share of right first answers about ``count`` images."""
    rng = Random(count)
    shown = [[(i + j) % len(held_out) for j in range(count)] for i in range(len(held_out))]
    talks = [made.talk(held_out, numbers, rng, reply=True) for numbers in shown]
    answers = made.answer([row for _, row in talks], images, end="<|im_end|>")
    right = 0
    for ([(which, question), *_], _), numbers, said in zip(talks, shown, answers, strict=True):
        right += tasks.is_solved(question, said, held_out[numbers[which]])
    return right / len(held_out)


def pointed(made: Pointer, held_out: list[Scene], images: Tensor) -> float:
    """Share of boxes with an IoU of 0.5 or more, in the bare format."""
    rng = Random("test")
    asked = [(i, tasks.grounding(scene, rng)) for i, scene in enumerate(held_out)]
    return made.measure(asked, held_out, images)["IoU >= 0.5"]


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, 0)
    tests = {split: scenes.sample(settings.test_scenes, 5, split) for split in SPLITS}
    images = pixels([scene.image for scene in train])

    def measure(row: str, seed: int) -> dict[str, float]:
        made, figures = Pointer.load(), {}

        def chat(i: int, rng: Random) -> dict:
            return made.talk(train, [i, rng.randrange(len(train))][: rng.randint(1, 2)], rng)[1]

        if row == "after":
            made.train(chat, images, settings.steps, stage=3, batch=32, seed=seed)
        for split, held_out in tests.items():
            seen = pixels([scene.image for scene in held_out])
            figures[f"one image, {split}"] = answered(made, held_out, seen, 1)
            figures[f"two images, {split}"] = answered(made, held_out, seen, 2)
            figures[f"boxes, {split}"] = pointed(made, held_out, seen)
        return percent({column: figures[column] for column in COLUMNS})

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What does stage 3 teach the stored Qwen-VL, and what does it forget?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=400, train_scenes=16_000, test_scenes=250),
    prepare=prepare,
    notes="32 conversations a step. Before stage 3 there is no training, and every seed is alike.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
