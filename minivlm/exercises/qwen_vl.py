"""09 · Checks of notebook 09's exercises: each takes a reader's function, says what is wrong."""

from collections.abc import Callable, Iterator
from itertools import permutations

import torch
from torch import Tensor, nn

from minivlm.boxes import boxes_of, from_thousandths, read_regions
from minivlm.clip import VisionConfig
from minivlm.exercises.answers import (
    compare_answers,
    expect_items,
    expect_number,
    expect_tensor,
    named_kind,
    near,
)
from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.qwen_vl import ImageTower, QwenVL, Resampler


def check_adapter_parameters(adapter_parameters: Callable) -> None:
    """Exercise 1: against small resamplers, then the published one."""
    cases, right, got = [], [], []
    mistakes: dict[str, list[int]] = {}
    for memory, width, side in ((6, 8, 3), (12, 12, 2), (20, 16, 1), (16, 20, 5)):
        cases.append(f"{memory} -> {width}, {side**2} queries")
        got.append(expect_number(adapter_parameters(memory, width, side**2), cases[-1]))
        size = sum(p.numel() for p in Resampler(memory, width, 2, side).parameters())
        right.append(size + 2 * width + width**2)
        for what, more in _adapter_slips(memory, width, side**2).items():
            mistakes.setdefault(what, []).append(right[-1] + more)
    compare_answers(cases, right, got, mistakes)
    full = adapter_parameters(1664, 4096, 256)
    compare_answers(["at full size"], [91_791_360], [full], {})


def _adapter_slips(memory: int, width: int, queries: int) -> dict[str, int]:
    """How many parameters too many (or too few) one counts who makes a mistake."""
    enter, same = memory * width, memory == width
    return {
        "the table of positions is not trained": queries * width,
        "the queries are parameters too": -queries * width,
        "norm and projection after the resampler are missing": -(width**2) - 2 * width,
        "three norms: of the queries, of the patches, after the resampler": -2 * width,
        "the projection after the norm is missing": -(width**2),
        "q, k, v and out have a bias": -4 * width,
        "the last projection has no bias": width,
        "no kv_proj where the widths are equal": enter * same,
        "kv_proj is missing where the widths are not equal": -enter * (not same),
        "kv_proj has no bias": width * (not same),
        "a LayerNorm has two vectors": -3 * width,
        "the norm of the patches comes after kv_proj, in the new width": 2 * (memory - width),
        "k and v read what kv_proj made: width by width": 2 * (enter - width**2),
        "k and v come after kv_proj, and not in its place": 2 * (enter - width**2)
        - enter * (not same),
    }


# Answers of a model, and whether they can be read; what they hold says the package
ANSWERS = {
    "one box": "<box>(106,210),(317,424)</box>",
    "a whole image": "<box>(0,0),(999,999)</box>",
    "two boxes of one name": "<ref>two stars</ref><box>(0,1),(2,3)</box><box>(4,5),(6,7)</box>",
    "a sentence": "<ref>a star</ref><box>(1,2),(30,40)</box> above "
    "<ref>a cross</ref><box>(9,8),(10,80)</box>",
    "a name without a box": "<ref>a star</ref> is not here",
    "no box": "there is no star, 3 < 4",
    "nothing": "",
    "a number over 999": "<box>(1,2),(3,1000)</box>",
    "left and right have changed places": "<box>(30,2),(3,40)</box>",
    "top and bottom have changed places": "<box>(3,40),(30,2)</box>",
    "three numbers": "<box>(1,2),(3)</box>",
    "six numbers": "<box>(1,2),(3,4),(5,6)</box>",
    "words in a box": "<box>(1,2),(3,4) or so</box>",
    "a fraction": "<box>(1.5,2),(3,4)</box>",
    "a number below 0": "<box>(-1,2),(3,4)</box>",
    "a good box, then a bad one": "<box>(1,2),(3,4)</box><box>(1,2),(3,1000)</box>",
    "a box that is not closed": "<box>(1,2),(3,4)",
    "a good box and one that is not closed": "<box>(1,2),(3,4)</box><box>(1,2),(3,4)",
    "an end without a beginning": "(1,2),(3,4)</box>",
    "a name that is not closed": "<ref>a star",
    "a name that is not closed, then a box": "<ref>a star <box>(1,2),(3,4)</box>",
    "the end of a name without its beginning": "a star</ref><box>(1,2),(3,4)</box>",
    "a box in a name": "<ref>a star<box>(1,2),(3,4)</box></ref>",
    "a name in a box": "<box><ref>a star</ref>(1,2),(3,4)</box>",
    "a name in a name": "<ref>a <ref>red</ref> star</ref>",
    "a box in a box": "<box><box>(1,2),(3,4)</box></box>",
    "a name that ends in a box": "<ref>a star<box>(1,2),(3,4)</ref></box>",
}


