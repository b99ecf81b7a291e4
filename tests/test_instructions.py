"""Instruction data made from scenes: every answer follows from the structure, and a program can
judge any other.
"""

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivlm import scenes
from minivlm.bpe import BPETokenizer
from minivlm.multimodal import CONTROL, IGNORE, Processor
from minivlm.scenes import drawing, grammar, instructions
from minivlm.scenes.grammar import COLORS, SHAPES, SIZES, Object
from minivlm.scenes.instructions import (
    PHRASINGS,
    accepts,
    conversation,
    corpus,
    description,
    listing,
    look_ups,
    placing,
    reasoning,
    rephrase,
)
from minivlm.scenes.questions import Question
from minivlm.scenes.sampling import HELD_OUT
from minivlm.vit import to_pixels


def scene(*objects: Object) -> scenes.Scene:
    return scenes.Scene(objects, "", "", drawing.render(objects, (64, 64)))


TASKS = {
    "conversation": conversation,
    "description": description,
    "reasoning": reasoning,
    "placing": placing,
}
RED = Object("circle", "red", "small", (2, 2, 11, 11))
BLUE = Object("square", "blue", "large", (48, 32, 63, 47))  # right of and below RED
STARS = scene(
    *(Object("star", "green", "small", (4 + 16 * i, 4, 13 + 16 * i, 13)) for i in range(3))
)
PAIR = scene(RED, BLUE)
SCENES = scenes.sample(300, 5) + scenes.sample(100, 5, "composition")
TRAIN, SEEDS = SCENES[:300], st.integers(0, 10**6)
any_scene, any_task = st.sampled_from(SCENES), st.sampled_from(list(TASKS.values()))


@pytest.fixture(scope="module")
def turns() -> list[tuple[scenes.Scene, Question]]:
    """Many turns of every kind, in every phrasing."""
    rng = Random(0)
    made = [
        (s, make(s, rng, held_out))
        for s in SCENES
        for make in TASKS.values()
        for held_out in (False, True)
    ]
    return [(s, turn) for s, conversation in made for turn in conversation]


def texts(found: list[list[dict]]) -> list[str]:
    contents = [message["content"] for messages in found for message in messages]
    return [
        text
        for c in contents
        for text in ([c] if isinstance(c, str) else [part["text"] for part in c])
    ]


def words(phrasing: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"{\w+}", "", phrasing)))


# The scene in words


def read_back(text: str) -> list[tuple[str, str, str, int, int]]:
    """A listing -> size, colour, shape, row and column of each object."""
    place = r" row \d+ column \d+"
    assert re.fullmatch(rf"(\w+ \w+ \w+({place})+ ?)+", text)
    found = []
    for *looks, cells in re.findall(rf"([a-z]+) ([a-z]+) ([a-z]+)((?:{place})+)", text):
        places = re.findall(r"row (\d+) column (\d+)", cells)
        found += [(*looks, int(row), int(column)) for row, column in places]
    return found


