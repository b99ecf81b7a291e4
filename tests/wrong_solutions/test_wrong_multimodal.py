"""Notebook 04: right solutions are accepted, and each likely mistake is named."""

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wrong_solutions import accepts, refuses

from minivlm.exercises import multimodal as exercises
from minivlm.exercises import multimodal_rows
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
    accepts(multimodal_rows.check_image_numbers, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_image_numbers_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(multimodal_rows.check_image_numbers, wrong, word)


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
    accepts(multimodal_rows.check_picture_mask, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_MASK.values(), ids=WRONG_MASK)
def test_picture_mask_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(multimodal_rows.check_picture_mask, wrong, word)


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
    accepts(multimodal_rows.check_pack, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_PACK.values(), ids=WRONG_PACK)
def test_pack_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(multimodal_rows.check_pack, wrong, word)


# The loss


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE)


def loss_by_loops(logits: Tensor, labels: Tensor) -> float:
    losses = []
    for b, row in enumerate(labels.tolist()):
        for t, label in enumerate(row[1:]):
            if label != IGNORE:
                losses.append(-logits[b, t].double().log_softmax(-1)[label].item())
    return sum(losses) / len(losses)


def loss_by_picking(logits: Tensor, labels: Tensor) -> Tensor:
    kept = labels[:, 1:] != IGNORE
    chosen = logits[:, :-1][kept].log_softmax(-1)
    return -chosen[torch.arange(len(chosen)), labels[:, 1:][kept]].mean()


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")


def loss_of_rows(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([answer_loss(x[None], y[None]) for x, y in zip(logits, labels, strict=True)])


WRONG_LOSS = {
    "not shifted": ("not shifted", lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten())),
    "the wrong way": (
        "wrong way",
        lambda x, y: F.cross_entropy(x[:, 1:].flatten(0, 1), y[:, :-1].flatten()),
    ),
    "flattened first": (
        "next row",
        lambda x, y: F.cross_entropy(x.flatten(0, 1)[:-1], y.flatten()[1:]),
    ),
    "mean over all": ("have a label", lambda x, y: losses(x, y).mean()),
    "sum": ("a sum", lambda x, y: losses(x, y).sum()),
    "mean of rows": ("rows' means", lambda x, y: loss_of_rows(x, y).mean()),
    "-100 as a token": ("-100", lambda x, y: answer_loss(x, y.clamp(min=0))),
    "softmax first": ("softmax", lambda x, y: answer_loss(x.softmax(-1), y)),
    "the sign": ("sign", lambda x, y: -answer_loss(x, y)),
    "a loss for each row": ("one number", loss_of_rows),
    "classes in the wrong place": (
        "your function raised",
        lambda x, y: F.cross_entropy(x[:, :-1], y[:, 1:]),
    ),
    "returns nothing": ("return", lambda x, y: None),
}


@pytest.mark.parametrize("right", [answer_loss, loss_by_loops, loss_by_picking])
def test_answer_loss_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_answer_loss, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_LOSS.values(), ids=WRONG_LOSS)
def test_answer_loss_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_answer_loss, wrong, word)


# The splice


