"""A small Qwen2-VL (or Qwen3-VL) for scenes of any size and for videos: trained on packed captions,
and asked for some.

Used by notebook 10 and by the experiments for its tables. A row is the image or video, its caption
and <|end|>; only the caption and <|end|> are learned.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minivlm.bpe import BPETokenizer
from minivlm.multimodal import IGNORE, answer_loss
from minivlm.parts.decoder import DecoderConfig
from minivlm.parts.generation import generate
from minivlm.parts.layers import Maybe
from minivlm.parts.masks import causal, segments
from minivlm.parts.training import fit
from minivlm.pretrained.qwen2_vl import publish_qwen
from minivlm.qwen2_vision import TowerConfig, preprocess_videos
from minivlm.qwen2_vl import Qwen2VL, Qwen2VLConfig, Qwen3VL, image_text
from minivlm.scenes import Scene, sample
from minivlm.scenes.pixels import MEAN, STD
from minivlm.toys.common import FROZEN, RATES, TOY_WIDTH, decode_rows, load_toy, save_toy

VISION_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
ANY_SIZE_MARKS = (*VISION_MARKS, "<|end|>", "<|pad|>")
PATCH = 8
GRIDS = [  # rows and columns of cells
    {"rows": r, "columns": c} for r, c in ((2, 2), (2, 4), (4, 2), (3, 3), (4, 4), (2, 6), (3, 5))
]
VIDEOS = [{"frames": frames, "turns": turns} for frames in (6, 8) for turns in (0, 1)]
LENGTH = 192  # tokens of a packed row
Way = Callable[[Image.Image], Image.Image]  # what is done to an image before it is seen


def mixed(n: int, seed: int, split: str, kinds: Sequence[dict]) -> list[Scene]:
    """n scenes in equal parts of several options of ``scenes.sample``, shuffled."""
    share = -(-n // len(kinds))
    scenes = [scene for options in kinds for scene in sample(share, seed, split, **options)]
    Random(seed).shuffle(scenes)
    return scenes[:n]


def tells_motion(caption: str, scene: Scene) -> bool:
    """Does the caption of a video end with its motion, whatever it says of the object?"""
    return caption.endswith(f"moving {' then '.join(scene.objects[0].motion)}")


class FlatQwen2VL(Qwen2VL):
    """The ablation: every token, of text or image, has the next position, on all three axes (1-D
    RoPE).

    No published config.json says so: what ``AnySizeCaptioner.save`` writes of it is read back as a
    Qwen2VL.
    """

    def position_ids(
        self,
        input_ids: Tensor,
        image_grid_thw: Maybe = None,
        attention_mask: Maybe = None,
        **videos: Maybe,
    ) -> Tensor:
        """As ``Qwen2VL.position_ids``."""
        checked = super().position_ids(input_ids, image_grid_thw, attention_mask, **videos)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return ((mask.cumsum(1) - 1).clamp(min=0) * mask).expand_as(checked)


def any_size_config(
    kind: type[Qwen2VL], tokenizer: BPETokenizer, deep: Sequence[int] = ()
) -> Qwen2VLConfig:
    """About 800,000 parameters; deep: the blocks of a Qwen3-VL's tower that DeepStack reads."""
    shape: dict[str, Any] = {"width": TOY_WIDTH, "layers": 3, "heads": 6, "hidden": 2 * TOY_WIDTH}
    vision: dict[str, Any] = {"out": TOY_WIDTH, "patch": PATCH}
    text: dict[str, Any] = {"kv_heads": 6, "theta": 1e3, "eps": 1e-6}
    if issubclass(kind, Qwen3VL):
        sections = (4, 2, 2)
        vision |= {"act": "gelu_pytorch_tanh", "table": 8, "deep": tuple(deep)}
        text |= {"head_dim": TOY_WIDTH // 6, "qk_norm": True}
    else:
        sections = (2, 3, 3)
        text |= {"attention_bias": True, "out_bias": False}
    return Qwen2VLConfig(
        TowerConfig(**shape, **vision),
        DecoderConfig(tokenizer.vocab_size, **shape, **text),
        sections,
        image_token_id=tokenizer.special_tokens["<|image_pad|>"],
        video_token_id=tokenizer.special_tokens["<|video_pad|>"],
    )


@dataclass
class AnySizeCaptioner:
    """A model and its tokenizer."""

    model: Qwen2VL
    tokenizer: BPETokenizer

    @classmethod
    def new(
        cls, kind: type[Qwen2VL], texts: Sequence[str], seed: int = 0, **options: Any
    ) -> "AnySizeCaptioner":
        """Untrained, with a tokenizer of the texts; options: those of ``any_size_config``."""
        spoken = [f" {text}" for text in texts]
        tokenizer = BPETokenizer.train(spoken, 340, special_tokens=ANY_SIZE_MARKS)
        config = any_size_config(kind, tokenizer, **options)
        torch.manual_seed(seed)
        return cls(kind(config), tokenizer)

    def row(self, scene: Scene, way: Way | None = None) -> dict:
        """One scene: ids, labels (T,), positions (3, T), values (N, C * T * P * P), grid (3,)."""
        frames = [way(image) if way else image for image in scene.frames or [scene.image]]
        values, grid = preprocess_videos(
            [frames], patch=PATCH, min_pixels=256, max_pixels=10**6, mean=MEAN, std=STD
        )  # sizes of scenes stay
        name = "video" if scene.frames else "image"
        prompt = self.tokenizer.encode(image_text(grid[0], f"<|{name}_pad|>"), ANY_SIZE_MARKS)
        end = self.tokenizer.special_tokens["<|end|>"]
        said = [*self.tokenizer.encode(f" {scene.caption}"), end]
        ids = torch.tensor(prompt + said)
        positions = self.model.position_ids(ids[None], **{f"{name}_grid_thw": grid})[:, 0]
        return {
            "ids": ids,
            "labels": torch.tensor([IGNORE] * len(prompt) + said),
            "positions": positions,
            "values": values,
            "grid": grid[0],
        }

    def pack(self, rows: Sequence[dict], length: int = LENGTH) -> dict[str, Tensor]:
        """Rows one after the other, the longest first, each where it first fits into ``length``.

        -> ids, labels, segments (R, L), positions (3, R, L), and values and grids of the images in
        this order. length 0: a row each.
        """
        if not rows:
            raise ValueError("no row given: nothing to pack")
        bins = first_fit(rows, length)
        fills = {
            "ids": self.tokenizer.special_tokens["<|pad|>"],
            "labels": IGNORE,
            "positions": 0,
            "segments": -1,
        }
        longest = max(sum(len(row["ids"]) for row in held) for held in bins)
        batch: dict[str, list[Tensor]] = {name: [] for name in fills}
        for held in bins:
            numbered = [
                row | {"segments": torch.full_like(row["ids"], i)} for i, row in enumerate(held)
            ]
            for name, fill in fills.items():
                joined = torch.cat([row[name] for row in numbered], dim=-1)
                batch[name].append(F.pad(joined, (0, longest - joined.shape[-1]), value=fill))
        return {name: torch.stack(parts, dim=-2) for name, parts in batch.items()} | {
            "values": torch.cat([row["values"] for held in bins for row in held]),
            "grids": torch.stack([row["grid"] for held in bins for row in held]),
        }

    def loss(self, model: Qwen2VL, batch: dict[str, Tensor]) -> Tensor:
        """Of packed rows: each sees itself alone, and its first token is not learned from the row
        before.
        """
        c, ids = model.config, batch["ids"]
        kinds = [token for token in (c.image_token_id, c.video_token_id) if (ids == token).any()]
        x, deep = model.embed(ids, dict.fromkeys(kinds, (batch["values"], batch["grids"])))
        # Padding sees padding: no row of the mask is empty.
        mask = segments(batch["segments"]) & causal(ids.shape[1]).to(ids.device)
        states = model.run(x, deep, batch["positions"], mask)
        return answer_loss(model.decoder.head(states), batch["labels"])

    def batches(
        self, scenes: Sequence[Scene], size: int, seed: int = 0, way: Way | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Endless batches of ``size`` scenes, packed; an image is cut into patches when its turn
        comes.

        What fills no whole batch at the end of an epoch is left out.
        """
        if not 0 < size <= len(scenes):
            raise ValueError(f"cannot cut batches of {size} from {len(scenes)} scenes")
        rng = Random(seed)
        while True:
            order = rng.sample(scenes, len(scenes))
            for start in range(0, len(order) - size + 1, size):
                yield self.pack([self.row(scene, way) for scene in order[start : start + size]])

    def train(
        self,
        scenes: Sequence[Scene],
        steps: int,
        *,
        batch: int = 64,
        seed: int = 0,
        way: Way | None = None,
        **options: Any,
    ) -> dict[str, list[float]]:
        """Fit to the scenes' captions, images alone or videos alone; returns the history of
        ``fit``.
        """
        batches = self.batches(scenes, batch, seed, way)
        options = RATES | {"weight_decay": 0.1} | options
        return fit(self.model, batches, self.loss, steps, seed=seed, **options)

    def prompts(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Rows of images alone or of videos alone, without captions -> what the model takes.

        The padding is on the left.
        """
        pad, video = (self.tokenizer.special_tokens[name] for name in ("<|pad|>", "<|video_pad|>"))
        texts = [row["ids"][row["labels"] == IGNORE] for row in rows]
        longest = max(map(len, texts))
        ids = torch.stack([F.pad(text, (longest - len(text), 0), value=pad) for text in texts])
        names = ("pixel_values", "image_grid_thw")
        if (ids == video).any():
            names = ("pixel_values_videos", "video_grid_thw")
        return {
            "input_ids": ids,
            "attention_mask": (ids != pad).long(),
            names[0]: torch.cat([row["values"] for row in rows]),
            names[1]: torch.stack([row["grid"] for row in rows]),
        }

    @torch.no_grad()
    def caption(self, scenes: Sequence[Scene], way: Way | None = None, size: int = 50) -> list[str]:
        """The greedy caption of each scene, ``size`` at once."""
        end, said = self.tokenizer.special_tokens["<|end|>"], []
        for start in range(0, len(scenes), size):
            rows = [self.row(scene, way) for scene in scenes[start : start + size]]
            new = generate(self.model.eval(), max_new_tokens=24, eos_id=end, **self.prompts(rows))
            said += [text.strip() for text in decode_rows(self.tokenizer, new, {end})]
        return said

    def save(self, folder: str | Path) -> None:
        """As a published checkpoint in half precision, and tokenizer.json."""
        save_toy(deepcopy(self.model).half(), publish_qwen(self.model), folder, self.tokenizer)

    @classmethod
    def load(cls, folder: str | Path = FROZEN / "qwen2_vl") -> "AnySizeCaptioner":
        """Read what ``save`` wrote."""
        return cls(*load_toy(folder, kind=Qwen2VL, marks=ANY_SIZE_MARKS))


def first_fit(rows: Sequence[dict], length: int) -> list[list[dict]]:
    """Rows in groups of at most ``length`` ids, the longest first, each where it first fits."""
    bins: list[list[dict]] = []
    for row in sorted(rows, key=lambda row: -len(row["ids"])):
        room = (held for held in bins if sum(len(r["ids"]) for r in [*held, row]) <= length)
        place = next(room, None)
        if place is None:
            bins.append([row])
        else:
            place.append(row)
    return bins