@given(any_scene, SEEDS)
def test_a_listing_tells_every_object_and_its_cell(s, seed):
    cells = [
        ((y1 + y2) // 32, (x1 + x2) // 32) for x1, y1, x2, y2 in (thing.box for thing in s.objects)
    ]
    structure = [
        (t.size, t.color, t.shape, *cell) for t, cell in zip(s.objects, cells, strict=True)
    ]
    assert read_back(listing(s)) == sorted(structure, key=lambda thing: thing[3:])  # row by row
    assert sorted(read_back(listing(s, Random(seed)))) == sorted(structure)


def test_a_listing_is_in_reading_order_or_in_a_random_one():
    assert listing(PAIR) == "small red circle row 0 column 0 large blue square row 2 column 3"
    assert listing(scene(BLUE, RED)) == listing(PAIR)
    assert len({listing(PAIR, Random(seed)) for seed in range(10)}) == 2
    assert listing(STARS) == "small green star row 0 column 0 row 0 column 1 row 0 column 2"


@given(any_scene)
def test_a_listing_says_enough_to_tell_which_relations_hold(s):
    """The relations of the cells are those of the pixels, so a model that reads the listing can
    answer.
    """
    cells = read_back(listing(s))
    if len(cells) == 2:
        (*_, row, column), (*_, other_row, other_column) = cells
        first, second = grammar.reading_order(s.objects, s.cell)
        apart = [column < other_column, column > other_column, row < other_row, row > other_row]
        told = [relation for relation, true in zip(grammar.RELATIONS, apart, strict=True) if true]
        assert told == grammar.relations(first, second, s.cell)


# What is asked and answered


@given(any_scene, SEEDS)
def test_places_are_those_of_the_listing(s, seed):
    """The listing and the questions about places are two ways to say in which cell a thing is."""
    found = read_back(listing(s))
    cells = {f"the {size} {color} {shape}": place for size, color, shape, *place in found}
    for turn in placing(s, Random(seed)):
        if turn.kind != "relation":
            noun = re.search(r"(?:above|left of) (the .+?)[?.]$", turn.text)[1]
            row, column = cells[noun]
            assert turn.answers == (instructions.NUMBERS[column if turn.kind == "column" else row],)


@given(any_scene, any_task, SEEDS, st.booleans())
def test_every_answer_is_accepted_and_every_seed_repeats(s, make, seed, held_out):
    found = make(s, Random(seed), held_out)
    assert found == make(s, Random(seed), held_out)
    assert all(accepts(turn, answer, s) for turn in found for answer in turn.answers)


def test_every_task_and_every_kind_is_made(turns):
    assert {turn.kind for _, turn in turns} == set(PHRASINGS)
    rng = Random(0)
    kinds = {
        name: {turn.kind for s in SCENES for turn in make(s, rng)} for name, make in TASKS.items()
    }
    assert kinds["conversation"] == {"colour", "shape", "size", "count", "relation", "yes/no"}
    assert kinds["placing"] == {"column", "row", "relation"}
    assert kinds["description"] == {"caption"} and kinds["reasoning"] == {"count", "same", "which"}
    lengths = {len(conversation(s, Random(i))) for i, s in enumerate(SCENES)}
    assert lengths == {2, 3, 4}


def asked(s: scenes.Scene) -> dict[str, str]:
    """All that reasoning asks of a scene in the first phrasing -> the answers."""
    made = [turn for seed in range(300) for turn in reasoning(s, Random(seed))]
    first = {kind: forms[0].split("{")[0] for kind, forms in PHRASINGS.items()}
    return {turn.text: turn.answer for turn in made if turn.text.startswith(first[turn.kind])}


def test_reasoning_about_two_objects_is_the_expected_one():
    found = asked(PAIR)
    absent = {text for text, answer in found.items() if answer == "zero"}
    assert absent == {
        f"how many {color} objects are there?" for color in COLORS if color not in ("red", "blue")
    } | {
        f"how many {grammar.plural(shape)} are there?"
        for shape in SHAPES
        if shape not in ("circle", "square")
    }
    red, blue = "the small red circle", "the large blue square"
    assert {text: answer for text, answer in found.items() if text not in absent} == {
        "how many objects are there?": "two",
        **{
            f"how many {noun} are there?": "one"
            for noun in ("red objects", "blue objects", "circles", "squares")
        },
        **{
            f"are the objects of the same {feature}?": "no"
            for feature in ("colour", "shape", "size")
        },
        **{f"which object is {more}?": red for more in ("smaller", "higher", "further left")},
        **{f"which object is {more}?": blue for more in ("larger", "lower", "further right")},
    }


def test_reasoning_about_objects_that_look_alike_compares_no_two_of_them():
    found = asked(STARS)
    assert (
        found["how many stars are there?"] == found["how many green objects are there?"] == "three"
    )
    assert found["are the objects of the same size?"] == "yes"
    assert not any(text.startswith("which") for text in found)
    assert all(text.startswith("how many") for text in asked(scene(RED)))


def test_a_false_caption_of_the_scene_is_no_answer_to_a_description():
    noisy = scenes.sample(60, 1, noise=0.5)
    false = [s for s in noisy if not scenes.is_true(s.caption, s)]
    assert len(false) > 10
    assert all(scenes.is_true(description(s, Random(0))[0].answer, s) for s in noisy)
    assert all(description(s, Random(0))[0].answer == s.caption for s in noisy if s not in false)


def test_no_training_text_asks_for_a_colour_and_a_shape_that_are_never_shown_together():
    held_out = re.compile("|".join(f"{color} {shape}" for color, shape in HELD_OUT))
    assert not [text for text in texts(corpus(TRAIN, 0)) if held_out.search(text)]


def test_a_held_out_pair_that_a_scene_shows_is_asked_about_with_both_answers():
    for s in [s for s in SCENES[300:] if len(s.questions) > 7][:10]:
        about = {probe.text for probe in s.probes if probe.text.startswith("is the ")}
        assert about and about <= {
            turn.text for seed in range(400) for turn in conversation(s, Random(seed))
        }


def test_as_many_probes_are_true_as_false():
    answers = [
        t.answer
        for i, s in enumerate(SCENES * 5)
        for t in conversation(s, Random(i))
        if t.kind == "yes/no"
    ]
    assert 0.46 < answers.count("yes") / len(answers) < 0.54


# Two ways to say it


def test_a_held_out_phrasing_is_no_training_phrasing_but_has_only_its_words():
    common = {word for *forms, _ in PHRASINGS.values() for form in forms for word in words(form)}
    for *forms, rare in PHRASINGS.values():
        assert len(forms) >= 2 and rare not in forms
        assert words(rare) <= common, rare


@given(any_scene, any_task, SEEDS)
def test_the_same_seed_asks_the_same_in_both_ways(s, make, seed):
    for common, rare in zip(make(s, Random(seed)), make(s, Random(seed), True), strict=True):
        assert (common.answers, common.kind) == (
            rare.answers,
            rare.kind,
        ) and common.text != rare.text
        assert rephrase(common, Random(0), held_out=True) == rare


def test_training_never_says_anything_in_a_held_out_phrasing():
    rng = Random(1)
    rare = {
        turn.text
        for s in TRAIN
        for make in TASKS.values()
        for _ in range(3)
        for turn in make(s, rng, True)
    }
    assert len(rare) > 100
    assert not rare & {line for text in texts(corpus(TRAIN, 0)) for line in text.split("\n")}


def test_a_question_can_be_put_from_any_phrasing_into_any_other():
    plain = Question("what colour are the crosses?", ("red",), "colour")
    other = rephrase(plain, Random(0), held_out=True)
    assert other.text == "tell me the colour of the crosses."
    assert plain in {rephrase(other, Random(seed)) for seed in range(10)}
    probe = Question("yes or no: is there a red circle?", ("yes",), "yes/no")
    assert "is there a red circle?" in {rephrase(probe, Random(seed)).text for seed in range(10)}
    single = Question("name the colour of the cross.", ("red",), "colour")
    assert "what colour is the cross?" in {
        rephrase(single, Random(seed)).text for seed in range(10)
    }


# The verifier

CLOSED = {
    "colour": COLORS,
    "shape": SHAPES,
    "size": SIZES,
    "count": ("zero", "one", "two", "three", "four"),
    "yes/no": ("yes", "no"),
    "same": ("yes", "no"),
}


def test_of_all_words_of_a_kind_only_the_true_one_is_accepted(turns):
    for s, turn in turns:
        if turn.kind in CLOSED:
            assert [word for word in CLOSED[turn.kind] if accepts(turn, word, s)] == [turn.answer]


@pytest.mark.parametrize(("kind", "most"), [("caption", 0.12), ("relation", 0.05), ("which", 0.1)])
def test_answers_of_another_scene_are_mostly_refused(turns, kind, most):
    made = [pair for pair in turns if pair[1].kind == kind]
    rng = Random(2)
    pairs = [(*one, other[1].answer) for one, other in (rng.sample(made, 2) for _ in range(2000))]
    assert sum(accepts(turn, answer, s) for s, turn, answer in pairs) < most * len(pairs)


@pytest.mark.parametrize(
    ("text", "kind", "right", "wrong"),
    [
        (
            "where is the small red circle?",
            "relation",
            [
                "left of the large blue square",
                "To the left of a blue square.",
                "above the big blue square",
            ],
            [
                "right of the large blue square",
                "left of the large red square",
                "left of",
                "left",
                "above",
                "",
            ],
        ),
        (
            "say where the large blue square is.",
            "relation",
            [
                "right of the small red circle",
                "to the right of a red circle",
                "under the red circle",
            ],
            [
                "left of the small red circle",
                "right of the large blue square",
                "the small red circle",
            ],
        ),
        (
            "which object is larger?",
            "which",
            ["the large blue square", "a blue square", "the big blue square"],
            [
                "the small red circle",
                "the large red square",
                "the square",
                "two blue squares",
                "larger",
                "",
            ],
        ),
        (
            "what size is the circle?",
            "size",
            ["small", "little", "Small."],
            ["large", "circle", "small red", ""],
        ),
        (
            "how many objects are there?",
            "count",
            ["two", "2", "Two."],
            ["three", "a", "zero", "2 objects", ""],
        ),
        (
            "describe the picture.",
            "caption",
            [
                "a red circle above a blue square",
                "There is a big blue square below a little red circle.",
            ],
            ["a red circle", "a red circle below a blue square", "describe the picture.", ""],
        ),
    ],
)
def test_every_right_wording_is_accepted_and_no_wrong_one(text, kind, right, wrong):
    first = {
        "relation": "left of the large blue square",
        "which": "the large blue square",
        "size": "small",
    }
    turn = Question(text, (first.get(kind, "two"),), kind)
    assert [answer for answer in right if not accepts(turn, answer, PAIR)] == []
    assert [answer for answer in wrong if accepts(turn, answer, PAIR)] == []


def test_nothing_is_right_about_an_object_that_is_not_there():
    turn = Question("which object is larger?", ("the large red cross",), "which")
    assert not any(
        accepts(turn, answer, PAIR)
        for answer in ("the large red cross", "the blue square", "red", "")
    )


def test_zero_may_be_said_in_three_ways():
    turn = Question("how many stars are there?", ("zero",), "count")
    assert all(accepts(turn, answer, PAIR) for answer in ("zero", "none", "0"))


def test_labels_are_told_and_judged_with_their_capitals():
    for s in scenes.sample(40, 3, label=2):
        assert all(thing.text in listing(s) for thing in s.objects)
        for make in TASKS.values():
            assert all(accepts(turn, turn.answer, s) for turn in make(s, Random(0)))


near = st.lists(st.sampled_from(["the", "a", "two", "left", "of", "red", "circle"])).map(" ".join)


@given(any_scene, any_task, st.one_of(st.text(), near))
def test_any_answer_is_judged_without_an_error(s, make, answer):
    for turn in make(s, Random(0)):
        assert accepts(turn, answer, s) in (True, False)


def test_what_is_unknown_is_named():
    with pytest.raises(ValueError, match="'poem'.*caption"):
        accepts(Question("write a poem.", ("roses",), "poem"), "roses", PAIR)
    with pytest.raises(ValueError, match="'poem'.*caption"):
        rephrase(Question("write a poem.", ("roses",), "poem"), Random(0))
    with pytest.raises(ValueError, match="'colour'.*paint it"):
        rephrase(Question("paint it red.", ("red",), "colour"), Random(0))


# Messages and the text-only corpus


def test_the_context_stands_once_before_the_first_instruction():
    first, second = Question("a?", ("b", "c"), "colour"), Question("d?", ("e",), "shape")
    image = {"type": "image"}
    assert instructions.messages([first, second]) == [
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "d?"},
        {"role": "assistant", "content": "e"},
    ]
    for context, part in (("f", image | {"text": "f"}), (image, image)):
        told = instructions.messages([first, second], context)
        assert [m["content"] for m in told] == [
            [part, {"type": "text", "text": "a?"}],
            "b",
            "d?",
            "e",
        ]


