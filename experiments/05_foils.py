"""Hard negatives for CLIP: what steps with false captions teach that as many plain steps do not.

Every row goes on from the same small CLIP, trained nearly as in notebook 05 (140 steps of 96), with
64 pictures a step. Measured on scenes of the test and the composition stream with seed 5, not on
the files in data/scenes; the questions are those of both. Under a minute a row on one core.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cache
from math import log
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm import scenes
from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, contrastive_loss
from minivlm.parts.training import fit, minibatches
from minivlm.scenes import Scene
from minivlm.scenes.pixels import augment, pixels
from minivlm.toys.clip import (
    END,
    PAD,
    hard_pair,
    hard_pair_in_order,
    recall_at_1,
    sentence_pairs,
    sentences,
    toy,
)
from minivlm.toys.common import RATES, batches_with_mates
from runner import Experiment, Measure, Settings, main, percent

BATCH, FIRST_BATCH = 64, 96
KINDS = {  # what the captions of a batch are -> kind of batches
    "captions alone": "plain",
    "foils, captions name objects in reading order": "foils in order",
    "foils, captions name objects in both orders": "foils in both orders",
    "every second batch holds captions that contradict each other": "mates",
}
ROWS = {"no more steps": ("plain", 0)} | {  # name -> kind of batches, share of the further steps
    f"{length} steps, {name}": (kind, share)
    for length, share in (("few", 0.25), ("many", 1.0))
    for name, kind in KINDS.items()
}
TRUE_IS = ("left of, above", "right of, below")
COLUMNS = {
    "R@1": "% in both directions, the mean, of composition scenes",
    "colours swapped": "% of true sentences that are nearer to the image than the same with the "
    "colours of its two objects exchanged (chance 50)",
    "relation reversed": "% of the same with the opposite relation; the objects are named in a "
    "random order (chance 50)",
    **{f"relation reversed, true one: {way}": "% of the same" for way in TRUE_IS},
}


def loss(model: Clip, batch: tuple[Tensor, ...]) -> Tensor:
    """CLIP's; with a third tensor, each image is also compared with the foils of the batch."""
    with torch.no_grad():
        model.scale.clamp_(max=log(100))
    image, texts = model.encode_image(augment(batch[0])), model.encode_text(batch[1])
    if len(batch) == 2:
        return contrastive_loss(image, texts, model.scale)
    more, target = torch.cat([texts, model.encode_text(batch[2])]), torch.arange(len(image))
    by_image = F.cross_entropy(model.scale.exp() * image @ more.T, target)
    return (by_image + F.cross_entropy(model.scale.exp() * texts @ image.T, target)) / 2


@torch.no_grad()
def share_right(
    model: Clip, encode: Callable[[Sequence[str]], Tensor], asked: list[tuple[Tensor, str, str]]
) -> float:
    """How often the true one of two sentences (the first) is nearer to the image (3, 64, 64)."""
    image = model.encode_image(torch.stack([shown for shown, _, _ in asked]))
    true, false = (model.encode_text(encode([pair[i] for pair in asked])) for i in (1, 2))
    return ((image * true).sum(1) > (image * false).sum(1)).float().mean().item()


def questions(held_out: Sequence[Scene]) -> dict[str, list[tuple[Tensor, str, str]]]:
    """Column -> image, true sentence, false one."""
    asked: dict[str, list] = {}
    for scene, image in zip(held_out, pixels([scene.image for scene in held_out]), strict=True):
        pairs = sentence_pairs(scene)
        for kind in ("colours swapped", "relation reversed"):
            if kind in pairs:
                asked.setdefault(kind, []).append((image, *pairs[kind]))
    for image, true, false in asked["relation reversed"]:
        way = TRUE_IS[" right of " in true or " below " in true]
        asked.setdefault(f"relation reversed, true one: {way}", []).append((image, true, false))
    return asked


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, seed=0)
    held_out = {s: scenes.sample(settings.test_scenes, 5, s) for s in ("test", "composition")}
    asked = questions([scene for part in held_out.values() for scene in part])
    captions, images = [s.caption for s in train], pixels([s.image for s in train])
    tokenizer = BPETokenizer.train(captions, vocab_size=400, special_tokens=(END, PAD))
    length = sentences(captions, tokenizer).shape[1]
    encode = lambda texts: sentences(texts, tokenizer, length)
    ids = encode(captions)

    def batches(kind: str, seed: int) -> Iterator[tuple[Tensor, ...]]:
        if kind == "mates":
            return batches_with_mates(images, ids, captions, batch=BATCH, seed=seed)
        texts = [ids]
        if kind != "plain":
            rng, draw = Random(seed), hard_pair_in_order if "in order" in kind else hard_pair
            pairs = [draw(scene, rng) for scene in train]
            texts = [encode(side) for side in zip(*pairs, strict=True)]
        return minibatches(images, *texts, batch_size=BATCH, seed=seed)

    @cache
    def start(seed: int) -> Clip:
        torch.manual_seed(seed)
        model, steps = toy("clip", tokenizer, length), settings.steps["at first"]
        first = minibatches(images, ids, batch_size=min(FIRST_BATCH, len(ids)), seed=seed)
        fit(model, first, loss, steps, seed=seed, **RATES, weight_decay=0.1)
        return model

    def measure(row: str, seed: int) -> dict[str, float]:
        model, (kind, share) = deepcopy(start(seed)), ROWS[row]
        if steps := round(share * settings.steps["then"]):
            fit(model, batches(kind, seed + 100), loss, steps, seed=seed, **RATES, weight_decay=0.1)
        found = recall_at_1(model, tokenizer, held_out["composition"])
        shares = {"R@1": sum(found.values()) / 2}
        return percent(shares | {k: share_right(model, encode, a) for k, a in asked.items()})

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What do hard negatives teach CLIP that as many plain steps do not?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings({"at first": 140, "then": 200}, train_scenes=8000, test_scenes=250),
    prepare=prepare,
    notes="Few steps are a quarter of the second number, 50.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
