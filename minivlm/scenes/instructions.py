"""Instruction data from the structure of scenes: conversation, description and reasoning, with a
verifier.

The stand-in for the text-only teacher of LLaVA (Liu et al. 2023, "Visual Instruction Tuning",
section 3 and table 1): there GPT-4, which saw captions and boxes and never the image, wrote these
three kinds of data. Here a program writes them from the objects and cells of a scene, in the
sentences of grammar.py and questions.py, so that it can also judge any answer. What it cannot do is
what a teacher is for: wordings and questions that nobody listed.

Data: a scene -> turns (``Question``: an instruction, its admissible answers, its kind) -> messages
in ChatML, which multimodal.Processor turns into ids and labels. A context opens a conversation: an
image, or the scene in words in its place.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from random import Random

from minivlm.multimodal import IMAGE
from minivlm.scenes.drawing import HELD_OUT, Scene, is_true
from minivlm.scenes.grammar import (
    COLORS,
    COUNTS,
    ENGLISH,
    SHAPES,
    Object,
    alike,
    describe_en,
    parse,
    plural,
    reading_order,
    relations,
)
from minivlm.scenes.questions import Question

# kind -> its phrasings: the first is the one in which questions are made (here and in
# questions.py), the last is held out of every training. Its words all stand in phrasings for
# training, so it tests a new combination, not new words.
PHRASINGS = {
    "caption": (
        "describe the picture.",
        "what is in the picture?",
        "say what is there.",
        "tell me what is there.",
    ),
    "count": (
        "how many {noun} are there?",
        "count the {noun}.",
        "tell me how many {noun} there are.",
    ),
    "colour": (
        "what colour {be} the {noun}?",
        "name the colour of the {noun}.",
        "tell me the colour of the {noun}.",
    ),
    "shape": (
        "what shape {be} the {noun}?",
        "tell me the shape of the {noun}.",
        "name the shape of the {noun}.",
    ),
    "size": (
        "what size {be} the {noun}?",
        "name the size of the {noun}.",
        "tell me the size of the {noun}.",
    ),
    "relation": ("where is {noun}?", "tell me where {noun} is.", "say where {noun} is."),
    "yes/no": ("{claim}?", "{claim}? say yes or no.", "tell me: {claim}?", "yes or no: {claim}?"),
    "same": (
        "are the objects of the same {feature}?",
        "do the objects have the same {feature}?",
        "is the {feature} of the objects the same?",
    ),
    "which": (
        "which object is {more}?",
        "name the object that is {more}.",
        "tell me which object is {more}.",
    ),
}
NUMBERS = {0: "zero"} | COUNTS
SYNONYMS = (
    ENGLISH["size"] | {str(number): word for number, word in NUMBERS.items()} | {"none": "zero"}
)
FEATURES = {
    "colour": "color",
    "shape": "shape",
    "size": "size",
}  # as they are said, and as a field of Object
COMPARED = {
    "left of": "further left",
    "right of": "further right",
    "above": "higher",
    "below": "lower",
}


def listing(scene: Scene, rng: Random | None = None) -> str:
    """The scene in words, "small red circle 3 large blue square 12", in reading order or in a
    random one.

    A number is that of a cell, counted row by row from 1; like objects share their words: "small
    green star 1 6 12".
    """
    things, columns = reading_order(scene.objects, scene.cell), scene.image.width // scene.cell
    said: dict[str, list[str]] = {}
    for thing in rng.sample(things, len(things)) if rng else things:
        column, row = (int(place // scene.cell) for place in thing.center)
        said.setdefault(describe_en(thing, article=""), []).append(str(row * columns + column + 1))
    return " ".join(" ".join([looks, *cells]) for looks, cells in said.items())


def conversation(
    scene: Scene, rng: Random, held_out: bool = False, turns: int = 0
) -> list[Question]:
    """Questions of the scene and yes/no probes, as many of each or one question more.

    Two to four turns, or ``turns`` where there are as many questions to ask.
    """
    count = turns or rng.randint(2, 4)
    questions, probes = scene.questions, _probes(scene)
    asked = rng.sample(questions, min((count + 1) // 2, len(questions)))
    asked += rng.sample(probes, min(count // 2, len(probes)))
    return [phrase(turn, rng, held_out) for turn in rng.sample(asked, len(asked))]


def _probes(scene: Scene) -> list[Question]:
    """The scene's probes, without those whose false one names a held-out colour-shape pair that is
    not there.

    In training, which shows no such pair, that answer would always be "no": a model would learn to
    give it unseen.
    """
    pairs = [f"{color} {shape}" for color, shape in HELD_OUT]
    probes, kept = scene.probes, []
    for true, false in zip(probes[::2], probes[1::2], strict=True):
        if not any(pair in false.text and pair not in true.text for pair in pairs):
            kept += [true, false]
    return kept


def description(scene: Scene, rng: Random, held_out: bool = False) -> list[Question]:
    """One turn that asks for a caption; the answer is the scene's own caption, or another one where
    that is false.
    """
    answers = sorted(scene.captions, key=lambda caption: caption != scene.caption)
    return [phrase(Question(PHRASINGS["caption"][0], tuple(answers), "caption"), rng, held_out)]


def reasoning(scene: Scene, rng: Random, held_out: bool = False, turns: int = 2) -> list[Question]:
    """Turns that count or compare."""
    asked = _countings(scene.objects, rng) + _comparisons(scene.objects, scene.cell)
    return [phrase(turn, rng, held_out) for turn in rng.sample(asked, min(turns, len(asked)))]


def _countings(things: Sequence[Object], rng: Random) -> list[Question]:
    """How many objects there are, how many of each colour and shape shown, and of one of each that
    is not.
    """
    counts = {"objects": len(things)}
    for values, field, noun in ((COLORS, "color", "{} objects".format), (SHAPES, "shape", plural)):
        shown = [getattr(thing, field) for thing in things]
        absent = rng.choice([value for value in values if value not in shown])
        counts |= {noun(value): shown.count(value) for value in [*shown, absent]}
    return [
        Question(f"how many {noun} are there?", (NUMBERS[n],), "count")
        for noun, n in counts.items()
    ]


def _comparisons(things: Sequence[Object], cell: int) -> list[Question]:
    """Whether several objects share a feature; of two different ones, which is larger, higher,
    further left, ...
    """
    asked = []
    for feature, field in FEATURES.items() if len(things) > 1 else ():
        same = len({getattr(thing, field) for thing in things}) == 1
        asked.append((f"are the objects of the same {feature}?", "yes" if same else "no", "same"))
    for a, b in permutations(things) if len(things) == 2 and not alike(things) else ():
        more = [COMPARED[relation] for relation in relations(a, b, cell)]
        more += ["larger" if a.size == "large" else "smaller"] * (a.size != b.size)
        asked += [
            (f"which object is {word}?", describe_en(a, article="the"), "which") for word in more
        ]
    return [Question(text, (answer,), kind) for text, answer, kind in asked]


def phrase(asked: Question, rng: Random, held_out: bool = False) -> Question:
    """The same instruction in one of the phrasings for training or, with ``held_out``, in the one
    kept for tests.

    It draws in both cases, so that the same seed gives the same turns, stated two ways.
    """
    *common, rare = _forms(asked.kind)
    drawn = rng.choice(common)
    return replace(asked, text=(rare if held_out else drawn).format(**_slots(asked)))


def _forms(kind: str) -> tuple[str, ...]:
    if kind not in PHRASINGS:
        raise ValueError(f"unknown kind {kind!r}; known: {list(PHRASINGS)}")
    return PHRASINGS[kind]


def _slots(asked: Question) -> dict[str, str]:
    """What an instruction puts into the slots of its phrasing; ValueError where it is in none of
    its kind.
    """
    for form in reversed(
        _forms(asked.kind)
    ):  # "{claim}?", which fits almost everything, comes last
        found = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(form)), asked.text)
        if found:
            plural_noun = re.search(
                "[^s]s$", found.groupdict().get("noun", "")
            )  # "crosses", not "cross"
            return {"be": "are" if plural_noun else "is"} | found.groupdict()
    raise ValueError(f"no phrasing of kind {asked.kind!r}: {asked.text!r}")


def accepts(asked: Question, answer: str, scene: Scene) -> bool:
    """Is the answer to a question of this scene right, in any wording of the grammar?

    A caption, a place and an object are judged by the objects; one word, of which there is one, by
    its meaning.
    """
    _forms(asked.kind)  # an unknown kind is an error, not a wrong answer
    answer = answer.strip().removesuffix(".")
    answer = answer[:1].lower() + answer[1:]  # not all of it: a label may be in capitals
    if asked.kind == "caption":
        return is_true(answer, scene)
    if asked.kind == "relation":
        return is_true(_indefinite(f"{_slots(asked)['noun']} {answer}"), scene)
    if asked.kind == "which":
        return [] != named(answer, scene) == named(asked.answer, scene)
    return SYNONYMS.get(answer, answer) in asked.answers


def _indefinite(text: str) -> str:
    """ "the red circle to the left of the blue square" -> "a red circle to the left of a blue
    square".
    """
    return re.sub(r"\b[Tt]he (?!left|right)", "a ", text)


def named(noun: str, scene: Scene) -> list[Object]:
    """The objects that a noun phrase ("the large blue square") fits."""
    phrases, _ = parse(_indefinite(noun)) or ((), None)
    return [
        thing
        for thing in scene.objects
        if len(phrases) == 1 and phrases[0].count == 1 and phrases[0].fits(thing)
    ]


def messages(turns: Sequence[Question], context: str | dict = "") -> list[dict]:
    """Turns -> ChatML messages, answered by their first answers; an instruction may be empty
    (LLaVA's first stage).

    The context opens the first user message: IMAGE, or a listing, which then stands in an image's
    place.
    """
    said = []
    opening = (
        [IMAGE | {"text": context}]
        if isinstance(context, str) and context
        else [context]
        if context
        else []
    )
    for turn in turns:
        parts = opening + ([{"type": "text", "text": turn.text}] if turn.text else [])
        if parts:
            said.append({"role": "user", "content": parts if opening else turn.text})
        said.append({"role": "assistant", "content": turn.answer})
        opening = []
    return said


def illustrated(
    scenes: Sequence[Scene], seed: int, captions: bool = False, turns: int = 0
) -> list[tuple[int, list[dict]]]:
    """What a model reads that sees the images, as (number of the scene, ``messages``).

    A conversation, a description and a reasoning a scene (LLaVA's second stage) or, with
    ``captions``, the image and a caption of it without any question (its first). ``turns``: as many
    in conversations, half of it in reasonings.
    """
    rng, found = Random(f"illustrated {seed}"), []
    for number, scene in enumerate(scenes):
        if captions:
            asked = [[replace(turn, text="") for turn in description(scene, rng)]]
        else:
            asked = [conversation(scene, rng, turns=turns), description(scene, rng)]
            asked.append(reasoning(scene, rng, turns=turns // 2 or 2))
        found += [(number, messages(turns, IMAGE)) for turns in asked]
    return found


def corpus(scenes: Sequence[Scene], seed: int, context: bool = True) -> list[list[dict]]:
    """What a language model reads that never sees an image: five conversations a scene, of
    ``messages``.

    A plain caption and, each behind a listing, a caption, a description, a conversation and a
    reasoning of more turns. ``context=False`` (the ablation) gives the same without any listing:
    what is asked can then only be guessed.
    """
    rng, found = Random(f"instructions {seed}"), []
    for scene in scenes:
        caption = [replace(turn, text="") for turn in description(scene, rng)]
        tasks = (
            caption,
            description(scene, rng),
            conversation(scene, rng, turns=6),
            reasoning(scene, rng, turns=4),
        )
        found.append(messages(caption))
        found += [messages(turns, listing(scene) if context else "") for turns in tasks]
    return found
