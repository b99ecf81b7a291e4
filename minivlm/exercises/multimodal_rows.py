"""04 · Checks of notebook 04's mask and of its exercises on rows of tokens."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from minivlm.exercises.answers import compare_answers, expect_items, expect_tensor, near
from minivlm.exercises.returned import expect_ids, expect_parts
from minivlm.lesson import obeyed
from minivlm.multimodal import IGNORE
from minivlm.parts import masks
from minivlm.parts.decoder import Decoder, DecoderConfig

# The mask (section 4.1)


def check_picture_mask(picture_mask: Callable[[Tensor], Tensor]) -> None:
    """Every pair of tokens, then what a decoder obeys."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(9, width=16, layers=2, heads=2, kv_heads=2, hidden=16))
    for row in ([0, 1, 1, 0, 2, 2, 2], [0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 2, 2, 0]):
        numbers, n = torch.tensor(row), len(row)
        mask = expect_tensor(picture_mask(numbers.clone()), (n, n), str(row))
        assert mask.dtype == torch.bool, f"a mask is boolean, not {mask.dtype}"
        same = (numbers[:, None] == numbers) & (numbers > 0)
        right = masks.causal(n) | same
        inverted = torch.equal(mask, ~right)
        assert not inverted, f"{row}: True means may attend; here it means may not"
        turned = torch.equal(mask, right.T)
        assert not turned, f"{row}: rows are queries and columns are keys, not the other way round"
        for q, k in (mask != right).nonzero().tolist():
            verb = "must see" if right[q, k] else "must not see"
            hint = _mask_hint(row, q, k)
            raise AssertionError(f"{row}: token {q} {verb} token {k} ({hint})")
        x = torch.randn(1, n, 16)
        seen = obeyed([*decoder.blocks], partial(decoder, embeds=x, mask=mask))
        assert torch.equal(seen, mask), f"{row}: a decoder does not obey the mask"


def _mask_hint(row: list[int], q: int, k: int) -> str:
    """The rule for a pair."""
    if k <= q:
        return "what came before is visible" if k < q else "each token sees itself"
    if row[q] == row[k] and row[k]:
        return "patches of one image see each other"
    if row[q] and row[k]:
        return "a later image is hidden from an earlier one"
    if row[q] == row[k]:
        return "text is causal: 0 is not the number of an image"
    return "a later token is hidden"


# Exercise 1

START, IMAGE, END = 90, 91, 92  # ids of the marks and of the placeholder
NUMBERED = {
    "no image": ([1, 2], [0, 0]),
    "one image": ([1, START, IMAGE, IMAGE, END, 2], [0, 0, 1, 1, 0, 0]),
    "two side by side": (
        [START, IMAGE, END, START, IMAGE, IMAGE, END],
        [0, 1, 0, 0, 2, 2, 0],
    ),
    "text between them": ([START, IMAGE, END, 5, START, IMAGE, END, 6], [0, 1, 0, 0, 0, 2, 0, 0]),
    "three, of unequal size": (
        [START, *[IMAGE] * 3, END, 7, 8, START, IMAGE, END, START, IMAGE, IMAGE, END],
        [0, 1, 1, 1, 0, 0, 0, 0, 2, 0, 0, 3, 3, 0],
    ),
    "no token at all": ([], []),
}


def check_image_numbers(image_numbers: Callable[[list[int], int, int], Sequence[int]]) -> None:
    """Rows without an image, with one, and with several at different distances."""
    got = [
        expect_items(image_numbers(list(ids), START, IMAGE), name, len(ids))
        for name, (ids, _) in NUMBERED.items()
    ]
    mistakes: dict[str, Iterable] = {
        what: [[number(ids, t) for t in range(len(ids))] for ids, _ in NUMBERED.values()]
        for what, number in NUMBER_MISTAKES.items()
    }
    right = [numbers for _, numbers in NUMBERED.values()]
    compare_answers(list(NUMBERED), right, got, mistakes)


def _opened(ids: list[int], t: int) -> int:
    """How many images have begun."""
    return ids[: t + 1].count(START)


NUMBER_MISTAKES: dict[str, Callable[[list[int], int], int]] = {
    "1 for every placeholder: which image is it?": lambda ids, t: int(ids[t] == IMAGE),
    "this counts placeholders, not images": (
        lambda ids, t: ids[: t + 1].count(IMAGE) if ids[t] == IMAGE else 0
    ),
    "text and marks have 0, also after an image": _opened,
    "the mark that opens an image is outside of it": (
        lambda ids, t: _opened(ids, t) if ids[t] in (START, IMAGE) else 0
    ),
    "the marks around an image are outside of it": (
        lambda ids, t: _opened(ids, t) if ids[t] in (START, IMAGE, END) else 0
    ),
    "images count from 1": lambda ids, t: _opened(ids, t) - 1 if ids[t] == IMAGE else 0,
    "counted from the end": (lambda ids, t: ids[t:].count(END) if ids[t] == IMAGE else 0),
}


# Exercise 2

PAD = 19


