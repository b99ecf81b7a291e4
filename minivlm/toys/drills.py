"""Drills in random ids: they build the circuit of a look-up before any language needs it.

"small red circle 3 large blue square 12": what colour is the circle? The answer stands one word
before the noun, so two layers must work together: one writes into each place what stood before it,
a later one finds the noun and reads what was written there. In language a guess between the two
colours is right half of the time. In random ids there is little to guess: a sequence to repeat asks
for the first layer (the induction heads of Olsson et al. 2022, "In-context Learning and Induction
Heads"), a pair to recall for both (Arora et al. 2023, "Zoology", section 3), and fillers between
the key and its value make room for a question. Only the look back is drilled. The decoder of
data/checkpoints begins with them.

Data: ids (R, T) and their labels, of which only what can be known is trained on.
"""

from collections.abc import Callable, Iterator
from random import Random

import torch
from torch import Tensor

from minivlm.multimodal import IGNORE, answer_loss
from minivlm.parts.decoder import Decoder
from minivlm.parts.training import fit
from minivlm.toys.common import rates

Batch = tuple[Tensor, Tensor]  # ids, labels
FILLERS, ROWS = 40, 64
REPEAT, RECALL, LATER = 800, 800, 1200  # steps
MOST_PAIRS, LONGEST_GAP, GROWING = 6, 6, 800


def random_pairs(rows: int, pairs: int, ids: int) -> Tensor:
    """Ids from 0 to ids - 1, none twice in a row: (rows, pairs, 2), each a value and its key."""
    if not 0 < 2 * pairs <= ids:
        raise ValueError(f"{pairs} pairs of different ids cannot be drawn from {ids}")
    return torch.rand(rows, ids).topk(2 * pairs).indices.view(rows, pairs, 2)


def repeat(rows: int, pairs: int, ids: int) -> Batch:
    """A random sequence, twice; what follows its first id the second time can be known."""
    once = random_pairs(rows, pairs, ids).flatten(1)
    labels = torch.cat([torch.full_like(once, IGNORE), once], dim=1)
    labels[:, once.shape[1]] = IGNORE
    return torch.cat([once, once], dim=1), labels


def recall(rows: int, pairs: int, ids: int) -> Batch:
    """Values, each before its key; then the keys in another order, each before its value."""
    listed = random_pairs(rows, pairs, ids)
    order = torch.rand(rows, pairs).argsort(dim=1)
    asked = listed.gather(1, order[..., None].expand(-1, -1, 2)).flip(2)
    labels = asked.clone()
    labels[..., 0] = IGNORE
    unknown = torch.full_like(listed.flatten(1), IGNORE)
    both = torch.cat([listed, asked], dim=1).flatten(1)
    return both, torch.cat([unknown, labels.flatten(1)], dim=1)


def recall_later(rows: int, pairs: int, ids: int, gap: int, rng: Random) -> Batch:
    """As ``recall``, but with fillers before each key and, up to ``gap``, between it and its value.

    The last ``FILLERS`` + 1 of the ids are the fillers and a mark, which stands before every key
    and every value: as "assistant" does before an answer.
    """
    content, mark = ids - FILLERS - 1, torch.full((rows, 1), ids - 1)
    plain, _ = recall(rows, pairs, content)
    parts = [plain[:, : 2 * pairs]]
    labels = [torch.full_like(parts[0], IGNORE)]
    for pair in plain[:, 2 * pairs :].view(rows, pairs, 2, 1).unbind(1):
        key, value = pair.unbind(1)
        before = torch.randint(content, content + FILLERS, (rows, rng.randint(0, gap)))
        between = torch.randint(content, content + FILLERS, (rows, rng.randint(0, gap)))
        asked = torch.cat([before, mark, key, between, mark], dim=1)
        parts += [asked, value]
        labels += [torch.full_like(asked, IGNORE), value]
    return torch.cat(parts, dim=1), torch.cat(labels, dim=1)


def drill_loss(model: Decoder, batch: Batch) -> Tensor:
    """Of ids and labels, (R, T) each."""
    return answer_loss(model(batch[0]), batch[1])


def _endless(draw: Callable[[int, int], Batch], fewest: int, most: int) -> Iterator[Batch]:
    """``draw(step, pairs)``; how many pairs changes from batch to batch."""
    rng, step = Random(0), 0
    while True:
        yield draw(step, rng.randint(fewest, most))
        step += 1


def drill(
    model: Decoder,
    steps: tuple[int, int, int] = (REPEAT, RECALL, LATER),
    seed: int = 0,
    muon_lr: float = 0.015,
) -> None:
    """Train a decoder on the three drills, one after the other.

    steps: of ``repeat``, ``recall`` and ``recall_later``, whose gap grows with the steps.
    """
    ids, rng = model.config.vocab_size, Random(seed)
    if ids < FILLERS + 2 * MOST_PAIRS + 1:
        raise ValueError(f"a vocabulary of {ids} is too small for the drills")
    draws = (
        lambda step, pairs: repeat(ROWS, pairs, ids),
        lambda step, pairs: recall(ROWS, pairs, ids),
        lambda step, pairs: recall_later(
            ROWS, pairs, ids, round(LONGEST_GAP * min(1, step / GROWING)), rng
        ),
    )
    for draw, count, most in zip(draws, steps, (8, 8, MOST_PAIRS), strict=True):
        fit(model, _endless(draw, 2, most), drill_loss, count, seed=seed, **rates(muon_lr))


@torch.no_grad()
def recalled(model: Decoder, batch: Batch) -> float:
    """The share of the labels that the model says."""
    said, labels = model(batch[0])[:, :-1].argmax(dim=-1), batch[1][:, 1:]
    known = labels != IGNORE
    return (said == labels)[known].float().mean().item()