def check_boxes_in_pixels(boxes_in_pixels: Callable) -> None:
    """Exercise 2: against read_regions, on answers that are in order and on broken ones."""
    for case, answer in ANSWERS.items():
        for size in ((100, 50), (48, 80)):
            what = f"{case} ({answer!r}), image of {size[0]} x {size[1]}"
            got = boxes_in_pixels(answer, size)
            try:
                read_regions(answer)
            except ValueError:
                assert got is None, f"{what}: None, not {got}"
                continue
            right = [from_thousandths(box, size) for box in boxes_of(answer)]
            assert got is not None, f"{what}: {right}, not None (or nothing)"
            got = expect_items(got, what)
            assert len(got) == len(right), f"{what}: {len(right)} boxes, not {len(got)}"
            for expected, box in zip(right, got, strict=True):
                _check_box(expect_items(box, what, 4), expected, size, what)


def _check_box(got: list, right: tuple, size: tuple[int, int], what: str) -> None:
    """One box in pixels, and what was done instead."""
    got = [expect_number(edge, what) for edge in got]
    same = lambda a: all(abs(x - y) < 1e-4 for x, y in zip(a, right, strict=True))
    x1, y1, x2, y2 = got
    across, down = size[0] / size[1], size[1] / size[0]
    sides = (*size, *size)
    hints = {
        "999 is the far edge, not 1,000": [edge * 1000 / 999 for edge in got],
        "size is (width, height): width first": [x1 * across, y1 * down, x2 * across, y2 * down],
        "these are shares of the image, not pixels": [
            edge * side for edge, side in zip(got, sides, strict=True)
        ],
        "these are thousandths, not pixels": [
            edge * side / 999 for edge, side in zip(got, sides, strict=True)
        ],
        "a box is x1, y1, x2, y2": [y1, x1, y2, x2],
        "left upper corner, then right lower: no width and height": [x1, y1, x1 + x2, y1 + y2],
    }
    rounded = all(
        float(a).is_integer() and abs(a - b) <= 1 for a, b in zip(got, right, strict=True)
    )
    hint = next((name for name, edges in hints.items() if same(edges)), "")
    hint = hint or ("do not round" if rounded else "")
    texts = [", ".join(f"{edge:.2f}" for edge in box) for box in (right, got)]
    said = f"{what}: ({texts[0]}), not ({texts[1]})"
    assert same(got), f"{said} ({hint})" if hint else said


LENGTHS = (  # of the examples, and of a row
    ([3, 2, 4], 6),
    ([4, 4, 2], 6),  # the first row has place for the last, which comes later
    ([3, 3, 2], 6),  # a row that is full
    ([5], 5),
    ([2, 2, 2, 2], 5),
    ([4, 4, 1], 4),
    ([1, 6, 1, 1], 8),
)


