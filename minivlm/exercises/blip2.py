"""07 · Checks of notebook 07's exercises: each takes a reader's function, says what is wrong."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from minivlm.blip2 import QFormer, QFormerConfig
from minivlm.exercises.answers import compare_answers, expect_number, expect_tensor, near
from minivlm.parts.masks import bidirectional, causal, multimodal_causal, unimodal
from minivlm.plotting import effective_mask


def check_stage_two_parameters(stage_two_parameters: Callable) -> None:
    """Exercise 1: against the parameters of small Q-Formers, then the published one."""
    names = ("width", "layers", "hidden", "memory", "queries", "every")
    shapes = ((4, 1, 6, 5, 3, 1), (6, 5, 7, 9, 4, 2), (8, 4, 10, 11, 5, 3), (10, 7, 3, 12, 2, 4))
    cases, right, got = [], [], []
    mistakes: dict[str, list[int]] = {}
    for sizes in shapes:
        named: dict[str, Any] = dict(zip(names, sizes, strict=True))
        c = QFormerConfig(13, 6, heads=1, **named)
        cases.append(", ".join(f"{name} {size}" for name, size in named.items()))
        got.append(expect_number(stage_two_parameters(c, 17), cases[-1]))
        expected, wrong = _counts(c, 17)
        right.append(expected)
        for what, answer in wrong.items():
            mistakes.setdefault(what, []).append(answer)
    compare_answers(cases, right, got, mistakes)
    published = QFormerConfig(30523, 512, width=768, layers=12, heads=12, hidden=3072, memory=1408)
    got = stage_two_parameters(published, 2560)
    compare_answers(["as published, for OPT-2.7B"], [107_130_880], [got], {})


def _counts(c: QFormerConfig, out: int) -> tuple[int, dict[str, int]]:
    """The parameters of stage 2, and what one counts who makes a mistake."""
    net = QFormer(c)
    whole = _size(net)
    net.drop_text(mlps=False)
    mlps = sum(_size(block.mlp) + _size(block.mlp_norm) for block in net.blocks)
    words = whole - _size(net)
    net.drop_text()
    crossed = [block for block in net.blocks if block.cross]
    cross, inside = _size(crossed[0].cross) + 2 * c.width, dict(net.blocks.named_parameters())
    biases = sum(p.numel() for name, p in inside.items() if name.endswith("bias"))
    norms = sum(p.numel() for name, p in inside.items() if "norm" in name)
    norm_biases = norms // 2
    right = _size(net) + out * c.width + out
    return right, {
        "the Linear to the language model is missing": right - out * c.width - out,
        "the Linear to the language model has a bias": right - out,
        "the queries are parameters too": right - c.queries * c.width,
        "a norm, shared, comes before the first block": right - 2 * c.width,
        "a LayerNorm after every part of a block": right - norms,
        "all Linear layers have a bias": right - (biases - norm_biases) - out,
        "a LayerNorm has two vectors": right - norm_biases - c.width,
        "stage 2 has no text MLPs": right + mlps,
        "stage 2 has no words": right + words,
        "the norm of the image encoder is not counted": right + 2 * c.memory,
        "not every layer has cross-attention": right + (c.layers - len(crossed)) * cross,
        "layer 0 has cross-attention, then every so many: round up": (
            right + (c.layers // c.every - len(crossed)) * cross
        ),
        "keys and values of the cross-attention come from the memory's width": (
            right + len(crossed) * 2 * c.width * (c.width - c.memory)
        ),
    }


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def check_itg_mask(itg_mask: Callable) -> None:
    """Exercise 2: padding on either side, and another in each row of a batch."""
    cases = (4, [[1, 1, 1], [1, 1, 0]]), (3, [[1, 0, 0, 0, 0]])
    for queries, rows in (*cases, (1, [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])):
        seen = torch.tensor(rows)
        batch, length = seen.shape
        case, size = f"{queries} queries, texts {rows}", queries + length
        got = expect_tensor(itg_mask(queries, seen.clone()), (batch, 1, size, size), case)
        assert got.dtype == torch.bool, f"{case}: bool, not {got.dtype}"
        got = got[:, 0]
        assert not got[:, :queries, queries:].any(), f"{case}: a query sees text (section 5.4)"
        assert got[:, :queries, :queries].all(), f"{case}: queries see later queries too"
        for b, row in enumerate(rows):
            _check_text_rows(got[b, queries:], row, queries, f"{case}, row {b}")
        assert got.any(dim=2).all(), f"{case}: an empty row makes a softmax of nothing"


def _check_text_rows(got: Tensor, row: list[int], queries: int, case: str) -> None:
    """Of one sequence the rows of its text, (T, Q + T); rows of padding may be anything."""
    for i in (i for i, token in enumerate(row) if token):
        assert got[i, :queries].all(), f"{case}: text {i} sees all queries"
        for j, real in enumerate(row):
            sees = bool(got[i, queries + j])
            assert not sees or j <= i, f"{case}: text {i} sees text {j}, which comes later"
            assert not sees or real, f"{case}: text {i} sees padding at {j}"
            assert sees or j > i or not real, f"{case}: text {i} does not see text {j}"


def check_reach(reach: Callable) -> None:
    """Exercise 3: against gradients through real blocks; some masks leave the diagonal out."""
    queries, patches, length = 2, 4, 5
    kinds = {"unimodal": unimodal(2, 3), "multimodal causal": multimodal_causal(2, 3)}
    kinds["bidirectional"] = bidirectional(5)
    kinds["itself and the one before"] = torch.ones(5, 5).tril().triu(-1).bool()
    kinds["the one before alone"] = torch.ones(5, 5).tril(-1).triu(-1).bool()
    kinds["the two after it alone"] = torch.ones(5, 5).triu(1).tril(2).bool()
    for every in (1, 2, 3):
        for name, mask in kinds.items():
            for blocks in range(5):
                case = f"mask {name}, {blocks} blocks, cross-attention every {every}"
                got = reach(mask.clone(), queries, patches, blocks, every)
                got = expect_tensor(got, (length, patches + length), case)
                assert got.dtype == torch.bool, f"{case}: bool, not {got.dtype}"
                right = _reached(mask, blocks, every)
                for i, j in (got != right).nonzero().tolist():
                    what = _link(i, j, queries, patches, bool(got[i, j]))
                    raise AssertionError(f"{case}: [{i}, {j}] is {right[i, j].item()}; {what}")


def _reached(mask: Tensor, blocks: int, every: int) -> Tensor:
    """What the outputs of real blocks depend on, by gradient: 2 queries, 4 patches, 3 of text."""
    shape: dict[str, Any] = {
        "width": 8,
        "layers": 5,
        "heads": 2,
        "hidden": 8,
        "memory": 8,
        "queries": 2,
    }
    net = QFormer(QFormerConfig(10, 8, every=every, **shape))
    seeded = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded))

    def run(both: Tensor) -> Tensor:
        x = both[:, 4:]
        for block in net.blocks[:blocks]:
            x = block(x, mask, both[:, :4])
        return x

    return effective_mask(run, torch.randn(1, 9, 8, generator=seeded))


def _link(i: int, j: int, queries: int, patches: int, drawn: bool) -> str:
    """Why output i does (not) depend on input j, where a reader's answer says the other."""
    if j == patches + i:
        return "every position keeps itself, whatever the mask says"
    if j >= patches and drawn:
        return f"nothing leads from position {j - patches} to {i} in so few blocks"
    if j >= patches:
        return f"position {i} sees others, which saw position {j - patches} in an earlier block"
    if not drawn and i < queries:
        return "the queries read the image in the blocks 0, every, 2 every and so on"
    if not drawn:
        return "it sees queries, and they have read the image in an earlier block"
    return "a block mixes first; only then do the queries (and not the text) read the image"


