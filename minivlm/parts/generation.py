"""Decoding: turn logits into tokens, one at a time."""

import torch
from torch import Tensor, nn

from minivlm.parts.decoder import KVCache


def top_p_filter(probs: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches top_p (Holtzman et al.
    2020, section 3.1).

    probs (B, V), rows sum to 1 -> (B, V), rows sum to 1, zero outside the nucleus.
    """
    ordered, index = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # the mass of the tokens ranked above
    ordered = ordered.masked_fill(before >= top_p, 0.0)
    kept = torch.zeros_like(probs).scatter(-1, index, ordered)
    return kept / kept.sum(dim=-1, keepdim=True)


def pick(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """Logits (B, V) -> one id a row (B,): the largest at temperature 0, else a draw from the
    nucleus.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs = top_p_filter((logits.float() / temperature).softmax(dim=-1), top_p)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


def left_align_padding(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of every row to its left, so that the next token follows the last real one."""
    order = attention_mask.argsort(dim=1, stable=True)  # zeros first, tokens in their order
    return input_ids.gather(1, order), attention_mask.gather(1, order)


@torch.no_grad()
def generate(
    model: nn.Module,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 0,
    top_p: float = 1,
    eos_id: int | None = None,
    *,
    attention_mask: Tensor | None = None,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
    **inputs: Tensor,
) -> Tensor:
    """Continue the prompts input_ids (B, T); returns the new ids (B, T'), T' <= max_new_tokens.

    temperature 0 is greedy. A row that has said ``eos_id`` is filled with it; all done ends the
    loop. Prompts of different lengths are padded on either side and carry an attention_mask (B, T).
    ``inputs`` (an image, say) go to the model with the prompt. ``use_cache=False`` computes
    everything anew at each step: same ids.
    """
    if temperature < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        raise ValueError(
            f"need temperature >= 0, 0 < top_p <= 1, max_new_tokens >= 1; got {temperature}, {top_p}, {max_new_tokens}"
        )
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise ValueError(
            f"input_ids must be (B, T) with T >= 1, got shape {tuple(input_ids.shape)}"
        )
    mask = (
        torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
    )
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must be {tuple(input_ids.shape)}, got {tuple(mask.shape)}"
        )
    empty = (mask.sum(dim=1) == 0).nonzero()
    if len(empty):
        raise ValueError(f"row {empty[0].item()} of the prompts is padding alone")
    ids, mask = left_align_padding(input_ids, mask)
    prompt_length = ids.shape[1]
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    cache = KVCache() if use_cache else None
    for _ in range(max_new_tokens):
        if cache and cache.length:
            logits = model(ids[:, -1:], attention_mask=mask, cache=cache)
        else:
            logits = model(ids, attention_mask=mask, cache=cache, **inputs)
        new = pick(logits[:, -1], temperature, top_p, generator)
        if eos_id is not None:
            new = torch.where(done, eos_id, new)
            done |= new == eos_id
        ids = torch.cat([ids, new[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(new)[:, None]], dim=1)
        if done.all():
            break
    return ids[:, prompt_length:]
