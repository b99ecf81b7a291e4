"""What can be said about a scene, and the verifier that judges it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivlm import scenes
from minivlm.scenes import drawing, grammar
from minivlm.scenes.grammar import Object


def scene(*objects: Object) -> scenes.Scene:
    return scenes.Scene(objects, "", "", drawing.render(objects, (64, 64)))


def chinese(s: scenes.Scene) -> list[str]:
    """Every Chinese wording that the dataset uses for this scene."""
    return grammar.captions(s.objects, s.cell, grammar.wordings_zh)


RED = Object("circle", "red", "small", (2, 2, 11, 11))
BLUE = Object("square", "blue", "large", (48, 32, 63, 47))  # right of and below RED
STARS = tuple(Object("star", "green", "small", (4 + 16 * i, 4, 13 + 16 * i, 13)) for i in range(3))


@pytest.fixture(scope="module")
def many() -> list[scenes.Scene]:
    return scenes.sample(1500, 11) + scenes.sample(500, 11, "composition")


@pytest.mark.parametrize(
    "caption",
    [
        "a small red circle left of a large blue square",
        "a large blue square right of a small red circle",
        "a small red circle above a large blue square",
        "there is a large blue square below a small red circle",
        "a little red circle to the left of a big blue square",
        "a red circle over a blue square",
        "A small red circle left of a large blue square.",
        "一个小的红色圆形在一个大的蓝色正方形的左边",
        "一个大的蓝色正方形在一个小的红色圆形的下方",
        "图中有一个红色圆形在一个蓝色正方形的上面。",
    ],
)
def test_every_wording_of_a_true_relation_is_true(caption):
    assert scenes.is_true(caption, scene(RED, BLUE))


@pytest.mark.parametrize(
    "caption",
    [
        "a small red circle right of a large blue square",  # relation reversed
        "a small blue circle left of a large red square",  # colours swapped
        "a large red circle left of a large blue square",  # wrong size
        "a small red circle",  # true, but only of a part
        "two small red circles",
        "a large blue square left of a large blue square",
        "a small red circle left of a large blue square left of a small red circle",
        "a small red circle left a large blue square",  # outside the grammar
        "red circle left of blue square",
        "a small red circle and a large blue square",
        "a small red circle left of a large blue square above",
        "left of",
        "",
        " ",
        "一个小的红色圆形在一个大的蓝色正方形的右边",
        "一个小的红色圆形",
        "一个小的红色圆形左边一个大的蓝色正方形",
    ],
)
def test_false_partial_and_ungrammatical_sentences_are_false(caption):
    assert not scenes.is_true(caption, scene(RED, BLUE))


def test_counts_must_be_right_and_agree_with_the_noun():
    for caption in (
        "three green stars",
        "there are three small green stars",
        "三个绿色的星形",
        "图中有三个小的绿色星形",
    ):
        assert scenes.is_true(caption, scene(*STARS)), caption
    wrong = [
        "two green stars",
        "three green star",
        "a green star",
        "three large green stars",
        "there is three green stars",
    ]
    wrong += ["四个绿色的星形", "three red stars", "three green crosses", "there are a green star"]
    for caption in wrong:
        assert not scenes.is_true(caption, scene(*STARS)), caption


def test_two_alike_may_also_be_told_by_their_relation():
    assert scenes.is_true("a green star left of a green star", scene(*STARS[:2]))
    assert not scenes.is_true("a green star above a green star", scene(*STARS[:2]))


def test_all_wordings_of_all_scenes_are_true_and_distinct(many):
    for s in many:
        wordings = s.captions + chinese(s)
        assert len(set(wordings)) == len(wordings) >= 4
        assert s.caption in s.captions and s.caption_zh in chinese(s)
        for caption in wordings:
            assert scenes.is_true(caption, s), caption


def test_at_most_12_percent_of_other_scenes_captions_are_true(many):
    rng = random.Random(0)
    for part in (many[:1500], many[1500:]):
        pairs = [rng.sample(part, 2) for _ in range(2000)]
        assert sum(scenes.is_true(a.caption, b) for a, b in pairs) < 0.12 * len(pairs)


def test_one_changed_word_makes_every_caption_false(many):
    for s in many[:600]:
        words = s.caption.split()
        for i, word in enumerate(words):
            for group in (grammar.COLORS, grammar.SIZES, grammar.SHAPES):
                if word in group:
                    other = group[(group.index(word) + 1) % len(group)]
                    changed = " ".join([*words[:i], other, *words[i + 1 :]])
                    assert not scenes.is_true(changed, s), changed


def test_english_and_chinese_agree_on_foreign_captions(many):
    """The first wordings say the same in both languages, so they are true of the same scenes."""
    singles = [s for s in many if len({(t.color, t.shape) for t in s.objects}) == 1]
    rng = random.Random(1)
    for _ in range(2000):
        a, b = rng.sample(singles, 2)
        assert scenes.is_true(a.captions[0], b) == scenes.is_true(chinese(a)[0], b)


@given(st.text())
def test_any_text_is_judged_without_an_error(text):
    assert scenes.is_true(text, scene(RED, BLUE)) in (True, False)


@given(
    st.lists(
        st.sampled_from(
            [
                "a",
                "small",
                "red",
                "circle",
                "left",
                "of",
                "large",
                "blue",
                "square",
                "to",
                "the",
                "is",
                "there",
                "two",
            ]
        )
    )
)
def test_a_sentence_of_the_grammars_words_is_true_only_if_it_parses(words):
    sentence = " ".join(words)
    if scenes.is_true(sentence, scene(RED, BLUE)):
        assert grammar.parse(sentence) is not None


def test_questions_name_their_kind_and_have_one_clear_answer(many):
    kinds = set()
    for s in many[:500]:
        for question in s.questions:
            kinds.add(question.kind)
            assert question.text.endswith("?") and question.answer
            if question.kind == "count":
                assert question.answer == grammar.COUNTS[len(s.objects)]
            elif question.kind == "relation":
                subject = question.text.removeprefix("where is the ").removesuffix("?")
                for answer in question.answers:
                    assert scenes.is_true(f"a {subject} {answer.replace('the ', 'a ')}", s)
            else:
                assert len(question.answers) == 1
    assert kinds == {"count", "colour", "size", "shape", "relation"}


def test_questions_about_two_objects_are_the_expected_ones():
    asked = {q.text: q.answers for q in scene(RED, BLUE).questions}
    assert asked["what colour is the circle?"] == ("red",)
    assert asked["what shape is the blue object?"] == ("square",)
    assert asked["what size is the square?"] == ("large",)
    assert asked["how many objects are there?"] == ("two",)
    assert asked["where is the small red circle?"] == (
        "left of the large blue square",
        "above the large blue square",
    )


def test_probes_hold_as_many_yes_as_no_and_each_is_right(many):
    for s in many[:500]:
        answers = [probe.answer for probe in s.probes]
        assert answers.count("yes") == answers.count("no") > 0
        facts = {(t.color, t.shape) for t in s.objects}
        for probe in s.probes:
            words = probe.text.removesuffix("?").split()
            if probe.text.startswith("is there a "):
                said = (words[-2], words[-1])
                size = words[3] if words[3] in grammar.SIZES else None
                there = any(
                    (t.color, t.shape) == said and size in (None, t.size) for t in s.objects
                )
                assert (probe.answer == "yes") == there, probe
        assert facts


@pytest.mark.parametrize(
    "mark", ["", ".", "。", "..", "。.", ".。", "。。", " .", ". .", "...", "!", ".\n."]
)
def test_one_mark_may_end_a_sentence_and_no_more(mark):
    scene = next(s for s in scenes.sample(50, 0) if len(s.objects) == 1)
    right = mark in ("", ".", "。")
    assert scenes.is_true(scene.captions[0] + mark, scene) is right
    assert scenes.is_true(f"  {scene.captions[0]}{mark}\n", scene) is right
