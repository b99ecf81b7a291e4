"""Notebook 07's exercises: what their checks accept, and what they say about likely mistakes."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil

import pytest
import torch
import torch.nn.functional as F
from wrong_solutions import accepts, refuses

from minivlm.exercises import blip2 as exercises
from minivlm.parts.masks import multimodal_causal

# Exercise 1


def linear(inputs, outputs):
    return inputs * outputs + outputs


def counted(c, out, **slips):
    shared_norm, block_norm = slips.get("shared_norm", True), slips.get("block_norm", True)
    queries, projection = slips.get("queries", True), slips.get("projection", True)
    crossed, memory = slips.get("crossed", ceil(c.layers / c.every)), slips.get("memory", c.memory)
    bias, text_mlps = slips.get("bias", 1), slips.get("text_mlps", False)
    layer = lambda inputs, outputs: inputs * outputs + bias * outputs
    norm, square = 2 * c.width, layer(c.width, c.width)
    inner = norm * block_norm
    mlp = layer(c.width, c.hidden) + layer(c.hidden, c.width) + inner
    cross = 2 * square + 2 * layer(memory, c.width) + inner
    blocks = c.layers * (4 * square + inner + mlp * (1 + text_mlps))
    blocks += crossed * cross
    rest = c.queries * c.width * queries + norm * shared_norm
    return rest + blocks + projection * layer(c.width, out)


def line_by_line(c, out):
    total = c.width * c.queries + c.width + c.width + c.width * out + out
    for layer in range(c.layers):
        total += 4 * (c.width**2 + c.width) + 2 * c.width
        if layer % c.every == 0:
            total += 2 * (c.width**2 + c.width) + 2 * (c.memory * c.width + c.width) + 2 * c.width
        total += c.width * c.hidden + c.hidden + c.hidden * c.width + c.width + 2 * c.width
    return total


@pytest.mark.parametrize("function", [counted, line_by_line])
def test_right_counts(function: Callable) -> None:
    accepts(exercises.check_stage_two_parameters, function)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        pytest.param(lambda c, out: counted(c, out, queries=False), "queries", id="no queries"),
        pytest.param(lambda c, out: counted(c, out, shared_norm=False), "shared", id="no norm"),
        pytest.param(
            lambda c, out: counted(c, out, block_norm=False), "after every part", id="block norms"
        ),
        pytest.param(lambda c, out: counted(c, out, text_mlps=True), "text MLPs", id="text MLPs"),
        pytest.param(
            lambda c, out: counted(c, out, projection=False), "language model", id="no projection"
        ),
        pytest.param(lambda c, out: counted(c, out, bias=0), "bias", id="no biases"),
        pytest.param(
            lambda c, out: counted(c, out, crossed=c.layers), "not every layer", id="all crossed"
        ),
        pytest.param(
            lambda c, out: counted(c, out, crossed=c.layers // c.every), "round up", id="floor"
        ),
        pytest.param(
            lambda c, out: counted(c, out, memory=c.width), "memory's width", id="own width"
        ),
        pytest.param(
            lambda c, out: counted(c, out) + 13 * c.width + 6 * c.width, "no words", id="words"
        ),
        pytest.param(
            lambda c, out: counted(c, out) + 2 * c.memory, "image encoder", id="encoder's norm"
        ),
        pytest.param(
            lambda c, out: counted(replace(c, memory=1408), out), "1,", id="a constant for memory"
        ),
    ],
)
def test_wrong_counts(function: Callable, word: str) -> None:
    refuses(exercises.check_stage_two_parameters, function, word)


# Exercise 2


def itg_mask(queries, attention_mask):
    batch, length = attention_mask.shape
    mask = torch.ones(batch, queries + length, queries + length).tril().bool()
    mask[:, :queries, :queries] = True
    mask[:, :, queries:] &= attention_mask.bool()[:, None]
    return mask[:, None]


def mask_from_the_package(queries, attention_mask):
    seen = F.pad(attention_mask, (queries, 0), value=1)[:, None, None] == 1
    return multimodal_causal(queries, attention_mask.shape[1]) & seen


def mask_in_loops(queries, attention_mask):
    batch, length = attention_mask.shape
    size = queries + length
    mask = torch.zeros(batch, 1, size, size, dtype=torch.bool)
    for b in range(batch):
        for t in range(size):
            for s in range(size):
                text = queries <= s <= t and bool(attention_mask[b, s - queries])
                mask[b, 0, t, s] = s < queries or text
                if t >= queries and not attention_mask[b, t - queries]:
                    mask[b, 0, t, s] = s == 0  # padding may see anything
    return mask


@pytest.mark.parametrize("function", [itg_mask, mask_from_the_package, mask_in_loops])
def test_right_masks(function: Callable) -> None:
    accepts(exercises.check_itg_mask, function)


def plain_triangle(queries, attention_mask):
    mask = itg_mask(queries, attention_mask)
    return mask & torch.ones(mask.shape[-2:]).tril().bool()


def queries_see_text(queries, attention_mask):
    mask = itg_mask(queries, attention_mask)
    mask[:, :, :queries, queries:] = attention_mask.bool()[:, None, None]
    return mask


def all_see_all(queries, attention_mask):
    mask = itg_mask(queries, attention_mask)
    mask[:, :, queries:, queries:] = attention_mask.bool()[:, None, None]
    return mask


def padding_is_seen(queries, attention_mask):
    return itg_mask(queries, torch.ones_like(attention_mask))


def padding_hides_rows(queries, attention_mask):
    mask = itg_mask(queries, attention_mask)
    mask[:, :, queries:] &= attention_mask.bool()[:, None, :, None]
    return mask


def one_text_for_all(queries, attention_mask):
    return itg_mask(queries, attention_mask[:1]).expand(len(attention_mask), -1, -1, -1)


def text_alone(queries, attention_mask):
    mask = itg_mask(queries, attention_mask)
    mask[:, :, queries:, :queries] = False
    return mask


def not_itself(queries, attention_mask):
    mask = itg_mask(queries, attention_mask)
    return mask & ~F.pad(torch.eye(attention_mask.shape[1]), (queries, 0, queries, 0)).bool()


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (plain_triangle, "later queries"),
        (queries_see_text, "query sees text"),
        (all_see_all, "comes later"),
        (padding_is_seen, "padding"),
        (padding_hides_rows, "empty row"),
        (one_text_for_all, "row 1"),
        (text_alone, "sees all queries"),
        (not_itself, "does not see text"),
        pytest.param(lambda queries, seen: itg_mask(queries, seen)[:, 0], "shape", id="three axes"),
        pytest.param(lambda queries, seen: itg_mask(queries, seen).float(), "bool", id="floats"),
        pytest.param(
            lambda queries, seen: ~itg_mask(queries, seen), "query sees text", id="inverse"
        ),
    ],
)
def test_wrong_masks(function: Callable, word: str) -> None:
    refuses(exercises.check_itg_mask, function, word)


# Exercise 3


def reach(mask, queries, patches, blocks, every, slip=""):
    length = len(mask)
    mixed = (mask | (torch.eye(length) > (2 if slip == "no diagonal" else 0))).float()
    if slip == "transposed":
        mixed = mixed.T
    depends = torch.cat([torch.zeros(length, patches), torch.eye(length)], dim=1)
    readers = length if slip == "text reads the image" else queries
    for block in range(blocks):
        crossed = block % every == (every - 1 if slip == "late" else 0)
        if crossed and slip == "image first":
            depends[:readers, :patches] = 1
        if slip != "one block" or not block:
            depends = mixed @ depends
        if crossed and slip != "image first":
            depends[:readers, :patches] = 1
    if slip == "one patch each":
        depends[:queries, :patches] *= torch.eye(queries, patches)
    return depends > 0


def reach_by_sets(mask, queries, patches, blocks, every):
    depends = [{patches + i} for i in range(len(mask))]
    for block in range(blocks):
        seen = mask.tolist()
        depends = [
            own.union(*(depends[j] for j, sees in enumerate(seen[i]) if sees))
            for i, own in enumerate(depends)
        ]
        if block % every == 0:
            for i in range(queries):
                depends[i] |= set(range(patches))
    columns = range(patches + len(mask))
    return torch.tensor([[j in own for j in columns] for own in depends])


@pytest.mark.parametrize("function", [reach, reach_by_sets])
def test_right_reach(function: Callable) -> None:
    accepts(exercises.check_reach, function)


@pytest.mark.parametrize(
    ("slip", "word"),
    [
        ("no diagonal", "keeps itself"),
        ("image first", "mixes first"),
        ("text reads the image", "not the text"),
        ("transposed", "leads from"),
        ("late", "blocks 0"),
        ("one block", "earlier block"),
        ("one patch each", "read the image"),
    ],
)
def test_wrong_reach(slip: str, word: str) -> None:
    refuses(exercises.check_reach, lambda *given: reach(*given, slip=slip), word)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        pytest.param(lambda *given: reach(*given).float(), "bool", id="floats"),
        pytest.param(lambda *given: reach(*given)[:, given[2] :], "shape", id="no image columns"),
        pytest.param(lambda *given: None, "return", id="no return"),
    ],
)
def test_wrong_kinds_of_reach(function: Callable, word: str) -> None:
    refuses(exercises.check_reach, function, word)


# Exercise 4


def text_block(block, text, keys, values):
    attention, length, cached = block.attention, len(text), len(keys)
    keys = torch.cat([keys, attention.k(text)])
    values = torch.cat([values, attention.v(text)])
    heads = [x.chunk(attention.heads, dim=1) for x in (attention.q(text), keys, values)]
    future = torch.ones(length, length).triu(1).bool()
    hidden = torch.cat([torch.zeros(length, cached).bool(), future], dim=1)
    outputs = []
    for q, k, v in zip(*heads, strict=True):
        scores = (q @ k.T / q.shape[1] ** 0.5).masked_fill(hidden, float("-inf"))
        outputs.append(scores.softmax(dim=1) @ v)
    text = block.attention_norm(text + attention.out(torch.cat(outputs, dim=1)))
    return block.mlp_norm(text + block.mlp(text))


def with_einsum(block, text, keys, values, **slips):
    heads, (length, width) = slips.get("heads", block.attention.heads), text.shape
    scale, mlp = slips.get("scale", (width // heads) ** 0.5), slips.get("mlp", "mlp")
    out, residual = slips.get("out", True), slips.get("residual", True)
    norm, first_norm = slips.get("norm", "mlp_norm"), slips.get("first_norm", True)
    cached, future = slips.get("cached", True), slips.get("future", False)
    shifted = slips.get("shifted", False)
    keys, values = (x if cached else x[:0] for x in (keys, values))
    keys = torch.cat((keys, block.attention.k(text))).view(-1, heads, width // heads)
    values = torch.cat((values, block.attention.v(text))).view(-1, heads, width // heads)
    asked = block.attention.q(text).view(length, heads, -1)
    scores = torch.einsum("thd,shd->hts", asked, keys) / scale
    offset = 0 if shifted else len(keys) - length
    if not future:
        places = torch.arange(len(keys))
        scores[:, places > torch.arange(length)[:, None] + offset] = -1e9
    mixed = torch.einsum("hts,shd->thd", scores.softmax(-1), values).reshape(length, width)
    mixed = block.attention.out(mixed) if out else mixed
    text = text + mixed if residual else mixed
    text = block.attention_norm(text) if first_norm else text
    return getattr(block, norm)(text + getattr(block, mlp)(text))


@pytest.mark.parametrize("function", [text_block, with_einsum])
def test_right_text_blocks(function: Callable) -> None:
    accepts(exercises.check_text_block, function)


@pytest.mark.parametrize(
    ("slip", "word"),
    [
        ({"cached": False}, "does not see the queries"),
        ({"future": True}, "comes after it"),
        ({"shifted": True}, "triangle"),
        ({"scale": 1}, "√d"),
        ({"scale": 12**0.5}, "width of a head"),
        ({"heads": 1}, "each head"),
        ({"mlp": "query_mlp"}, "MLP of the text"),
        ({"norm": "query_norm"}, "text's norm"),
        ({"out": False}, "layer out"),
        ({"residual": False}, "add the attention"),
        ({"first_norm": False}, "norm after the attention"),
    ],
    ids=str,
)
def test_wrong_text_blocks(slip: dict, word: str) -> None:
    refuses(exercises.check_text_block, lambda *given: with_einsum(*given, **slip), word)
