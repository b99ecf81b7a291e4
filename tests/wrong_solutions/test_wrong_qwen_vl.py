"""Notebook 09's exercises: what their checks accept, and what they say about likely mistakes."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from wrong_solutions import accepts, refuses

from minivlm.exercises import qwen_vl as exercises
from minivlm.parts.masks import causal, segments

# Exercise 1


def adapter_parameters(memory, width, queries):
    enter = 0 if memory == width else memory * width
    attention = 4 * (width**2 + width)
    return queries * width + enter + 2 * 2 * width + attention + 2 * width + width**2


def part_by_part(memory, width, queries):
    parts = [width] * queries + [width] * 6  # queries, three norms
    parts += [(width + 1) * width for _ in ("q", "k", "v", "out")]
    parts += [width * width] + ([memory * width] if memory != width else [])
    return torch.tensor(parts).sum()


@pytest.mark.parametrize("function", [adapter_parameters, part_by_part])
def test_right_adapters(function: Callable) -> None:
    accepts(exercises.check_adapter_parameters, function)


def off_by(more):
    return lambda memory, width, queries: (
        adapter_parameters(memory, width, queries) + more(memory, width, queries)
    )


@pytest.mark.parametrize(
    ("more", "word"),
    [
        pytest.param(lambda m, w, q: q * w, "positions", id="table counted"),
        pytest.param(lambda m, w, q: -q * w, "queries", id="queries not counted"),
        pytest.param(lambda m, w, q: -2 * w - w * w, "norm and projection", id="resampler alone"),
        pytest.param(lambda m, w, q: -4 * w, "q, k, v and out have a bias", id="no biases"),
        pytest.param(lambda m, w, q: w, "last projection", id="projection with a bias"),
        pytest.param(lambda m, w, q: w * w * (m == w), "no kv_proj", id="kv_proj everywhere"),
        pytest.param(lambda m, w, q: -m * w * (m != w), "kv_proj is missing", id="no kv_proj"),
        pytest.param(lambda m, w, q: w * (m != w), "kv_proj has no bias", id="kv_proj's bias"),
        pytest.param(lambda m, w, q: -3 * w, "two vectors", id="one vector a norm"),
        pytest.param(lambda m, w, q: 2 * (m - w), "new width", id="norm before kv_proj"),
        pytest.param(lambda m, w, q: -2 * w, "three norms", id="a norm forgotten"),
    ],
)
def test_wrong_adapters(more: Callable, word: str) -> None:
    refuses(exercises.check_adapter_parameters, off_by(more), word)


# Exercise 2

ELEMENT = re.compile(r"<(ref|box)>((?:(?!</?(?:ref|box)>).)+)</\1>")
NUMBERS = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\)")


def boxes_in_pixels(answer, size, far=999, order=True, largest=999):
    if re.search("</?(ref|box)>", ELEMENT.sub("", answer)):
        return None
    found = []
    for tag, body in ELEMENT.findall(answer):
        if tag == "ref":
            continue
        numbers = NUMBERS.fullmatch(body)
        if not numbers:
            return None
        x1, y1, x2, y2 = map(int, numbers.groups())
        if max(x1, y1, x2, y2) > largest or (order and (x1 > x2 or y1 > y2)):
            return None
        sides = (size[0], size[1], size[0], size[1])
        found.append(tuple(n * side / far for n, side in zip((x1, y1, x2, y2), sides, strict=True)))
    return found


def tag_by_tag(answer, size):
    width, height = size
    boxes, inside, body = [], None, ""
    for piece in re.split("(</?(?:ref|box)>)", answer):
        if piece in ("<ref>", "<box>"):
            if inside:
                return None
            inside, body = piece[1:-1], ""
        elif piece in ("</ref>", "</box>"):
            if inside != piece[2:-1]:
                return None
            if inside == "box":
                parts = body.replace("),(", ",").strip("()").split(",")
                if len(parts) != 4 or not all(part.isdigit() for part in parts):
                    return None
                x1, y1, x2, y2 = (int(part) for part in parts)
                if not (x1 <= x2 < 1000 and y1 <= y2 < 1000):
                    return None
                scaled = [x1 * width, y1 * height, x2 * width, y2 * height]
                boxes.append([edge / 999 for edge in scaled])
            inside = None
        else:
            body = piece
    return None if inside else tuple(boxes)


@pytest.mark.parametrize("function", [boxes_in_pixels, tag_by_tag])
def test_right_boxes(function: Callable) -> None:
    accepts(exercises.check_boxes_in_pixels, function)


def search_only(answer, size):
    found = re.findall(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>", answer)
    sides = (*size, *size)
    return [tuple(int(n) * s / 999 for n, s in zip(box, sides, strict=True)) for box in found]


def names_are_no_matter(answer, size):
    return boxes_in_pixels(re.sub("</?ref>", "", answer), size)


def only_first(answer, size):
    found = boxes_in_pixels(answer, size)
    return found and found[:1]


def bad_boxes_left_out(answer, size):
    if re.search("</?(ref|box)>", ELEMENT.sub("", answer)):
        return None
    bodies = [body for tag, body in ELEMENT.findall(answer) if tag == "box"]
    read = [boxes_in_pixels(f"<box>{body}</box>", size) for body in bodies]
    return [boxes[0] for boxes in read if boxes]


def none_for_no_box(answer, size):
    return boxes_in_pixels(answer, size) or None


def rounded(answer, size):
    found = boxes_in_pixels(answer, size)
    return found and [tuple(round(edge) for edge in box) for box in found]


def with_sizes(answer, size):
    found = boxes_in_pixels(answer, size)
    return found and [(a, b, c - a, d - b) for a, b, c, d in found]


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (search_only, "None, not"),
        (names_are_no_matter, "a name that is not closed"),
        (only_first, "2 boxes, not 1"),
        (bad_boxes_left_out, "None, not"),
        (none_for_no_box, "[], not None"),
        (rounded, "round"),
        (with_sizes, "lower"),
        pytest.param(
            lambda answer, size: boxes_in_pixels(answer, size, far=1000), "999 is", id="by 1,000"
        ),
        pytest.param(
            lambda answer, size: boxes_in_pixels(answer, size[::-1]), "width first", id="height"
        ),
        pytest.param(lambda answer, size: boxes_in_pixels(answer, (1, 1)), "shares", id="shares"),
        pytest.param(
            lambda answer, size: boxes_in_pixels(answer, (999, 999)), "thousandths", id="unscaled"
        ),
        pytest.param(
            lambda answer, size: boxes_in_pixels(answer, size, largest=1000), "over 999", id="1,000"
        ),
        pytest.param(
            lambda answer, size: boxes_in_pixels(answer, size, order=False),
            "changed places",
            id="corners in any order",
        ),
    ],
)
def test_wrong_boxes(function: Callable, word: str) -> None:
    refuses(exercises.check_boxes_in_pixels, function, word)


# Exercise 3


def packed(rows, length):
    """What follows from the numbers of the examples."""
    segment = torch.tensor([row + [-1] * (length - len(row)) for row in rows])
    mask = segments(segment)[:, 0] & causal(length)
    return segment, (mask.sum(dim=2) - 1).masked_fill(segment < 0, 0), mask


def pack_lengths(lengths, length, fits=lambda row, count, length: len(row) + count <= length):
    rows = [[]]
    for number, count in enumerate(lengths):
        if rows[-1] and not fits(rows[-1], count, length):
            rows.append([])
        rows[-1] += [number] * count
    return packed(rows, length)


def token_by_token(lengths, length):
    ids, positions, used = [], [], length
    for number, count in enumerate(lengths):
        if used + count > length:
            ids.append(torch.full((length,), -1))
            positions.append(torch.zeros(length, dtype=torch.long))
            used = 0
        for place in range(count):
            ids[-1][used + place], positions[-1][used + place] = number, place
        used += count
    ids = torch.stack(ids)
    mask = torch.zeros(len(ids), length, length).bool()
    for r, row in enumerate(ids.tolist()):
        for t in range(length):
            mask[r, t, : t + 1] = torch.tensor([i == row[t] for i in row[: t + 1]])
    return [ids, torch.stack(positions), mask]


@pytest.mark.parametrize("function", [pack_lengths, token_by_token])
def test_right_packing(function: Callable) -> None:
    accepts(exercises.check_pack_lengths, function)


def first_fit(lengths, length):
    rows = []
    for number, count in enumerate(lengths):
        row = next((row for row in rows if len(row) + count <= length), None)
        if row is None:
            rows.append(row := [])
        row += [number] * count
    return packed(rows, length)


def longest_first(lengths, length):
    rows = [[]]
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if len(rows[-1]) + lengths[number] > length:
            rows.append([])
        rows[-1] += [number] * lengths[number]
    return packed(rows, length)


def one_in_a_row(lengths, length):
    return packed([[number] * count for number, count in enumerate(lengths)], length)


def never_full(lengths, length):
    return pack_lengths(lengths, length, lambda row, count, length: len(row) + count < length)


def counted_in_each_row(lengths, length):
    segment, positions, mask = pack_lengths(lengths, length)
    first = segment.where(segment >= 0, 10**6).amin(dim=1, keepdim=True)
    return torch.where(segment >= 0, segment - first, segment), positions, mask


def split_over_rows(lengths, length):
    tokens = [number for number, count in enumerate(lengths) for _ in range(count)]
    return packed([tokens[i : i + length] for i in range(0, len(tokens), length)], length)


def causal_only(lengths, length):
    segment, positions, mask = pack_lengths(lengths, length)
    return segment, positions, causal(length).expand_as(mask)


def both_ways(lengths, length):
    segment, positions, _ = pack_lengths(lengths, length)
    return segment, positions, segments(segment)[:, 0]


def running_on(lengths, length):
    segment, _, mask = pack_lengths(lengths, length)
    return segment, torch.arange(length).expand_as(segment).masked_fill(segment < 0, 0), mask


def padding_sees_nothing(lengths, length):
    segment, positions, mask = pack_lengths(lengths, length)
    return segment, positions, mask & (segment >= 0)[:, :, None]


def padding_counts_on(lengths, length):
    segment, _, mask = pack_lengths(lengths, length)
    return segment, mask.sum(dim=2) - 1, mask


def padding_sees_the_row(lengths, length):
    segment, positions, mask = pack_lengths(lengths, length)
    return segment, positions, mask | ((segment < 0)[:, :, None] & causal(length))


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (first_fit, "earlier row"),
        (longest_first, "segment ids"),
        (one_in_a_row, "shape"),
        (never_full, "shape"),
        (counted_in_each_row, "through all rows"),
        (split_over_rows, "segment ids"),
        (causal_only, "example 0"),
        (both_ways, "later"),
        (running_on, "positions"),
        (padding_sees_nothing, "padding does not see"),
        (padding_counts_on, "positions"),
        (padding_sees_the_row, "of the padding sees token"),
        pytest.param(lambda *given: pack_lengths(*given)[:2], "items", id="no mask"),
        pytest.param(lambda *given: [x.float() for x in pack_lengths(*given)], "bool", id="floats"),
    ],
)
def test_wrong_packing(function: Callable, word: str) -> None:
    refuses(exercises.check_pack_lengths, function, word)


# Exercise 4


def to_released(model):
    resampler, attention = model.resampler, model.resampler.attention
    stacked = [attention.q, attention.k, attention.v]
    tensors = {
        "attn_pool.query": resampler.queries,
        "attn_pool.pos_embed": resampler.positions,
        "attn_pool.attn.in_proj_weight": torch.cat([layer.weight for layer in stacked]),
        "attn_pool.attn.in_proj_bias": torch.cat([layer.bias for layer in stacked]),
        "proj": model.projection.weight.T,
    }
    if isinstance(resampler.kv_proj, nn.Linear):
        tensors["attn_pool.kv_proj.weight"] = resampler.kv_proj.weight
    layers = {"attn_pool.attn.out_proj": attention.out, "attn_pool.ln_q": resampler.ln_q}
    layers |= {"attn_pool.ln_kv": resampler.ln_kv, "ln_post": model.norm}
    for name, layer in layers.items():
        tensors |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def from_the_state_dict(model):
    ours, new = model.state_dict(), {"attn_pool.pos_embed": model.resampler.positions}
    for kind in ("weight", "bias"):
        stack = torch.stack([ours[f"resampler.attention.{part}.{kind}"] for part in "qkv"])
        new[f"attn_pool.attn.in_proj_{kind}"] = stack.flatten(0, 1)
    renamed = {"resampler.queries": "attn_pool.query", "norm.": "ln_post."}
    renamed |= {"resampler.attention.out": "attn_pool.attn.out_proj"}
    renamed |= {f"resampler.{part}": f"attn_pool.{part}" for part in ("kv_proj", "ln_q", "ln_kv")}
    for name, tensor in ours.items():
        for old, now in renamed.items():
            if name.startswith(old):
                new[now + name[len(old) :]] = tensor
    return new | {"proj": ours["projection.weight"].t()}


@pytest.mark.parametrize("function", [to_released, from_the_state_dict])
def test_right_conversions(function: Callable) -> None:
    accepts(exercises.check_to_released, function)


def changed(**new):
    """The right tensors, but for some; a new one is made of all of them."""
    return lambda model: (
        to_released(model) | {name: make(to_released(model)) for name, make in new.items()}
    )


def proj_as_it_is(model):
    return to_released(model) | {"proj": model.projection.weight.detach()}


def k_before_q(model):
    tensors = to_released(model)
    for name in ("attn_pool.attn.in_proj_weight", "attn_pool.attn.in_proj_bias"):
        q, k, v = tensors[name].chunk(3)
        tensors[name] = torch.cat([k, q, v])
    return tensors


def interleaved(model):
    tensors = to_released(model)
    weight = tensors["attn_pool.attn.in_proj_weight"]
    tensors["attn_pool.attn.in_proj_weight"] = torch.stack(weight.chunk(3), dim=1).flatten(0, 1)
    return tensors


def swapped(first, second):
    def function(model):
        tensors = to_released(model)
        for kind in ("weight", "bias"):
            a, b = f"{first}.{kind}", f"{second}.{kind}"
            tensors[a], tensors[b] = tensors[b], tensors[a]
        return tensors

    return function


def without(name):
    return lambda model: {k: v for k, v in to_released(model).items() if k != name}


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (proj_as_it_is, "x @ proj"),
        (k_before_q, "q, k, v one after another"),
        (interleaved, "q, k, v"),
        pytest.param(swapped("attn_pool.ln_q", "attn_pool.ln_kv"), "ln_q.weight", id="two norms"),
        pytest.param(swapped("attn_pool.ln_kv", "ln_post"), "ln_kv.weight", id="norm after"),
        pytest.param(without("attn_pool.pos_embed"), "missing", id="no positions"),
        pytest.param(changed(surplus=lambda new: new["proj"]), "not in the released", id="surplus"),
        pytest.param(
            changed(**{"attn_pool.attn.out_proj.weight": lambda new: new["proj"]}),
            "out_proj.weight",
            id="the projection as out_proj",
        ),
        pytest.param(
            changed(**{"attn_pool.pos_embed": lambda new: new["attn_pool.pos_embed"] * 0}),
            "pos_embed",
            id="zero positions",
        ),
        pytest.param(
            changed(**{"attn_pool.query": lambda new: new["attn_pool.query"][None]}),
            "shape",
            id="queries with a batch axis",
        ),
        pytest.param(
            changed(**{"attn_pool.attn.out_proj.bias": lambda new: None}), "tensor", id="a None"
        ),
    ],
)
def test_wrong_conversions(function: Callable, word: str) -> None:
    refuses(exercises.check_to_released, function, word)
