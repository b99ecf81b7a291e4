"""What can be asked about a scene: questions with all their admissible answers, and yes/no probes,
in English.

The answers follow from the structure that the scene was rendered from; the sentences are those of
grammar.py.
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
    text: str
    answers: tuple[str, ...]  # every admissible one, the plainest first
    kind: str  # colour, shape, size, count, relation, yes/no

    @property
    def answer(self) -> str:
        return self.answers[0]


def questions(objects: Sequence[Object], cell: int) -> list[Question]:
    """Questions about colour, shape, size, count and relation that have one answer (or several
    listed ones).
    """
    distinct = [objects[0]] if alike(objects) else list(objects)
    asked = [Question("how many objects are there?", (COUNTS[len(objects)],), "count")]
    for thing in distinct:
        others = [other for other in distinct if other is not thing]
        if all(other.shape != thing.shape for other in others):
            verb, noun = (
                ("is", thing.shape)
                if len(objects) == len(distinct)
                else ("are", plural(thing.shape))
            )
            asked.append(Question(f"what colour {verb} the {noun}?", (thing.color,), "colour"))
            asked.append(Question(f"what size {verb} the {noun}?", (thing.size,), "size"))
        if all(other.color != thing.color for other in others):
            noun = "object" if len(objects) == len(distinct) else "objects"
            verb = "is" if noun == "object" else "are"
            asked.append(
                Question(f"what shape {verb} the {thing.color} {noun}?", (thing.shape,), "shape")
            )
    if len(distinct) == 2:
        for a, b in permutations(distinct):
            answers = tuple(
                f"{relation} {describe_en(b, article='the')}" for relation in relations(a, b, cell)
            )
            asked.append(
                Question(f"where is {describe_en(a, article='the')}?", answers, "relation")
            )
    return asked


def probes(objects: Sequence[Object], cell: int) -> list[Question]:
    """Yes/no questions in pairs, a true one and the same with one word made false: as many "yes" as
    "no".
    """
    asked = []
    for thing in [objects[0]] if alike(objects) else objects:
        absent_color = next(
            c for c in _after(COLORS, thing.color) if all(o.color != c for o in objects)
        )
        absent_shape = next(
            s for s in _after(SHAPES, thing.shape) if all(o.shape != s for o in objects)
        )
        asked += [
            (f"is there {describe_en(thing)}?", True),
            (f"is there {describe_en(replace(thing, color=absent_color))}?", False),
            (f"is there {describe_en(thing, size=False)}?", True),
            (f"is there {describe_en(replace(thing, shape=absent_shape), size=False)}?", False),
        ]
    if len(objects) == 2 and not alike(objects):
        a, b = (describe_en(thing, size=False, article="the") for thing in objects)
        if a != b:
            for relation in relations(*objects, cell):
                asked += [
                    (f"is {a} {relation} {b}?", True),
                    (f"is {a} {OPPOSITE[relation]} {b}?", False),
                ]
    count, wrong = len(objects), len(objects) % 4 + 1
    for number in (count, wrong):
        asked.append(
            (
                f"{'is' if number == 1 else 'are'} there {COUNTS[number]} object{'s' * (number > 1)}?",
                number == count,
            )
        )
    return [Question(text, ("yes" if truth else "no",), "yes/no") for text, truth in asked]


def _after(values: Sequence[str], value: str) -> list[str]:
    """The values in order, starting behind the given one."""
    start = values.index(value) + 1
    return [*values[start:], *values[: start - 1]]