def check_pack_lengths(pack_lengths: Callable) -> None:
    """Exercise 3: rows that are full, rows that are not, and one that has place for a later one."""
    for lengths, length in LENGTHS:
        rows, case = _in_order(lengths, length), f"lengths {lengths}, rows of {length}"
        segment = torch.tensor(rows)
        places = [[row[:t].count(i) * (i >= 0) for t, i in enumerate(row)] for row in rows]
        got = expect_items(pack_lengths(list(lengths), length), case, 3)
        numbers = got[0].tolist() if isinstance(got[0], Tensor) else None
        first_fit = numbers == _first_fit(lengths, length) != rows
        assert not first_fit, f"{case}: in their order; no example goes back to an earlier row"
        ids = expect_tensor(got[0], segment.shape, f"{case}, segment ids")
        shape, is_right = (*segment.shape, length), ids.tolist() == rows
        few = "count the examples through all rows: " if ids.max() < segment.max() else ""
        assert is_right, f"{case}: {few}segment ids {rows}, not {ids.tolist()}"
        at = expect_tensor(got[1], segment.shape, f"{case}, positions").tolist()
        assert at == places, f"{case}: positions {places}, not {at}"
        mask = expect_tensor(got[2], shape, f"{case}, mask")
        assert mask.dtype == torch.bool, f"{case}: the mask is bool, not {mask.dtype}"
        _check_packed_mask(mask, segment, case)


def _in_order(lengths: list[int], length: int) -> list[list[int]]:
    """The number of the example of every token, row by row."""
    rows: list[list[int]] = []
    for number, count in enumerate(lengths):
        if not rows or len(rows[-1]) + count > length:
            rows.append([])
        rows[-1] += [number] * count
    return [row + [-1] * (length - len(row)) for row in rows]


def _first_fit(lengths: list[int], length: int) -> list[list[int]]:
    """The same where an example goes to the first row that has place for it."""
    rows: list[list[int]] = []
    for number, count in enumerate(lengths):
        row = next((row for row in rows if len(row) + count <= length), None)
        if row is None:
            rows.append(row := [])
        row += [number] * count
    return [row + [-1] * (length - len(row)) for row in rows]


def _check_packed_mask(mask: Tensor, segment: Tensor, case: str) -> None:
    """Who sees whom in every row."""
    for r, t, s in torch.cartesian_prod(*map(torch.arange, mask.shape)).tolist():
        mine, theirs = segment[r, t].item(), segment[r, s].item()
        owner = f"of example {mine}" if mine >= 0 else "of the padding"
        sees, what = mask[r, t, s].item(), f"{case}, row {r}: token {t} {owner}"
        other = f"example {theirs}" if theirs >= 0 else "the padding"
        assert not sees or s <= t, f"{what} sees token {s}, which comes later"
        assert not sees or mine == theirs, f"{what} sees token {s} of {other}"
        assert sees or s > t or mine != theirs, f"{what} does not see token {s} of {other}"


SOURCES = {  # released name -> ours; q, k, v and proj are taken apart below
    "attn_pool.query": "resampler.queries",
    "attn_pool.pos_embed": "resampler.positions",
    "attn_pool.kv_proj.weight": "resampler.kv_proj.weight",
    "attn_pool.attn.out_proj.weight": "resampler.attention.out.weight",
    "attn_pool.attn.out_proj.bias": "resampler.attention.out.bias",
    "attn_pool.ln_q.weight": "resampler.ln_q.weight",
    "attn_pool.ln_q.bias": "resampler.ln_q.bias",
    "attn_pool.ln_kv.weight": "resampler.ln_kv.weight",
    "attn_pool.ln_kv.bias": "resampler.ln_kv.bias",
    "ln_post.weight": "norm.weight",
    "ln_post.bias": "norm.bias",
}