@torch.no_grad()
def check_text_block(text_block: Callable) -> None:
    """Exercise 4: a block with cross-attention, and one without."""
    seeded = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=seeded)
    shape: dict[str, Any] = {
        "width": 12,
        "layers": 2,
        "heads": 3,
        "hidden": 16,
        "memory": 8,
        "queries": 5,
    }
    net = QFormer(QFormerConfig(10, 8, **shape))
    for parameter in net.parameters():
        parameter.copy_(0.4 * draw(*parameter.shape))
    for i, block in enumerate(net.blocks):
        x, image, case = draw(1, 5 + 4, 12), draw(1, 7, 8), f"block {i}"
        keys, values = (layer(x[0, :5]) for layer in (block.attention.k, block.attention.v))
        got = text_block(block, x[0, 5:].clone(), keys.clone(), values.clone())
        got = expect_tensor(got, (4, 12), case)
        right = block(x, multimodal_causal(5, 4), image)[0, 5:]
        hints = "the norm after each sum? the text's MLP? each head alone?"
        for what, value in _slips(block, x):
            if near(got, value):
                hints = what
        off = (got - right).abs().max()
        assert near(got, right), f"{case}: {hints} (off by up to {off:.3f})"


def _slips(block: nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What a block gives for the text (4 after 5 queries) where one thing is forgotten."""
    right, shifted = multimodal_causal(5, 4), multimodal_causal(5, 4)
    shifted[5:] = torch.cat([causal(4), torch.zeros(4, 5).bool()], dim=1)
    masks = {"text sees text that comes after it": bidirectional(9)}
    masks["text does not see the queries"] = causal(9) & unimodal(5, 4)
    masks["the triangle covers the text's columns, after those of the queries"] = shifted
    for what, mask in masks.items():
        yield what, block(x, mask)[0, 5:]
    for what, path, part in _replacements(block):
        slip = deepcopy(block)
        owner, _, name = path.rpartition(".")
        setattr(slip.get_submodule(owner), name, part)
        yield what, slip(x, right)[0, 5:]


def _replacements(block: nn.Module) -> list[tuple[str, str, Any]]:
    """What to say, a part of a block, and what plays its part where that thing is forgotten."""
    undivided, per_width = deepcopy(block.attention.q), deepcopy(block.attention.q)
    for layer, scale in ((undivided, 4**0.5), (per_width, 3**-0.5)):  # 3 heads of 4 numbers
        for parameter in layer.parameters():
            parameter.mul_(scale)
    return [
        ("divide the scores by √d", "attention.q", undivided),
        ("d is the width of a head", "attention.q", per_width),
        ("each head attends alone", "attention.heads", 1),
        ("the attention ends with its layer out", "attention.out", nn.Identity()),
        ("add the attention to the text", "attention", _NotAdded(block.attention)),
        ("the norm after the attention is missing", "attention_norm", nn.Identity()),
        ("the MLP of the text, not of the queries", "mlp", block.query_mlp),
        ("add the MLP to the text", "mlp", _NotAdded(block.mlp)),
        ("the text's norm, mlp_norm, not the queries'", "mlp_norm", block.query_norm),
        ("the norm after the MLP is missing", "mlp_norm", nn.Identity()),
    ]


class _NotAdded(nn.Module):
    """A part whose input is taken from its output, so that adding them gives the output alone."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """As the part."""
        return self.part(x, *others, **named) - x
