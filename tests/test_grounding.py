"""Boxes as text, and the tasks that ask for them: written, read back, judged, or refused."""

import re
import time
from itertools import permutations
from random import Random

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

from minivlm import scenes
from minivlm.boxes import (
    TAGS,
    Region,
    boxes_of,
    from_thousandths,
    iou,
    read_regions,
    to_thousandths,
    write_regions,
)
from minivlm.plotting import show_boxes
from minivlm.scenes import drawing, instructions, tasks
from minivlm.scenes.grammar import Object
from minivlm.scenes.questions import Question
from minivlm.scenes.tasks import is_solved, overlaps

# Boxes as text

numbers = st.integers(0, 999)
boxes = st.tuples(numbers, numbers, numbers, numbers).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
words = st.text(min_size=1, max_size=12).filter(lambda text: not any(tag in text for tag in TAGS))
box_lists = st.lists(boxes, max_size=3).map(tuple)
named = st.builds(Region, words, box_lists).map(lambda region: [region])  # may follow anything
nameless = st.tuples(words, st.lists(boxes, min_size=1, max_size=3).map(tuple)).map(
    lambda p: [p[0], Region("", p[1])]
)


@st.composite
def documents(draw) -> list[str | Region]:
    """Parts in the form that ``read_regions`` returns: no text follows a text, no nameless region a
    region.
    """
    parts = []
    for chunk in draw(
        st.lists(st.one_of(named, nameless, words.map(lambda text: [text])), max_size=5)
    ):
        if parts and isinstance(parts[-1], str) and isinstance(chunk[0], str):
            chunk = chunk[1:]  # there is a text already
        parts += chunk
    return parts


@given(documents())
def test_what_is_written_is_read_back(parts):
    assert read_regions(write_regions(parts)) == parts


pieces = st.sampled_from(
    [*TAGS, "(1,2),(3,4)", "(5,6),(5,999)", "(1,2),(3,1000)", "(3,2),(1,4)", "a star", "<", "(1,2)"]
)


@given(st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=10).map("".join))
def test_any_text_is_refused_or_read_without_loss(text):
    try:
        parts = read_regions(text)
    except ValueError:
        assert any(tag in text for tag in TAGS)
    else:
        assert write_regions(parts) == text


def test_the_format_is_the_published_one():
    text = (  # an example of appendix B
        "Beautiful shot of <ref>bees</ref><box>(661,612),(833,812)</box>"
        "<box>(120,555),(265,770)</box> gathering nectars from "
        "<ref>an apricot flower</ref><box>(224,13),(399,313)</box>"
    )
    parts = [
        "Beautiful shot of ",
        Region("bees", ((661, 612, 833, 812), (120, 555, 265, 770))),
        " gathering nectars from ",
        Region("an apricot flower", ((224, 13, 399, 313),)),
    ]
    assert read_regions(text) == parts and write_regions(parts) == text
    assert read_regions("<ref>the ear on a giraffe</ref>") == [Region("the ear on a giraffe")]
    assert read_regions("it is <box>(176,106),(232,160)</box>") == [
        "it is ",
        Region("", ((176, 106, 232, 160),)),
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("<box>(1,2),(3,1000)</box>", r"\(1,2\),\(3,1000\)"),
        ("<box>(-1,2),(3,4)</box>", r"\(-1,2\)"),
        ("<box>(5,2),(4,9)</box>", r"\(5,2\),\(4,9\)"),
        ("<box>(1,7),(4,6)</box>", r"\(1,7\),\(4,6\)"),
        ("<box>(1,2),(3)</box>", r"\(1,2\),\(3\)"),
        ("<box>(1,2)</box>", r"'\(1,2\)'"),
        ("<box>(01,2),(3,4)</box>", r"\(01,2\)"),
        ("<box>(1, 2),(3,4)</box>", r"\(1, 2\)"),
        ("<box>(1.5,2),(3,4)</box>", r"\(1\.5,2\)"),
        ("<box>(１,2),(3,4)</box>", "１"),
        (f"<box>({'9' * 5000},2),(3,4)</box>", "9999"),
        ("<box></box>", "<box></box>"),
        ("<ref></ref>", "<ref></ref>"),
        ("a <ref>star", "'<ref>star"),
        ("a star</ref> there", "'</ref> there"),
        ("<ref>a star</ref><box>(1,2),(3,4)", r"'<box>\(1,2\),\(3,4\)'"),
        ("<ref>a <box>(1,2),(3,4)</box></ref>", "'<ref>a "),
        ("<ref>a <ref>b</ref></ref>", "'<ref>a "),
        ("<box><ref>b</ref></box>", "'<box><ref>"),
        ("<ref>a</box>", "'<ref>a</box>"),
    ],
)
def test_nonsense_is_refused_by_its_text(text, names):
    with pytest.raises(ValueError, match=names):
        read_regions(text)
    assert boxes_of(text) == []


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        (["a <box>"], "a <box>"),
        ([Region("a</ref>")], "a</ref>"),
        ([Region("a", ((0, 0, 1000, 1),))], "1000"),
        ([Region("a", ((4, 0, 3, 1),))], r"\(4,0\),\(3,1\)"),
        ([Region("a", ((0.5, 0, 3, 1),))], r"0\.5"),
    ],
)
def test_nonsense_is_not_written(parts, names):
    with pytest.raises(ValueError, match=names):
        write_regions(parts)


