"""A small Qwen-VL for scenes: made from the language model of data/checkpoints, trained in stages,
asked and judged.

Used by notebook 09 and by tools/qwen_vl_ablations.py and build_checkpoints.py.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm.boxes import TAGS
from minivlm.bpe import BPETokenizer
from minivlm.clip import VisionConfig
from minivlm.multimodal import answer_loss
from minivlm.parts.decoder import Decoder
from minivlm.parts.generation import generate
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained import from_pretrained
from minivlm.pretrained.checkpoints import Names, fill, read_json, read_tensors, write
from minivlm.qwen_vl import (
    OWN_NAMES,
    ImageTower,
    QwenProcessor,
    QwenVL,
    packed_logits,
    pictures,
    train_stage,
)
from minivlm.scenes import Scene
from minivlm.scenes.pixels import vary_channels
from minivlm.scenes.questions import Question
from minivlm.scenes.tasks import accepts, album, overlaps
from minivlm.toys.common import FROZEN, RATES
from minivlm.vit import sincos_2d

TOWER = VisionConfig(64, patch=16, width=96, layers=3, heads=6, hidden=192, eps=1e-6, act="gelu")
HEADS, LENGTH = 6, 400  # of the resampler; tokens of a packed row
Maker = Callable[
    [int, Random], dict
]  # the number of a scene -> a row with that number in the place of its pixels


def with_tags(folder: Path) -> tuple[BPETokenizer, Decoder]:
    """The language model of a folder, its marks under Qwen-VL's names and with a new row for each
    of the TAGS.
    """
    old, trained = BPETokenizer.load(folder / "tokenizer.json"), from_pretrained(folder)
    special = {OWN_NAMES.get(name, name): i for name, i in old.special_tokens.items()}
    special |= {tag: old.vocab_size + i for i, tag in enumerate(TAGS)}
    tokenizer = BPETokenizer(old.ranks, old.merges, old.pattern, special)
    decoder = Decoder(replace(trained.config, vocab_size=tokenizer.vocab_size))
    state = trained.state_dict()
    rows = state["embedding.weight"]
    more = torch.cat([rows, rows.mean(0) + rows.std(0) * torch.randn(len(TAGS), rows.shape[1])])
    decoder.load_state_dict(state | {"embedding.weight": more, "head.weight": more})
    return tokenizer, decoder


@dataclass
class Pointer:
    """A QwenVL that points at what is named, with what turns tasks and conversations into its
    inputs.
    """

    model: QwenVL
    processor: QwenProcessor

    @classmethod
    def new(cls, seed: int = 0, *, side: int = 4, positions: str = "2d", **tower: int) -> "Pointer":
        """An untrained image tower and resampler before the language model of data/checkpoints.

        side, positions: those of the resampler. tower: what differs from TOWER, such as image_size,
        the pixels that the tower's positions are for; they start as a map of the image, as in
        captioner.start_small.
        """
        torch.manual_seed(seed)
        tokenizer, decoder = with_tags(FROZEN / "decoder")
        vision, image = ImageTower(replace(TOWER, **tower)), tokenizer.special_tokens["<imgpad>"]
        with torch.no_grad():
            table = 4 * sincos_2d(vision.side, vision.side, 16, theta=10)
            vision.positions.copy_(F.pad(table, (0, TOWER.width - 16)))
        model = QwenVL(vision, decoder, token=image, heads=HEADS, side=side, positions=positions)
        return cls(model.eval(), QwenProcessor(tokenizer, model.image_tokens, torch.tensor))

    def row(self, asked: Question, number: int, *, reply: bool = False) -> dict:
        """``QwenProcessor.task`` with the number of the image in the place of its pixels."""
        return self.processor.task(asked, number, reply=reply)

    def talk(
        self, found: Sequence[Scene], numbers: Sequence[int], rng: Random, *, reply: bool = False
    ) -> tuple[list[tuple[int, Question]], dict]:
        """A conversation about the scenes of these numbers: what is asked, and the row.

        What is asked is a list of (place in ``numbers``, question). ``reply`` leaves out all
        answers, and all questions but the first.
        """
        asked, said = album([found[i] for i in numbers], rng)
        return asked, self.processor.prepare(
            pictures(said[:1] if reply else said), numbers, reply=reply
        )

    def train(
        self,
        make: Maker,
        images: Tensor,
        steps: int,
        stage: int,
        *,
        batch: int = 64,
        seed: int = 0,
        **options,
    ) -> dict[str, list[float]]:
        """Fit what the stage trains to rows about images (B, 3, S, S), ``batch`` rows a step,
        packed.

        A row is made when its image's turn comes. Returns the history of ``fit``.
        """
        train_stage(self.model, stage)
        rng = Random(f"rows {seed}")

        def batches() -> Iterator[dict]:
            for (drawn,) in minibatches(torch.arange(len(images)), batch_size=batch, seed=seed):
                packed = self.processor.pack([make(i, rng) for i in drawn.tolist()], LENGTH)
                yield packed | {"pixel_values": images[packed["pixel_values"]]}

        def loss(model: QwenVL, batch: dict) -> Tensor:
            seen = vary_channels(batch["pixel_values"])
            return answer_loss(
                packed_logits(model, batch | {"pixel_values": seen}), batch["labels"]
            )

        return fit(self.model, batches(), loss, steps, seed=seed, **RATES | options)

    def answer(
        self, rows: Sequence[dict], images: Tensor, longest: int = 96, end: str = "<|endoftext|>"
    ) -> list[str]:
        """The greedy answer behind each row that is made for a ``reply``, 128 at once."""
        tokenizer, said = self.processor.tokenizer, []
        for start in range(0, len(rows), 128):
            batch = self.processor.collate(rows[start : start + 128], "left")
            given = {
                "attention_mask": batch["attention_mask"],
                "pixel_values": images[batch["pixel_values"]],
            }
            stop = tokenizer.special_tokens[end]
            new = generate(self.model, batch["input_ids"], longest, eos_id=stop, **given)
            said += [tokenizer.decode([i for i in ids if i != stop]) for ids in new.tolist()]
        return said

    def measure(
        self, asked: Sequence[tuple[int, Question]], found: Sequence[Scene], images: Tensor
    ) -> dict[str, float]:
        """Shares of right answers by kind; of boxes that were asked for also "IoU >= 0.5" and the
        "mean IoU".

        asked: number of the scene and of its image, question. A box counts in each answer that
        should hold it.
        """
        answers = self.answer([self.row(question, i, reply=True) for i, question in asked], images)
        shares = defaultdict(list)
        for (i, question), answer in zip(asked, answers, strict=True):
            shares[question.kind].append(accepts(question, answer, found[i]))
            if question.kind == "grounding":
                shares["mean IoU"] += overlaps(question, answer)
        shares["IoU >= 0.5"] = [overlap >= 0.5 for overlap in shares["mean IoU"]]
        return {name: sum(values) / len(values) for name, values in shares.items() if values}

    def save(self, folder: str | Path) -> None:
        """config.json, model.safetensors and tokenizer.json."""
        resampler, tower = self.model.resampler, self.model.vision.config
        config = {"side": resampler.side, "positions": resampler.kind}
        config |= {"image_size": tower.image_size, "patch": tower.patch}
        write(self.model, config, Names(), Path(folder))
        self.processor.tokenizer.save(Path(folder) / "tokenizer.json")

    @classmethod
    def load(cls, folder: str | Path = FROZEN / "qwen_vl") -> "Pointer":
        """Read what ``save`` wrote."""
        made = cls.new(**read_json(Path(folder) / "config.json"))
        fill(made.model, read_tensors(Path(folder)), Names())
        return made
