"""What can be asked about a scene: questions with all admissible answers, and yes/no probes.

The answers follow from the structure that the scene was rendered from; the sentences are those of
grammar.py, in English.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from minivlm.scenes.grammar import (
    COLORS,
    COUNTS,
    OPPOSITE,
    SHAPES,
    Object,
    alike,
    describe_en,
    plural,
    relations,
)


@dataclass(frozen=True)
class Question:
    """An instruction of any kind, and what may be answered."""

    text: str
    answers: tuple[str, ...]  # every admissible one, the plainest first
    kind: str  # "colour", "count", "yes/no", ...; see instructions.PHRASINGS and tasks.py

    @property
    def answer(self) -> str:
        return self.answers[0]


def questions(objects: Sequence[Object], cell: int) -> list[Question]:
    """Questions about colour, shape, size, count and relation, each with all its answers."""
    distinct = [objects[0]] if alike(objects) else list(objects)
    asked = [Question("how many objects are there?", (COUNTS[len(objects)],), "count")]
    for thing in distinct:
        others = [other for other in distinct if other is not thing]
        asked += _about_looks(thing, others, several=len(objects) > len(distinct))
    if len(distinct) == 2:
        asked += [_where(first, second, cell) for first, second in permutations(distinct)]
    return asked


def _about_looks(thing: Object, others: Sequence[Object], several: bool) -> list[Question]:
    """Questions that name a thing (or several alike) by a shape or colour that no other has."""
    verb = "are" if several else "is"
    asked = []
    if all(other.shape != thing.shape for other in others):
        noun = plural(thing.shape) if several else thing.shape
        asked.append(Question(f"what colour {verb} the {noun}?", (thing.color,), "colour"))
        asked.append(Question(f"what size {verb} the {noun}?", (thing.size,), "size"))
    if all(other.color != thing.color for other in others):
        noun = f"{thing.color} {'objects' if several else 'object'}"
        asked.append(Question(f"what shape {verb} the {noun}?", (thing.shape,), "shape"))
    return asked


def _where(thing: Object, other: Object, cell: int) -> Question:
    """Where one of two objects is: an answer for each relation that holds."""
    there = describe_en(other, article="the")
    answers = tuple(f"{relation} {there}" for relation in relations(thing, other, cell))
    return Question(f"where is {describe_en(thing, article='the')}?", answers, "relation")


def probes(objects: Sequence[Object], cell: int) -> list[Question]:
    """Yes/no questions in pairs: a true one, and the same with one word made false."""
    asked = []
    for thing in [objects[0]] if alike(objects) else objects:
        asked += _presence_probes(thing, objects)
    if len(objects) == 2 and not alike(objects):
        asked += _relation_probes(*objects, cell)
    asked.append(_count_probe(len(objects), "yes"))
    asked.append(_count_probe(len(objects) % 4 + 1, "no"))
    return asked


def _presence_probes(thing: Object, objects: Sequence[Object]) -> list[Question]:
    """Is there such an object; is there one of an absent colour, or of an absent shape?"""
    colors, shapes = ({getattr(o, field) for o in objects} for field in ("color", "shape"))
    recolored = replace(thing, color=_first_absent(COLORS, thing.color, colors))
    reshaped = replace(thing, shape=_first_absent(SHAPES, thing.shape, shapes))
    return [
        _probe(f"is there {describe_en(thing)}?", "yes"),
        _probe(f"is there {describe_en(recolored)}?", "no"),
        _probe(f"is there {describe_en(thing, size=False)}?", "yes"),
        _probe(f"is there {describe_en(reshaped, size=False)}?", "no"),
    ]


def _first_absent(values: Sequence[str], value: str, present: set[str]) -> str:
    """The first of the values after the given one, in a circle, that is not present."""
    start = values.index(value) + 1
    return next(v for v in values[start:] + values[:start] if v not in present)


def _relation_probes(first: Object, second: Object, cell: int) -> list[Question]:
    """Each relation that holds, and its opposite; none where size alone tells the objects apart."""
    a, b = (describe_en(thing, size=False, article="the") for thing in (first, second))
    asked = []
    for relation in relations(first, second, cell) if a != b else ():
        asked.append(_probe(f"is {a} {relation} {b}?", "yes"))
        asked.append(_probe(f"is {a} {OPPOSITE[relation]} {b}?", "no"))
    return asked


def _count_probe(number: int, answer: str) -> Question:
    said = "is there one object?" if number == 1 else f"are there {COUNTS[number]} objects?"
    return _probe(said, answer)


def _probe(text: str, answer: str) -> Question:
    return Question(text, (answer,), "yes/no")
