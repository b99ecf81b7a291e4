"""A small BLIP for scenes: its shape, its texts, its training, and the two workers of CapFilt.

Used by notebook 06, by the experiments for its tables and by tools/build_checkpoints.py.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from minivlm.blip import LOSSES, SHARING, Blip, Marks, MedConfig, Pretraining, first
from minivlm.bpe import BPETokenizer
from minivlm.parts.generation import generate
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained.blip import publish_blip
from minivlm.scenes import Scene, grammar, is_true
from minivlm.scenes.grammar import Object
from minivlm.scenes.pixels import IMAGE_SIZE, augment, pixels
from minivlm.toys.common import (
    BERT_MARKS,
    RATES,
    SPEAKER,
    TOY_WIDTH,
    as_bert,
    batches_with_mates,
    decode_rows,
    image_map,
    load_toy,
    save_toy,
    shrink_weights,
    truth_table,
)
from minivlm.vit import ViTConfig

# 57,600, 0.995 and two epochs in the paper, for millions of steps.
QUEUE, MOMENTUM, RAMP = 1024, 0.99, 100
# The training of data/checkpoints/blip, a stage each: losses, steps, pairs a step, mates in every
# second batch, Muon's learning rate, seed. LM first: a relation is learned sooner by LM alone.
BLIP_STAGES: dict[str, tuple[Sequence[str], int, int, bool, float, int]] = {
    "1: LM alone": (("lm",), 800, 64, False, 0.015, 0),
    "2: all three losses, contradicting captions": (LOSSES, 500, 64, True, 0.015, 1),
    "3: the same, batch 128": (LOSSES, 600, 128, True, 0.02, 2),
    "4: the same, longer": (LOSSES, 800, 128, True, 0.015, 3),
    "5: batch 64, a low rate": (LOSSES, 100, 64, True, 0.003, 4),
}

Vary = Callable[[Tensor, float], Tensor]  # images, the share that loses a channel -> other images


def blip_configs(vocab_size: int) -> tuple[ViTConfig, MedConfig]:
    """The image tower and the text transformer, two thirds of a million parameters."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    vision = ViTConfig(
        size, patch=16, width=TOY_WIDTH, layers=2, heads=6, hidden=4 * TOY_WIDTH, eps=1e-5
    )
    text = MedConfig(
        vocab_size,
        length=32,
        width=TOY_WIDTH,
        layers=2,
        heads=6,
        hidden=2 * TOY_WIDTH,
        memory=TOY_WIDTH,
    )
    return vision, text


