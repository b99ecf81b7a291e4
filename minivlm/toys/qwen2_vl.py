"""A small Qwen2-VL (or Qwen3-VL) for scenes of any size and for videos: trained on packed captions,
and asked for some.

Used by notebook 10 and by tools/qwen2_vl_ablations.py. A row is the picture or video, its caption
and <|end|>; only the caption and <|end|> are learned.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minivlm.bpe import BPETokenizer
from minivlm.multimodal import IGNORE, answer_loss
from minivlm.parts.generation import generate
from minivlm.parts.layers import Maybe
from minivlm.parts.masks import causal, segments
from minivlm.parts.rope import mrope_tables
from minivlm.parts.training import fit
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.qwen2_vl import build_qwen
from minivlm.qwen2_vision import preprocess_videos
from minivlm.qwen2_vl import Qwen2VL, Qwen3VL, image_text
from minivlm.scenes import Scene, sample
from minivlm.scenes.pixels import MEAN, STD
from minivlm.toys.common import FROZEN, RATES

SPECIAL = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|end|>",
    "<|pad|>",
)
WIDTH, PATCH = 96, 8
LOOK = {
    "patch": PATCH,
    "min_pixels": 256,
    "max_pixels": 10**6,
    "mean": MEAN,
    "std": STD,
}  # sizes of scenes stay
SHAPES = [
    {"rows": r, "columns": c} for r, c in ((2, 2), (2, 4), (4, 2), (3, 3), (4, 4), (2, 6), (3, 5))
]
VIDEOS = [{"frames": frames, "turns": turns} for frames in (6, 8) for turns in (0, 1)]
LENGTH = 192  # tokens of a packed row
Way = Callable[[Image.Image], Image.Image]  # what is done to a picture before it is seen


def mixed(n: int, seed: int, split: str, kinds: Sequence[dict]) -> list[Scene]:
    """n scenes in equal parts of several options of ``scenes.sample``, shuffled."""
    share = -(-n // len(kinds))
    found = [scene for options in kinds for scene in sample(share, seed, split, **options)]
    Random(seed).shuffle(found)
    return found[:n]


def tells_motion(caption: str, scene: Scene) -> bool:
    """Does the caption of a video end with its motion, whatever it says of the object?"""
    return caption.endswith(f"moving {' then '.join(scene.objects[0].motion)}")


class FlatQwen2VL(Qwen2VL):
    """The ablation: every token, of text or picture, has the next position, on all three axes (1-D
    RoPE).

    No published config.json says so: what ``Captioner.save`` writes of it is read back as a
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


def toy_config(kind: type[Qwen2VL], tokenizer: BPETokenizer, deep: Sequence[int] = ()) -> dict:
    """About 800,000 parameters, in the published format; deep: DeepStack's blocks of a Qwen3-VL's
    tower.
    """
    ids, new = tokenizer.special_tokens, issubclass(kind, Qwen3VL)
    text = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    }
    text |= {
        "intermediate_size": 2 * WIDTH,
        "vocab_size": tokenizer.vocab_size,
        "head_dim": WIDTH // 6,
    }
    text |= {"rope_theta": 1e3, "rms_norm_eps": 1e-6}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    vision = {"depth": 3, "num_heads": 6, "patch_size": PATCH, "intermediate_size": 2 * WIDTH}
    vision |= {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}
    if new:
        text["rope_scaling"] = {
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [4, 2, 2],
        }
        vision |= {
            "out_hidden_size": WIDTH,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(deep),
        }
    found = {
        "model_type": kind.kind,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }
    return found | {"vision_config": vision} | ({"text_config": text} if new else text)


