"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures and videos at their own resolution, and positions
with three axes.

Papers: Wang et al. 2024 (Qwen2-VL), section 2.1; Bai et al. 2025 (Qwen2.5-VL), section 2.1; Qwen
Team 2025 (Qwen3-VL), section 2. Notebook: 10_qwen_mrope.

Data: token ids (B, T) in which every picture stands as a run of placeholder ids, one for each 2 x 2
patches, and what ``qwen_vision.preprocess`` makes of the pictures of all rows, in their order ->
logits (B, T, V).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from minivlm.multimodal import splice
from minivlm.parts.decoder import Cache, Decoder, DecoderConfig
from minivlm.parts.layers import Maybe
from minivlm.parts.masks import padding
from minivlm.parts.rope import mrope_axes, mrope_tables
from minivlm.qwen2_vision import (
    Qwen2Vision,
    Qwen3Vision,
    Qwen25Vision,
    TowerConfig,
)


def image_text(grid_thw: Sequence[int], pad: str = "<|image_pad|>", merge: int = 2) -> str:
    """How a picture of t, h, w patches stands in a text: a placeholder for each token, between its
    marks.
    """
    t, h, w = (int(n) for n in grid_thw)
    return f"<|vision_start|>{pad * (t * h * w // merge**2)}<|vision_end|>"


def video_text(grid_thw: Sequence[int], times: Sequence[float], merge: int = 2) -> str:
    """Qwen3-VL's video: before every pair of frames its mean time, then the pair as an image of
    video placeholders.

    grid_thw: the video's t, h, w patches. times: of its frames, in seconds; ValueError unless they
    make t pairs.
    """
    t, h, w = (int(n) for n in grid_thw)
    times = [*times, *times[-1:]][: 2 * t]
    if len(times) != 2 * t:
        raise ValueError(f"{t} pairs of frames need {2 * t} times or one less, got {len(times)}")
    means = [(first + last) / 2 for first, last in zip(times[::2], times[1::2], strict=True)]
    frame = image_text((1, h, w), "<|video_pad|>", merge)
    return "".join(f"<{mean:.1f} seconds>{frame}" for mean in means)


def grid_positions(grid: Sequence[int], interval: float = 1) -> Tensor:
    """Time, row and column of every token of a grid (t, h, w) of tokens: (3, t * h * w), from 0,
    columns fastest.

    interval: positions from one step in time to the next, rounded down (Qwen2.5-VL counts seconds).
    """
    t, h, w = (torch.arange(n) for n in grid)
    return torch.cartesian_prod((t * interval).long(), h, w).T


def sequence_positions(ids: Iterable[int], pictures: dict[int, Iterator[Tensor]]) -> Tensor:
    """M-RoPE positions of one row: T ids -> (3, T) (Qwen2-VL, figure 3).

    pictures: placeholder id -> the ``grid_positions`` of the pictures in their order. What follows
    anything starts at the largest position so far, of all three axes, plus 1. ValueError where
    placeholders and pictures do not agree.
    """
    found, start = [torch.zeros(3, 0, dtype=torch.long)], 0
    for kind, run in groupby(ids, lambda i: i if i in pictures else None):
        length = len(list(run))
        while length:
            part = (
                torch.arange(length).expand(3, -1) if kind is None else next(pictures[kind], None)
            )
            if part is None or part.shape[1] > length:
                have = (
                    "no picture is left"
                    if part is None
                    else f"the next picture takes {part.shape[1]}"
                )
                raise ValueError(f"{length} placeholders (id {kind}) in a row, but {have}")
            found.append(part + start)
            start = found[-1].max().item() + 1
            length -= part.shape[1]
    return torch.cat(found, dim=1)


@dataclass(frozen=True)
class QwenVLConfig:
    vision: TowerConfig
    text: DecoderConfig
    sections: tuple[int, int, int]  # frequencies of time, row and column
    image_token_id: int = 151655
    video_token_id: int = 151656