def test_without_an_instruction_only_the_context_is_said():
    plain = [Question("", ("b",), "caption")]
    assert instructions.messages(plain) == [{"role": "assistant", "content": "b"}]
    for context, content in (
        ("f", [{"type": "image", "text": "f"}]),
        ({"type": "image"}, [{"type": "image"}]),
    ):
        assert instructions.messages(plain, context)[0] == {"role": "user", "content": content}


def test_the_corpus_repeats_and_its_ablation_lacks_the_listings_alone():
    full, bare = corpus(TRAIN, 3), corpus(TRAIN, 3, context=False)
    assert full == corpus(TRAIN, 3) != corpus(TRAIN, 4)
    assert len(full) == len(bare) > 4 * len(TRAIN)
    assert full[: len(TRAIN)] == bare[: len(TRAIN)]  # plain captions
    assert all(len(messages) == 1 for messages in full[: len(TRAIN)])
    listed = [sorted(read_back(listing(s))) for s in TRAIN]
    for with_listing, without in zip(full[len(TRAIN) :], bare[len(TRAIN) :], strict=True):
        told, *rest = with_listing[0]["content"]
        assert told.keys() == {"type", "text"} and sorted(read_back(told["text"])) in listed
        stripped = [{"role": "user", "content": part["text"]} for part in rest] + with_listing[1:]
        assert stripped == without
    assert not [text for text in texts(bare) if re.search("[0-9]", text)]


