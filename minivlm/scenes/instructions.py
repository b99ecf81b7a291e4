"""Instruction data made from scenes: conversation, description, reasoning, and a verifier.

It replaces the text-only teacher of LLaVA (Liu et al. 2023, "Visual Instruction Tuning", section 3
and table 1): there GPT-4, which saw captions and boxes and never the image, wrote these three kinds
of data. Here a program writes them from the objects and cells of a scene, in the sentences of
grammar.py and questions.py, so that it can also judge any answer. What it cannot do is what a
teacher is for: wordings and questions that no one has listed.

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
    without_mark,
)
from minivlm.scenes.questions import Question
from minivlm.scenes.sampling import HELD_OUT
from minivlm.scenes.scene import Scene, is_true

# kind -> its phrasings: the first is the one in which questions are made (here and in
# questions.py), the last is held out of every training. All its words occur in phrasings for
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
    "column": (
        "how many columns are left of {noun}?",
        "count the columns left of {noun}.",
        "say how many columns there are left of {noun}.",
        "tell me how many columns are left of {noun}.",
    ),
    "row": (
        "how many rows are above {noun}?",
        "count the rows above {noun}.",
        "say how many rows there are above {noun}.",
        "tell me how many rows are above {noun}.",
    ),
    "yes/no": ("{claim}?", "{claim}? say yes or no.", "tell me: {claim}?", "yes or no: {claim}?"),
    "same": (
        "are the objects of the same {feature}?",
        "do the objects have the same {feature}?",
        "is the {feature} the same?",
        "tell me if the objects share their {feature}.",
        "is the {feature} of the objects the same?",
    ),
    "which": (
        "which object is {more}?",
        "name the object that is {more}.",
        "tell me which object is {more}.",
    ),
}
NUMBERS = {0: "zero"} | COUNTS
DIGITS = {str(number): word for number, word in NUMBERS.items()}
SYNONYMS = ENGLISH["size"] | DIGITS | {"none": "zero"}
FEATURES = {"colour": "color", "shape": "shape", "size": "size"}  # as said -> field of Object
COMPARED = {
    "left of": "further left",
    "right of": "further right",
    "above": "higher",
    "below": "lower",
}


def listing(scene: Scene, rng: Random | None = None) -> str:
    """The scene in words: "small red circle row 0 column 2 large blue square row 2 column 3".

    Rows and columns of cells are counted from 0; objects that look alike share their words: "small
    green star row 0 column 0 row 1 column 1". In reading order or, with ``rng``, in a random one.
    """
    things = reading_order(scene.objects, scene.cell)
    if rng:
        things = rng.sample(things, len(things))
    words: dict[str, str] = {}
    for thing in things:
        column, row = (int(place // scene.cell) for place in thing.center)
        looks = describe_en(thing, article="")
        words[looks] = f"{words.get(looks, looks)} row {row} column {column}"
    return " ".join(words.values())


def conversation(
    scene: Scene, rng: Random, held_out: bool = False, turns: int = 0
) -> list[Question]:
    """Questions of the scene and yes/no probes, as many of each or one question more.

    Two to four turns, or ``turns`` where there are as many questions to ask.
    """
    count = turns or rng.randint(2, 4)
    questions, probes = scene.questions, _fair_probes(scene)
    asked = rng.sample(questions, min((count + 1) // 2, len(questions)))
    asked += rng.sample(probes, min(count // 2, len(probes)))
    return [rephrase(turn, rng, held_out) for turn in rng.sample(asked, len(asked))]


def _fair_probes(scene: Scene) -> list[Question]:
    """The scene's probes, without those that a model could answer unseen.

    A false one may name a held-out colour-shape pair that is not there. In training, which shows no
    such pair, its answer would always be "no"; so it goes, and its true twin with it.
    """
    pairs = [f"{color} {shape}" for color, shape in HELD_OUT]
    probes, kept = scene.probes, []
    for true, false in zip(probes[::2], probes[1::2], strict=True):
        if not any(pair in false.text and pair not in true.text for pair in pairs):
            kept += [true, false]
    return kept


def description(scene: Scene, rng: Random, held_out: bool = False) -> list[Question]:
    """One turn that asks for a caption: the scene's own or, where that is false, another one."""
    answers = sorted(scene.captions, key=lambda caption: caption != scene.caption)
    turn = Question(PHRASINGS["caption"][0], tuple(answers), "caption")
    return [rephrase(turn, rng, held_out)]


def reasoning(scene: Scene, rng: Random, held_out: bool = False, turns: int = 2) -> list[Question]:
    """Turns that count or compare."""
    asked = _countings(scene.objects, rng) + _comparisons(scene.objects, scene.cell)
    return [rephrase(turn, rng, held_out) for turn in rng.sample(asked, min(turns, len(asked)))]