# Pixels and thousandths


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.lists(st.floats(0, 1), min_size=4, max_size=4)
)
def test_no_edge_moves_by_more_than_1_of_1998_of_the_side(width, height, shares):
    (left, right), (top, bottom) = sorted(shares[:2]), sorted(shares[2:])
    box = (left * width, top * height, right * width, bottom * height)
    there = to_thousandths(box, (width, height))
    back = from_thousandths(there, (width, height))
    assert _is_box(there) and to_thousandths(back, (width, height)) == there
    for before, after, side in zip(box, back, (width, height) * 2, strict=True):
        assert abs(before - after) <= side / 1998 + 1e-9


def _is_box(box: tuple) -> bool:
    return read_regions(write_regions([Region(boxes=(box,))])) == [Region(boxes=(box,))]


def test_the_edges_of_an_image_are_0_and_999():
    assert to_thousandths((0, 0, 64, 32), (64, 32)) == (0, 0, 999, 999)
    assert to_thousandths((5, 6, 16, 17), (64, 64)) == (78, 94, 250, 265)
    for outside in ((-1, 0, 5, 5), (0, 0, 65, 5), (5, 0, 4, 5), (0, 0, 5, 33)):
        with pytest.raises(ValueError, match="does not lie"):
            to_thousandths(outside, (64, 32))


@given(st.tuples(*[st.integers(0, 12)] * 4), st.tuples(*[st.integers(0, 12)] * 4))
def test_iou_counts_the_pixels_that_both_cover(a, b):
    a, b = ((*np.minimum(box[:2], box[2:]), *np.maximum(box[:2], box[2:])) for box in (a, b))
    canvas = np.zeros((2, 12, 12), dtype=bool)
    for layer, (x1, y1, x2, y2) in zip(canvas, (a, b), strict=True):
        layer[y1:y2, x1:x2] = True
    both, either = canvas.all(axis=0).sum(), canvas.any(axis=0).sum()
    assert iou(a, b) == iou(b, a) == pytest.approx(both / either if either else 0)


