"""Notebook 08's exercises: what their checks accept, and what they say about likely mistakes."""

from collections.abc import Callable
from copy import copy, deepcopy

import pytest
import torch
from wrong_solutions import accepts, refuses

from minivlm.exercises import llava as exercises
from minivlm.multimodal import IGNORE
from minivlm.parts.decoder import KVCache

# Exercise 1


def bridge(image_size, patch, vision, text, depth):
    first, later = vision * text + text, text * text + text
    return (image_size // patch) ** 2, first + (depth - 1) * later


def layer_by_layer(image_size, patch, vision, text, depth):
    count = 0
    for layer in range(depth):
        count += torch.nn.Linear(text if layer else vision, text).weight.numel() + text
    return [image_size // patch * (image_size // patch), count]


@pytest.mark.parametrize("function", [bridge, layer_by_layer])
def test_right_bridges(function: Callable) -> None:
    small = lambda *sizes: function(*sizes) if sizes[2] < 1000 else bridge(*sizes)
    accepts(exercises.check_bridge, small)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        pytest.param(
            lambda s, p, v, t, d: (s // p, bridge(s, p, v, t, d)[1]), "rows and columns", id="side"
        ),
        pytest.param(
            lambda s, p, v, t, d: ((s // p) ** 2 + 1, bridge(s, p, v, t, d)[1]),
            "class token",
            id="class token",
        ),
        pytest.param(lambda s, p, v, t, d: (s**2, bridge(s, p, v, t, d)[1]), "patch", id="pixels"),
        pytest.param(
            lambda s, p, v, t, d: ((s // p) ** 2, d * (v * t + t)), "later layer", id="the same"
        ),
        pytest.param(
            lambda s, p, v, t, d: ((s // p) ** 2, v * t + (d - 1) * t * t), "bias", id="no bias"
        ),
        pytest.param(
            lambda s, p, v, t, d: ((s // p) ** 2, v * t + t + d * (t * t + t)),
            "one more",
            id="one layer more",
        ),
        pytest.param(
            lambda s, p, v, t, d: ((s // p) ** 2, (d - 1) * (v * v + v) + v * t + t),
            "language model's width",
            id="inside the tower's width",
        ),
        pytest.param(
            lambda s, p, v, t, d: ((s // p) ** 2, v * t + t), "whatever the depth", id="one layer"
        ),
        pytest.param(lambda *sizes: bridge(*sizes)[1], "list or tuple", id="parameters alone"),
        pytest.param(lambda *sizes: bridge(*sizes)[::-1], "tokens", id="changed places"),
    ],
)
def test_wrong_bridges(function: Callable, word: str) -> None:
    refuses(exercises.check_bridge, function, word)


# Exercise 2


def chatml_labels(ids, start, end, assistant):
    labels, opening, t = [IGNORE] * len(ids), [start, *assistant], 0
    while t < len(ids):
        if ids[t : t + len(opening)] == opening:
            t += len(opening)
            stop = ids.index(end, t) + 1
            labels[t:stop] = ids[t:stop]
            t = stop
        else:
            t += 1
    return labels


def turn_by_turn(ids, start, end, assistant):
    labels, says, width = [], False, len(assistant)
    for t, i in enumerate(ids):
        says = says or (t > width and ids[t - width - 1 : t] == [start, *assistant])
        labels.append(i if says else -100)
        says = says and i != end
    return torch.tensor(labels)


@pytest.mark.parametrize("function", [chatml_labels, turn_by_turn])
def test_right_labels(function: Callable) -> None:
    accepts(exercises.check_chatml_labels, function)


def at_any_assistant(ids, start, end, assistant):
    labels, width = [IGNORE] * len(ids), len(assistant)
    for t in range(width, len(ids)):
        if ids[t - width : t] == assistant:
            stop = ids.index(end, t) + 1
            labels[t:stop] = ids[t:stop]
    return labels


def without_the_end(ids, start, end, assistant):
    labels = chatml_labels(ids, start, end, assistant)
    return [IGNORE if label == end else label for label in labels]


def with_the_role(ids, start, end, assistant):
    labels, width = chatml_labels(ids, start, end, assistant), len(assistant)
    for t in range(1, len(ids) - width):
        if ids[t - 1 : t + width] == [start, *assistant]:
            labels[t : t + width] = assistant
    return labels


def every_turn(ids, start, end, assistant):
    labels, inside = [], False
    for i in ids:
        labels.append(i if inside else IGNORE)
        inside = i == start or (inside and i != end)
    return labels


def first_answer_alone(ids, start, end, assistant):
    labels = chatml_labels(ids, start, end, assistant)
    if end in labels:
        stop = labels.index(end) + 1
        labels[stop:] = [IGNORE] * len(labels[stop:])
    return labels


def last_answer_alone(ids, start, end, assistant):
    labels = chatml_labels(ids, start, end, assistant)
    ends = [t for t, label in enumerate(labels) if label == end]
    if len(ends) > 1:
        labels[: ends[-2] + 1] = [IGNORE] * (ends[-2] + 1)
    return labels


def newline_too(ids, start, end, assistant):
    labels = chatml_labels(ids, start, end, assistant)
    return [
        i if t and labels[t - 1] == end else label
        for t, (i, label) in enumerate(zip(ids, labels, strict=True))
    ]


def to_the_end_of_the_row(ids, start, end, assistant):
    labels = chatml_labels(ids, start, end, assistant)
    first = next((t for t, label in enumerate(labels) if label != IGNORE), len(ids))
    return labels[:first] + ids[first:]


def shifted(ids, start, end, assistant):
    return [*chatml_labels(ids, start, end, assistant)[1:], IGNORE]


def zeros_for_the_rest(ids, start, end, assistant):
    return [max(0, label) for label in chatml_labels(ids, start, end, assistant)]


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (at_any_assistant, "not part of an answer"),
        (without_the_end, "<|im_end|>': part of an answer"),
        (with_the_role, "not part of an answer"),
        (every_turn, "not part of an answer"),
        (first_answer_alone, "two turns"),
        (last_answer_alone, "two turns"),
        (newline_too, "not part of an answer"),
        (to_the_end_of_the_row, "not part of an answer"),
        (shifted, "shift"),
        (zeros_for_the_rest, "-100"),
        pytest.param(
            lambda *given: [x for x in chatml_labels(*given) if x != IGNORE], "items", id="answers"
        ),
        pytest.param(lambda *given: None, "return", id="no return"),
    ],
)
def test_wrong_labels(function: Callable, word: str) -> None:
    refuses(exercises.check_chatml_labels, function, word)


# Exercise 3


def expand(ids, labels, table, pictures, longest):
    if ids.count(-200) != len(pictures):
        raise ValueError(f"{ids.count(-200)} marks, but {len(pictures)} images")
    waiting, rows, new = iter(pictures), [], []
    for i, label in zip(ids, labels, strict=True):
        rows.append(next(waiting) if i == -200 else table[i : i + 1])
        new += [IGNORE] * len(rows[-1]) if i == -200 else [label]
    return torch.cat(rows)[:longest], new[:longest]


def by_places(ids, labels, table, pictures, longest):
    row = torch.tensor(ids)
    marks = row == -200
    if int(marks.sum()) != pictures.shape[0]:
        raise ValueError("marks and images")
    counts = torch.where(marks, pictures.shape[1], 1)
    places = marks.repeat_interleave(counts)
    spread = row.clamp(min=0).repeat_interleave(counts)
    vectors = table[spread]
    vectors[places] = pictures.flatten(0, 1)
    new = torch.tensor(labels).repeat_interleave(counts).masked_fill(places, -100)
    return vectors[:longest], new[:longest]


@pytest.mark.parametrize("function", [expand, by_places])
def test_right_splices(function: Callable) -> None:
    accepts(exercises.check_expand, function)


def without_the_count(ids, labels, table, pictures, longest):
    rows, new, seen = [], [], 0
    for i, label in zip(ids, labels, strict=True):
        rows.append(pictures[seen] if i == -200 else table[i : i + 1])
        seen += i == -200
        new += [IGNORE] * 4 if i == -200 else [label]
    return torch.cat(rows)[:longest], new[:longest]


def too_many_are_fine(ids, labels, table, pictures, longest):
    if ids.count(-200) > len(pictures):
        raise ValueError("too few")
    return without_the_count(ids, labels, table, pictures, longest)


def too_few_are_fine(ids, labels, table, pictures, longest):
    if ids.count(-200) < len(pictures):
        raise ValueError("too many")
    spare = torch.cat([pictures, torch.zeros(9, 4, 5)])
    return without_the_count(ids, labels, table, spare, longest)


def cut_first(ids, labels, table, pictures, longest):
    if ids.count(-200) != len(pictures):
        raise ValueError
    ids, labels = ids[:longest], labels[:longest]
    return expand(ids, labels, table, pictures[: ids.count(-200)], 10**6)


def not_cut(ids, labels, table, pictures, longest):
    return expand(ids, labels, table, pictures, 10**6)


def labels_not_cut(ids, labels, table, pictures, longest):
    return expand(ids, labels, table, pictures, longest)[0], expand(
        ids, labels, table, pictures, 10**6
    )[1]


def marks_keep_their_labels(ids, labels, table, pictures, longest):
    rows, _ = expand(ids, labels, table, pictures, longest)
    new = [x for i, x in zip(ids, labels, strict=True) for x in [x] * (4 if i == -200 else 1)]
    return rows, new[:longest]


def first_picture_again(ids, labels, table, pictures, longest):
    if ids.count(-200) != len(pictures):
        raise ValueError
    same = pictures[:1].expand(len(pictures), -1, -1) if len(pictures) else pictures
    return expand(ids, labels, table, same, longest)


def ids_as_labels(ids, labels, table, pictures, longest):
    return expand(ids, ids, table, pictures, longest)


def cut_at_the_front(ids, labels, table, pictures, longest):
    rows, new = expand(ids, labels, table, pictures, 10**6)
    return rows[-longest:], new[-longest:]


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (without_the_count, "a ValueError, not IndexError"),
        (too_many_are_fine, "no ValueError"),
        (too_few_are_fine, "no ValueError"),
        (cut_first, "splice, then cut"),
        (not_cut, "cut"),
        (labels_not_cut, "labels"),
        (marks_keep_their_labels, "image"),
        (first_picture_again, "image 0"),
        (ids_as_labels, "label"),
        (cut_at_the_front, "at most 6"),
        pytest.param(lambda *given: expand(*given)[0], "items", id="no labels"),
    ],
)
def test_wrong_splices(function: Callable, word: str) -> None:
    refuses(exercises.check_expand, function, word)


# Exercise 4


def ask_all(model, beginning, pixel_values, questions):
    start, logits = KVCache(), []
    model(beginning, pixel_values, cache=start)
    for question in questions:
        cache = KVCache()
        cache.layers = [copy(layer) for layer in start.layers]
        logits.append(model(question, cache=cache)[0, -1])
    return logits


def deep_copies(model, beginning, pixel_values, questions):
    start = KVCache()
    model(beginning, pixel_values, cache=start)
    return torch.stack([model(one, cache=deepcopy(start))[0, -1] for one in questions])


def one_batch(model, beginning, pixel_values, questions):
    start, longest = KVCache(), max(one.shape[1] for one in questions)
    model(beginning, pixel_values, cache=start)
    for layer in start.layers:
        for name, value in list(vars(layer).items()):
            if isinstance(value, torch.Tensor):
                setattr(layer, name, value.expand(len(questions), -1, -1, -1))
    padded = torch.zeros(len(questions), longest, dtype=torch.long)
    for i, one in enumerate(questions):
        padded[i, : one.shape[1]] = one[0]
    logits = model(padded, cache=start)
    return [logits[i, one.shape[1] - 1] for i, one in enumerate(questions)]


@pytest.mark.parametrize("function", [ask_all, deep_copies, one_batch])
def test_right_answers_to_all(function: Callable) -> None:
    accepts(exercises.check_ask_all, function)


def one_cache(model, beginning, pixel_values, questions):
    cache = KVCache()
    model(beginning, pixel_values, cache=cache)
    return [model(question, cache=cache)[0, -1] for question in questions]


def shallow_copies(model, beginning, pixel_values, questions):
    start = KVCache()
    model(beginning, pixel_values, cache=start)
    return [model(question, cache=copy(start))[0, -1] for question in questions]


def no_cache(model, beginning, pixel_values, questions):
    rows = [torch.cat([beginning, question], dim=1) for question in questions]
    return [model(row, pixel_values)[0, -1] for row in rows]


def beginning_each_time(model, beginning, pixel_values, questions):
    features = model.encode_images(pixel_values)
    table, logits = model.decoder.embed(beginning), []
    table[beginning == model.image_token_id] = features.flatten(0, 1)
    for question in questions:
        cache = KVCache()
        model.decoder(embeds=table, cache=cache)
        logits.append(model.decoder(question, cache=cache)[0, -1])
    return logits


def questions_alone(model, beginning, pixel_values, questions):
    model(beginning, pixel_values)
    return [model(question)[0, -1] for question in questions]


def first_token(model, beginning, pixel_values, questions):
    start = KVCache()
    model(beginning, pixel_values, cache=start)
    return [model(question, cache=deepcopy(start))[0, 0] for question in questions]


def after_the_beginning(model, beginning, pixel_values, questions):
    logits = model(beginning, pixel_values)[0, -1]
    return [logits for _ in questions]


def with_batch_axis(model, beginning, pixel_values, questions):
    return [logits[None] for logits in ask_all(model, beginning, pixel_values, questions)]


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (one_cache, "sees the questions before it"),
        (shallow_copies, "shallow"),
        (no_cache, "tower ran 3 times"),
        (beginning_each_time, "once"),
        (questions_alone, "does not see the beginning"),
        (first_token, "last token"),
        (after_the_beginning, "after the beginning"),
        (with_batch_axis, "shape"),
        pytest.param(lambda *given: ask_all(*given)[:2], "items", id="two answers"),
    ],
)
def test_wrong_answers_to_all(function: Callable, word: str) -> None:
    refuses(exercises.check_ask_all, function, word)