def splice(embeds: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    return embeds.masked_scatter(places[..., None], vectors)


def splice_by_loops(embeds: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    rows, waiting = embeds.clone(), iter(vectors.flatten(0, 1))
    for b, t in places.nonzero().tolist():
        rows[b, t] = next(waiting)
    return rows


def splice_by_index(embeds: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    out = embeds.clone()
    out[places] = vectors.reshape(-1, vectors.shape[-1])
    return out


def spliced(change: Callable[[Tensor], Tensor]) -> Callable:
    """The reference with other vectors."""
    return lambda embeds, places, vectors: splice(embeds, places, change(vectors).contiguous())


def splice_in_place(embeds: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    embeds[places] = vectors.flatten(0, 1)
    return embeds


def splice_at_the_front(embeds: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    return torch.cat([vectors.flatten(0, 1).expand(len(embeds), -1, -1), embeds], dim=1)


def splice_image_b_into_row_b(embeds: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    out = embeds.clone()
    for b in range(len(embeds)):
        out[b, places[b]] = vectors[b]
    return out


def splice_added(embeds: Tensor, places: Tensor, vectors: Tensor) -> Tensor:
    return embeds + splice(torch.zeros_like(embeds), places, vectors)


WRONG_SPLICE = {
    "in front": ("shape", splice_at_the_front),
    "image b into row b": ("whichever row", splice_image_b_into_row_b),
    "added": ("added", splice_added),
    "in place": ("copy", splice_in_place),
    "images in reverse": ("in order", spliced(lambda v: v.flip(0))),
    "vectors in reverse": ("in order", spliced(lambda v: v.flip(1))),
    "patch by patch": ("in order", spliced(lambda v: v.transpose(0, 1))),
    "the first image everywhere": ("in order", spliced(lambda v: v[:1].expand_as(v))),
    "the mean of an image": (
        "unchanged",
        spliced(lambda v: v.mean(dim=1, keepdim=True).expand_as(v)),
    ),
    "nothing": ("its own embedding", lambda embeds, places, vectors: embeds.clone()),
    "zeros elsewhere": (
        "has to stay",
        lambda embeds, *rest: splice(torch.zeros_like(embeds), *rest),
    ),
    "the mask inverted": (
        "has to stay",
        lambda embeds, places, vectors: torch.where(places[..., None], embeds, 0.0),
    ),
    "returns nothing": ("return", lambda embeds, places, vectors: None),
}


@pytest.mark.parametrize("right", [splice, splice_by_loops, splice_by_index])
def test_splice_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_splice, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_SPLICE.values(), ids=WRONG_SPLICE)
def test_splice_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_splice, wrong, word)


# Image ids


def image_ids(codes: Tensor, text_size: int, start: int, end: int) -> Tensor:
    ends = [torch.full((len(codes), 1), mark) for mark in (start, end)]
    return torch.cat([ends[0], codes.flatten(1) + text_size, ends[1]], dim=1)


def image_ids_by_loops(codes: Tensor, text_size: int, start: int, end: int) -> Tensor:
    rows = [[text_size + c for row in grid for c in row] for grid in codes.tolist()]
    return torch.tensor([[start, *row, end] for row in rows], dtype=torch.int32)


def with_codes(change: Callable[[Tensor], Tensor]) -> Callable:
    """The reference with other codes."""
    return lambda codes, *numbers: image_ids(change(codes), *numbers)


WRONG_IMAGE_IDS = {
    "no offset": ("text_size", lambda c, size, s, e: image_ids(c, 0, s, e)),
    "one too high": ("too high", lambda c, size, s, e: image_ids(c, size + 1, s, e)),
    "one too low": ("too low", lambda c, size, s, e: image_ids(c, size - 1, s, e)),
    "by columns": ("row by row", with_codes(lambda c: c.transpose(1, 2))),
    "marks swapped": ("swapped", lambda c, size, s, e: image_ids(c, size, e, s)),
    "marks moved too": ("marks", lambda c, size, s, e: image_ids(c, 0, s, e) + size),
    "no marks": ("between two marks", lambda c, size, s, e: c.flatten(1) + size),
    "one row": ("shape", lambda *inputs: image_ids(*inputs).flatten()),
    "a grid": ("shape", lambda c, size, s, e: c + size),
    "images in reverse": ("another order", with_codes(lambda c: c.flip(0))),
    "floats": ("integers", lambda *inputs: image_ids(*inputs).float()),
    "a list": ("tensor", lambda *inputs: image_ids(*inputs).tolist()),
    "returns nothing": ("return", lambda *inputs: None),
}


@pytest.mark.parametrize("right", [image_ids, image_ids_by_loops])
def test_image_ids_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_image_ids, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_IMAGE_IDS.values(), ids=WRONG_IMAGE_IDS)
def test_image_ids_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_image_ids, wrong, word)


# Gated cross-attention

Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def gated(text: Tensor, image: Tensor, mask: Tensor, gate: Tensor, weights: Weights) -> Tensor:
    query, key, value, out = weights
    q, k, v = text @ query, image @ key, image @ value
    scores = (q @ k.T / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    return text + gate.tanh() * (scores.softmax(dim=-1).nan_to_num(0) @ v @ out)


def gated_by_exponents(
    text: Tensor, image: Tensor, mask: Tensor, gate: Tensor, weights: Weights
) -> Tensor:
    query, key, value, out = weights
    rows = []
    for word, seen in zip(text, mask, strict=True):
        if not seen.any():
            rows.append(word)
            continue
        scores = (word @ query) @ (image[seen] @ key).T / query.shape[1] ** 0.5
        share = scores.exp() / scores.exp().sum()
        rows.append(word + torch.tanh(gate) * ((share @ image[seen] @ value) @ out))
    return torch.stack(rows)


def gated_by_torch(
    text: Tensor, image: Tensor, mask: Tensor, gate: Tensor, weights: Weights
) -> Tensor:
    query, key, value, out = weights
    qkv = [x[None] for x in (text @ query, image @ key, image @ value)]
    looked = F.scaled_dot_product_attention(*qkv, attn_mask=mask)[0]
    return torch.einsum("ta,ad->td", looked, out).mul(gate.tanh()).add(text)


def gated_with(change: Callable[..., tuple]) -> Callable:
    """The reference, given other inputs."""
    return lambda *inputs: gated(*change(*inputs))


def update(*inputs: object) -> Tensor:
    text, image, mask, _, weights = inputs
    return gated(text, image, mask, torch.tensor(20.0), weights) - text  # tanh(20) is 1


def gated_nan(text: Tensor, image: Tensor, mask: Tensor, gate: Tensor, weights: Weights) -> Tensor:
    query, key, value, out = weights
    scores = (text @ query) @ (image @ key).T / query.shape[1] ** 0.5
    share = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return text + gate.tanh() * (share @ (image @ value) @ out)


def gated_image_asks(
    text: Tensor, image: Tensor, mask: Tensor, gate: Tensor, weights: Weights
) -> Tensor:
    _, key, value, _ = weights
    scores = (image @ key) @ (text @ weights[0]).T / 3
    return image + gate.tanh() * (scores.softmax(-1) @ text)[:, :3]


def gated_by_words(
    text: Tensor, image: Tensor, mask: Tensor, gate: Tensor, weights: Weights
) -> Tensor:
    query, key, value, out = weights
    scores = (text @ query) @ (image @ key).T / query.shape[1] ** 0.5
    share = scores.masked_fill(~mask, float("-inf")).softmax(0).nan_to_num()
    return text + gate.tanh() * (share @ (image @ value) @ out)


def gated_finite(
    text: Tensor, image: Tensor, mask: Tensor, gate: Tensor, weights: Weights
) -> Tensor:
    query, key, value, out = weights
    scores = (text @ query) @ (image @ key).T / query.shape[1] ** 0.5
    share = scores.masked_fill(~mask, -1e9).softmax(-1)
    return text + gate.tanh() * (share @ (image @ value) @ out)


def scaled(text: Tensor, image: Tensor, mask: Tensor, gate: Tensor, w: Weights) -> tuple:
    return text, image, mask, gate, (w[0] * w[0].shape[1] ** 0.5, *w[1:])


def scaled_by_width(text: Tensor, image: Tensor, mask: Tensor, gate: Tensor, w: Weights) -> tuple:
    return text, image, mask, gate, (w[0] * (9 / 6) ** 0.5, *w[1:])


WRONG_GATED = {
    "nan": ("nan", gated_nan),
    "a large number for minus infinity": ("mean of all", gated_finite),
    "nan cleared at the end": ("not at the end", lambda *i: gated_nan(*i).nan_to_num()),
    "image asks": ("one vector for each", gated_image_asks),
    "no tanh": ("tanh", lambda *i: i[0] + i[3] * update(*i)),
    "sigmoid": ("sigmoid", lambda *i: i[0] + i[3].sigmoid() * update(*i)),
    "no gate": ("gate is missing", lambda *i: i[0] + update(*i)),
    "no residual": ("add the update", lambda *i: i[3].tanh() * update(*i)),
    "gated text": ("update alone", lambda *i: i[3].tanh() * (i[0] + update(*i))),
    "not scaled": ("width of the queries", gated_with(scaled)),
    "scaled by the text's width": ("text's width", gated_with(scaled_by_width)),
    "inverted": ("inverted", gated_with(lambda t, i, m, g, w: (t, i, ~m, g, w))),
    "no mask": ("not used", gated_with(lambda t, i, m, g, w: (t, i, m | True, g, w))),
    "softmax over words": ("over the words", gated_by_words),
    "keys as values": (
        "keys are used",
        gated_with(lambda t, i, m, g, w: (t, i, m, g, (w[0], w[1], w[1], w[3]))),
    ),
    "a batch": ("shape", lambda *i: gated(*i)[None]),
    "image and text mixed up": (
        "your function raised",
        gated_with(lambda t, i, m, g, w: (i, t, m.T, g, w)),
    ),
    "returns nothing": ("return", lambda *i: None),
}


@pytest.mark.parametrize("right", [gated, gated_by_exponents, gated_by_torch])
def test_gated_attention_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_gated_attention, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_GATED.values(), ids=WRONG_GATED)
def test_gated_attention_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_gated_attention, wrong, word)


# Placeholders for images of different sizes

Row = tuple[list[int], list[int]]


def expand(ids: list[int], labels: list[int], image: int, counts: list[int]) -> Row:
    if ids.count(image) != len(counts):
        raise ValueError(f"{ids.count(image)} placeholders, but {len(counts)} images")
    waiting, out, out_labels = iter(counts), [], []
    for i, label in zip(ids, labels, strict=True):
        count = next(waiting) if i == image else 1
        out += [i] * count
        out_labels += [IGNORE if i == image else label] * count
    return out, out_labels


def expand_by_tensors(ids: list[int], labels: list[int], image: int, counts: list[int]) -> tuple:
    row, sizes = torch.tensor(ids), torch.ones(len(ids), dtype=torch.long)
    if int((row == image).sum()) != len(counts):
        raise ValueError("another number of images")
    sizes[row == image] = torch.tensor(counts, dtype=torch.long)
    return row.repeat_interleave(sizes), torch.tensor(labels).repeat_interleave(sizes)


def flawed_expand(flaw: str) -> Callable:
    """The reference with a flaw."""

    def wrong(ids: list[int], labels: list[int], image: int, counts: list[int]) -> Row:
        if ids.count(image) != len(counts) and flaw != "unchecked":
            raise ValueError
        waiting, out, out_labels = iter(counts[::-1] if flaw == "turned" else counts), [], []
        for i, label in zip(ids, labels, strict=True):
            count = next(waiting, 1) if i == image else 1
            count = max([*counts, 1]) if flaw == "largest" and i == image else count
            count += flaw == "one more" and i == image
            out += [i] * count
            trained = label if i != image else image if flaw == "trained" else IGNORE
            out_labels += [trained] * count
        return out, labels if flaw == "old labels" else out_labels

    return wrong


def labels_at_the_end(ids: list[int], labels: list[int], image: int, counts: list[int]) -> Row:
    out, _ = expand(ids, labels, image, counts)
    return out, labels + [IGNORE] * (len(out) - len(labels))


WRONG_EXPAND = {
    "the count and one": ("one of the run", flawed_expand("one more")),
    "as many for all": ("placeholders, not", flawed_expand("largest")),
    "counts in reverse": ("first count", flawed_expand("turned")),
    "labels left as they are": ("labels", flawed_expand("old labels")),
    "labels filled at the end": ("move with", labels_at_the_end),
    "placeholders trained on": ("not trained on", flawed_expand("trained")),
    "counts are not compared": ("ValueError", flawed_expand("unchecked")),
    "ids alone": ("list or tuple", lambda *i: expand(*i)[0]),
    "returns nothing": ("2 results", lambda *i: None),
}


@pytest.mark.parametrize("right", [expand, expand_by_tensors])
def test_expand_accepts_right_solutions(right: Callable) -> None:
    accepts(multimodal_rows.check_expand_row, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_EXPAND.values(), ids=WRONG_EXPAND)
def test_expand_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(multimodal_rows.check_expand_row, wrong, word)
