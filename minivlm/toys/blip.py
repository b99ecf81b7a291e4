"""A small BLIP for scenes: its shape, its texts, its training, and the two workers of CapFilt.

Used by notebook 06 and by tools/blip_ablations.py, capfilt.py and build_checkpoints.py.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.blip import LOSSES, SHARING, Blip, Marks, Pretraining, first
from minivlm.bpe import BPETokenizer
from minivlm.parts.generation import generate
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.blip import build_blip
from minivlm.pretrained.checkpoints import read_json
from minivlm.scenes import Scene, grammar, is_true
from minivlm.scenes.grammar import Object
from minivlm.scenes.pixels import vary_channels
from minivlm.toys.common import BERT_MARKS, RATES, as_bert, mates
from minivlm.vit import sincos_2d

WIDTH = 96
QUEUE, MOMENTUM, RAMP = (
    1024,
    0.99,
    100,
)  # 57,600, 0.995 and two epochs in the paper, for millions of steps


def toy_config(tokenizer: BPETokenizer) -> dict:
    """A BLIP configuration of two thirds of a million parameters, in the published format."""
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 6}
    text = {
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": 32,
        "intermediate_size": 2 * WIDTH,
    }
    text |= {
        "bos_token_id": tokenizer.special_tokens["[DEC]"],
        "sep_token_id": tokenizer.special_tokens["[SEP]"],
    }
    return {
        "model_type": "blip",
        "image_text_hidden_size": WIDTH,
        "vision_config": shape
        | {"image_size": 64, "patch_size": 16, "intermediate_size": 4 * WIDTH},
        "text_config": shape | text,
    }


def start_small(model: Blip) -> None:
    """Where the toy starts from: small weights, and positions large enough to be read in a short
    training.

    Those of the patches are a map of the image (captioner.start_small), those of the words ten
    times as large as the words.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not model.encoder.words.weight:
            module.weight *= 0.6
    model.vision.positions[:, 1:] = F.pad(4 * sincos_2d(4, 4, 16, theta=10), (0, WIDTH - 16))
    for med in (model.encoder, model.decoder):  # in this order, that a seed means the same weights
        nn.init.normal_(med.positions.weight, std=0.2)


