"""A model that answers questions about images, trained between two frozen ones.

One is an image encoder, the other a language model.

Used by notebooks 07 and 08, by ``python -m minivlm ask`` and by the experiments for their tables.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from minivlm.blip2 import Blip2, ClipFeatures, FirstStage, QFormerConfig, second_stage
from minivlm.bpe import BPETokenizer
from minivlm.llava import Llava, LlavaConfig
from minivlm.multimodal import CONTROL, IMAGE, Processor, Prompted, answer_loss
from minivlm.parts.generation import generate
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained import from_pretrained
from minivlm.pretrained.checkpoints import Names, fill, read_tensors
from minivlm.pretrained.llava import publish_llava
from minivlm.qwen_vl import packed_logits
from minivlm.scenes import Scene, instructions
from minivlm.scenes.pixels import augment, pixels
from minivlm.scenes.questions import Question
from minivlm.toys.common import (
    FROZEN,
    RATES,
    SPEAKER,
    TOY_WIDTH,
    as_bert,
    decode_rows,
    load_tokenizer,
    load_toy,
    look_up_images,
    read_sizes,
    save_toy,
    shape_of,
)

LONGEST_ROW = 240  # tokens of a packed row, unless a conversation is longer
QFORMER_SHAPE = {"width": TOY_WIDTH, "layers": 4, "heads": 6, "hidden": 2 * TOY_WIDTH, "length": 32}
Turns = list[dict]  # messages


@dataclass
class Assistant:
    """A Llava or a Blip2 that speaks, with what turns messages and images into its inputs."""

    model: Prompted
    processor: Processor

    @classmethod
    def llava(
        cls,
        seed: int = 0,
        language_model: Path = FROZEN / "decoder",
        projector: Path | None = None,
    ) -> "Assistant":
        """The frozen image encoder and the language model of a folder, and between them an
        untrained projector, or that of a folder.
        """
        vision = from_pretrained(FROZEN / "clip").vision
        decoder, tokenizer = load_toy(language_model)
        image = tokenizer.special_tokens["<|image|>"]
        torch.manual_seed(seed)
        model = Llava(LlavaConfig(vision.config, decoder.config, image_token_id=image))
        model.vision.load_state_dict(vision.state_dict())
        model.decoder.load_state_dict(decoder.state_dict())
        if projector:
            fill(model.projector, read_tensors(projector), Names())
        return cls(model.eval(), Processor(tokenizer, model.image_tokens, pixels))

    @classmethod
    def blip2(cls, queries: int = 8, seed: int = 0, vocab_size: int = 0) -> "Assistant":
        """The same with an untrained Q-Former; vocab_size: of what it reads in stage 1."""
        vision = from_pretrained(FROZEN / "clip").vision
        decoder, tokenizer = load_toy(FROZEN / "decoder")
        shape = QFORMER_SHAPE | {"memory": vision.config.width, "queries": queries}
        torch.manual_seed(seed)
        model = Blip2(
            ClipFeatures(vision),
            QFormerConfig(vocab_size or 1, **shape),
            width=64 if vocab_size else 0,
            decoder=decoder,
            token=tokenizer.special_tokens["<|image|>"],
        )
        return cls(model.eval(), Processor(tokenizer, queries, pixels))

    def train(
        self,
        conversations: Sequence[tuple[int, Turns]],
        images: Tensor,
        steps: int,
        *,
        batch: int = 64,
        seed: int = 0,
        erased: float = 0.0,
        **options: Any,
    ) -> dict[str, list[float]]:
        """Fit what requires a gradient to conversations, (number of the image, messages), and
        images (B, 3, 64, 64), of which the share ``erased`` loses a channel.

        Learned is what the assistant says. Several conversations share a packed row, which costs
        less than padding and changes no loss. Returns the history of ``fit``.
        """
        rows = [
            self.processor.prepare(messages, numbers=[number]) for number, messages in conversations
        ]
        length = max([LONGEST_ROW, *(row["input_ids"].shape[1] for row in rows)])

        def batches() -> Iterator[dict]:
            for (drawn,) in minibatches(torch.arange(len(rows)), batch_size=batch, seed=seed):
                packed = self.processor.pack([rows[i] for i in drawn.tolist()], length)
                yield look_up_images(packed, images)

        def loss(model: Prompted, batch: dict) -> Tensor:
            seen = {"pixel_values": augment(batch["pixel_values"], erased)}
            return answer_loss(packed_logits(model, batch | seen), batch["labels"])

        return fit(self.model, batches(), loss, steps, seed=seed, **RATES | options)

    def answer(
        self, conversations: Sequence[Turns], images: Tensor | None = None, longest: int = 24
    ) -> list[str]:
        """The greedy answer to each conversation, whose first message holds the image of the same
        number.

        Without images, the language model alone answers conversations without images.
        """
        if images is not None and len(images) != len(conversations):
            raise ValueError(f"{len(images)} images for {len(conversations)} conversations")
        rows = [
            self.processor.prepare(messages, numbers=[] if images is None else [number], reply=True)
            for number, messages in enumerate(conversations)
        ]
        batch = self.processor.collate(rows, "left")
        if images is not None:
            batch = look_up_images(batch, images)
        del batch["labels"]
        end = self.processor.tokenizer.special_tokens["<|im_end|>"]
        new = generate(self.model, batch.pop("input_ids"), longest, eos_id=end, **batch)
        return decode_rows(self.processor.tokenizer, new, {end})

    def describe(self, images: Tensor) -> list[str]:
        """The greedy caption of each image (B, 3, 64, 64), which is alone in the prompt."""
        return self.answer([[{"role": "user", "content": [IMAGE]}]] * len(images), images)

    def save(self, folder: str | Path) -> None:
        """config.json, model.safetensors (both as of published LLaVAs) and tokenizer.json.

        ValueError for a BLIP-2, of which ``save_trained_parts`` writes what is not frozen.
        """
        if not isinstance(self.model, Llava):
            raise ValueError(f"a {type(self.model).__name__} is saved by save_trained_parts")
        config = publish_llava(self.model) | {SPEAKER: "assistant"}
        save_toy(self.model, config, folder, self.processor.tokenizer)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> "Assistant":
        """Read what ``save`` wrote."""
        model, tokenizer = load_toy(folder, dtype, kind=Llava, marks=CONTROL)
        return cls(model, Processor(tokenizer, model.image_tokens, pixels))


def save_projector(assistant: Assistant, folder: str | Path) -> None:
    """Write what LLaVA's first stage trains, in half precision."""
    save_toy(deepcopy(assistant.model.projector).half(), {}, folder)


