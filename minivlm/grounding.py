"""Places as text, and the tasks that ask for them: Qwen-VL's boxes and multi-task data, made from scenes.

Paper: Bai et al. 2023 (Qwen-VL), section 2.2 (boxes as text) and appendix B (the formats of the tasks), of which four
corners, <quad>, are left out. Notebook: 09_qwen_vl.

Data: a box in pixels <-> four integers in [0, 1000) <-> "<ref>the red star</ref><box>(78,94),(250,265)</box>";
a scene -> a ``Question`` (prompt, admissible answers, kind), and whether any other answer is right.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random

from minivlm import instructions
from minivlm.grammar import Object, alike, describe_en, main_relations, parse, reading_order
from minivlm.instructions import IMAGE
from minivlm.questions import Question
from minivlm.scenes import Scene, is_true

TAGS = ("<ref>", "</ref>", "<box>", "</box>")
Box = tuple[float, float, float, float]  # x1, y1, x2, y2: the left upper corner and the right lower one
LARGEST = 999
_TAG = re.compile("|".join(TAGS))
_ELEMENT = re.compile(r"<(?P<tag>ref|box)>(?P<body>((?!</?(ref|box)>).)+)</(?P=tag)>", re.DOTALL)
_BOX = re.compile(r"\((\d{1,4}),(\d{1,4})\),\((\d{1,4}),(\d{1,4})\)", re.ASCII)


@dataclass(frozen=True)
class Region:
    """What is named ("": nothing) and where it is: any number of boxes in thousandths."""

    text: str = ""
    boxes: tuple[Box, ...] = ()


def to_thousandths(box: Box, size: tuple[int, int]) -> Box:
    """A box in pixels of an image of ``size`` (width, height) -> integers in [0, 1000).

    An edge at x becomes 999 x / width, rounded: the far edge of the image is 999, as the authors' evaluation reads it
    (their drawing code divides by 1000). At most 1/1998 of the side is lost, 0.03 pixels of 64. ValueError for a box
    that leaves the image.
    """
    x1, y1, x2, y2 = box
    if not (0 <= x1 <= x2 <= size[0] and 0 <= y1 <= y2 <= size[1]):
        raise ValueError(f"the box {box} does not lie in an image of {size[0]} x {size[1]} pixels")
    return tuple(round(LARGEST * edge / side) for edge, side in zip(box, (*size, *size), strict=True))


def to_pixels(box: Box, size: tuple[int, int]) -> Box:
    """Undo ``to_thousandths``, but for the rounding."""
    return tuple(number * side / LARGEST for number, side in zip(box, (*size, *size), strict=True))


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 where both are empty."""
    across, down = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
    return across * down / (areas - across * down) if areas else 0.0


def write(parts: Sequence[str | Region]) -> str:
    """Texts and regions -> one text. ValueError for a tag in a text, and for what is no box."""
    text = ""
    for part in parts:
        region = Region(part) if isinstance(part, str) else part
        if _TAG.search(region.text):
            raise ValueError(f"a text must not hold {TAGS}: {region.text!r}")
        boxes = [_spell(box) for box in region.boxes]
        text += f"<ref>{region.text}</ref>" if region.text and region is part else region.text
        text += "".join(f"<box>{spelled}</box>" for spelled in boxes if _numbers(spelled))
    return text


def read(text: str) -> list[str | Region]:
    """Undo ``write``: a box belongs to what is named right before it.

    ValueError that names the piece for a tag that is not closed, is empty or stands in another, and for what is no box.
    """
    parts, at = [], 0
    for found in [*_ELEMENT.finditer(text), None]:
        plain = text[at : found.start() if found else None]
        stray = _TAG.search(plain)
        if stray:
            raise ValueError(f"a tag is not closed, empty or in another one: {text[at + stray.start() :][:60]!r}")
        parts += [plain] if plain else []
        if found and found["tag"] == "ref":
            parts.append(Region(found["body"]))
        elif found:
            named = parts.pop() if parts and isinstance(parts[-1], Region) else Region()
            parts.append(replace(named, boxes=(*named.boxes, _numbers(found["body"]))))
        at = found.end() if found else at
    return parts


def _spell(box: Box) -> str:
    return "({},{}),({},{})".format(*box)


def _numbers(text: str) -> Box:
    """ "(78,94),(250,265)" -> four integers."""
    found = _BOX.fullmatch(text)
    x1, y1, x2, y2 = box = tuple(map(int, found.groups())) if found else (0, 0, -1, -1)
    if not (x1 <= x2 <= LARGEST and y1 <= y2 <= LARGEST) or _spell(box) != text:
        raise ValueError(f"a box is (x1,y1),(x2,y2), x1 <= x2 and y1 <= y2, of integers in 0..{LARGEST}; not {text!r}")
    return box


def boxes_of(text: str) -> list[Box]:
    """All boxes in a text; none where ``read`` refuses it."""
    try:
        return [box for part in read(text) if isinstance(part, Region) for box in part.boxes]
    except ValueError:
        return []


# The tasks of appendix B


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
    pairs = [(a, b, word) for a, b in permutations(groups, 2) for word in main_relations(a[0], b[0], scene.cell)]
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
    return Question(write([here, " is"]), (describe_en(thing), describe_en(thing, size=False)), "referring")


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


def album(scenes: Sequence[Scene], rng: Random, turns: int = 2) -> tuple[list[tuple[int, Question]], list[dict]]:
    """A conversation about one or several pictures: (number of the scene, question) of each turn, and the messages.

    All pictures stand in the first message; where there are several, each turn says which one it asks about.
    """
    numbers = [rng.randrange(len(scenes)) for _ in range(turns)]
    asked = [(number, rng.choice(tasks(scenes[number], rng))) for number in numbers]
    which = ["" if len(scenes) == 1 else f"In Picture {number + 1}: " for number in numbers]
    said = [replace(turn, text=name + turn.text) for name, (_, turn) in zip(which, asked, strict=True)]
    messages = instructions.messages(said, IMAGE)
    messages[0]["content"][:1] = [IMAGE] * len(scenes)
    return asked, messages


# The verifier


def accepts(asked: Question, answer: str, scene: Scene, least: float = 0.5) -> bool:
    """Is the answer right? Boxes need an IoU of ``least``; the kinds of instructions.py are judged there."""
    answer = answer.strip()
    if asked.kind == "grounding":
        return min(overlaps(asked, answer)) >= least
    if asked.kind == "referring":
        (box,) = boxes_of(asked.text)
        meant = max(scene.objects, key=lambda thing: iou(box, to_thousandths(thing.box, scene.image.size)))
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
    return max(([iou(a, b) for a, b in zip(order, true, strict=True)] for order in permutations(found)), key=sum)


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
        meant = [to_thousandths(thing.box, scene.image.size) for thing in scene.objects if names(name, thing)]
        true = true and min(_paired(found, meant), default=0.0) >= least
    return true


def _names(noun: str, thing: Object) -> bool:
    phrases, _ = parse(noun) or ((), None)
    return len(phrases) == 1 and phrases[0].fits(thing)
