"""Notebook 04: right solutions are accepted, and each likely mistake is named."""

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wrong_solutions import accepts, refuses

from minivlm.exercises import multimodal as exercises
from minivlm.multimodal import IGNORE

# Numbers of images


def image_numbers(ids: list[int], start: int, image: int) -> list[int]:
    numbers, opened = [], 0
    for i in ids:
        opened += i == start
        numbers.append(opened if i == image else 0)
    return numbers


def numbers_by_runs(ids: list[int], start: int, image: int) -> tuple[int, ...]:
    numbers, run, before = [], 0, None
    for i in ids:
        run += i == image != before
        numbers.append(run * (i == image))
        before = i
    return tuple(numbers)


def numbers_by_tensors(ids: list[int], start: int, image: int) -> Tensor:
    row = torch.tensor(ids, dtype=torch.int32)
    return (row == start).cumsum(0) * (row == image)


def numbers_until_the_next(ids: list[int], start: int, image: int) -> list[int]:
    return [ids[: t + 1].count(start) for t in range(len(ids))]


def numbers_per_text(ids: list[int], start: int, image: int) -> list[int]:
    numbers, opened = [], 0
    for i in ids:
        opened = 0 if i < start else opened + (i == start)
        numbers.append(opened if i == image else 0)
    return numbers


WRONG_NUMBERS = {
    "only whether": ("which image", lambda ids, s, i: [int(t == i) for t in ids]),
    "counts placeholders": (
        "placeholders, not images",
        lambda ids, s, i: [ids[: t + 1].count(i) * (ids[t] == i) for t in range(len(ids))],
    ),
    "goes on over the text": ("have 0", numbers_until_the_next),
    "the opening mark too": (
        "opens an image",
        lambda ids, s, i: [ids[: t + 1].count(s) * (ids[t] in (s, i)) for t in range(len(ids))],
    ),
    "both marks too": (
        "marks around",
        lambda ids, s, i: [ids[: t + 1].count(s) * (ids[t] >= s) for t in range(len(ids))],
    ),
    "counts from 0": (
        "from 1",
        lambda ids, s, i: [(ids[: t + 1].count(s) - 1) * (ids[t] == i) for t in range(len(ids))],
    ),
    "begins again after text": ("text between them", numbers_per_text),
    "placeholders only": (
        "items",
        lambda ids, s, i: [n for n in image_numbers(ids, s, i) if n],
    ),
    "one number": ("list", lambda ids, s, i: ids.count(s)),
    "returns nothing": ("return", lambda ids, s, i: None),
}


@pytest.mark.parametrize("right", [image_numbers, numbers_by_runs, numbers_by_tensors])
def test_image_numbers_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_image_numbers, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_image_numbers_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_image_numbers, wrong, word)


# The mask


def before(numbers: Tensor) -> Tensor:
    t = torch.arange(len(numbers))
    return t <= t[:, None]


def alike(numbers: Tensor) -> Tensor:
    return numbers[:, None] == numbers


def picture_mask(numbers: Tensor) -> Tensor:
    return before(numbers) | (alike(numbers) & (numbers > 0))


def mask_by_loops(numbers: Tensor) -> Tensor:
    row = numbers.tolist()
    mask = [[k <= q or (a == b and a > 0) for k, b in enumerate(row)] for q, a in enumerate(row)]
    return torch.tensor(mask)


def mask_without_itself(numbers: Tensor) -> Tensor:
    return picture_mask(numbers) & ~torch.eye(len(numbers), dtype=torch.bool)


WRONG_MASK = {
    "text is an image": ("text is causal", lambda n: before(n) | alike(n)),
    "causal alone": ("each other", before),
    "all images are one": (
        "later image",
        lambda n: before(n) | ((n > 0) & (n > 0)[:, None]),
    ),
    "patches visible to all": ("hidden", lambda n: before(n) | (n > 0)),
    "patches see all": ("hidden", lambda n: before(n) | (n > 0)[:, None]),
    "not causal": ("causal", alike),
    "only its own image": (
        "before",
        lambda n: torch.where((n > 0)[:, None], alike(n), before(n)),
    ),
    "transposed": ("queries", lambda n: picture_mask(n).T),
    "not itself": ("itself", mask_without_itself),
    "inverted": ("True means", lambda n: ~picture_mask(n)),
    "floats": ("boolean", lambda n: picture_mask(n).float()),
    "minus infinity": (
        "boolean",
        lambda n: torch.zeros(len(n), len(n)).masked_fill(~picture_mask(n), float("-inf")),
    ),
    "a batch": ("shape", lambda n: picture_mask(n)[None]),
    "returns nothing": ("return", lambda n: None),
}


