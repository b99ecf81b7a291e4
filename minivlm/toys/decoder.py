"""A small language model of text alone: scenes in words, what can be said of them and asked.

It reads of every colour-shape pair, also of those that no image in training shows.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from minivlm.bpe import BPETokenizer
from minivlm.multimodal import CONTROL, Processor, answer_loss
from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.parts.generation import generate
from minivlm.parts.masks import causal, segments
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained.llama import publish_decoder
from minivlm.scenes import Scene, instructions, sample
from minivlm.scenes.pixels import pixels
from minivlm.toys.common import FROZEN, TOY_WIDTH, decode_rows, rates, save_toy

SCENES = 6000  # of train, and as many of all colour-shape pairs
# Steps of look-ups alone, and of all conversations; without scenes the loss soon stops falling.
LOOK_UPS, ALL, BARE = 2000, 4500, 400
ROWS, PACKED = 48, 320  # packed rows a step, tokens of each


def spoken_texts(conversations: Sequence[list[dict]]) -> list[str]:
    """The texts in conversations, and how each of their turns opens."""
    messages = [message for turns in conversations for message in turns]
    texts = []
    for message in messages:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [part["text"] for part in content]
    return texts + [f"{message['role']}\n" for message in messages]


def language_config(vocab_size: int) -> DecoderConfig:
    """Some 300,000 parameters."""
    return DecoderConfig(
        vocab_size, TOY_WIDTH, layers=4, heads=4, kv_heads=4, hidden=2 * TOY_WIDTH, tied=True
    )


def packed_loss(model: Decoder, batch: tuple[Tensor, ...]) -> Tensor:
    """Of packed rows (R, T): ids, labels, the number of the segment, the position in it."""
    ids, labels, segment, place = batch
    mask = segments(segment) & causal(ids.shape[1]).to(ids.device)
    return answer_loss(model(ids, mask=mask, positions=place), labels)


@dataclass
class LanguageModel:
    """A decoder, what turns conversations into its inputs, and whether it is given the scenes."""

    model: Decoder
    processor: Processor
    context: bool = True

    @classmethod
    def new(cls, conversations: Sequence[list[dict]], context: bool = True) -> "LanguageModel":
        """Untrained, with a tokenizer of the conversations' texts."""
        texts = spoken_texts(conversations)
        tokenizer = BPETokenizer.train(texts, vocab_size=480, special_tokens=CONTROL)
        torch.manual_seed(0)
        model = Decoder(language_config(tokenizer.vocab_size))
        return cls(model, Processor(tokenizer, 0, pixels), context)

    def batches(self, conversations: Sequence[list[dict]]) -> Iterator[tuple[Tensor, ...]]:
        """Endless batches of packed rows."""
        rows = [self.processor.prepare(turns) for turns in conversations]
        Random(0).shuffle(rows)
        packed = self.processor.pack(rows, PACKED)
        names = ("input_ids", "labels", "segment_ids", "position_ids")
        size = min(ROWS, len(packed["input_ids"]))
        return minibatches(*(packed[name] for name in names), batch_size=size)

    def train(
        self, conversations: Sequence[list[dict]], steps: int, muon_lr: float = 0.02
    ) -> dict[str, list[float]]:
        """Fit the model to conversations, packed; returns the history of ``fit``."""
        options = rates(muon_lr) | {"weight_decay": 0.1}
        return fit(self.model, self.batches(conversations), packed_loss, steps, **options)

    def measure(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """How often the first answer of each kind of conversation is right, by kind of question."""
        rng, right = Random(0), defaultdict(list)
        told = [(scene, make(scene, rng)) for scene in scenes for make in instructions.MAKERS]
        asked = [(scene, turns[0]) for scene, turns in told if turns]
        prompts = []
        for scene, turn in asked:
            words = instructions.listing(scene) if self.context else ""
            prompts.append(instructions.messages([turn], words)[:1])
        for (scene, turn), said in zip(asked, self.answer(prompts), strict=True):
            right[turn.kind].append(instructions.accepts(turn, said, scene))
        return {kind: sum(oks) / len(oks) for kind, oks in sorted(right.items())}

    def answer(self, conversations: Sequence[list[dict]]) -> list[str]:
        """The greedy answer to each conversation."""
        rows = [self.processor.prepare(messages, reply=True) for messages in conversations]
        batch, tokenizer = self.processor.collate(rows, "left"), self.processor.tokenizer
        end, mask = tokenizer.special_tokens["<|im_end|>"], batch["attention_mask"]
        new = generate(self.model, batch["input_ids"], 24, eos_id=end, attention_mask=mask)
        return decode_rows(tokenizer, new, {end})

    def save(self, folder: str | Path) -> None:
        """config.json, model.safetensors (both as of published Llamas) and tokenizer.json."""
        save_toy(self.model, publish_decoder(self.model.config), folder, self.processor.tokenizer)


Report = Callable[[LanguageModel, list[float]], None]  # is given the losses of a phase


def train_decoder(
    context: bool = True,
    report: Report = lambda made, losses: None,
    before: Callable[[Decoder], None] = lambda model: None,
) -> LanguageModel:
    """The language model of data/checkpoints; report: called after each phase.

    First what ``before`` does to it (the drills), then look-ups in words, then all conversations.
    ``context=False`` is the ablation: the same conversations without the scenes and the look-ups,
    for fewer steps.
    """
    scenes = sample(SCENES, seed=0) + sample(SCENES, seed=7, pairs="all")
    conversations = instructions.corpus(scenes, 0, context)
    made = LanguageModel.new(conversations[::8], context)
    before(made.model)
    if context:
        report(made, made.train(instructions.look_ups(scenes, 0), LOOK_UPS)["loss"])
    report(made, made.train(conversations, ALL if context else BARE)["loss"])
    return made


def build_decoder(context: bool = True, folder: str | Path = FROZEN / "decoder") -> None:
    """Train the language model and write it to a folder, in half precision."""
    made = train_decoder(context)
    made.model.half()
    made.save(folder)
