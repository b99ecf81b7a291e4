"""A small Qwen-VL for scenes: made from the language model of data/checkpoints, trained in stages,
asked and judged.

Used by notebook 09, by the experiments for its tables and by tools/build_checkpoints.py.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from minivlm.boxes import TAGS
from minivlm.bpe import BPETokenizer
from minivlm.clip import VisionConfig
from minivlm.multimodal import answer_loss
from minivlm.parts.decoder import Decoder
from minivlm.parts.generation import generate
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained.checkpoints import Names, fill, read_tensors
from minivlm.qwen_vl import (
    QWEN_VL_NAMES,
    ImageTower,
    QwenProcessor,
    QwenVL,
    number_images,
    packed_logits,
    train_qwen_vl_stage,
)
from minivlm.scenes import Scene
from minivlm.scenes.pixels import pixels, vary_channels
from minivlm.scenes.questions import Question
from minivlm.scenes.tasks import album, is_solved, overlaps
from minivlm.toys.common import (
    FROZEN,
    RATES,
    TOY_WIDTH,
    decode_rows,
    image_map,
    load_tokenizer,
    load_toy,
    look_up_images,
    read_sizes,
    save_toy,
    shape_of,
)

TOWER = VisionConfig(
    64, patch=16, width=TOY_WIDTH, layers=3, heads=6, hidden=2 * TOY_WIDTH, eps=1e-6, act="gelu"
)
HEADS = 6  # of the resampler
LONGEST_ROW = 400  # tokens of a packed row
RowMaker = Callable[[int, Random], dict]  # the number of a scene -> a row about its image


def with_tags(folder: Path) -> tuple[BPETokenizer, Decoder]:
    """The language model of a folder, its marks under Qwen-VL's names and with a new row for each
    of the TAGS.
    """
    trained, old = load_toy(folder)
    special = {QWEN_VL_NAMES.get(name, name): i for name, i in old.special_tokens.items()}
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
        the pixels that the tower's positions are for.
        """
        torch.manual_seed(seed)
        return cls._of(*with_tags(FROZEN / "decoder"), side, positions, **tower)

    @classmethod
    def _of(
        cls, tokenizer: BPETokenizer, decoder: Decoder, side: int, positions: str, **tower: int
    ) -> "Pointer":
        """An untrained image tower and resampler before a language model."""
        vision, image = ImageTower(replace(TOWER, **tower)), tokenizer.special_tokens["<imgpad>"]
        with torch.no_grad():
            vision.positions.copy_(image_map(vision.side, TOY_WIDTH))
        model = QwenVL(vision, decoder, token=image, heads=HEADS, side=side, positions=positions)
        return cls(model.eval(), QwenProcessor(tokenizer, model.image_tokens, pixels))

    def row(self, question: Question, number: int, *, reply: bool = False) -> dict:
        """``QwenProcessor.task`` about the image of this number."""
        return self.processor.task(question.text, question.answer, number=number, reply=reply)

    def talk(
        self, scenes: Sequence[Scene], numbers: Sequence[int], rng: Random, *, reply: bool = False
    ) -> tuple[list[tuple[int, Question]], dict]:
        """A conversation about the scenes of these numbers: what is asked, and the row.

        What is asked is a list of (place in ``numbers``, question). ``reply`` leaves out all
        answers, and all questions but the first.
        """
        asked, messages = album([scenes[i] for i in numbers], rng)
        messages = number_images(messages[:1] if reply else messages)
        return asked, self.processor.prepare(messages, numbers=numbers, reply=reply)

    def train(
        self,
        make: RowMaker,
        images: Tensor,
        steps: int,
        stage: int,
        *,
        batch: int = 64,
        seed: int = 0,
        **options: Any,
    ) -> dict[str, list[float]]:
        """Fit what the stage trains to rows about images (B, 3, S, S), ``batch`` rows a step,
        packed.

        A row is made when its image's turn comes. Returns the history of ``fit``.
        """
        train_qwen_vl_stage(self.model, stage)
        rng = Random(f"rows {seed}")

        def batches() -> Iterator[dict]:
            for (drawn,) in minibatches(torch.arange(len(images)), batch_size=batch, seed=seed):
                packed = self.processor.pack([make(i, rng) for i in drawn.tolist()], LONGEST_ROW)
                yield look_up_images(packed, images)

        def loss(model: QwenVL, batch: dict) -> Tensor:
            seen = {"pixel_values": vary_channels(batch["pixel_values"])}
            return answer_loss(packed_logits(model, batch | seen), batch["labels"])

        return fit(self.model, batches(), loss, steps, seed=seed, **RATES | options)

    def answer(
        self, rows: Sequence[dict], images: Tensor, longest: int = 96, end: str = "<|endoftext|>"
    ) -> list[str]:
        """The greedy answer to each row that is made for a ``reply``, 128 at once."""
        tokenizer, said = self.processor.tokenizer, []
        stop = tokenizer.special_tokens[end]
        for start in range(0, len(rows), 128):
            batch = self.processor.collate(rows[start : start + 128], "left")
            batch = look_up_images(batch, images)
            del batch["labels"]
            new = generate(self.model, batch.pop("input_ids"), longest, eos_id=stop, **batch)
            said += decode_rows(tokenizer, new, {stop})
        return said

    def measure(
        self, asked: Sequence[tuple[int, Question]], scenes: Sequence[Scene], images: Tensor
    ) -> dict[str, float]:
        """Shares of right answers by kind; of boxes that were asked for also "IoU >= 0.5" and the
        "mean IoU".

        asked: number of the scene and of its image, question. A box counts in each answer that
        should hold it.
        """
        answers = self.answer([self.row(question, i, reply=True) for i, question in asked], images)
        shares: dict[str, list[float]] = defaultdict(list)
        for (i, question), answer in zip(asked, answers, strict=True):
            shares[question.kind].append(is_solved(question, answer, scenes[i]))
            if question.kind == "grounding":
                shares["mean IoU"] += overlaps(question, answer)
        shares["IoU >= 0.5"] = [overlap >= 0.5 for overlap in shares["mean IoU"]]
        return {name: sum(values) / len(values) for name, values in shares.items() if values}

    def save(self, folder: str | Path) -> None:
        """config.json, model.safetensors and tokenizer.json."""
        resampler, tower = self.model.resampler, self.model.vision.config
        config = {"side": resampler.side, "positions": resampler.kind}
        config |= {"image_size": tower.image_size, "patch": tower.patch}
        save_toy(self.model, config, folder, self.processor.tokenizer)

    @classmethod
    def load(cls, folder: str | Path = FROZEN / "qwen_vl") -> "Pointer":
        """Read what ``save`` wrote."""
        tensors = read_tensors(Path(folder))
        patch = shape_of(tensors, "vision.patch.weight", 4)[-1]
        rows, _ = shape_of(tensors, "vision.positions", 2)
        queries, _ = shape_of(tensors, "resampler.queries", 2)
        sizes = {"side": isqrt(queries), "patch": patch, "image_size": isqrt(rows) * patch}
        config = read_sizes(folder, sizes)
        if unknown := config.keys() - {*sizes, "positions"}:
            raise ValueError(f"{Path(folder) / 'config.json'}: unknown key {min(unknown)!r}")
        tokenizer, trained = load_tokenizer(folder), load_toy(FROZEN / "decoder")[0].config
        made = cls._of(
            tokenizer, Decoder(replace(trained, vocab_size=tokenizer.vocab_size)), **config
        )
        fill(made.model, tensors, Names())
        return made
