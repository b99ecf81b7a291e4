"""A model that answers questions about pictures, trained between a frozen image encoder and a
language model.

Used by notebooks 07 and 08, by ``python -m minivlm ask`` and by the tools for their tables.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from minivlm.blip2 import Blip2, ClipFeatures, FirstStage, QFormerConfig, second_stage
from minivlm.bpe import BPETokenizer
from minivlm.multimodal import IMAGE, Processor, Prompted, answer_loss
from minivlm.parts.generation import generate
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.checkpoints import Names, fill, read_json, read_tensors
from minivlm.pretrained.llava import build_llava
from minivlm.scenes import Scene, instructions
from minivlm.scenes.pixels import pixels, vary_channels
from minivlm.toys.common import FROZEN, RATES, as_bert

QFORMER = {"width": 96, "layers": 4, "heads": 6, "hidden": 192, "length": 32}


def toy_config(words: Path = FROZEN / "decoder") -> dict:
    """A LLaVA of the frozen image encoder and the language model in a folder, in the published
    format.
    """
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": _tokenizer(words).special_tokens["<|image|>"],
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vision_config": read_json(FROZEN / "clip" / "config.json")["vision_config"]
        | {"model_type": "clip_vision_model"},
        "text_config": read_json(words / "config.json"),
    }


def _tokenizer(folder: Path) -> BPETokenizer:
    return BPETokenizer.load(folder / "tokenizer.json")


@dataclass
class Assistant:
    """A Llava or a Blip2 that speaks, with what turns messages and pictures into its inputs."""

    model: Prompted
    processor: Processor
    config: dict

    @classmethod
    def llava(cls, seed: int = 0, words: Path = FROZEN / "decoder") -> "Assistant":
        """The frozen image encoder and the language model in a folder, with an untrained projector
        between them.
        """
        config = toy_config(words)
        torch.manual_seed(seed)
        model = build_llava(config)
        model.vision.load_state_dict(from_pretrained(FROZEN / "clip").vision.state_dict())
        model.decoder.load_state_dict(from_pretrained(words).state_dict())
        return cls(model.eval(), Processor(_tokenizer(words), model.image_tokens, pixels), config)

    @classmethod
    def blip2(
        cls, queries: int = 8, seed: int = 0, read: int = 0, words: Path = FROZEN / "decoder"
    ) -> "Assistant":
        """The same with an untrained Q-Former; ``read``: the vocabulary of the texts that it reads
        in stage 1.
        """
        vision, processor = (
            from_pretrained(FROZEN / "clip").vision,
            Processor(_tokenizer(words), queries, pixels),
        )
        config = QFormerConfig(read or 1, **QFORMER, memory=vision.config.width, queries=queries)
        parts = {"width": 64 if read else 0, "decoder": from_pretrained(words)}
        torch.manual_seed(seed)
        model = Blip2(
            ClipFeatures(vision),
            config,
            **parts,
            token=processor.tokenizer.special_tokens["<|image|>"],
        )
        return cls(model.eval(), processor, {})

    def train(
        self,
        conversations: Sequence[tuple[int, list[dict]]],
        images: Tensor,
        steps: int,
        *,
        batch: int = 64,
        seed: int = 0,
        **options,
    ) -> dict[str, list[float]]:
        """Fit what requires a gradient to conversations, (number of the image, messages), and
        images (B, 3, 64, 64).

        Learned is what the assistant says. Returns the history of ``fit``.
        """
        rows = [self._row(messages, number) for number, messages in conversations]

        def batches() -> Iterator[dict]:
            for (drawn,) in minibatches(torch.arange(len(rows)), batch_size=batch, seed=seed):
                yield self._batch([rows[i] for i in drawn.tolist()], images, "right")

        def loss(model: Prompted, batch: dict) -> Tensor:
            seen = vary_channels(batch["pixel_values"], erased=0.0)
            return answer_loss(
                model(batch["input_ids"], seen, batch["attention_mask"]), batch["labels"]
            )

        return fit(self.model, batches(), loss, steps, seed=seed, **RATES | options)

    def answer(
        self, conversations: Sequence[list[dict]], images: Tensor | None = None, longest: int = 24
    ) -> list[str]:
        """The greedy answer to each conversation, whose first message holds the image of the same
        number.

        Without images, the language model alone answers conversations without pictures.
        """
        if images is None:
            batch = self.processor.collate(
                [self.processor.prepare(m, reply=True) for m in conversations], "left"
            )
        else:
            batch = self._batch(
                [self._row(m, i, reply=True) for i, m in enumerate(conversations)], images, "left"
            )
        end = self.processor.tokenizer.special_tokens["<|im_end|>"]
        del batch["labels"]
        new = generate(self.model, batch.pop("input_ids"), longest, eos_id=end, **batch)
        return [
            self.processor.tokenizer.decode([i for i in row if i != end]) for row in new.tolist()
        ]

    def describe(self, images: Tensor) -> list[str]:
        """The greedy caption of each image (B, 3, 64, 64), which stands in the prompt alone."""
        return self.answer([[{"role": "user", "content": [IMAGE]}]] * len(images), images)

    def _row(self, messages: list[dict], number: int, **options) -> dict:
        """``Processor.prepare`` with the number of the image in the place of its pixels."""
        return replace(self.processor, to_pixels=torch.tensor).prepare(
            messages, [number], **options
        )

    def _batch(self, rows: Sequence[dict], images: Tensor, side: str) -> dict:
        batch = self.processor.collate(rows, side)
        return batch | {"pixel_values": images[batch["pixel_values"]]}

    def save(self, folder: str | Path) -> None:
        """config.json, model.safetensors (both as published LLaVAs have them) and tokenizer.json."""
        save_pretrained(self.model, self.config, folder)
        self.processor.tokenizer.save(Path(folder) / "tokenizer.json")

    @classmethod
    def load(cls, folder: str | Path) -> "Assistant":
        """Read what ``save`` wrote."""
        model, folder = from_pretrained(folder), Path(folder)
        return cls(
            model,
            Processor(_tokenizer(folder), model.image_tokens, pixels),
            read_json(folder / "config.json"),
        )


def first_stage(
    model: Blip2,
    tokenizer: BPETokenizer,
    images: Tensor,
    captions: Sequence[str],
    steps: int,
    *,
    batch: int = 64,
    seed: int = 0,
    **options,
) -> dict[str, list[float]]:
    """BLIP-2's stage 1 on images (B, 3, 64, 64) and captions; returns the history of each loss.

    tokenizer: with the special tokens of ``common.BERT_MARKS``.
    """
    ids = as_bert(tokenizer, captions, model.qformer.config.length)
    stage = FirstStage(
        model, dec=tokenizer.special_tokens["[DEC]"], pad=tokenizer.special_tokens["[PAD]"]
    )
    history = defaultdict(list)

    def loss(stage: FirstStage, batch: tuple[Tensor, Tensor]) -> Tensor:
        parts = stage(vary_channels(batch[0], erased=0.0), batch[1])
        for name, value in parts.items():
            history[name].append(value.item())
        return sum(parts.values())

    fit(
        stage,
        minibatches(images, ids, batch_size=batch, seed=seed),
        loss,
        steps,
        seed=seed,
        **RATES | options,
    )
    return dict(history)


def trained_parts(model: Blip2) -> nn.ModuleDict:
    """What the stage trains that the model is in, as one module of the same weights: to write, and
    to ``fill``.
    """
    heads = (
        ("image_projection", "text_projection", "match_head", "head")
        if model.match_head
        else ("projection",)
    )
    return nn.ModuleDict(
        {"norm": model.vision.norm} | {name: getattr(model, name) for name in ("qformer", *heads)}
    )


def load_stage_one(
    seed: int = 0, folder: Path = FROZEN / "qformer"
) -> tuple[Assistant, BPETokenizer]:
    """The Q-Former of a folder between the frozen models, and the tokenizer of the texts that it
    reads.
    """
    tokenizer = _tokenizer(folder)
    made = Assistant.blip2(read_json(folder / "config.json")["queries"], seed, tokenizer.vocab_size)
    fill(trained_parts(made.model), read_tensors(folder), Names())
    return made, tokenizer


def load_stage_two(folder: Path = FROZEN / "blip2") -> Assistant:
    """The Q-Former and the Linear of a folder between the frozen models, ready to speak."""
    made = Assistant.blip2(read_json(folder / "config.json")["queries"])
    second_stage(made.model)
    fill(trained_parts(made.model), read_tensors(folder), Names())
    return made


def own_captions(model: Blip2, tokenizer: BPETokenizer, images: Tensor) -> list[str]:
    """The greedy caption that the Q-Former itself says of each image (B, 3, 64, 64), by its head
    for ITG.
    """
    marks = tokenizer.special_tokens
    start = torch.full((len(images), 1), marks["[DEC]"])
    with torch.no_grad():
        new = generate(model.itg, start, 24, eos_id=marks["[SEP]"], image=model.vision(images))
    return [tokenizer.decode([i for i in row if i not in marks.values()]) for row in new.tolist()]


def measure(
    assistant: Assistant,
    found: Sequence[Scene],
    images: Tensor,
    *,
    held_out: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """The share of right answers by kind, over one conversation, description and reasoning a scene,
    in several turns.

    Every turn but the first is asked behind the assistant's own answers. "later turns": of those
    alone. ``held_out``: in the phrasings that no training shows.
    """
    rng = Random(f"measure {seed}")
    makers = instructions.conversation, instructions.description, instructions.reasoning
    asked = [(i, make(scene, rng, held_out)) for i, scene in enumerate(found) for make in makers]
    said: list[list[dict]] = [[] for _ in asked]
    right = defaultdict(list)
    for turn in range(max(len(turns) for _, turns in asked)):
        open_ = [j for j, (_, turns) in enumerate(asked) if len(turns) > turn]
        for j in open_:
            text = asked[j][1][turn].text
            said[j].append(
                {
                    "role": "user",
                    "content": text if turn else [IMAGE, {"type": "text", "text": text}],
                }
            )
        answers = assistant.answer([said[j] for j in open_], images[[asked[j][0] for j in open_]])
        for j, answer in zip(open_, answers, strict=True):
            i, turns = asked[j]
            said[j].append({"role": "assistant", "content": answer})
            ok = instructions.accepts(turns[turn], answer, found[i])
            right[turns[turn].kind].append(ok)
            right["later turns" if turn else "first turns"].append(ok)
            right["all"].append(ok)
    return {kind: sum(oks) / len(oks) for kind, oks in sorted(right.items())}
