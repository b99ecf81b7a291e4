"""The toy captioner: a small LLaVA, trained from scratch on scenes, that says what is in a picture.

It puts the pieces together: tokenizer, image tower, projector, decoder, one training loop, greedy
decoding. A sequence is the image's placeholders, the caption and <|end|>; only the caption and
<|end|> are learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minivlm.bpe import BPETokenizer
from minivlm.llava import Llava
from minivlm.parts.generation import generate
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.checkpoints import read_json
from minivlm.pretrained.llava import build_llava
from minivlm.scenes import Scene, sample
from minivlm.scenes.pixels import IMAGE_SIZE, pixels, vary_channels
from minivlm.toys.common import RATES
from minivlm.vit import sincos_2d

SPECIAL = ("<|image|>", "<|end|>", "<|pad|>")
PATCH, WIDTH = 16, 96
SCENES, BATCH, STEPS = 8000, 128, 350  # 55 to 80 s on one core
SMOOTHING = 0.1  # of the labels: the language model must not rule out a colour-shape pair that it never read


def toy_config(tokenizer: BPETokenizer) -> dict:
    """A LLaVA configuration of half a million parameters, in the published format."""
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 6}
    vision = {"model_type": "clip_vision_model", "image_size": IMAGE_SIZE, "patch_size": PATCH}
    text = {
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size,
        "num_key_value_heads": 6,
        "rope_theta": 1e6,
    }
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": tokenizer.special_tokens["<|image|>"],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "vision_config": vision | shape | {"intermediate_size": 4 * WIDTH},
        "text_config": text | shape | {"intermediate_size": 2 * WIDTH},
    }


def start_small(model: Llava) -> None:
    """Where the toy starts from: weights of 0.6 times the usual size, and positions that are a map
    of the image.

    Positions are learned, but they start as 2-D sin-cos, in a few of the features and large:
    notebook 02, section 4.2, measures that positions which are small beside the pixels are not read
    in a short training.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight *= 0.6
    side = IMAGE_SIZE // PATCH
    model.vision.positions[1:] = F.pad(4 * sincos_2d(side, side, 16, theta=10), (0, WIDTH - 16))


@dataclass
class Captioner:
    model: Llava
    tokenizer: BPETokenizer
    config: dict

    @classmethod
    def new(cls, texts: Sequence[str], seed: int = 0) -> "Captioner":
        """An untrained captioner whose tokenizer is learned from the texts."""
        tokenizer = BPETokenizer.train(texts, vocab_size=360, special_tokens=SPECIAL)
        config = toy_config(tokenizer)
        torch.manual_seed(seed)
        model = build_llava(config)
        with torch.no_grad():
            start_small(model)
        return cls(model, tokenizer, config)

    def sequences(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (B, T) ids: placeholders, caption, <|end|>, padding."""
        image, end, pad = (self.tokenizer.special_tokens[name] for name in SPECIAL)
        rows = [
            [image] * self.model.image_tokens + self.tokenizer.encode(text) + [end]
            for text in captions
        ]
        longest = max(map(len, rows))
        return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])

    def loss(self, model: Llava, batch: tuple[Tensor, Tensor], smoothing: float = 0.0) -> Tensor:
        """Next-token cross-entropy of caption and <|end|>; batch is (ids (B, T), pixels (B, C, H,
        W)).
        """
        ids, pixel_values = batch
        logits = model(ids, pixel_values)[
            :, model.image_tokens - 1 : -1
        ]  # what predicts each caption token
        logits, targets = logits.flatten(0, 1), ids[:, model.image_tokens :].flatten()
        pad = self.tokenizer.special_tokens["<|pad|>"]
        return F.cross_entropy(logits, targets, ignore_index=pad, label_smoothing=smoothing)

    def train(
        self, scenes: Sequence[Scene], steps: int = STEPS, **options
    ) -> dict[str, list[float]]:
        """Fit the model to the scenes' captions; returns the history of ``fit``."""
        ids = self.sequences([scene.caption for scene in scenes])
        batches = minibatches(ids, pixels([scene.image for scene in scenes]), batch_size=BATCH)

        def loss(model: Llava, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.loss(model, (batch[0], vary_channels(batch[1])), SMOOTHING)

        return fit(self.model, batches, loss, steps, **RATES | {"weight_decay": 0.1} | options)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """One greedy caption an image."""
        image, end, _ = (self.tokenizer.special_tokens[name] for name in SPECIAL)
        device = next(self.model.parameters()).device
        prompt = torch.full((len(images), self.model.image_tokens), image, device=device)
        new = generate(self.model, prompt, 24, eos_id=end, pixel_values=pixels(images).to(device))
        return [self.tokenizer.decode([i for i in row if i != end]) for row in new.tolist()]

    def save(self, folder: str | Path) -> None:
        """config.json, model.safetensors (both as published LLaVAs have them) and tokenizer.json."""
        save_pretrained(self.model, self.config, folder)
        self.tokenizer.save(Path(folder) / "tokenizer.json")

    @classmethod
    def load(cls, folder: str | Path) -> "Captioner":
        """Read what ``save`` wrote."""
        model, tokenizer = (
            from_pretrained(folder),
            BPETokenizer.load(Path(folder) / "tokenizer.json"),
        )
        return cls(model, tokenizer, read_json(Path(folder) / "config.json"))


def train_captioner(
    scene_count: int = SCENES, steps: int = STEPS, seed: int = 0, **options
) -> tuple[Captioner, dict[str, list[float]]]:
    """The captioner of ``python -m minivlm`` and its training history; the seed is that of its
    first weights.
    """
    scenes = sample(scene_count, seed=0)
    captioner = Captioner.new([scene.caption for scene in scenes], seed)
    return captioner, captioner.train(scenes, steps, **options)
