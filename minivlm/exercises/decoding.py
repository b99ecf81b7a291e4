"""00 · Checks of notebook 00's exercises: decoding with a cache, and what goes beyond the core."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minivlm.exercises.answers import compare_answers, expect_number, expect_tensor, near
from minivlm.exercises.language_model import expect_values, random_tensors
from minivlm.exercises.returned import expect_ids, expect_parts
from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.parts.generation import generate, top_p_filter

# Decoding with a cache


class CountingModel:
    """A small decoder that writes down what it reads in each call."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.decoder = Decoder(DecoderConfig(30, 16, 2, 4, 2, 24)).eval()
        for parameter in self.decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        self.read: list[int] = []
        self.given: list[Tensor] = []
        self.caches: list[Any] = []

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, *args: Any, **inputs: Any) -> Tensor:
        """Ids (B, T) -> logits (B, T, V), as of the decoder itself."""
        self.read.append(input_ids.shape[-1])
        self.given.append(input_ids.clone())
        self.caches.append(inputs.get("cache", args[1] if len(args) > 1 else None))
        return self.decoder(input_ids, *args, **inputs)

    def next_logits(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Ids (B, T) -> the logits of the last position (B, V)."""
        return self(input_ids, **inputs)[:, -1]


def check_greedy(my_greedy: Callable[[Any, Tensor, int], Tensor]) -> None:
    """The ids of the package, and the number of tokens that each call of the model reads."""
    for seed, (rows, length, count) in enumerate([(1, 4, 6), (2, 3, 5), (1, 1, 2), (1, 6, 1)]):
        model, case = CountingModel(), f"{rows} prompt(s) of {length}, {count} new"
        ids = torch.randint(30, (rows, length), generator=torch.Generator().manual_seed(seed))
        got = my_greedy(model, ids, count)
        whole = isinstance(got, Tensor) and got.shape[-1] == length + count
        assert not whole, f"{case}: return the new ids alone, without the prompt"
        check_calls(model, length, count, case)
        got = expect_ids(got, (rows, count), case)
        right = generate(model.decoder, ids, count)
        first = CountingModel()(ids)[:, 0].argmax(-1)
        took_first = length > 1 and torch.equal(got[:, 0], first)
        same = torch.equal(got, right)
        assert same or not took_first, (
            f"{case}: read the logits of the last position, not the first"
        )
        again = len(model.given) > 1 and torch.equal(model.given[1], ids[:, -1:])
        assert same or not again, (
            f"{case}: call 2 reads the prompt's last token again, but the cache holds it: "
            "choose the first new token from the logits of call 1"
        )
        assert same, f"{case}: {right.tolist()}, not {got.tolist()}: take the largest logit"


def check_calls(model: CountingModel, length: int, count: int, case: str) -> None:
    """The prompt once, then one token a call, all into one cache."""
    read, caches = model.read, model.caches
    assert read, f"{case}: the model is never called"
    assert caches[0] is not None, f"{case}: the first call has no cache: nothing is kept"
    assert read[0] == length, f"{case}: the first call reads the {length} tokens of the prompt"
    grown = len(read) > 1 and read[1] == length + 1
    assert not grown, f"{case}: call 2 reads {length + 1} tokens, but the cache holds {length}"
    other = next((i for i, n in enumerate(read[1:], 2) if n != 1), 0)
    assert not other, f"{case}: call {other} reads {read[other - 1]} tokens, not the newest alone"
    fresh = any(held is not caches[0] for held in caches)
    assert not fresh, f"{case}: one cache for all calls: a new one has forgotten the prompt"
    most = f"{case}: {len(read)} calls for {count} new tokens"
    assert len(read) <= count + 1, most


# Sampling


def check_nucleus(my_nucleus: Callable[[Tensor, float], Tensor]) -> None:
    """Probabilities that add up exactly, in no order."""
    probs = torch.tensor([1, 8, 3, 4]) / 16
    for top_p in (0.6, 0.5, 0.75, 0.05, 0.9, 1.0):
        case, given = f"probabilities {probs.tolist()}, top_p {top_p}", probs.clone()
        got = expect_tensor(my_nucleus(given, top_p), (4,), case)
        assert torch.equal(given, probs), f"{case}: the tensor that was given has changed"
        right = top_p_filter(probs[None], top_p)[0]
        expect_values(got, right, nucleus_mistakes(probs, top_p), case)
    (logits,) = random_tensors(0, (50,))
    probs = logits.softmax(0)
    got = expect_tensor(my_nucleus(probs, 0.7), (50,), "50 tokens")
    expect_values(got, top_p_filter(probs[None], 0.7)[0], {}, "50 tokens")


def nucleus_mistakes(probs: Tensor, top_p: float) -> dict[str, Tensor]:
    """What likely slips give."""
    ordered, index = probs.sort(descending=True)
    total, place = ordered.cumsum(0), index.argsort()

    def keep(kept: Tensor) -> Tensor:
        return torch.where(kept[place], probs, 0.0)

    def share(kept: Tensor) -> Tensor:
        return keep(kept) / keep(kept).sum().clamp(min=1e-9)

    right = total - ordered < top_p
    rising = probs.sort().values.cumsum(0)[probs.argsort().argsort()]
    least = torch.where(rising <= top_p, probs, 0.0)
    above = torch.where(probs >= top_p, probs, 0.0)
    mistakes = {
        "the token that reaches top_p is in the nucleus": share(total <= top_p),
        "the token that reaches top_p is in the nucleus (this one stops before it)": (
            share(total < top_p)
        ),
        "the nucleus is the smallest set that reaches top_p: it has one token too many": (
            share(total - ordered <= top_p)
        ),
        "divide by the sum, so that what is left sums to 1": keep(right),
        "give every probability its own place back: this is sorted": (
            torch.where(right, ordered, 0.0) / ordered[right].sum()
        ),
        "sort's indices say where each value came from: scatter the values, do not gather": (
            (torch.where(right, ordered, 0.0) / ordered[right].sum())[index]
        ),
        "begin with the likeliest token": least / least.sum().clamp(min=1e-9),
        "top_p bounds the sum of the likeliest, not each probability": (
            above / above.sum().clamp(min=1e-9)
        ),
        "a second softmax changes the ratios: divide by the sum": (
            torch.where(right[place], probs, -torch.inf).softmax(0)
        ),
        "nothing has been cut": probs,
    }
    true = share(right)
    return {name: wrong for name, wrong in mistakes.items() if not near(wrong, true)}


# Exercise 1

SIZES = {
    "multi-head": DecoderConfig(50, 12, 2, 4, 4, 20),
    "grouped": DecoderConfig(50, 12, 3, 6, 2, 20),
    "tied": DecoderConfig(50, 12, 2, 3, 1, 40, tied=True),
    "own head width": DecoderConfig(50, 12, 2, 2, 1, 20, head_dim=10),
    "Qwen2-1.5B": DecoderConfig(
        151_936, 1536, 28, 12, 2, 8960, attention_bias=True, out_bias=False, tied=True
    ),
}


@cache
def decoder_parameters(config: DecoderConfig) -> int:
    """Of a model without weights."""
    with torch.device("meta"):
        return sum(p.numel() for p in Decoder(config).parameters())


SIZE_MISTAKES: dict[str, Callable[[DecoderConfig], int]] = {  # what a slip counts
    "keys and values have kv_heads heads only": (
        lambda c: decoder_parameters(replace(c, kv_heads=c.heads))
    ),
    "a tied output layer is the embedding table: count it once": (
        lambda c: decoder_parameters(replace(c, tied=False))
    ),
    "an output layer that is not tied has a table of its own": (
        lambda c: decoder_parameters(replace(c, tied=True))
    ),
    "SwiGLU has three matrices": (lambda c: decoder_parameters(c) - c.layers * c.width * c.hidden),
    "each block has two norms": lambda c: decoder_parameters(c) - c.layers * c.width,
    "the last norm is missing": lambda c: decoder_parameters(c) - c.width,
    "all norms are missing": lambda c: decoder_parameters(c) - (2 * c.layers + 1) * c.width,
    "RMSNorm has no bias": lambda c: decoder_parameters(c) + (2 * c.layers + 1) * c.width,
    "q, k and v have biases in Qwen2": (
        lambda c: decoder_parameters(replace(c, attention_bias=False))
    ),
    "out_bias is False: attention's output has no bias in Qwen2": (
        lambda c: decoder_parameters(replace(c, out_bias=None))
    ),
    "a head may have its own width: head_dim": (
        lambda c: decoder_parameters(replace(c, head_dim=None))
    ),
    "attention has an output matrix": (
        lambda c: decoder_parameters(c) - c.layers * c.width * c.heads * c.rotary_dim
    ),
    "the embedding table is missing": (lambda c: decoder_parameters(c) - c.vocab_size * c.width),
    "only one block is counted": lambda c: decoder_parameters(replace(c, layers=1)),
}


def check_decoder_parameters(count: Callable[[DecoderConfig], int]) -> None:
    """Against real models, in which no two sizes are equal."""
    right = [decoder_parameters(c) for c in SIZES.values()]
    got = [expect_number(count(c), name) for name, c in SIZES.items()]
    mistakes: dict[str, Iterable] = {
        name: [wrong(c) for c in SIZES.values()] for name, wrong in SIZE_MISTAKES.items()
    }
    compare_answers(list(SIZES), right, got, mistakes)


# Exercise 2


def check_left_padded(my_left_pad: Callable[[list[list[int]], int], Any]) -> None:
    """Rows of unequal length, one row, and a real token that has the padding's id."""
    cases = [([[5, 6, 7], [8]], 0), ([[1, 2]], 9), ([[4, 0, 3, 2], [0, 7], [6, 5, 0]], 0)]
    for rows, pad in cases:
        case, given = f"rows {rows}, padding id {pad}", [list(row) for row in rows]
        ids, mask = expect_parts(my_left_pad(given, pad), ("ids", "mask"), case)
        assert given == rows, f"{case}: the rows that were given have changed"
        longest = max(map(len, rows))
        ids = expect_ids(ids, (len(rows), longest), f"{case}, ids")
        mask = expect_tensor(mask, (len(rows), longest), f"{case}, mask").long()
        holes = [longest - len(row) for row in rows]
        left = torch.tensor([[pad] * n + row for n, row in zip(holes, rows, strict=True)])
        right = torch.tensor([row + [pad] * n for n, row in zip(holes, rows, strict=True)])
        on_right = torch.equal(ids, right) and not torch.equal(left, right)
        assert not on_right, f"{case}: the padding is on the right: the next token follows a pad"
        assert torch.equal(ids, left), f"{case}: ids {left.tolist()}, not {ids.tolist()}"
        real = torch.tensor([[0] * n + [1] * (longest - n) for n in holes])
        swapped = torch.equal(mask, 1 - real) and not torch.equal(mask, real)
        assert not swapped, f"{case}: the mask is 1 at tokens and 0 at padding, not the reverse"
        by_id = torch.equal(mask, (left != pad).long()) and not torch.equal(mask, real)
        assert not by_id, f"{case}: a real token may have the padding's id: use the lengths"
        assert torch.equal(mask, real), f"{case}: mask {real.tolist()}, not {mask.tolist()}"


# Exercise 3


def check_orthogonal_update(my_orthogonal: Callable[[Tensor], Tensor]) -> None:
    """Tall, wide and square matrices, against the singular vectors."""
    for seed, shape in enumerate([(5, 3), (2, 6), (4, 4)]):
        (matrix,), case = random_tensors(seed, shape), f"a matrix {shape}"
        got = expect_tensor(my_orthogonal(matrix.clone()), shape, case)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        q = torch.linalg.qr(matrix if shape[0] >= shape[1] else matrix.T).Q
        mistakes = {
            "this divides by the norm: the singular values are still unequal": (
                matrix / matrix.norm()
            ),
            "this divides by the largest singular value: the others must become 1, too": (
                matrix / s[0]
            ),
            "QR gives an orthogonal matrix, but not the nearest one: use the SVD": (
                q if shape[0] >= shape[1] else q.T
            ),
            "torch returns V already transposed: U @ Vh": u @ vh.T if shape[0] >= shape[1] else u,
            "these are the signs of the entries": matrix.sign(),
            "the singular values are still there: leave them out": matrix,
            "divide by the singular values once, not twice": u / s @ vh,
        }
        expect_values(got, u @ vh, mistakes, case)
