"""The tasks of Qwen-VL's multi-task training, made from scenes, and a verifier for their answers.

Paper: Bai et al. 2023 (Qwen-VL), appendix B. Notebook: 09_qwen_vl.

Data: a scene -> a ``Question`` (prompt, admissible answers, kind), and whether any other answer is
right.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from random import Random

from minivlm.boxes import Box, Region, boxes_of, iou, read, to_thousandths, write
from minivlm.multimodal import IMAGE
from minivlm.scenes import instructions
from minivlm.scenes.drawing import Scene, is_true
from minivlm.scenes.grammar import Object, alike, describe_en, main_relations, parse, reading_order
from minivlm.scenes.questions import Question


def _groups(scene: Scene) -> list[list[Object]]:
    """The objects in reading order, together where they look alike: what one noun phrase names."""
    things = reading_order(scene.objects, scene.cell)
    return [things] if alike(things) else [[thing] for thing in things]


def _region(things: Sequence[Object], scene: Scene, article: str = "a") -> Region:
    boxes = tuple(to_thousandths(thing.box, scene.image.size) for thing in things)
    return Region(describe_en(things[0], len(things), article=article), boxes)


def caption(scene: Scene, rng: Random) -> Question:
    """Image captioning."""
    return replace(instructions.description(scene, rng)[0], text="Generate the caption in English:")


def question(scene: Scene, rng: Random) -> Question:
    """Visual question answering; the kind is that of the question."""
    return rng.choice(scene.questions)


def grounded_caption(scene: Scene, rng: Random) -> Question:
    """Caption with grounding: every object that is named has its box."""
    groups = _groups(scene)
    pairs = [
        (a, b, word)
        for a, b in permutations(groups, 2)
        for word in main_relations(a[0], b[0], scene.cell)
    ]
    said = [[_region(a, scene), f" {word} ", _region(b, scene)] for a, b, word in pairs]
    said = said or [[_region(groups[0], scene)]]
    prompt = "Generate the caption in English with grounding:"
    return Question(prompt, tuple(write(parts) for parts in said), "grounded caption")


def grounding(scene: Scene, rng: Random) -> Question:
    """Referring grounding: a name -> its box, or the boxes of all that look alike."""
    found = _region(rng.choice(_groups(scene)), scene, "the")
    return Question(write([Region(found.text)]), (write([Region(boxes=found.boxes)]),), "grounding")


def referring(scene: Scene, rng: Random) -> Question:
    """Grounded captioning: a box -> what is in it."""
    thing = rng.choice(scene.objects)
    here = Region("This", _region([thing], scene).boxes)
    return Question(
        write([here, " is"]), (describe_en(thing), describe_en(thing, size=False)), "referring"
    )


def reading(scene: Scene, rng: Random) -> Question:
    """OCR as a question: what is written on an object; its letters and digits, no others."""
    things = rng.choice(_groups(scene))
    noun = describe_en(replace(things[0], text=""), len(things), article="the")
    return Question(f"what is written on {noun}?", (things[0].text,), "reading")


def ocr(scene: Scene, rng: Random) -> Question:
    """OCR with grounding: all that is written, in reading order, each with the box of its object."""
    things = reading_order(scene.objects, scene.cell)
    regions = [Region(thing.text, _region([thing], scene).boxes) for thing in things]
    return Question("OCR with grounding:", (write(regions),), "ocr")


Maker = Callable[[Scene, Random], Question]
TASKS: tuple[Maker, ...] = (caption, question, grounded_caption, grounding, referring)
TEXT_TASKS: tuple[Maker, ...] = (reading, ocr)  # of scenes with labels


def tasks(scene: Scene, rng: Random) -> list[Question]:
    """One of each kind that the scene allows."""
    return [make(scene, rng) for make in TASKS + TEXT_TASKS * bool(scene.objects[0].text)]


def album(
    scenes: Sequence[Scene], rng: Random, turns: int = 2
) -> tuple[list[tuple[int, Question]], list[dict]]:
    """A conversation about one or several pictures: (number of the scene, question) of each turn,
    and the messages.

    All pictures stand in the first message; where there are several, each turn says which one it
    asks about.
    """
    numbers = [rng.randrange(len(scenes)) for _ in range(turns)]
    asked = [(number, rng.choice(tasks(scenes[number], rng))) for number in numbers]
    which = ["" if len(scenes) == 1 else f"In Picture {number + 1}: " for number in numbers]
    said = [
        replace(turn, text=name + turn.text) for name, (_, turn) in zip(which, asked, strict=True)
    ]
    messages = instructions.messages(said, IMAGE)
    messages[0]["content"][:1] = [IMAGE] * len(scenes)
    return asked, messages


# The verifier


def accepts(asked: Question, answer: str, scene: Scene, least: float = 0.5) -> bool:
    """Is the answer right? Boxes need an IoU of ``least``; the kinds of instructions.py are judged
    there.
    """
    answer = answer.strip()
    if asked.kind == "grounding":
        return min(overlaps(asked, answer)) >= least
    if asked.kind == "referring":
        (box,) = boxes_of(asked.text)
        meant = max(
            scene.objects, key=lambda thing: iou(box, to_thousandths(thing.box, scene.image.size))
        )
        return meant in instructions.named(answer, scene)
    if asked.kind == "reading":
        return answer == asked.answer
    if asked.kind in ("grounded caption", "ocr"):
        return _grounded(asked, answer, scene, least)
    return instructions.accepts(asked, answer, scene)


def overlaps(asked: Question, answer: str) -> list[float]:
    """IoU of each box in the first admissible answer with the answer's, paired as fits best.

    All 0 where the answer has another number of boxes, or is no text that ``read`` takes.
    """
    return _paired(boxes_of(answer), boxes_of(asked.answer))


def _paired(found: Sequence[Box], true: Sequence[Box]) -> list[float]:
    if len(found) != len(true):
        return [0.0] * len(true)
    return max(
        ([iou(a, b) for a, b in zip(order, true, strict=True)] for order in permutations(found)),
        key=sum,
    )


def _grounded(asked: Question, answer: str, scene: Scene, least: float) -> bool:
    """Does every name stand with the boxes of all that it names, and has every object a box?"""
    if len(boxes_of(answer)) != len(scene.objects):
        return False
    parts = read(answer)
    regions = [part for part in parts if isinstance(part, Region)]
    plain = " ".join(part for part in parts if isinstance(part, str))
    if asked.kind == "ocr":
        true, names = not plain.strip(), lambda name, thing: name == thing.text
    else:
        true, names = is_true("".join(getattr(part, "text", part) for part in parts), scene), _names
    for name in {region.text for region in regions}:
        found = [box for region in regions if region.text == name for box in region.boxes]
        meant = [
            to_thousandths(thing.box, scene.image.size)
            for thing in scene.objects
            if names(name, thing)
        ]
        true = true and min(_paired(found, meant), default=0.0) >= least
    return true


def _names(noun: str, thing: Object) -> bool:
    phrases, _ = parse(noun) or ((), None)
    return len(phrases) == 1 and phrases[0].fits(thing)