@dataclass
class Captioner:
    """A model and its tokenizer."""

    model: Qwen2VL
    tokenizer: BPETokenizer

    @classmethod
    def new(
        cls, kind: type[Qwen2VL], texts: Sequence[str], seed: int = 0, **options
    ) -> "Captioner":
        """Untrained, with a tokenizer of the texts; options: those of ``toy_config``."""
        tokenizer = BPETokenizer.train([f" {text}" for text in texts], 340, special_tokens=SPECIAL)
        torch.manual_seed(seed)
        return cls(build_qwen(kind, toy_config(kind, tokenizer, **options)), tokenizer)

    def row(self, scene: Scene, way: Way | None = None) -> dict:
        """One scene: ids (T,), labels (T,), positions (3, T), values (N, C * T * P * P), grid (3,)."""
        frames = [way(image) if way else image for image in scene.frames or [scene.image]]
        values, grid = preprocess_videos([frames], **LOOK)
        name, key = ("video", "video_grid_thw") if scene.frames else ("image", "image_grid_thw")
        prompt = self.tokenizer.encode(image_text(grid[0], f"<|{name}_pad|>"), SPECIAL)
        said = [
            *self.tokenizer.encode(f" {scene.caption}"),
            self.tokenizer.special_tokens["<|end|>"],
        ]
        ids = torch.tensor(prompt + said)
        at = self.model.position_ids(ids[None], **{key: grid})[:, 0]
        labels = torch.tensor([IGNORE] * len(prompt) + said)
        return {"ids": ids, "labels": labels, "positions": at, "values": values, "grid": grid[0]}

    def pack(self, rows: Sequence[dict], length: int = LENGTH) -> dict[str, Tensor]:
        """Rows behind each other, the longest first, each where it first fits into ``length``.

        -> ids, labels, segments (R, L), positions (3, R, L), and the pictures in this order. length
        0: a row each.
        """
        held: list[list[dict]] = []
        for row in sorted(rows, key=lambda row: -len(row["ids"])):
            room = (
                others for others in held if sum(len(r["ids"]) for r in [*others, row]) <= length
            )
            place = next(room, None)
            if place is None:
                held.append(place := [])
            place.append(row)
        fills = {
            "ids": self.tokenizer.special_tokens["<|pad|>"],
            "labels": IGNORE,
            "positions": 0,
            "segments": -1,
        }
        longest = max(sum(len(row["ids"]) for row in others) for others in held)
        batch = {name: [] for name in fills}
        for others in held:
            numbered = [
                row | {"segments": torch.full_like(row["ids"], i)} for i, row in enumerate(others)
            ]
            for name, fill in fills.items():
                joined = torch.cat([row[name] for row in numbered], dim=-1)
                batch[name].append(F.pad(joined, (0, longest - joined.shape[-1]), value=fill))
        pictures = [row for others in held for row in others]
        return {name: torch.stack(parts, dim=-2) for name, parts in batch.items()} | {
            "values": torch.cat([row["values"] for row in pictures]),
            "grids": torch.stack([row["grid"] for row in pictures]),
        }

    def loss(self, model: Qwen2VL, batch: dict[str, Tensor]) -> Tensor:
        """Of packed rows: each sees itself alone, and its first token is not learned from the row
        before.
        """
        c, ids = model.config, batch["ids"]
        kinds = [token for token in (c.image_token_id, c.video_token_id) if (ids == token).any()]
        x, *deep = model.embed(ids, dict.fromkeys(kinds, (batch["values"], batch["grids"])))
        mask = segments(batch["segments"]) & causal(
            ids.shape[1]
        )  # padding sees padding: no row of the mask is empty
        rotary = mrope_tables(batch["positions"], model.axes, c.text.theta)
        logits = model.decoder(embeds=x, mask=mask, rotary=rotary, add=deep)
        return answer_loss(logits, batch["labels"])

    def batches(
        self, scenes: Sequence[Scene], size: int, seed: int = 0, way: Way | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Endless batches of ``size`` scenes, packed; a picture is cut into patches when its turn
        comes.
        """
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
        **options,
    ) -> dict[str, list[float]]:
        """Fit to the scenes' captions, images alone or videos alone; returns the history of
        ``fit``.
        """
        return fit(
            self.model,
            self.batches(scenes, batch, seed, way),
            self.loss,
            steps,
            seed=seed,
            **RATES | {"weight_decay": 0.1} | options,
        )

    @torch.no_grad()
    def caption(self, scenes: Sequence[Scene], way: Way | None = None, size: int = 50) -> list[str]:
        """The greedy caption of each scene, ``size`` at once."""
        pad, end = (self.tokenizer.special_tokens[name] for name in ("<|pad|>", "<|end|>"))
        said = []
        for start in range(0, len(scenes), size):
            rows = [self.row(scene, way) for scene in scenes[start : start + size]]
            prompts = [row["ids"][row["labels"] == IGNORE] for row in rows]
            longest = max(map(len, prompts))
            ids = torch.stack([F.pad(ids, (longest - len(ids), 0), value=pad) for ids in prompts])
            given = (
                torch.cat([row["values"] for row in rows]),
                torch.stack([row["grid"] for row in rows]),
            )
            names = ("pixel_values", "image_grid_thw")
            if scenes[start].frames:
                names = ("pixel_values_videos", "video_grid_thw")
            given = dict(zip(names, given, strict=True))
            new = generate(
                self.model.eval(), ids, 24, eos_id=end, attention_mask=(ids != pad).long(), **given
            )
            said += [
                self.tokenizer.decode([i for i in row if i != end]).strip() for row in new.tolist()
            ]
        return said

    def save(self, folder: str | Path) -> None:
        """As a published checkpoint in half precision, and tokenizer.json."""
        config = toy_config(
            type(self.model), self.tokenizer, getattr(self.model.config.vision, "deep", ())
        )
        save_pretrained(deepcopy(self.model).half(), config, folder)
        self.tokenizer.save(Path(folder) / "tokenizer.json")

    @classmethod
    def load(cls, folder: str | Path = FROZEN / "qwen2_vl") -> "Captioner":
        """Read what ``save`` wrote."""
        return cls(from_pretrained(folder), BPETokenizer.load(Path(folder) / "tokenizer.json"))