def test_a_look_up_asks_for_what_its_listing_says():
    for messages in look_ups(TRAIN, 0):
        told, first = messages[0]["content"]
        found = read_back(told["text"])
        said = {str(field) for thing in found for field in thing[:3]}
        said |= {instructions.NUMBERS[place] for thing in found for place in thing[3:]}
        assert {turn["content"] for turn in messages[1::2]} <= said and first["text"]
        assert len(messages) <= 14
    assert look_ups(TRAIN, 1) == look_ups(TRAIN, 1) != look_ups(TRAIN, 2)


def test_one_template_serves_the_listing_and_the_image():
    tokenizer = BPETokenizer.train(texts(corpus(TRAIN[:50], 0)), 400, special_tokens=CONTROL)
    processor = Processor(tokenizer, 4, to_pixels)
    for s in SCENES[::40]:
        turns = conversation(s, Random(0))
        read = processor.prepare(instructions.messages(turns, listing(s)))
        seen = processor.prepare(instructions.messages(turns, {"type": "image"}), [s.image])
        learned = [row["labels"][row["labels"] != IGNORE].tolist() for row in (read, seen)]
        assert learned[0] == learned[1]
        assert tokenizer.decode(learned[0]) == "".join(f"{turn.answer}<|im_end|>" for turn in turns)
        first = tokenizer.encode(turns[0].text)
        assert all(str(first)[1:-1] in str(row["input_ids"][0].tolist()) for row in (read, seen))


def test_an_answer_ends_with_one_mark_at_most():
    for scene in scenes.sample(20, 0):
        turns = [instructions.description(scene, Random(0))[0], *scene.questions]
        turns += instructions.reasoning(scene, Random(0), turns=9)
        for turn in turns:
            assert accepts(turn, turn.answer + ".", scene)
            for marks in ("..", "。.", ".。", ". ."):
                assert not accepts(turn, turn.answer + marks, scene), turn
