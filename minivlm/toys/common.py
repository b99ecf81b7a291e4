"""What the small models share: where their frozen parts are, their learning rates, texts as BERT
reads them.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from minivlm.bpe import BPETokenizer
from minivlm.scenes import drawing, grammar

FROZEN = drawing.DATA.parent / "checkpoints"  # clip, an image encoder; decoder, a language model
RATES = {"muon_lr": 0.015, "adamw_lr": 2e-3}
BERT_MARKS = (
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[ENC]",
    "[DEC]",
)  # the special tokens of a BLIP and a Q-Former


def as_bert(tokenizer: BPETokenizer, texts: Sequence[str], positions: int) -> Tensor:
    """Texts -> (B, T) ids: [CLS], the words, [SEP], padding; a text with more tokens than positions
    is cut.
    """
    pad, cls, sep = (tokenizer.special_tokens[name] for name in BERT_MARKS[:3])
    rows = [[cls, *tokenizer.encode(text)[: positions - 2], sep] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])


def mates(captions: Sequence[str]) -> Tensor:
    """Pairs of captions (P, 2), by number, that name the same objects and contradict each other.

    Two of "A left of B" and "B left of A", or two counts of one thing; "A above B" may be true as
    well, and is none. In one batch they are each other's hard negatives: grouped mini-batches, Byun
    et al. 2022 (GRIT-VLP), section 3.1.
    """
    groups = defaultdict(
        list
    )  # the objects and the axis of their relation -> (their order, their count, caption)
    for i, caption in enumerate(captions):
        phrases, relation = grammar.parse(caption)
        if relation in ("right of", "below"):  # "B right of A" says the same as "A left of B"
            phrases, relation = phrases[::-1], grammar.OPPOSITE[relation]
        things = [(p.color, p.shape, p.size or "") for p in phrases]
        groups[relation, *sorted(things)].append((things, phrases[0].count, i))
    pairs = []
    for group in groups.values():
        group.sort()
        half = len(group) // 2
        opposite = zip(group[: len(group) - half], group[half:], strict=True)
        pairs += [(a[-1], b[-1]) for a, b in opposite if a[:-1] != b[:-1]]
    return torch.tensor(pairs)