def start_blip(model: Blip) -> None:
    """Where the toy starts from: small weights, and positions large enough to be read in a short
    training.

    Those of the patches are a map of the image, those of the words ten times as large as the words.
    """
    shrink_weights(model, model.encoder.words.weight)
    with torch.no_grad():
        model.vision.positions[:, 1:] = image_map(IMAGE_SIZE // 16, TOY_WIDTH)
    for med in (model.encoder, model.decoder):  # in this order, that a seed means the same weights
        nn.init.normal_(med.positions.weight, std=0.2)


@dataclass
class ToyBlip:
    """A BLIP of two thirds of a million parameters and its tokenizer."""

    model: Blip
    tokenizer: BPETokenizer

    @classmethod
    def new(cls, texts: Sequence[str], seed: int = 0, *, sharing: str = SHARING[1]) -> "ToyBlip":
        """Untrained; the tokenizer is learned from the texts."""
        tokenizer = BPETokenizer.train(texts, vocab_size=400, special_tokens=BERT_MARKS)
        configs = blip_configs(tokenizer.vocab_size)
        torch.manual_seed(seed)
        model = Blip(*configs, TOY_WIDTH)
        if sharing != SHARING[1]:  # drawn anew: a seed means the weights that the tables are of
            model = Blip(*configs, TOY_WIDTH, sharing=sharing)
        start_blip(model)
        return cls(model, tokenizer)

    @property
    def marks(self) -> Marks:
        """The ids that say in which mode a text is read."""
        pad, cls, _, enc, dec = (self.tokenizer.special_tokens[name] for name in BERT_MARKS)
        return Marks(cls, enc, dec, pad)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (B, T) ids: [CLS], the words, [SEP], padding.

        A text with more tokens than positions is cut.
        """
        return as_bert(self.tokenizer, captions, self.model.encoder.config.length)

    def train(
        self,
        images: Tensor,
        captions: Sequence[str],
        steps: int,
        *,
        batch: int = 64,
        alike: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> dict[str, list[float]]:
        """Fit to images (B, 3, 64, 64) and captions; returns the history of each loss.

        ``alike``: in every second batch, captions contradict each other (``mates``). Options:
        those of ``learn``.
        """
        ids = self.texts(captions)
        if alike:
            batches = batches_with_mates(images, ids, captions, batch=batch, seed=seed)
        else:
            batches = minibatches(images, ids, batch_size=batch, seed=seed)
        return self.learn(batches, steps, seed=seed, **options)

    def learn(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        steps: int,
        *,
        losses: Sequence[str] = LOSSES,
        erased: float = 0.2,
        vary: Vary = augment,
        random_negatives: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> dict[str, list[float]]:
        """Fit to batches of images and ids by the sum of some of the LOSSES.

        ``erased``: the share of images that lose a colour channel; ``vary``: what else is done to
        them. Options: those of ``fit``.
        """
        torch.manual_seed(seed)  # before the random queues
        pretraining = Pretraining(self.model, self.marks, queue=QUEUE, momentum=MOMENTUM, ramp=RAMP)

        how = {"losses": losses, "erased": erased, "random_negatives": random_negatives}
        loss = partial(varied_losses, vary=vary, **how)
        options = RATES | {"weight_decay": 0.1} | options
        history = fit(pretraining, batches, loss, steps, seed=seed, **options)
        self.model.eval()
        return {name: history[name] for name in losses}

    @torch.no_grad()
    def captions(
        self,
        images: Tensor,
        *,
        top_p: float = 0,
        generator: torch.Generator | None = None,
        rows: int = 500,
    ) -> list[str]:
        """One caption an image (B, 3, 64, 64), ``rows`` at once.

        Greedy or, with ``top_p``, drawn from the nucleus; special tokens are left out.
        """
        marks, said = self.tokenizer.special_tokens, []
        sampled = {"temperature": 1, "top_p": top_p, "generator": generator} if top_p else {}
        for part in images.split(rows):
            start = torch.full((len(part), 1), self.marks.dec)
            inputs = {"image": self.model.vision(part), "use_cache": False}
            new = generate(self.model, start, 24, eos_id=marks["[SEP]"], **inputs, **sampled)
            said += decode_rows(self.tokenizer, new, {*marks.values()})
        return said

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One greedy caption a PIL image."""
        return self.captions(pixels(images).to(self.model.vision.positions))

    @torch.no_grad()
    def matches(self, images: Tensor, captions: Sequence[str], rows: int = 1000) -> Tensor:
        """How likely each caption belongs to its image, by the matching head: (B,) in 0..1."""
        ids, likely = first(self.texts(captions), self.marks.enc), []
        for image, part in zip(images.split(rows), ids.split(rows), strict=True):
            logits = self.model.match(image, part, (part != self.marks.pad).long())
            likely.append(logits.softmax(dim=1)[:, 1])
        return torch.cat(likely)

    def save(self, folder: str | Path) -> None:
        """config.json, model.safetensors and tokenizer.json; the model must share as the paper
        does.
        """
        config = publish_blip(self.model) | {SPEAKER: "blip"}
        marks = self.tokenizer.special_tokens
        config["text_config"] |= {"bos_token_id": marks["[DEC]"], "sep_token_id": marks["[SEP]"]}
        save_toy(self.model, config, folder, self.tokenizer)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> "ToyBlip":
        """Read what ``save`` wrote."""
        return cls(*load_toy(folder, dtype, kind=Blip, marks=BERT_MARKS))


def varied_losses(
    pretraining: Pretraining,
    batch: tuple[Tensor, Tensor],
    *,
    losses: Sequence[str],
    erased: float,
    vary: Vary,
    random_negatives: bool,
) -> dict[str, Tensor]:
    """The losses of a batch of images and ids; options as those of ``ToyBlip.learn``."""
    seen = vary(batch[0], erased)
    return pretraining(seen, batch[1], losses, random_negatives=random_negatives)


# Captions with one wrong word


def foils(scene: Scene, rng: Random) -> dict[str, tuple[str, str]]:
    """A plain true caption and the same with one word made false, for each kind of word that the
    caption has.

    Kinds: "color", "shape" and "size" of an object, and the "relation" of two objects or the
    "count" of like ones.
    """
    things = grammar.reading_order(scene.objects, scene.cell)
    if grammar.alike(things):
        say, wrong = _count_foil(things, rng)
    else:
        say, wrong = _relation_foil(things, scene.cell)
    one = rng.randrange(1 if grammar.alike(things) else 2)
    looks = {"color": grammar.COLORS, "shape": grammar.SHAPES, "size": grammar.SIZES}
    for kind, values in looks.items():
        value = rng.choice([v for v in values if v != getattr(things[one], kind)])
        changed = list(things)
        changed[one] = replace(things[one], **{kind: value})
        wrong[kind] = say(changed)
    return {kind: (say(things), text) for kind, text in wrong.items() if not is_true(text, scene)}


Sayer = Callable[[Sequence[Object]], str]  # what a caption says of objects in reading order


def _count_foil(things: Sequence[Object], rng: Random) -> tuple[Sayer, dict[str, str]]:
    """How to say that there are so many of one kind, and the same with another number."""
    other = rng.choice([n for n in grammar.COUNTS if n != len(things)])
    say = lambda things: grammar.describe_en(things[0], len(things))
    return say, {"count": grammar.describe_en(things[0], other)}


def _relation_foil(things: Sequence[Object], cell: int) -> tuple[Sayer, dict[str, str]]:
    """How to say where the first of two objects is, and the same with the opposite relation."""
    relation = grammar.main_relations(*things, cell)[0]

    def say(things: Sequence[Object], relation: str = relation) -> str:
        return f"{grammar.describe_en(things[0])} {relation} {grammar.describe_en(things[1])}"

    return say, {"relation": say(things, grammar.OPPOSITE[relation])}


# Measures


@torch.no_grad()
def retrieval(
    toy: ToyBlip, scenes: Sequence[Scene], images: Tensor, among: int = 16
) -> dict[str, float]:
    """Recall at 1 both ways, by ITC alone and with its best ``among`` judged again by ITM; any true
    caption counts. ValueError for fewer than ``among`` scenes, or another number of images.
    """
    if len(images) != len(scenes) or not 0 < among <= len(scenes):
        found = f"{len(scenes)} scenes and {len(images)} images"
        raise ValueError(f"retrieval among {among} takes as many scenes and their images: {found}")
    captions = [scene.caption for scene in scenes]
    ids, model = toy.texts(captions), toy.model
    cosine = model.encode_image(images) @ model.encode_text(ids, (ids != toy.marks.pad).long()).T
    true, shares = truth_table(scenes, captions), {}
    ways = {"image to text": (cosine, true), "text to image": (cosine.T, true.T)}
    for way, (scores, right) in ways.items():
        best = scores.topk(among, dim=1).indices  # (N, among)
        asked, other = torch.arange(len(best)).repeat_interleave(among), best.flatten()
        image, text = (asked, other) if way == "image to text" else (other, asked)
        judged = toy.matches(images[image], [captions[i] for i in text.tolist()]).view_as(best)
        again = best.gather(1, judged.argmax(dim=1, keepdim=True))
        for name, choice in ((way, best[:, :1]), (f"{way}, re-ranked", again)):
            shares[name] = right.gather(1, choice).float().mean().item()
    return shares


@torch.no_grad()
def judgements(
    toy: ToyBlip, scenes: Sequence[Scene], images: Tensor, seed: int = 0
) -> dict[str, float]:
    """Share of right verdicts of ITM on true captions and captions with one wrong word (half each),
    by kind of word.
    """
    rng, asked = Random(seed), []
    for i, scene in enumerate(scenes):
        for kind, (true, false) in foils(scene, rng).items():
            asked += [(kind, i, true, True), (kind, i, false, False)]
    said = toy.matches(images[[i for _, i, _, _ in asked]], [text for _, _, text, _ in asked]) > 0.5
    right = defaultdict(list)
    for (kind, _, _, answer), verdict in zip(asked, said.tolist(), strict=True):
        right[kind].append(verdict == answer)
    by_kind = dict(sorted(right.items())) | {"all": [ok for oks in right.values() for ok in oks]}
    return {kind: sum(oks) / len(oks) for kind, oks in by_kind.items()}


def told_truly(toy: ToyBlip, scenes: Sequence[Scene], images: Tensor) -> float:
    """Share of the greedy captions that are true of their scenes."""
    if len(images) != len(scenes):
        raise ValueError(f"{len(images)} images for {len(scenes)} scenes")
    return sum(map(is_true, toy.captions(images), scenes)) / len(scenes)


Pairs = list[tuple[int, str]]  # number of an image, caption


def bootstrap(
    base: ToyBlip,
    images: Tensor,
    web: Sequence[str],
    clean: tuple[Tensor, Sequence[str]],
    steps: int,
    seed: int = 0,
    *,
    top_p: float = 0.9,
    **options: Any,
) -> dict[str, Pairs]:
    """CapFilt (section 3.3) -> four data sets: "web", "F", "C", "C+F".

    A captioner (LM) and a filter (ITC and ITM) are fine-tuned from ``base`` on the clean pairs,
    apart from each other. The captioner writes one caption for each image of the web, drawn from
    the nucleus (greedy with ``top_p`` 0); the filter throws out those of the web's (F), and of the
    captioner's (C+F), that it finds not to match.
    """
    captioner, judge = deepcopy(base), deepcopy(base)
    captioner.train(*clean, steps, losses=("lm",), seed=seed, **options)
    judge.train(*clean, steps, losses=("itc", "itm"), seed=seed, **options)
    written = captioner.captions(images, top_p=top_p, generator=torch.Generator().manual_seed(seed))
    crawled, written = list(enumerate(web)), list(enumerate(written))
    kept, passed = (matching_pairs(judge, images, pairs) for pairs in (crawled, written))
    return {"web": crawled, "F": kept, "C": crawled + written, "C+F": kept + passed}


def matching_pairs(judge: ToyBlip, images: Tensor, pairs: Pairs) -> Pairs:
    """The pairs, one an image, that the matching head lets through."""
    matches = judge.matches(images, [caption for _, caption in pairs]) > 0.5
    return [pair for pair, good in zip(pairs, matches.tolist(), strict=True) if good]