@pytest.mark.parametrize("right", [picture_mask, mask_by_loops])
def test_picture_mask_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_picture_mask, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_MASK.values(), ids=WRONG_MASK)
def test_picture_mask_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_picture_mask, wrong, word)


# Labels


def labels_of(ids: list[int], header: list[int], end: int, image: int) -> list[int]:
    labels, learning = [IGNORE] * len(ids), False
    for t, i in enumerate(ids):
        if learning and i != image:
            labels[t] = i
        if i == end:
            learning = False
        if ids[max(0, t + 1 - len(header)) : t + 1] == header:
            learning = True
    return labels


def labels_by_searching(ids: list[int], header: list[int], end: int, image: int) -> Tensor:
    row = torch.tensor(ids, dtype=torch.int32)
    learned = torch.zeros(len(ids), dtype=torch.bool)
    for begin in range(len(ids)):
        if ids[begin : begin + len(header)] == header:
            first = begin + len(header)
            learned[first : ids.index(end, first) + 1] = True
    return torch.where(learned & (row != image), row, IGNORE)


def using(*flaws: str) -> Callable[..., list[int]]:
    """The reference with these flaws."""

    def flawed(ids: list[int], header: list[int], end: int, image: int) -> list[int]:
        labels, learning = [IGNORE] * len(ids), False
        mark = header[1:] if "no mark" in flaws else header[-1:] if "any turn" in flaws else header
        for t, i in enumerate(ids):
            left_out = (i == end and "no end" in flaws) or (i == image and "images" not in flaws)
            if learning and not left_out:
                labels[t] = i
            if i == end and "open" not in flaws:
                learning = False
            if ids[max(0, t + 1 - len(mark)) : t + 1] == mark:
                learning = True
                if "header" in flaws:
                    labels[t + 1 - len(mark) : t + 1] = mark
        return labels

    return flawed


def labels_of_one(ids: list[int], header: list[int], end: int, image: int, last: bool) -> list[int]:
    labels = labels_of(ids, header, end, image)
    starts = [t for t in range(len(ids)) if ids[t : t + len(header)] == header]
    if last:
        return [IGNORE if t < max(starts, default=0) else n for t, n in enumerate(labels)]
    stop = starts[1] if len(starts) > 1 else len(ids)
    return [IGNORE if t >= stop else n for t, n in enumerate(labels)]


def labels_of_all_turns(ids: list[int], header: list[int], end: int, image: int) -> list[int]:
    return [IGNORE if i == image else i for i in ids]


def labels_with_the_newline(ids: list[int], header: list[int], end: int, image: int) -> list[int]:
    labels = labels_of(ids, header, end, image)
    for t in range(1, len(ids)):
        if labels[t - 1] == end:
            labels[t] = ids[t]
    return labels


WRONG_LABELS = {
    "the header without its mark": ("<|im_start|>", using("no mark")),
    "every turn": ("only what the assistant says", using("any turn")),
    "all tokens": ("only what the assistant says", labels_of_all_turns),
    "the end is not learned": ("end of an answer", using("no end")),
    "the header is learned": ("header is given", using("header")),
    "placeholders are learned": ("placeholders", using("images")),
    "never closed": ("ends with", using("open")),
    "the newline too": ("ends with", labels_with_the_newline),
    "the last answer alone": ("part of an answer", lambda *i: labels_of_one(*i, last=True)),
    "the first answer alone": ("part of an answer", lambda *i: labels_of_one(*i, last=False)),
    "shifted": ("shifted", lambda *inputs: [*labels_of(*inputs)[1:], IGNORE]),
    "minus one": (
        "-100",
        lambda *inputs: [-1 if n == IGNORE else n for n in labels_of(*inputs)],
    ),
    "zeros and ones": ("its id", lambda *inputs: [int(n != IGNORE) for n in labels_of(*inputs)]),
    "answers alone": ("items", lambda *inputs: [n for n in labels_of(*inputs) if n != IGNORE]),
    "returns nothing": ("return", lambda *inputs: None),
}