# BLIP-2's stages


def first_stage(
    model: Blip2,
    tokenizer: BPETokenizer,
    images: Tensor,
    captions: Sequence[str],
    steps: int,
    *,
    batch: int = 64,
    seed: int = 0,
    **options: Any,
) -> dict[str, list[float]]:
    """BLIP-2's stage 1 on images (B, 3, 64, 64) and captions; returns the history of each loss.

    tokenizer: with the special tokens of ``common.BERT_MARKS``.
    """
    ids, marks = as_bert(tokenizer, captions, model.qformer.config.length), tokenizer.special_tokens
    stage = FirstStage(model, dec=marks["[DEC]"], pad=marks["[PAD]"])

    def loss(stage: FirstStage, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return stage(augment(batch[0]), batch[1])

    batches = minibatches(images, ids, batch_size=batch, seed=seed)
    history = fit(stage, batches, loss, steps, seed=seed, **RATES | options)
    return {name: history[name] for name in history if name not in ("loss", "grad_norm")}


def trained_parts(model: Blip2) -> nn.ModuleDict:
    """What the stage that the model is in trains, as one module of the same weights."""
    names = ["qformer", "projection"]
    if model.match_head is not None:
        names = ["qformer", "image_projection", "text_projection", "match_head", "head"]
    return nn.ModuleDict(
        {"norm": model.vision.norm} | {name: getattr(model, name) for name in names}
    )


def save_trained_parts(
    model: Blip2, folder: str | Path, tokenizer: BPETokenizer | None = None
) -> None:
    """Write ``trained_parts`` in half precision; tokenizer: of what the Q-Former reads."""
    config = {"queries": model.qformer.config.queries} | QFORMER_SHAPE
    if tokenizer:
        config["vocab_size"] = tokenizer.vocab_size
    save_toy(deepcopy(trained_parts(model)).half(), config, folder, tokenizer)


def load_stage_one(
    seed: int = 0, folder: Path = FROZEN / "qformer"
) -> tuple[Assistant, BPETokenizer]:
    """The Q-Former of a folder between the frozen models, and the tokenizer of the texts that it
    reads.
    """
    tokenizer, tensors = load_tokenizer(folder), read_tensors(folder)
    made = Assistant.blip2(_queries(folder, tensors), seed, tokenizer.vocab_size)
    fill(trained_parts(made.model), tensors, Names())
    return made, tokenizer


def load_stage_two(folder: Path = FROZEN / "blip2") -> Assistant:
    """The Q-Former and the Linear of a folder between the frozen models, ready to speak."""
    tensors = read_tensors(folder)
    made = Assistant.blip2(_queries(folder, tensors))
    second_stage(made.model)
    fill(trained_parts(made.model), tensors, Names())
    return made


def _queries(folder: Path, tensors: dict[str, Tensor]) -> int:
    """The number of queries of a folder; ValueError if the weights have another."""
    queries = shape_of(tensors, "qformer.queries", 3)[1]
    read_sizes(folder, {"queries": queries})
    return queries


@torch.no_grad()
def own_captions(model: Blip2, tokenizer: BPETokenizer, images: Tensor) -> list[str]:
    """The greedy caption that the Q-Former itself says of each image (B, 3, 64, 64), by its head
    for ITG.
    """
    marks = tokenizer.special_tokens
    start = torch.full((len(images), 1), marks["[DEC]"])
    new = generate(model.itg, start, 24, eos_id=marks["[SEP]"], image=model.vision(images))
    return decode_rows(tokenizer, new, {*marks.values()})


# Measures


@dataclass
class Interview:
    """The turns that are asked of one scene, and what was said so far."""

    number: int  # of the scene and its image
    turns: list[Question]
    messages: Turns

    def ask(self, turn: int) -> None:
        """Put the question of a turn after what was said; the first follows the image."""
        text = self.turns[turn].text
        content = text if turn else [IMAGE, {"type": "text", "text": text}]
        self.messages.append({"role": "user", "content": content})


def measure(
    assistant: Assistant,
    scenes: Sequence[Scene],
    images: Tensor,
    *,
    held_out: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """The share of right answers by kind, over a conversation, a description, a reasoning and the
    places of each scene, in several turns.

    Every turn but the first is asked after the assistant's own answers. "later turns": of those
    alone. ``held_out``: in the phrasings that no training shows.
    """
    rng = Random(f"measure {seed}")
    interviews = [
        Interview(i, turns, [])
        for i, scene in enumerate(scenes)
        for make in instructions.MAKERS
        if (turns := make(scene, rng, held_out))
    ]
    right = defaultdict(list)
    for turn in range(max(len(interview.turns) for interview in interviews)):
        going_on = [interview for interview in interviews if len(interview.turns) > turn]
        for interview in going_on:
            interview.ask(turn)
        shown = images[[interview.number for interview in going_on]]
        answers = assistant.answer([interview.messages for interview in going_on], shown)
        for interview, answer in zip(going_on, answers, strict=True):
            interview.messages.append({"role": "assistant", "content": answer})
            question = interview.turns[turn]
            ok = instructions.accepts(question, answer, scenes[interview.number])
            for kind in (question.kind, "later turns" if turn else "first turns", "all"):
                right[kind].append(ok)
    return {kind: sum(oks) / len(oks) for kind, oks in sorted(right.items())}