def test_boxes_are_drawn_at_the_edges_of_their_pixels():
    thing = Object("square", "red", "large", (16, 32, 31, 47))
    image = drawing.render([thing], (64, 64))
    axes = show_boxes(image, {"true": [thing.box], "said": [(0, 0, 64, 64), (1, 2, 3, 4)]})
    drawn = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in axes.patches]
    assert drawn == [(16, 32, 15, 15), (0, 0, 64, 64), (1, 2, 2, 2)]
    assert axes.images[0].get_extent() == [0, 64, 64, 0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["true", "said"]
    first, *rest = [
        (p.get_edgecolor(), p.get_linestyle()) for p in axes.patches if isinstance(p, Rectangle)
    ]
    assert rest[0] == rest[1] != first
    plt.close("all")


# Tasks

RED = Object("circle", "red", "small", (2, 2, 11, 11), "A7")
BLUE = Object("square", "blue", "large", (48, 32, 63, 47), "K2")
HERE, THERE = "<box>(31,31),(172,172)</box>", "<box>(749,500),(983,734)</box>"  # theirs
STARS = tuple(Object("star", "green", "small", (4 + 16 * i, 4, 13 + 16 * i, 13)) for i in range(3))


def scene(*objects: Object) -> scenes.Scene:
    return scenes.Scene(objects, "", "", drawing.render(objects, (64, 64)))


PAIR, ALIKE = scene(RED, BLUE), scene(*STARS)
SCENES = (
    scenes.sample(150, 5)
    + scenes.sample(80, 5, "composition")
    + scenes.sample(60, 3, label=2, cell=24, columns=5)
)
any_scene, seeds = st.sampled_from(SCENES), st.integers(0, 10**6)
KINDS = {"caption", "grounded caption", "grounding", "referring", "reading", "ocr"}


@given(any_scene, seeds)
def test_every_answer_is_accepted_and_every_seed_repeats(s, seed):
    found = tasks.tasks(s, Random(seed))
    assert found == tasks.tasks(s, Random(seed))
    assert len(found) == (7 if s.objects[0].text else 5)
    for asked in found:
        assert [answer for answer in asked.answers if not is_solved(asked, answer, s)] == []


def test_the_prompts_are_the_published_ones():
    made = {asked.kind: asked for asked in tasks.tasks(PAIR, Random(1))}
    assert set(made) >= KINDS and len(made) == 7
    red, blue = HERE, THERE
    assert made["caption"].text == "Generate the caption in English:"
    assert made["grounded caption"].text == "Generate the caption in English with grounding:"
    noun, other = "a small red circle labelled A7", "a large blue square labelled K2"
    assert made["grounded caption"].answers == (
        f"<ref>{noun}</ref>{red} left of <ref>{other}</ref>{blue}",
        f"<ref>{other}</ref>{blue} right of <ref>{noun}</ref>{red}",
    )
    assert made["ocr"].text == "OCR with grounding:"
    assert made["ocr"].answer == f"<ref>A7</ref>{red}<ref>K2</ref>{blue}"
    seen = {kind: set() for kind in KINDS}
    for seed in range(30):
        for asked in tasks.tasks(PAIR, Random(seed)):
            seen.setdefault(asked.kind, set()).add((asked.text, asked.answer))
    assert seen["grounding"] == {
        (f"<ref>the{n[1:]}</ref>", box) for n, box in ((noun, red), (other, blue))
    }
    assert seen["referring"] == {
        (f"<ref>This</ref>{box} is", n) for n, box in ((noun, red), (other, blue))
    }
    reading = (
        "what is written on the small red circle?",
        "what is written on the large blue square?",
    )
    assert seen["reading"] == set(zip(reading, ("A7", "K2"), strict=True))


def test_objects_that_look_alike_are_named_together_and_each_has_its_box():
    made = {asked.kind: asked for asked in tasks.tasks(scene(*STARS[::-1]), Random(0))}
    three = "".join(
        f"<box>({a},62),({b},203)</box>" for a, b in ((62, 203), (312, 453), (562, 702))
    )
    assert made["grounding"] == Question(
        "<ref>three small green stars</ref>", (three,), "grounding"
    )
    assert made["grounded caption"].answers == (f"<ref>three small green stars</ref>{three}",)
    turned = write_regions([Region(boxes=tuple(boxes_of(three)[::-1]))])
    task = made["grounding"]
    assert is_solved(task, turned, ALIKE) and overlaps(task, turned) == [1, 1, 1]
    shifted = three.replace("(62,62),(203,203)", "(62,262),(203,403)")
    assert not is_solved(task, shifted, ALIKE) and overlaps(task, shifted) == [0, 1, 1]
    for wrong in (three[: three.rindex("<box>")], three + "<box>(0,0),(9,9)</box>", three * 5):
        assert not is_solved(task, wrong, ALIKE) and overlaps(task, wrong) == [0, 0, 0]


def move(text: str, by: int) -> str:
    """The same text with every box moved to the right (or to the left, at the edge)."""

    def moved(box):
        step = by if box[2] + by < 1000 else -by
        return (box[0] + step, box[1], box[2] + step, box[3])

    parts = [
        p if isinstance(p, str) else Region(p.text, tuple(map(moved, p.boxes)))
        for p in read_regions(text)
    ]
    return write_regions(parts)


@given(any_scene, seeds)
def test_a_box_that_lies_too_far_off_is_refused(s, seed):
    for asked in tasks.tasks(s, Random(seed)):
        if asked.kind in ("grounding", "grounded caption", "ocr"):
            width = min(x2 - x1 for x1, _, x2, _ in boxes_of(asked.answer))
            near = move(asked.answer, width // 4)  # IoU 0.6
            far = move(asked.answer, width // 2)  # IoU 0.33
            assert is_solved(asked, near, s) and not is_solved(asked, near, s, least=0.7)
            assert not is_solved(asked, far, s)
            assert 0.55 < min(overlaps(asked, near)) < 0.65
            assert 0.3 < min(overlaps(asked, far)) < 0.4


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (
            "grounded caption",
            [
                f"<ref>a red circle</ref>{HERE} above <ref>a blue square</ref>{THERE}",
                f"there is <ref>a small red circle</ref>{HERE} to the left of "
                "<ref>a big blue square</ref><box>(740,500),(983,734)</box>.",
            ],
            [
                "a small red circle left of a large blue square",
                "<ref>a red circle</ref> above <ref>a blue square</ref>",
                f"<ref>a red circle</ref>{HERE} above a blue square",
                f"<ref>a red circle</ref>{THERE} above <ref>a blue square</ref>{HERE}",
                f"<ref>a red circle</ref>{HERE} below <ref>a blue square</ref>{THERE}",
                f"<ref>a red</ref>{HERE} circle above <ref>a blue square</ref>{THERE}",
                f"<ref>a red circle above a blue square</ref>{HERE}{THERE}",
            ],
        ),
        (
            "referring",
            ["a small red circle", "The red circle.", "a little red circle labelled A7"],
            [
                "a blue square",
                "a large red circle",
                "a red circle labelled K2",
                "red",
                "two red circles",
                "",
            ],
        ),
        ("reading", ["A7", " A7"], ["a7", "K2", "A 7", "A", ""]),
        (
            "ocr",
            [f"<ref>K2</ref>{THERE} <ref>A7</ref>{HERE}"],
            [
                "A7 K2",
                f"<ref>A7</ref>{HERE}",
                f"<ref>A7</ref>{THERE}<ref>K2</ref>{HERE}",
                f"<ref>A7</ref>{HERE}{THERE}",
                f"<ref>A7</ref>{HERE} and <ref>K2</ref>{THERE}",
                f"{HERE}<ref>K2</ref>{THERE}",
            ],
        ),
    ],
)
def test_every_right_answer_is_accepted_and_no_wrong_one(kind, right, wrong):
    made = [
        asked
        for seed in range(9)
        for asked in tasks.tasks(PAIR, Random(seed))
        if asked.kind == kind
    ]
    about_the_circle = [a for a in made if "blue" not in a.text and "749" not in a.text]
    asked = about_the_circle[0]
    assert [answer for answer in right if not is_solved(asked, answer, PAIR)] == []
    assert [answer for answer in wrong if is_solved(asked, answer, PAIR)] == []


def test_answers_of_another_scene_are_mostly_refused():
    rng, wrong = Random(2), {kind: [] for kind in KINDS}
    for _ in range(600):
        s, other = rng.sample(SCENES, 2)
        theirs = {asked.kind: asked.answer for asked in tasks.tasks(other, rng)}
        for asked in tasks.tasks(s, rng):
            if asked.kind in KINDS & theirs.keys():
                wrong[asked.kind].append(is_solved(asked, theirs[asked.kind], s))
    for kind, found in wrong.items():
        assert found and sum(found) <= 0.06 * len(found), kind


@given(
    any_scene,
    seeds,
    st.one_of(
        st.text(), st.lists(st.one_of(pieces, st.sampled_from(["a red star", " "]))).map("".join)
    ),
)
def test_any_answer_is_judged_without_an_error(s, seed, answer):
    for asked in tasks.tasks(s, Random(seed)):
        assert is_solved(asked, answer, s) in (True, False)


def test_a_conversation_about_several_images_says_which_one_it_asks_about():
    image, found = {"type": "image"}, SCENES[:3]
    asked, said = tasks.album(found, Random(4), turns=5)
    opening = said[0]["content"]
    assert [part for part in opening if part == image] == opening[:3] == [image] * 3
    assert len(asked) == 5 and len({number for number, _ in asked}) > 1 and len(said) == 10
    for (number, turn), question, answer in zip(asked, said[::2], said[1::2], strict=True):
        content = question["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        assert text == f"In Picture {number + 1}: {turn.text}"
        assert is_solved(turn, answer["content"], found[number])
    ((_, turn),), said = tasks.album(found[:1], Random(0), turns=1)
    assert said == instructions.messages([turn], image)


# Parts that would be read otherwise

fragments = st.sampled_from(
    ["", "<", "<box", ">", "box>", "<re", "f>", "</", "(1,2),(3,4)", "</box", "a star", "ref>"]
)
loose_regions = st.builds(Region, fragments, box_lists)


@given(st.lists(st.one_of(fragments, loose_regions), max_size=8))
@settings(max_examples=1000)
def test_any_parts_come_back_or_are_refused(parts):
    """Texts side by side may come back as one; no text becomes a box, no box changes its name."""
    try:
        text = write_regions(parts)
    except ValueError:
        return
    back = read_regions(text)
    kept = [part for part in parts if isinstance(part, Region)]
    assert [part for part in back if isinstance(part, Region)] == kept
    texts = "".join(part if isinstance(part, str) else "|" for part in parts)
    assert "".join(part if isinstance(part, str) else "|" for part in back) == texts


@pytest.mark.parametrize(
    "parts",
    [
        ["<box", ">(1,2),(3,4)</box>"],
        ["<re", "f>a star</ref>"],
        [Region("a", ((1, 2, 3, 4),)), "<", "", "box>(1,2),(3,4)</box>"],
        [Region("a"), Region("", ((1, 2, 3, 4),))],
        ["a", Region()],
    ],
)
def test_parts_that_would_be_read_otherwise_are_refused(parts):
    with pytest.raises(ValueError):
        write_regions(parts)


@pytest.mark.parametrize("box", [(1, 2, 3, 4, 5), (1, 2, 3), ()])
def test_a_box_has_four_numbers(box):
    with pytest.raises(ValueError, match=re.escape(str(box))):
        write_regions([Region("a star", (box,))])


gains = st.integers(0, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]), min_size=n, max_size=n),
        min_size=n,
        max_size=n,
    )
)


@given(gains)
def test_the_assignment_is_the_best_of_all_permutations(table):
    columns = tasks.best_assignment(table)
    assert sorted(columns) == list(range(len(table)))
    best = max(
        sum(row[column] for row, column in zip(table, order, strict=True))
        for order in permutations(range(len(table)))
    )
    got = sum(row[column] for row, column in zip(table, columns, strict=True))
    assert got == pytest.approx(best)


def test_sixty_boxes_are_paired_at_once():
    many = tuple((10 * i, 5, 10 * i + 9, 20) for i in range(60))
    task = Question("where?", (write_regions([Region(boxes=many)]),), "grounding")
    start = time.perf_counter()
    assert overlaps(task, write_regions([Region(boxes=many[::-1])])) == [1.0] * 60
    assert time.perf_counter() - start < 5
