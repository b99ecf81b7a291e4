"""The tasks of Qwen-VL's multi-task training, made from scenes, and a verifier of their answers.

Paper: Bai et al. 2023 (Qwen-VL), appendix B. Notebook: 09_qwen_vl.

Data: a scene -> a ``Question`` (prompt, admissible answers, kind), and whether any other answer is
right. What a box is as text is in minivlm/boxes.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from math import inf
from random import Random

from minivlm.boxes import Box, Region, boxes_of, iou, read_regions, to_thousandths, write_regions
from minivlm.multimodal import IMAGE
from minivlm.scenes import instructions
from minivlm.scenes.grammar import Object, alike, describe_en, main_relations, parse, reading_order
from minivlm.scenes.questions import Question
from minivlm.scenes.scene import Scene, is_true

# Seven kinds of tasks


def caption(scene: Scene, rng: Random) -> Question:
    """Image captioning."""
    return replace(instructions.description(scene, rng)[0], text="Generate the caption in English:")


def question(scene: Scene, rng: Random) -> Question:
    """Visual question answering; the kind is that of the question."""
    return rng.choice(scene.questions)


def grounded_caption(scene: Scene, rng: Random) -> Question:
    """Caption with grounding: every object that is named has its box."""
    groups = _groups(scene)
    captions = []
    for first, second in permutations(groups, 2):
        for relation in main_relations(first[0], second[0], scene.cell):
            parts = [_region(first, scene), f" {relation} ", _region(second, scene)]
            captions.append(write_regions(parts))
    if not captions:
        captions = [write_regions([_region(groups[0], scene)])]
    prompt = "Generate the caption in English with grounding:"
    return Question(prompt, tuple(captions), "grounded caption")


def grounding(scene: Scene, rng: Random) -> Question:
    """Referring grounding: a name -> its box, or the boxes of all that look alike."""
    region = _region(rng.choice(_groups(scene)), scene, "the")
    prompt = write_regions([Region(region.text)])
    return Question(prompt, (write_regions([Region(boxes=region.boxes)]),), "grounding")


def referring(scene: Scene, rng: Random) -> Question:
    """Grounded captioning: a box -> what is in it."""
    thing = rng.choice(scene.objects)
    here = Region("This", _region([thing], scene).boxes)
    answers = (describe_en(thing), describe_en(thing, size=False))
    return Question(write_regions([here, " is"]), answers, "referring")


def reading(scene: Scene, rng: Random) -> Question:
    """OCR as a question: what is written on an object; its letters and digits, no others."""
    things = rng.choice(_groups(scene))
    noun = describe_en(replace(things[0], text=""), len(things), article="the")
    return Question(f"what is written on {noun}?", (things[0].text,), "reading")


def ocr(scene: Scene, rng: Random) -> Question:
    """OCR with grounding: all texts in reading order, each with the box of its object."""
    things = reading_order(scene.objects, scene.cell)
    regions = [Region(thing.text, _region([thing], scene).boxes) for thing in things]
    return Question("OCR with grounding:", (write_regions(regions),), "ocr")


def _groups(scene: Scene) -> list[list[Object]]:
    """The objects in reading order, together where they look alike: what one noun phrase names."""
    things = reading_order(scene.objects, scene.cell)
    return [things] if alike(things) else [[thing] for thing in things]


def _region(things: Sequence[Object], scene: Scene, article: str = "a") -> Region:
    """The name of one object, or of several alike, with all their boxes."""
    boxes = tuple(to_thousandths(thing.box, scene.image.size) for thing in things)
    return Region(describe_en(things[0], len(things), article=article), boxes)


Maker = Callable[[Scene, Random], Question]
TASKS: tuple[Maker, ...] = (caption, question, grounded_caption, grounding, referring)
TEXT_TASKS: tuple[Maker, ...] = (reading, ocr)  # of scenes with labels


def tasks(scene: Scene, rng: Random) -> list[Question]:
    """One of each kind that the scene allows."""
    makers = TASKS + TEXT_TASKS if scene.objects[0].text else TASKS
    return [make(scene, rng) for make in makers]


def album(
    scenes: Sequence[Scene], rng: Random, turns: int = 2
) -> tuple[list[tuple[int, Question]], list[dict]]:
    """A conversation about one or several images.

    Returns (number of the scene, question) of each turn, and the messages. All images are in the
    first message; where there are several, each turn says which one it asks about.
    """
    if not scenes:
        raise ValueError("no scene given: nothing to ask about")
    numbers = [rng.randrange(len(scenes)) for _ in range(turns)]
    asked = [(number, rng.choice(tasks(scenes[number], rng))) for number in numbers]
    said = [turn for _, turn in asked]
    if len(scenes) > 1:
        said = [replace(turn, text=f"In Picture {i + 1}: {turn.text}") for i, turn in asked]
    messages = instructions.messages(said, IMAGE)
    messages[0]["content"][:1] = [IMAGE] * len(scenes)
    return asked, messages


# The verifier


def is_solved(task: Question, answer: str, scene: Scene, least: float = 0.5) -> bool:
    """Is the answer right? Boxes need an IoU of ``least``.

    The kinds of instructions.py are judged there.
    """
    answer = answer.strip()
    if task.kind == "grounding":
        return min(overlaps(task, answer)) >= least
    if task.kind == "referring":
        return _in_the_box(task, scene) in instructions.objects_named(answer, scene)
    if task.kind == "reading":
        return answer == task.answer
    if task.kind == "grounded caption":
        return _is_grounded_caption(answer, scene, least)
    if task.kind == "ocr":
        return _is_ocr(answer, scene, least)
    return instructions.accepts(task, answer, scene)


def overlaps(task: Question, answer: str) -> list[float]:
    """IoU of each box in the first admissible answer with the answer's, paired as fits best.

    All 0 where the answer has another number of boxes, or is no text that ``read_regions`` takes.
    """
    return _best_pairs(boxes_of(answer), boxes_of(task.answer))


def _best_pairs(boxes: Sequence[Box], true: Sequence[Box]) -> list[float]:
    """The IoU of each true box with one of ``boxes``, in the order with the largest sum."""
    if len(boxes) != len(true):
        return [0.0] * len(true)
    gains = [[iou(box, other) for other in boxes] for box in true]
    return [row[column] for row, column in zip(gains, best_assignment(gains), strict=True)]


def best_assignment(gains: Sequence[Sequence[float]]) -> list[int]:
    """A column for each row of a square table, none twice, with the largest sum of gains.

    The Hungarian method (Kuhn 1955), row by row along shortest augmenting paths: n**3 steps.
    """
    n = len(gains)
    row_prices, column_prices = [0.0] * n, [0.0] * n
    row_of: list[int | None] = [None] * n  # of each column
    for row in range(n):
        _augment(gains, row, row_of, row_prices, column_prices)
    return sorted(range(n), key=lambda column: row_of[column])


def _augment(
    gains: Sequence[Sequence[float]],
    start: int,
    row_of: list[int | None],
    row_prices: list[float],
    column_prices: list[float],
) -> None:
    """Give the row ``start`` a column; rows that had one may move to another.

    No row's price and column's price exceed together what the pair costs (minus its gain), and
    they equal it where the two are paired: so the pairs are the cheapest.
    """
    n = len(gains)
    distance, before = [inf] * n, [-1] * n  # of each column: to start, and the column before it
    done: dict[int, float] = {}  # column -> its distance
    row, column, length = start, -1, 0.0
    while True:
        for other in range(n):
            reduced = -gains[row][other] - row_prices[row] - column_prices[other]
            if other not in done and length + reduced < distance[other]:
                distance[other], before[other] = length + reduced, column
        column = min((c for c in range(n) if c not in done), key=distance.__getitem__)
        length = distance[column]
        if row_of[column] is None:
            break
        done[column], row = length, row_of[column]
    row_prices[start] += length
    for visited, reached in done.items():
        row_prices[row_of[visited]] += length - reached
        column_prices[visited] -= length - reached
    while column >= 0:  # back to the start, each row takes the next column
        last, column = column, before[column]
        row_of[last] = row_of[column] if column >= 0 else start


def _in_the_box(task: Question, scene: Scene) -> Object:
    """The object that fits the box of a prompt best."""
    (box,) = boxes_of(task.text)
    size = scene.image.size
    return max(scene.objects, key=lambda thing: iou(box, to_thousandths(thing.box, size)))


def _is_grounded_caption(answer: str, scene: Scene, least: float) -> bool:
    """Is the caption true, and has every object its box, next to its name?"""
    if len(boxes_of(answer)) != len(scene.objects):
        return False
    parts = read_regions(answer)
    text = "".join(part.text if isinstance(part, Region) else part for part in parts)
    return is_true(text, scene) and _boxes_fit(parts, scene, _names, least)


def _is_ocr(answer: str, scene: Scene, least: float) -> bool:
    """Has every text the box of its object, and is there nothing else?"""
    if len(boxes_of(answer)) != len(scene.objects):
        return False
    parts = read_regions(answer)
    if any(isinstance(part, str) and part.strip() for part in parts):
        return False
    return _boxes_fit(parts, scene, lambda text, thing: text == thing.text, least)


def _boxes_fit(
    parts: Sequence[str | Region],
    scene: Scene,
    names: Callable[[str, Object], bool],
    least: float,
) -> bool:
    """Has every name in the text the boxes of all objects that it names?"""
    regions = [part for part in parts if isinstance(part, Region)]
    for name in {region.text for region in regions}:
        said = [box for region in regions if region.text == name for box in region.boxes]
        named = [thing for thing in scene.objects if names(name, thing)]
        true = [to_thousandths(thing.box, scene.image.size) for thing in named]
        if min(_best_pairs(said, true), default=0.0) < least:
            return False
    return True


def _names(noun: str, thing: Object) -> bool:
    """Does a noun phrase, in the singular or plural, fit the object?"""
    phrases, _ = parse(noun) or ((), None)
    return len(phrases) == 1 and phrases[0].fits(thing)