@torch.no_grad()
def check_to_released(to_released: Callable) -> None:
    """Exercise 4: torch's own layers, with the reader's tensors, give the same vectors."""
    generator = torch.Generator().manual_seed(0)
    for memory, heads, side in ((12, 2, 2), (16, 4, 3)):
        model = small_qwen_vl(memory, heads, side, generator)
        theirs = ReleasedAdapter(memory, 16, heads, side**2)
        wanted, case = theirs.state_dict(), f"memory {memory}, {heads} heads"
        got = to_released(model)
        assert isinstance(got, dict), f"{case}: give a dict, not {named_kind(got)}"
        missing, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
        assert not missing, f"{case}: missing {missing}"
        assert not extra, f"{case}: not in the released model: {extra}"
        for name, tensor in wanted.items():
            expect_tensor(got[name], tensor.shape, f"{case}, {name}")
        theirs.load_state_dict(got)
        states = torch.randn(2, side**2, memory, generator=generator)
        right = model.projection(model.norm(model.resampler(states)))
        off, hints = (theirs(states) - right).abs().max(), list(_misnamed(model, got))
        hint = hints[0] if hints else "is each tensor in its place?"
        assert off < 1e-4, f"{case}: {hint} (vectors are off by up to {off:.2f})"


def _misnamed(model: QwenVL, got: dict[str, Tensor]) -> Iterator[str]:
    """What is wrong with a reader's tensors, for a hint."""
    ours = dict(model.named_parameters()) | dict(model.named_buffers())
    if near(got["proj"], model.projection.weight):
        yield "proj is used as x @ proj, a Linear as x @ weight.T"
    parts = {name: getattr(model.resampler.attention, name) for name in "qkv"}
    for kind in ("weight", "bias"):
        given, stacked = got[f"attn_pool.attn.in_proj_{kind}"], {}
        for order in permutations("qkv"):
            stacked["".join(order)] = torch.cat([getattr(parts[name], kind) for name in order])
        found = [order for order, tensor in stacked.items() if near(tensor, given)]
        if "qkv" not in found:
            said = f" one after another, not {' '.join(found[0])}" if found else ", each whole"
            yield f"in_proj_{kind} is q, k, v{said}"
    for name, source in SOURCES.items():
        if name in got and not near(got[name], ours[source]):
            same = [o for o, t in ours.items() if t.shape == got[name].shape and near(t, got[name])]
            yield f"{name} is not our {source}" + (f", but {same[0]}" if same else "")


def small_qwen_vl(memory: int, heads: int, side: int, generator: torch.Generator) -> QwenVL:
    """A Qwen-VL, 16 wide, in which no tensor equals another."""
    tower = ImageTower(VisionConfig(16, 8, width=memory, layers=1, heads=2, hidden=8))
    words = Decoder(DecoderConfig(10, width=16, layers=1, heads=2, kv_heads=2, hidden=8))
    model = QwenVL(tower, words, token=9, heads=heads, side=side)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model


class ReleasedAdapter(nn.Module):
    """visual.py after its image tower, of torch's own layers; as many keys as queries."""

    def __init__(self, memory: int, width: int, heads: int, queries: int):
        super().__init__()
        pool = self.attn_pool = nn.Module()
        pool.query = nn.Parameter(torch.zeros(queries, width))
        pool.pos_embed = nn.Parameter(torch.zeros(queries, width))
        same = memory == width
        pool.kv_proj = nn.Identity() if same else nn.Linear(memory, width, bias=False)
        pool.attn = nn.MultiheadAttention(width, heads)
        pool.ln_q, pool.ln_kv, self.ln_post = (nn.LayerNorm(width, 1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.zeros(width, width))

    def forward(self, states: Tensor) -> Tensor:
        """Patch states (B, N, memory) -> (B, N, width)."""
        pool = self.attn_pool
        x, place = pool.ln_kv(pool.kv_proj(states)).transpose(0, 1), pool.pos_embed[:, None]
        q = pool.ln_q(pool.query)[:, None].repeat(1, len(states), 1)
        out = pool.attn(q + place, x + place, x)[0].transpose(0, 1)
        return self.ln_post(out) @ self.proj