def check_pack(pack: Callable[[list[list[int]], int, int], Sequence[Tensor]]) -> None:
    """Ids, segments and positions, then the logits of each row alone and packed."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(20, width=16, layers=2, heads=2, kv_heads=2, hidden=16))
    names = ("ids", "segments", "positions")
    for lengths, length in [([3, 2], 6), ([4], 4), ([1, 4, 2], 10)]:
        rows = [torch.randint(1, PAD, (n,)).tolist() for n in lengths]
        case = f"rows of {lengths} into {length}"
        parts = expect_parts(pack([list(row) for row in rows], length, PAD), names, case)
        ids, segments, positions = (
            expect_ids(part, (1, length), f"{case}, {name}")
            for part, name in zip(parts, names, strict=True)
        )
        _check_packed_ids(ids[0].tolist(), rows, length, case)
        _check_segments(segments[0].tolist(), rows, case)
        _check_positions(positions[0].tolist(), rows, case)
        mask = masks.segments(segments) & masks.causal(length)
        packed = decoder(ids, mask=mask, positions=positions)[0]
        alone = torch.cat([decoder(torch.tensor([row]))[0] for row in rows])
        assert near(packed[: len(alone)], alone), f"{case}: other logits than of each row alone"


def _check_packed_ids(ids: list[int], rows: list[list[int]], length: int, case: str) -> None:
    """The rows one after the other, then padding."""
    joined = sum(rows, [])
    padding = [PAD] * (length - len(joined))
    front = bool(padding) and ids == padding + joined
    assert not front, f"{case}: the padding comes after the rows, not before"
    turned = ids[: len(joined)] == sum(rows[::-1], []) != joined
    assert not turned, f"{case}: keep the order of the rows"
    assert ids[: len(joined)] == joined, f"{case}: the ids are not those of the rows"
    assert ids[len(joined) :] == padding, f"{case}: the rest is padding, `pad` as id"


def _check_segments(segments: list[int], rows: list[list[int]], case: str) -> None:
    """From 1 on, padding has 0."""
    right = [k for k, row in enumerate(rows, start=1) for _ in row]
    from_zero = segments[: len(right)] == [k - 1 for k in right]
    assert not from_zero, f"{case}: segments count from 1, 0 is for padding"
    for t, (mine, theirs) in enumerate(zip(segments[: len(right)], right, strict=True)):
        assert mine == theirs, f"{case}: token {t} is of row {theirs}, not of segment {mine}"
    rest = set(segments[len(right) :])
    assert rest <= {0}, f"{case}: padding has segment 0, not {sorted(rest)}"


def _check_positions(positions: list[int], rows: list[list[int]], case: str) -> None:
    """From 0 on in each row; those of padding do not matter."""
    right = [t for row in rows for t in range(len(row))]
    got = positions[: len(right)]
    from_one = got == [t + 1 for t in right]
    assert not from_one, f"{case}: positions begin at 0, not at 1"
    through = got == list(range(len(right))) != right
    assert not through, f"{case}: positions begin at 0 again in each row"
    assert got == right, f"{case}: positions {right}, not {got}"


# Exercise 3

Expand = Callable[[list[int], list[int], int, list[int]], Sequence]
EXPANDED = {  # ids and labels of a row, and how many vectors each image has
    "no image": ([5, 6], [IGNORE, 6], []),
    "one image": ([5, IMAGE, 6, 7], [IGNORE, IGNORE, 6, 7], [3]),
    "two images of unequal size": ([IMAGE, 5, IMAGE, 7], [IGNORE, IGNORE, IGNORE, 7], [1, 4]),
    "two images side by side": ([5, IMAGE, IMAGE, 7], [IGNORE, IGNORE, IGNORE, 7], [2, 3]),
}


def check_expand_row(expand_row: Expand) -> None:
    """Images of different sizes, then too few and too many of them."""
    for case, (ids, labels, counts) in EXPANDED.items():
        given = [*ids]
        parts = expect_parts(
            expand_row(given, [*labels], IMAGE, [*counts]), ("ids", "labels"), case
        )
        got_ids, got_labels = (expect_items(part, case) for part in parts)
        assert given == ids, f"{case}: your function changes the list that it is given"
        _check_expanded_ids(got_ids, ids, counts, case)
        _check_expanded_labels(got_labels, labels, len(got_ids), case)
    for counts in ([], [2], [2, 3, 4]):
        try:
            expand_row([IMAGE, 5, IMAGE], [IGNORE, 5, IGNORE], IMAGE, counts)
        except ValueError:
            continue
        raise AssertionError(f"2 placeholders, but {len(counts)} images: raise a ValueError")


def _check_expanded_ids(got: list[int], ids: list[int], counts: list[int], case: str) -> None:
    """As many placeholders as vectors, and the other ids between them."""
    run, total = got.count(IMAGE), sum(counts)
    more = run == total + len(counts) != total
    assert not more, f"{case}: one placeholder is there already, it is one of the run"
    assert run == total, f"{case}: {total} vectors need {total} placeholders, not {run}"
    waiting = iter(counts)
    right = [n for i in ids for n in ([IMAGE] * next(waiting) if i == IMAGE else [i])]
    assert sorted(got) == sorted(right), f"{case}: the ids of the text stay as they are"
    swapped = f"{case}: the first count belongs to the first placeholder, and so on"
    assert got == right, swapped


def _check_expanded_labels(got: list[int], labels: list[int], length: int, case: str) -> None:
    """A label for each id, and those of the text unchanged, in their order."""
    assert len(got) == length, f"{case}: {length} ids need {length} labels, not {len(got)}"
    trained = [label for label in got if label != IGNORE]
    assert IMAGE not in trained, f"{case}: placeholders are not trained on: {IGNORE}"
    wanted = [label for label in labels if label != IGNORE]
    assert trained == wanted, f"{case}: the labels of the text stay as they are"
    tail = next((n for n, label in enumerate(labels[::-1]) if label == IGNORE), len(labels))
    moved = got[len(got) - tail :] != labels[len(labels) - tail :]
    assert not moved, f"{case}: labels move with their ids when a run is inserted before them"
