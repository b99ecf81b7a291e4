"""04 · Checks of notebook 04's exercises: each takes the reader's function, says what is wrong."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minivlm.bpe import BPETokenizer
from minivlm.exercises.answers import compare_answers, expect_items, expect_tensor, near
from minivlm.exercises.returned import expect_ids, expect_parts
from minivlm.lesson import obeyed
from minivlm.multimodal import CONTROL, IGNORE, Processor
from minivlm.parts import masks
from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.vit import to_pixels

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


# Exercise 3

HERE = {"type": "image"}
CHATS: dict[str, list[tuple[str, Any]]] = {
    "one answer": [("user", "a star?"), ("assistant", "yes a star")],
    "no answer": [("system", "be brief"), ("user", "hello")],
    "two answers": [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    "an empty answer": [("user", "a"), ("assistant", "")],
    "the word in a question": [("user", "my assistant\na"), ("assistant", "b")],
    "a question that begins with the word": [("user", "assistant\na"), ("assistant", "b")],
    "an image in the question": [("user", [HERE]), ("assistant", "a star")],
    "an image in the answer": [("user", "draw"), ("assistant", [HERE])],
}


def check_labels_of(labels_of: Callable[[list[int], list[int], int, int], Sequence[int]]) -> None:
    """Conversations of every kind, against the labels of the package's processor."""
    tok = BPETokenizer.train("a star assistant\n user\n", 280, special_tokens=CONTROL)
    special, processor = tok.special_tokens, Processor(tok, 2, to_pixels)
    header = [special["<|im_start|>"], *tok.encode("assistant\n")]
    end, image = special["<|im_end|>"], special["<|image|>"]
    for name, chat in CHATS.items():
        messages = [{"role": role, "content": content} for role, content in chat]
        blank = [Image.new("RGB", (4, 4))] * sum(content == [HERE] for _, content in chat)
        row = processor.prepare(messages, blank)
        ids, right = (row[key][0].tolist() for key in ("input_ids", "labels"))
        got = expect_items(labels_of(list(ids), list(header), end, image), name, len(ids))
        shifted = got != right and got[:-1] == right[1:]
        assert not shifted, f"{name}: labels are not shifted here, the loss shifts them"
        for t, (mine, theirs) in enumerate(zip(got, right, strict=True)):
            what = f"{name}: the label of token {t} ({tok.decode([ids[t]])!r})"
            assert mine in (ids[t], IGNORE), f"{what} is its id or {IGNORE}, not {mine}"
            hint = _label_hint(ids, t, header, (end, image), theirs != IGNORE)
            assert mine == theirs, f"{what} is {theirs}, not {mine} ({hint})"


def _label_hint(
    ids: list[int], t: int, header: list[int], marks: tuple[int, int], learned: bool
) -> str:
    """Why a token has a label, or why not."""
    end, image = marks
    if learned:
        return "the end of an answer is trained on too" if ids[t] == end else "part of an answer"
    if ids[t] == image:
        return "placeholders of images are not trained on"
    begin = max((s for s in range(t + 1) if ids[s] == header[0]), default=0)
    answer = ids[begin : begin + len(header)] == header
    if answer and t < begin + len(header):
        return "the header is given, the answer begins after it"
    if answer:
        return "the answer ends with its <|im_end|>"
    word = header[1:]
    if any(ids[s : s + len(word)] == word for s in range(begin + 1, t)):
        return "only a header with <|im_start|> opens an answer, a user may write the word"
    return "only what the assistant says is trained on"


# Exercise 4

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