def placing(scene: Scene, rng: Random, held_out: bool = False, turns: int = 4) -> list[Question]:
    """Turns about places: of each object in cells of the grid, and where one of two is."""
    distinct = [scene.objects[0]] if alike(scene.objects) else scene.objects
    asked = [question for question in scene.questions if question.kind == "relation"]
    for thing in distinct if len(distinct) == 2 or len(scene.objects) == 1 else ():
        noun = describe_en(thing, article="the")
        column, row = (int(place // scene.cell) for place in thing.center)
        asked.append(
            Question(f"how many columns are left of {noun}?", (NUMBERS[column],), "column")
        )
        asked.append(Question(f"how many rows are above {noun}?", (NUMBERS[row],), "row"))
    return [rephrase(turn, rng, held_out) for turn in rng.sample(asked, min(turns, len(asked)))]


MAKERS = (conversation, description, reasoning, placing)  # of the turns about a scene


def _countings(things: Sequence[Object], rng: Random) -> list[Question]:
    """How many objects there are, in all, of each colour and shape shown, and of one not shown."""
    counts = {"objects": len(things)}
    colors = [thing.color for thing in things]
    absent = rng.choice([color for color in COLORS if color not in colors])
    for color in [*colors, absent]:
        counts[f"{color} objects"] = colors.count(color)
    shapes = [thing.shape for thing in things]
    absent = rng.choice([shape for shape in SHAPES if shape not in shapes])
    for shape in [*shapes, absent]:
        counts[plural(shape)] = shapes.count(shape)
    return [
        Question(f"how many {noun} are there?", (NUMBERS[count],), "count")
        for noun, count in counts.items()
    ]


def _comparisons(things: Sequence[Object], cell: int) -> list[Question]:
    """Whether several objects share a feature, and which of two is larger, higher, ..."""
    asked = []
    if len(things) > 1:
        for feature, field in FEATURES.items():
            same = len({getattr(thing, field) for thing in things}) == 1
            text = f"are the objects of the same {feature}?"
            asked.append(Question(text, ("yes" if same else "no",), "same"))
    if len(things) == 2 and not alike(things):
        for thing, other in permutations(things):
            asked += [
                Question(f"which object is {more}?", (describe_en(thing, article="the"),), "which")
                for more in _advantages(thing, other, cell)
            ]
    return asked


def _advantages(thing: Object, other: Object, cell: int) -> list[str]:
    """What the first of two objects is more than the second: "further left", "larger", ..."""
    more = [COMPARED[relation] for relation in relations(thing, other, cell)]
    if thing.size != other.size:
        more.append("larger" if thing.size == "large" else "smaller")
    return more


def rephrase(question: Question, rng: Random, held_out: bool = False) -> Question:
    """The same instruction in one of the phrasings for training or in the one held out.

    It draws in both cases, so that the same seed gives the same turns, phrased in two ways.
    """
    _check_kind(question)
    *common, rare = PHRASINGS[question.kind]
    drawn = rng.choice(common)
    return replace(question, text=(rare if held_out else drawn).format(**_slots(question)))


def _check_kind(question: Question) -> None:
    if question.kind not in PHRASINGS:
        raise ValueError(f"unknown kind {question.kind!r}; known: {list(PHRASINGS)}")


def _slots(question: Question) -> dict[str, str]:
    """What an instruction puts into the slots of its phrasing, by name.

    ValueError where it is in no phrasing of its kind.
    """
    # in reverse, because "{claim}?" fits almost everything
    for phrasing in reversed(PHRASINGS[question.kind]):
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(phrasing))
        match = re.fullmatch(pattern, question.text)
        if match:
            slots = match.groupdict()
            several = re.search("[^s]s$", slots.get("noun", ""))  # "crosses", not "cross"
            return {"be": "are" if several else "is"} | slots
    raise ValueError(f"no phrasing of kind {question.kind!r}: {question.text!r}")


def accepts(question: Question, answer: str, scene: Scene) -> bool:
    """Is the answer to a question of this scene right, in any wording of the grammar?

    A caption, a place and an object are judged by the objects; one word, of which there is one, by
    its meaning. ValueError for an unknown kind.
    """
    _check_kind(question)
    answer = answer.strip()
    answer = answer[:1].lower() + answer[1:]  # not all of it: a label may be in capitals
    if question.kind == "caption":
        return is_true(answer, scene)
    if question.kind == "relation":
        return is_true(_indefinite(f"{_slots(question)['noun']} {answer}"), scene)
    if question.kind == "which":
        named = objects_named(answer, scene)
        return bool(named) and named == objects_named(question.answer, scene)
    word = without_mark(answer)
    return SYNONYMS.get(word, word) in question.answers


def _indefinite(text: str) -> str:
    """ "the red circle to the left of the blue square" -> "a red circle to the left of a blue
    square".
    """
    return re.sub(r"\b[Tt]he (?!left|right)", "a ", text)


def objects_named(noun: str, scene: Scene) -> list[Object]:
    """The objects that a noun phrase in the singular ("the large blue square") fits."""
    phrases, _ = parse(_indefinite(noun)) or ((), None)
    if len(phrases) != 1 or phrases[0].count != 1:
        return []
    return [thing for thing in scene.objects if phrases[0].fits(thing)]


def messages(turns: Sequence[Question], context: str | dict = "") -> list[dict]:
    """Turns -> ChatML messages, answered by their first answers.

    An instruction may be empty (LLaVA's first stage). The context opens the first user message:
    IMAGE, or a listing, which then takes an image's place.
    """
    said = []
    opening = _opening(context)
    for turn in turns:
        content: list | str = turn.text
        if opening:
            content = opening + ([{"type": "text", "text": turn.text}] if turn.text else [])
        if content:
            said.append({"role": "user", "content": content})
        said.append({"role": "assistant", "content": turn.answer})
        opening = []
    return said


def _opening(context: str | dict) -> list[dict]:
    """The parts of a message that come before its instruction."""
    if not context:
        return []
    return [IMAGE | {"text": context}] if isinstance(context, str) else [context]


def illustrated(
    scenes: Sequence[Scene], seed: int, captions: bool = False, turns: int = 0
) -> list[tuple[int, list[dict]]]:
    """What a model reads that sees the images: (number of the scene, ``messages``).

    A conversation, a description, a reasoning and the places of a scene (LLaVA's second stage) or,
    with ``captions``, the image and a caption of it without any question (its first). ``turns``: as
    many in conversations and about places, half as many in reasonings.
    """
    rng, rows = Random(f"illustrated {seed}"), []
    for number, scene in enumerate(scenes):
        if captions:
            talks = [_bare_caption(scene, rng)]
        else:
            talks = _talks(scene, rng, turns, turns // 2 or 2)
        rows += [(number, messages(talk, IMAGE)) for talk in talks]
    return rows


def _talks(scene: Scene, rng: Random, turns: int, fewer: int) -> list[list[Question]]:
    """A conversation, a description, a reasoning of ``fewer`` turns and, unless several objects are
    alike, the places.
    """
    talks = [
        conversation(scene, rng, turns=turns),
        description(scene, rng),
        reasoning(scene, rng, turns=fewer),
        placing(scene, rng, turns=turns or 2),
    ]
    return [talk for talk in talks if talk]


def in_words(scenes: Sequence[Scene], seed: int, context: bool = True) -> list[list[dict]]:
    """As ``illustrated``, with a listing in the place of each image: ``messages``.

    Half of the listings are in a random order. ``context=False`` (the ablation) gives the same
    without any listing: what is asked can then only be guessed.
    """
    rng, rows = Random(f"in words {seed}"), []
    for scene in scenes:
        for talk in _talks(scene, rng, turns=6, fewer=5):
            words = listing(scene, rng if rng.random() < 0.5 else None)
            rows.append(messages(talk, words if context else ""))
    return rows


def look_ups(scenes: Sequence[Scene], seed: int, most: int = 7) -> list[list[dict]]:
    """A listing of each scene, and what can be read off it: what one object looks like, and where
    it is.

    At most ``most`` questions, in a random order.
    """
    rng, rows = Random(f"look-ups {seed}"), []
    for scene in scenes:
        asked = [turn for turn in placing(scene, rng, turns=9) if turn.kind != "relation"]
        looks = [question for question in scene.questions if question.kind in FEATURES]
        asked += [rephrase(question, rng) for question in looks]
        turns = rng.sample(asked, min(len(asked), most))
        if turns:
            rows.append(messages(turns, listing(scene, rng if rng.random() < 0.5 else None)))
    return rows


def corpus(scenes: Sequence[Scene], seed: int, context: bool = True) -> list[list[dict]]:
    """What a language model reads that never sees an image: ``in_words``, and a plain caption of
    each scene.
    """
    rng = Random(f"instructions {seed}")
    plain = [messages(_bare_caption(scene, rng)) for scene in scenes]
    return plain + in_words(scenes, seed, context)


def _bare_caption(scene: Scene, rng: Random) -> list[Question]:
    """A turn that says a caption without being asked."""
    return [replace(turn, text="") for turn in description(scene, rng)]