@pytest.mark.parametrize("right", [labels_of, labels_by_searching])
def test_labels_of_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_labels_of, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_labels_of_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_labels_of, wrong, word)


# Packing

Packed = tuple[Tensor, Tensor, Tensor]


def pack(rows: list[list[int]], length: int, pad: int) -> Packed:
    ids, segments, positions = [], [], []
    for k, row in enumerate(rows, start=1):
        ids += row
        segments += [k] * len(row)
        positions += range(len(row))
    rest = [0] * (length - len(ids))
    columns = (ids + [pad] * len(rest), segments + rest, positions + rest)
    return tuple(torch.tensor([column]) for column in columns)


def pack_into_tensors(rows: list[list[int]], length: int, pad: int) -> list[Tensor]:
    ids = torch.full((1, length), pad, dtype=torch.int32)
    segments, positions, at = torch.zeros_like(ids), torch.arange(length)[None].clone(), 0
    for k, row in enumerate(rows):
        place = slice(at, at + len(row))
        ids[0, place], segments[0, place] = torch.tensor(row).int(), k + 1
        positions[0, place] = torch.arange(len(row))
        at += len(row)
    return [ids, segments, positions]


def changed(change: Callable[[Tensor, Tensor, Tensor, int], Iterable[Tensor]]) -> Callable:
    """The reference's answer, changed; the number of used places is given too."""

    def wrong(rows: list[list[int]], length: int, pad: int) -> tuple:
        return tuple(change(*pack(rows, length, pad), sum(map(len, rows))))

    return wrong


def counted_through(ids: Tensor, segments: Tensor, positions: Tensor, used: int) -> Packed:
    return ids, segments, torch.arange(ids.shape[1])[None]


def padded_in_front(ids: Tensor, segments: Tensor, positions: Tensor, used: int) -> Packed:
    return tuple(t.roll(ids.shape[1] - used, 1) for t in (ids, segments, positions))


def last_segment_for_padding(ids: Tensor, segments: Tensor, positions: Tensor, n: int) -> Packed:
    return (
        ids,
        torch.cat([segments[:, :n], segments.max().expand(1, ids.shape[1] - n)], 1),
        positions,
    )


WRONG_PACK = {
    "positions go on": ("again in each row", changed(counted_through)),
    "positions from 1": ("at 0, not at 1", changed(lambda i, s, p, n: (i, s, p + 1))),
    "segments from 0": ("count from 1", changed(lambda i, s, p, n: (i, s - 1, p))),
    "one segment": ("of row 2", changed(lambda i, s, p, n: (i, s.clamp(max=1), p))),
    "padding in the last segment": ("padding has segment 0", changed(last_segment_for_padding)),
    "zeros as padding": (
        "padding",
        changed(lambda i, s, p, n: (F.pad(i[:, :n], (0, i.shape[1] - n)), s, p)),
    ),
    "padding in front": ("after the rows", changed(padded_in_front)),
    "no padding": ("shape", changed(lambda i, s, p, n: (i[:, :n], s[:, :n], p[:, :n]))),
    "rows backwards": ("order", lambda rows, length, pad: pack(rows[::-1], length, pad)),
    "a row for each": (
        "shape",
        lambda rows, length, pad: tuple(
            torch.cat(parts)
            for parts in zip(*(pack([row], length, pad) for row in rows), strict=True)
        ),
    ),
    "no batch": ("shape", changed(lambda i, s, p, n: (i[0], s[0], p[0]))),
    "swapped results": ("row", changed(lambda i, s, p, n: (i, p, s))),
    "floats": ("integers", changed(lambda i, s, p, n: (i.float(), s, p))),
    "lists": ("tensor", changed(lambda i, s, p, n: (i.tolist(), s.tolist(), p.tolist()))),
    "two results": ("3 results", changed(lambda i, s, p, n: (i, s))),
    "returns nothing": ("return", lambda rows, length, pad: None),
}


@pytest.mark.parametrize("right", [pack, pack_into_tensors])
def test_pack_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_pack, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_PACK.values(), ids=WRONG_PACK)
def test_pack_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_pack, wrong, word)
