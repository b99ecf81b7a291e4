"""Decoding: turn logits into tokens, one at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.parts.decoder import KVCache
from minivlm.parts.masks import padding


def top_p_filter(probs: Tensor, top_p: float) -> Tensor:
    """Keep the nucleus: the smallest set of most likely tokens whose probability reaches top_p.

    probs (B, V), rows sum to 1 -> (B, V), rows sum to 1, zero outside the nucleus. Holtzman et al.
    2020, section 3.1.
    """
    ordered, index = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # the mass of the tokens ranked above
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    kept = torch.zeros_like(probs).scatter(-1, index, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


def pick(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """Logits (B, V) -> ids (B,): the largest at temperature 0, else a draw from the nucleus."""
    broken = (~logits.amax(dim=-1).isfinite()).nonzero()
    if len(broken):
        raise ValueError(f"the logits of row {broken[0].item()} hold NaN or infinity")
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs = top_p_filter((logits.float() / temperature).softmax(dim=-1), top_p)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


def left_align_padding(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of every row to its left: the next token follows the last real one."""
    order = attention_mask.argsort(dim=1, stable=True)  # zeros first, tokens in their order
    return input_ids.gather(1, order), attention_mask.gather(1, order)


# One documented entry to decoding: its options are separate keywords, not an object of options.
@torch.no_grad()
def generate(  # noqa: PLR0913
    model: Callable[..., Tensor],
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 0,
    top_p: float = 1,
    eos_id: int | Sequence[int] | None = None,
    *,
    attention_mask: Tensor | None = None,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
    **inputs: Tensor,
) -> Tensor:
    """Continue the prompts input_ids (B, T); returns the new ids (B, T'), T' <= max_new_tokens.

    temperature 0 is greedy. A row that has said ``eos_id``, or one of several, is filled with it,
    or with the first of them; all done ends the loop. Prompts of different lengths are padded on
    either side and carry an attention_mask (B, T).
    ``inputs`` (an image, say) go to the model with the prompt. ``use_cache=False`` computes
    everything anew at each step: same ids.
    """
    check_sampling(temperature, top_p, max_new_tokens)
    ids, mask = check_prompts(input_ids, attention_mask)
    new_cache = getattr(model, "new_cache", KVCache)  # a model may bring its own kind
    # What it said is read apart from the prompt, wherever a placeholder in it is text.
    apart = use_cache or hasattr(model, "new_cache")
    ends = torch.tensor([] if eos_id is None else eos_id, dtype=ids.dtype, device=ids.device)
    ends, length = ends.view(-1), ids.shape[1]
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    said: list[Tensor] = []
    while len(said) < max_new_tokens and not done.all():
        if not (said and use_cache):
            cache, n = (new_cache(), length) if apart else (None, ids.shape[1])
            seen = None if mask is None else mask[:, :n]
            logits = next_logits(model, ids[:, :n], attention_mask=seen, cache=cache, **inputs)
        if said and apart:
            own = ids[:, -1:] if use_cache else ids[:, length:]
            logits = next_logits(model, own, attention_mask=mask, cache=cache)
        new = pick(logits, temperature, top_p, generator)
        if len(ends):
            new = torch.where(done, ends[0], new)
            done |= torch.isin(new, ends)
        said.append(new)
        ids = torch.cat([ids, new[:, None]], dim=1)
        if mask is not None:
            mask = F.pad(mask, (0, 1), value=1)
    return torch.stack(said, dim=1)


def next_logits(model: Callable[..., Tensor], ids: Tensor, **inputs: Any) -> Tensor:
    """The logits (B, V) of what follows the ids (B, T).

    A model with a method of this name computes those of the last position alone: with 150,000
    tokens in the vocabulary, the others cost as much as the prompt.
    """
    if hasattr(model, "next_logits"):
        return model.next_logits(ids, **inputs)
    return model(ids, **inputs)[:, -1]


def check_sampling(temperature: float, top_p: float, max_new_tokens: int) -> None:
    """ValueError unless temperature >= 0, 0 < top_p <= 1 and max_new_tokens >= 1."""
    if not temperature >= 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        raise ValueError(
            "need temperature >= 0, 0 < top_p <= 1, max_new_tokens >= 1; "
            f"got {temperature}, {top_p}, {max_new_tokens}"
        )


def check_prompts(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Prompts (B, T) with their padding on the left, and its mask; None where nothing is padded."""
    if input_ids.ndim != 2 or 0 in input_ids.shape or input_ids.is_floating_point():
        got = f"{input_ids.dtype} of shape {tuple(input_ids.shape)}"
        raise ValueError(f"input_ids must be integers (B, T) with B, T >= 1, got {got}")
    if attention_mask is None:
        return input_ids, None
    padding(attention_mask, input_ids.shape)  # ValueError for another shape or other values
    mask = attention_mask.to(input_ids.dtype)
    empty = (mask.sum(dim=1) == 0).nonzero()
    if len(empty):
        raise ValueError(f"row {empty[0].item()} of the prompts is padding alone")
    return (input_ids, None) if mask.all() else left_align_padding(input_ids, mask)
