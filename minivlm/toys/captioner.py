"""The toy captioner: a small LLaVA, trained from scratch on scenes, that says what is in an image.

It puts the pieces together: tokenizer, image encoder, projector, decoder, one training loop, greedy
decoding. A sequence is the image's placeholders, the caption and <|end|>; only the caption and
<|end|> are learned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minivlm.bpe import BPETokenizer
from minivlm.clip import VisionConfig
from minivlm.llava import Llava, LlavaConfig
from minivlm.parts.decoder import DecoderConfig
from minivlm.parts.generation import generate
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained.llava import publish_llava
from minivlm.scenes import Scene, sample
from minivlm.scenes.pixels import IMAGE_SIZE, augment, pixels
from minivlm.toys.common import (
    RATES,
    SPEAKER,
    TOY_WIDTH,
    decode_rows,
    image_map,
    load_toy,
    pad_right,
    save_toy,
    shrink_weights,
)

CAPTIONER_MARKS = ("<|image|>", "<|end|>", "<|pad|>")
SCENES, BATCH, STEPS = 24_000, 64, 1100  # three minutes on one busy core
# Of the labels: the language model must not rule out a colour-shape pair that it never read.
SMOOTHING = 0.1


def captioner_config(tokenizer: BPETokenizer) -> LlavaConfig:
    """A LLaVA of half a million parameters."""
    vision = VisionConfig(
        IMAGE_SIZE, patch=16, width=TOY_WIDTH, layers=2, heads=6, hidden=4 * TOY_WIDTH
    )
    text = DecoderConfig(
        tokenizer.vocab_size,
        TOY_WIDTH,
        layers=2,
        heads=6,
        kv_heads=6,
        hidden=2 * TOY_WIDTH,
        theta=1e6,
    )
    image = tokenizer.special_tokens["<|image|>"]
    return LlavaConfig(vision, text, image_token_id=image, feature_layers=(-1,))


@dataclass
class Captioner:
    model: Llava
    tokenizer: BPETokenizer

    @classmethod
    def new(cls, texts: Sequence[str], seed: int = 0) -> "Captioner":
        """An untrained captioner whose tokenizer is learned from the texts."""
        tokenizer = BPETokenizer.train(texts, vocab_size=360, special_tokens=CAPTIONER_MARKS)
        torch.manual_seed(seed)
        model = Llava(captioner_config(tokenizer))
        shrink_weights(model)
        with torch.no_grad():
            model.vision.positions[1:] = image_map(IMAGE_SIZE // 16, TOY_WIDTH)
        return cls(model, tokenizer)

    def prompt(self, text: str = "") -> list[int]:
        """The ids of an image's placeholders, and of what is said of it so far."""
        image = self.model.image_token_id
        return [image] * self.model.image_tokens + self.tokenizer.encode(text)

    def sequences(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (B, T) ids: placeholders, caption, <|end|>, padding."""
        _, end, pad = (self.tokenizer.special_tokens[name] for name in CAPTIONER_MARKS)
        return pad_right([[*self.prompt(caption), end] for caption in captions], pad)

    def loss(self, model: Llava, batch: tuple[Tensor, Tensor], smoothing: float = 0.0) -> Tensor:
        """Next-token cross-entropy of caption and <|end|>.

        batch: ids (B, T), pixel_values (B, C, H, W).
        """
        ids, pixel_values = batch
        before = model.image_tokens - 1  # the place that predicts the first token of the caption
        states = model.states(ids, pixel_values)[:, before:-1]
        logits = model.decoder.head(states)  # of the caption alone: nothing else has a loss
        return F.cross_entropy(
            logits.flatten(0, 1),
            ids[:, before + 1 :].flatten(),
            ignore_index=self.tokenizer.special_tokens["<|pad|>"],
            label_smoothing=smoothing,
        )

    def train(
        self,
        scenes: Sequence[Scene],
        steps: int = STEPS,
        *,
        vary: Callable[[Tensor], Tensor] = augment,
        **options: Any,
    ) -> dict[str, list[float]]:
        """Fit the model to the scenes' captions; returns the history of ``fit``.

        vary: what is done to a batch of images (B, 3, 64, 64) before each step.
        """
        ids = self.sequences([scene.caption for scene in scenes])
        batches = minibatches(ids, pixels([scene.image for scene in scenes]), batch_size=BATCH)

        def loss(model: Llava, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.loss(model, (batch[0], vary(batch[1])), SMOOTHING)

        return fit(self.model, batches, loss, steps, **RATES | {"weight_decay": 0.1} | options)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One greedy caption an image."""
        end, weight = self.tokenizer.special_tokens["<|end|>"], self.model.decoder.norm.weight
        prompts = torch.tensor([self.prompt()] * len(images), device=weight.device)
        new = generate(self.model, prompts, 24, eos_id=end, pixel_values=pixels(images).to(weight))
        return decode_rows(self.tokenizer, new, {end})

    def save(self, folder: str | Path) -> None:
        """config.json, model.safetensors (both as of published LLaVAs) and tokenizer.json."""
        config = publish_llava(self.model) | {SPEAKER: "captioner"}
        save_toy(self.model, config, folder, self.tokenizer)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> "Captioner":
        """Read what ``save`` wrote."""
        return cls(*load_toy(folder, dtype, kind=Llava, marks=CAPTIONER_MARKS))


def train_captioner(
    scene_count: int = SCENES, steps: int = STEPS, seed: int = 0, **options: Any
) -> tuple[Captioner, dict[str, list[float]]]:
    """The captioner of ``python -m minivlm`` and its history; seed: of its first weights."""
    scenes = sample(scene_count, seed=0)
    captioner = Captioner.new([scene.caption for scene in scenes], seed)
    return captioner, captioner.train(scenes, steps, **options)