@dataclass
class ToyBlip:
    """A BLIP of two thirds of a million parameters and its tokenizer."""

    model: Blip
    tokenizer: BPETokenizer
    config: dict

    @classmethod
    def new(cls, texts: Sequence[str], seed: int = 0, *, sharing: str = SHARING[1]) -> "ToyBlip":
        """Untrained; the tokenizer is learned from the texts."""
        tokenizer = BPETokenizer.train(texts, vocab_size=400, special_tokens=BERT_MARKS)
        config = toy_config(tokenizer)
        torch.manual_seed(seed)
        model = build_blip(config)
        if sharing != SHARING[1]:
            model = Blip(model.vision.config, model.encoder.config, WIDTH, sharing=sharing)
        with torch.no_grad():
            start_small(model)
        return cls(model, tokenizer, config)

    @property
    def marks(self) -> Marks:
        """The ids that say in which mode a text is read."""
        pad, cls, _, enc, dec = (self.tokenizer.special_tokens[name] for name in BERT_MARKS)
        return Marks(cls, enc, dec, pad)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (B, T) ids: [CLS], the words, [SEP], padding; a text with more tokens than
        positions is cut.
        """
        return as_bert(
            self.tokenizer, captions, self.config["text_config"]["max_position_embeddings"]
        )

    def train(
        self,
        images: Tensor,
        captions: Sequence[str],
        steps: int,
        *,
        losses: Sequence[str] = LOSSES,
        batch: int = 64,
        random_negatives: bool = False,
        alike: bool = False,
        erased: float = 0.2,
        seed: int = 0,
        **options,
    ) -> dict[str, list[float]]:
        """Fit to images (B, 3, 64, 64) and captions by the sum of some of the LOSSES; returns each
        one's history.

        ``alike`` makes every second batch one of captions that contradict each other (see
        ``mates``). ``erased`` is the share of images that lose a colour channel
        (``captioner.vary_channels``).
        """
        torch.manual_seed(seed)  # before the random queues
        pretraining = Pretraining(self.model, self.marks, queue=QUEUE, momentum=MOMENTUM, ramp=RAMP)
        history = {name: [] for name in losses}

        def loss(module: Pretraining, batch: tuple[Tensor, Tensor]) -> Tensor:
            pictures = vary_channels(batch[0], erased)
            parts = module(pictures, batch[1], losses, random_negatives=random_negatives)
            for name, value in parts.items():
                history[name].append(value.item())
            return sum(parts.values())

        ids = self.texts(captions)
        stream = minibatches(images, ids, batch_size=batch, seed=seed)
        if alike:
            near = minibatches(mates(captions), batch_size=batch // 2, seed=seed)
            second = ((images[rows.flatten()], ids[rows.flatten()]) for (rows,) in near)
            stream = chain.from_iterable(zip(stream, second, strict=True))  # both are endless
        fit(pretraining, stream, loss, steps, seed=seed, **RATES | {"weight_decay": 0.1} | options)
        self.model.eval()
        return history

    @torch.no_grad()
    def captions(
        self,
        images: Tensor,
        *,
        top_p: float = 0,
        generator: torch.Generator | None = None,
        rows: int = 500,
    ) -> list[str]:
        """One caption an image, greedy or, with ``top_p``, drawn from the nucleus; special tokens
        are left out.
        """
        end, special, said = (
            self.tokenizer.special_tokens["[SEP]"],
            {*self.tokenizer.special_tokens.values()},
            [],
        )
        sampled = {"temperature": 1, "top_p": top_p, "generator": generator} if top_p else {}
        for part in images.split(rows):
            start = torch.full((len(part), 1), self.marks.dec)
            image = self.model.vision(part)
            new = generate(
                self.model, start, 24, eos_id=end, use_cache=False, image=image, **sampled
            )
            said += [
                self.tokenizer.decode([i for i in row if i not in special]) for row in new.tolist()
            ]
        return said

    @torch.no_grad()
    def matches(self, images: Tensor, captions: Sequence[str], rows: int = 1000) -> Tensor:
        """How likely each caption belongs to its image, by the matching head: (B,) in 0..1."""
        ids, found = first(self.texts(captions), self.marks.enc), []
        for image, part in zip(images.split(rows), ids.split(rows), strict=True):
            found.append(
                self.model.match(image, part, (part != self.marks.pad).long()).softmax(dim=1)[:, 1]
            )
        return torch.cat(found)

    def save(self, folder: str | Path) -> None:
        """config.json, model.safetensors and tokenizer.json; the model must share as the paper
        does.
        """
        save_pretrained(self.model, self.config, folder)
        self.tokenizer.save(Path(folder) / "tokenizer.json")

    @classmethod
    def load(cls, folder: str | Path) -> "ToyBlip":
        """Read what ``save`` wrote."""
        model, tokenizer = (
            from_pretrained(folder),
            BPETokenizer.load(Path(folder) / "tokenizer.json"),
        )
        return cls(model, tokenizer, read_json(Path(folder) / "config.json"))


def foils(scene: Scene, rng: Random) -> dict[str, tuple[str, str]]:
    """A plain true caption and the same with one word made false, for each kind of word that the
    caption has.

    Kinds: "color", "shape" and "size" of an object, and the "relation" of two objects or the
    "count" of like ones.
    """
    things, wrong = grammar.reading_order(scene.objects, scene.cell), {}
    if grammar.alike(things):
        counts = [n for n in grammar.COUNTS if n != len(things)]

        def say(things: Sequence[Object], count: int = len(things)) -> str:
            return grammar.describe_en(things[0], count)

        wrong["count"] = say(things, rng.choice(counts))
    else:
        told = grammar.main_relations(*things, scene.cell)[0]

        def say(things: Sequence[Object], relation: str = told) -> str:
            return f"{grammar.describe_en(things[0])} {relation} {grammar.describe_en(things[1])}"

        wrong["relation"] = say(things, grammar.OPPOSITE[told])
    one = rng.randrange(1 if grammar.alike(things) else 2)
    for kind, values in {
        "color": grammar.COLORS,
        "shape": grammar.SHAPES,
        "size": grammar.SIZES,
    }.items():
        value = rng.choice([v for v in values if v != getattr(things[one], kind)])
        wrong[kind] = say(
            [replace(t, **{kind: value}) if i == one else t for i, t in enumerate(things)]
        )
    return {kind: (say(things), text) for kind, text in wrong.items() if not is_true(text, scene)}


@torch.no_grad()
def retrieval(
    toy: ToyBlip, scenes: Sequence[Scene], images: Tensor, among: int = 16
) -> dict[str, float]:
    """Recall at 1 both ways, by ITC alone and with its best ``among`` judged again by ITM; any true
    caption counts.
    """
    captions = [scene.caption for scene in scenes]
    ids, model = toy.texts(captions), toy.model
    cosine = model.encode_image(images) @ model.encode_text(ids, (ids != toy.marks.pad).long()).T
    true = torch.tensor([[is_true(caption, scene) for caption in captions] for scene in scenes])
    found = {}
    for way, scores, right in (
        ("image to text", cosine, true),
        ("text to image", cosine.T, true.T),
    ):
        best = scores.topk(among, dim=1).indices  # (N, among)
        asked, other = torch.arange(len(best)).repeat_interleave(among), best.flatten()
        image, text = (asked, other) if way == "image to text" else (other, asked)
        judged = toy.matches(images[image], [captions[i] for i in text.tolist()]).view_as(best)
        again = best.gather(1, judged.argmax(dim=1, keepdim=True))
        for name, choice in ((way, best[:, :1]), (f"{way}, re-ranked", again)):
            found[name] = right.gather(1, choice).float().mean().item()
    return found


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
    right = [verdict == answer for verdict, (*_, answer) in zip(said.tolist(), asked, strict=True)]
    kinds = sorted({kind for kind, *_ in asked})
    by_kind = {
        kind: [ok for ok, (k, *_) in zip(right, asked, strict=True) if k == kind] for kind in kinds
    }
    return {kind: sum(oks) / len(oks) for kind, oks in (by_kind | {"all": right}).items()}


def told_truly(toy: ToyBlip, scenes: Sequence[Scene], images: Tensor) -> float:
    """Share of the greedy captions that are true of their scenes."""
    return sum(map(is_true, toy.captions(images), scenes)) / len(scenes)


def bootstrap(
    base: ToyBlip,
    images: Tensor,
    web: Sequence[str],
    clean: tuple[Tensor, Sequence[str]],
    steps: int,
    seed: int = 0,
    **options,
) -> dict[str, list[tuple[int, str]]]:
    """CapFilt (section 3.3) -> four data sets, as (number of an image, caption): "web", "F", "C",
    "C+F".

    A captioner (LM) and a filter (ITC and ITM) are fine-tuned from ``base`` on the clean pairs,
    apart from each other. The captioner writes one caption for each image of the web, drawn from
    the nucleus (p = 0.9); the filter throws out those of the web's (F), and of the captioner's
    (C+F), that it finds not to match.
    """
    captioner, judge = deepcopy(base), deepcopy(base)
    captioner.train(*clean, steps, losses=("lm",), seed=seed, **options)
    judge.train(*clean, steps, losses=("itc", "itm"), seed=seed, **options)
    written = captioner.captions(images, top_p=0.9, generator=torch.Generator().manual_seed(seed))
    found, kept = {}, {}
    for name, texts in (("web", web), ("written", written)):
        found[name] = list(enumerate(texts))
        matches = (judge.matches(images, texts) > 0.5).tolist()
        kept[name] = [pair for pair, good in zip(found[name], matches, strict=True) if good]
    return {
        "web": found["web"],
        "F": kept["web"],
        "C": found["web"] + found["written"],
        "C+F": kept["web"] + kept["written"],
    }