class Qwen2VL(nn.Module):
    kind, tower, interleaved = "qwen2_vl", Qwen2Vision, False

    def __init__(self, config: QwenVLConfig):
        super().__init__()
        c = self.config = config
        if c.vision.out != c.text.width:
            raise ValueError(
                f"the tower's tokens are {c.vision.out} wide, the language model's {c.text.width}"
            )
        self.vision, self.decoder = self.tower(c.vision), Decoder(c.text)
        d = c.text.head_dim or c.text.width // c.text.heads
        self.axes = mrope_axes(c.sections, d // 2, self.interleaved)

    def video_positions(self, grids: list[list[int]], seconds: Maybe) -> list[Tensor]:
        """Grids [t, h, w] of tokens -> the positions of every run of video placeholders."""
        if seconds is not None:
            raise ValueError(
                f"{self.kind} counts frames, not seconds: second_per_grid_ts is not for it"
            )
        return [grid_positions(grid) for grid in grids]

    def position_ids(
        self,
        input_ids: Tensor,
        image_grid_thw: Maybe = None,
        attention_mask: Maybe = None,
        *,
        video_grid_thw: Maybe = None,
        second_per_grid_ts: Maybe = None,
    ) -> Tensor:
        """Ids (B, T), and grids of patches (n, 3) -> time, row and column (3, B, T); padding has 0.

        second_per_grid_ts: of each video, from one pair of frames to the next (Qwen2.5-VL).
        """
        c, keep = self.config, torch.ones_like(input_ids).bool()
        if attention_mask is not None:
            keep = padding(attention_mask, tuple(input_ids.shape))[:, 0, 0]
        images, videos = (self.token_grids(grid) for grid in (image_grid_thw, video_grid_thw))
        pictures = {
            c.image_token_id: iter([grid_positions(grid) for grid in images]),
            c.video_token_id: iter(self.video_positions(videos, second_per_grid_ts)),
        }
        positions = torch.zeros(3, *input_ids.shape, dtype=torch.long)
        for row, (ids, kept) in enumerate(zip(input_ids.cpu(), keep.cpu(), strict=True)):
            positions[:, row, kept] = sequence_positions(ids[kept].tolist(), pictures)
        left = {token: len(list(rest)) for token, rest in pictures.items()}
        if any(left.values()):
            raise ValueError(f"pictures without placeholders, by the placeholder's id: {left}")
        return positions.to(input_ids.device)

    def token_grids(self, grid_thw: Maybe) -> list[list[int]]:
        """Grids of patches (n, 3) -> of tokens."""
        m = self.config.vision.merge
        return [] if grid_thw is None else [[t, h // m, w // m] for t, h, w in grid_thw.tolist()]

    def embed(self, input_ids: Tensor, pictures: dict[int, tuple[Maybe, Maybe]]) -> list[Tensor]:
        """Ids (B, T), and placeholder id -> (pixel_values, grid_thw) -> [(B, T, D), what DeepStack
        adds, ...].
        """
        levels = [self.decoder.embed(input_ids)]
        for token, (pixel_values, grid_thw) in pictures.items():
            if pixel_values is not None:
                seen = self.vision(pixel_values, grid_thw)
                levels += [torch.zeros_like(levels[0]) for _ in seen[len(levels) :]]
                places = input_ids == token
                levels = [
                    splice(x, places, new[:, None]) for x, new in zip(levels, seen, strict=True)
                ]
        return levels

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Maybe = None,
        image_grid_thw: Maybe = None,
        attention_mask: Maybe = None,
        cache: Cache = None,
        *,
        pixel_values_videos: Maybe = None,
        video_grid_thw: Maybe = None,
        second_per_grid_ts: Maybe = None,
    ) -> Tensor:
        """Ids (B, T), patches (N, C * T * P * P), grids (n, 3), attention_mask (B, S) -> logits (B,
        T, V).

        The pictures are those of all rows, in their order. ValueError where they and the
        placeholders do not agree.
        """
        c, past = self.config, cache.length if cache else 0
        pictures = {
            c.image_token_id: (pixel_values, image_grid_thw),
            c.video_token_id: (pixel_values_videos, video_grid_thw),
        }
        if any((pixels is None) != (grid is None) for pixels, grid in pictures.values()):
            raise ValueError(
                "pictures come as pixel_values and image_grid_thw, videos as *_videos and video_grid_thw"
            )
        seen = None if attention_mask is None else attention_mask[:, past:]
        spoken = (
            past and pixel_values is None and pixel_values_videos is None
        )  # a placeholder in it was generated
        ids = torch.full_like(input_ids, -1) if spoken else input_ids
        video = {"video_grid_thw": video_grid_thw, "second_per_grid_ts": second_per_grid_ts}
        positions = self.position_ids(ids, image_grid_thw, seen, **video)
        if cache is not None:
            positions = positions + cache.next_position
            cache.next_position = positions.amax(dim=(0, 2))[:, None] + 1
        rotary = mrope_tables(positions, self.axes, c.text.theta)
        x, *deep = self.embed(input_ids, pictures)
        return self.decoder(
            embeds=x, attention_mask=attention_mask, cache=cache, rotary=rotary, add=deep
        )


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL: another tower, and videos whose positions count seconds."""

    kind, tower = "qwen2_5_vl", Qwen25Vision

    def video_positions(self, grids: list[list[int]], seconds: Maybe) -> list[Tensor]:
        """As Qwen2-VL's; seconds a step in time, one number a video (absent: 1)."""
        seconds = [1.0] * len(grids) if seconds is None else seconds
        seconds = seconds.tolist() if isinstance(seconds, Tensor) else seconds
        if len(seconds) != len(grids):
            raise ValueError(
                f"{len(grids)} videos, but second_per_grid_ts has {len(seconds)} numbers"
            )
        speed = self.config.vision.tokens_per_second
        return [
            grid_positions(grid, speed * step) for grid, step in zip(grids, seconds, strict=True)
        ]


class Qwen3VL(Qwen2VL):
    """Qwen3-VL: another tower, DeepStack, interleaved M-RoPE, q and k norms; a video is images with
    times as text.
    """

    kind, tower, interleaved = "qwen3_vl", Qwen3Vision, True

    def video_positions(self, grids: list[list[int]], seconds: Maybe) -> list[Tensor]:
        """As Qwen2-VL's, but each pair of frames is a run of its own."""
        return super().video_positions([[1, h, w] for t, h, w in grids for _ in range(t)], seconds)
