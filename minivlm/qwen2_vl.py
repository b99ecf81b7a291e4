"""10 · Qwen2-VL, Qwen2.5-VL, Qwen3-VL: images and videos at their own size, three-axis positions.

Papers: Wang et al. 2024 (Qwen2-VL), section 2.1; Bai et al. 2025 (Qwen2.5-VL), section 2.1; Qwen
Team 2025 (Qwen3-VL), section 2.

Data: token ids (B, T) in which every image is a run of placeholder ids, one for each 2 x 2 patches,
and what ``qwen2_vision.preprocess`` makes of the images of all rows, in their order -> logits
(B, T, V).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from minivlm.multimodal import splice
from minivlm.parts.decoder import Decoder, DecoderConfig, KVCache, NextToken, per_head, visible
from minivlm.parts.layers import Maybe
from minivlm.parts.masks import padding
from minivlm.parts.rope import mrope_axes, mrope_tables
from minivlm.qwen2_vision import Qwen2Vision, Qwen3Vision, Qwen25Vision, TowerConfig, check_grids

Seconds = Tensor | Sequence[float] | None  # of each video, from one pair of frames to the next


def image_text(grid_thw: Sequence[int], pad: str = "<|image_pad|>", merge: int = 2) -> str:
    """An image of t, h, w patches in a text: a placeholder for each token, between its marks."""
    t, h, w = (int(n) for n in grid_thw)
    return f"<|vision_start|>{pad * (t * h * w // merge**2)}<|vision_end|>"


def video_text(grid_thw: Sequence[int], times: Sequence[float], merge: int = 2) -> str:
    """Qwen3-VL's video: before every pair of frames its mean time, then the pair as an image.

    grid_thw: the video's t, h, w patches. times: of its frames, in seconds; ValueError unless they
    make t pairs.
    """
    t, h, w = (int(n) for n in grid_thw)
    if len(times) not in (2 * t - 1, 2 * t):
        raise ValueError(f"{t} pairs of frames need {2 * t} times or one less, got {len(times)}")
    times = [*times, *times[-1:]][: 2 * t]
    means = [(first + last) / 2 for first, last in zip(times[::2], times[1::2], strict=True)]
    frame = image_text((1, h, w), "<|video_pad|>", merge)
    return "".join(f"<{mean:.1f} seconds>{frame}" for mean in means)


def grid_positions(grid: Sequence[int], interval: float = 1) -> Tensor:
    """Time, row and column of every token of a grid (t, h, w) of tokens: (3, t * h * w).

    They count from 0, columns fastest. interval: positions from one step in time to the next,
    rounded down (Qwen2.5-VL counts seconds).
    """
    t, h, w = (torch.arange(n) for n in grid)
    return torch.cartesian_prod((t * interval).long(), h, w).T


def text_positions(seen: Tensor) -> Tensor:
    """Positions of text alone: (B, T) of 1 and 0 -> (3, B, T), equal on all axes; padding has 0."""
    seen = seen.long()
    return ((seen.cumsum(dim=1) - 1) * seen).expand(3, -1, -1)


def sequence_positions(ids: Iterable[int], images: dict[int, Iterator[Tensor]]) -> Tensor:
    """M-RoPE positions of one row: T ids -> (3, T) (Qwen2-VL, figure 3).

    images: placeholder id -> the ``grid_positions`` of the images in their order. What follows
    anything starts at the largest position so far, of all three axes, plus 1. ValueError where
    placeholders and images do not agree.
    """
    parts, start = [torch.zeros(3, 0, dtype=torch.long)], 0
    for kind, run in groupby(ids, lambda i: i if i in images else None):
        length = len(list(run))
        while length:
            part = torch.arange(length).expand(3, -1) if kind is None else next(images[kind], None)
            if part is None or part.shape[1] > length:
                taken = "no picture is left"
                if part is not None:
                    taken = f"the next picture takes {part.shape[1]}"
                raise ValueError(f"{length} placeholders (id {kind}) in a row, but {taken}")
            parts.append(part + start)
            start = int(parts[-1].max()) + 1
            length -= part.shape[1]
    return torch.cat(parts, dim=1)


class MRopeCache(KVCache):
    """A cache that knows where the text goes on: after an image, positions do not count tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.next_position: Tensor | int = 0  # (B, 1) once there are tokens


@dataclass(frozen=True)
class Qwen2VLConfig:
    """A tower, a language model, and how M-RoPE shares out its frequencies."""

    vision: TowerConfig
    text: DecoderConfig
    sections: tuple[int, int, int]  # frequencies of time, row and column
    image_token_id: int = 151655
    video_token_id: int = 151656


class Qwen2VL(NextToken):
    """Qwen2-VL: a tower whose tokens take the placeholders, and a ``Decoder`` under M-RoPE."""

    kind, tower, interleaved = "qwen2_vl", Qwen2Vision, False
    new_cache = MRopeCache

    def __init__(self, config: Qwen2VLConfig):
        super().__init__()
        c = self.config = config
        if c.vision.out != c.text.width:
            raise ValueError(
                f"the tower's tokens are {c.vision.out} wide, the language model's {c.text.width}"
            )
        self.vision, self.decoder = self.tower(c.vision), Decoder(c.text)
        self.axes = mrope_axes(c.sections, c.text.rotary_dim // 2, self.interleaved)

    def video_positions(self, grids: list[list[int]], seconds: Seconds) -> list[Tensor]:
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
        second_per_grid_ts: Seconds = None,
    ) -> Tensor:
        """Ids (B, T), and grids of patches (n, 3) -> time, row and column (3, B, T); padding has 0.

        second_per_grid_ts: of each video, from one pair of frames to the next (Qwen2.5-VL).
        """
        c, keep = self.config, torch.ones_like(input_ids).bool()
        if attention_mask is not None:
            keep = padding(attention_mask, input_ids.shape)[:, 0, 0]
        images, videos = self.token_grids(image_grid_thw), self.token_grids(video_grid_thw)
        of_kind = {
            c.image_token_id: iter([grid_positions(grid) for grid in images]),
            c.video_token_id: iter(self.video_positions(videos, second_per_grid_ts)),
        }
        positions = torch.zeros(3, *input_ids.shape, dtype=torch.long)
        for row, (ids, kept) in enumerate(zip(input_ids.cpu(), keep.cpu(), strict=True)):
            positions[:, row, kept] = sequence_positions(ids[kept].tolist(), of_kind)
        left = {token: len(list(rest)) for token, rest in of_kind.items()}
        if any(left.values()):
            raise ValueError(f"pictures without placeholders, by the placeholder's id: {left}")
        return positions.to(input_ids.device)

    def token_grids(self, grid_thw: Maybe) -> list[list[int]]:
        """Grids of patches (n, 3) -> of tokens."""
        if grid_thw is None:
            return []
        m = self.config.vision.merge
        check_grids(grid_thw, m)
        return [[t, h // m, w // m] for t, h, w in grid_thw.tolist()]

    def embed(
        self, input_ids: Tensor, images: dict[int, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Ids (B, T) -> (B, T, D), and as much for each level that DeepStack adds.

        images: placeholder id -> (pixel_values, grid_thw).
        """
        x = self.decoder.embed(input_ids)
        deep: list[Tensor] = []
        for token, (pixel_values, grid_thw) in images.items():
            places = input_ids == token
            tokens, levels = self.vision(pixel_values, grid_thw)
            x = splice(x, places, tokens[:, None])
            deep = deep or [torch.zeros_like(x) for _ in levels]
            pairs = zip(deep, levels, strict=True)
            deep = [splice(whole, places, level[:, None]) for whole, level in pairs]
        return x, deep

    def run(
        self,
        x: Tensor,
        deep: Sequence[Tensor],
        positions: Tensor,
        mask: Maybe,
        cache: MRopeCache | None = None,
    ) -> Tensor:
        """The language model: embeddings (B, T, D) and positions (3, B, T) -> its states (B, T, D).

        DeepStack: level i is added to what block i returns. mask: (..., T, S), None = all.
        """
        rotary = per_head(mrope_tables(positions, self.axes, self.config.text.theta))
        for i, block in enumerate(self.decoder.blocks):
            x = block(x, mask, rotary, cache.layer(i) if cache else None)
            if i < len(deep):
                x = x + deep[i]
        return self.decoder.norm(x)

    def states(
        self,
        input_ids: Tensor,
        pixel_values: Maybe = None,
        image_grid_thw: Maybe = None,
        attention_mask: Maybe = None,
        cache: MRopeCache | None = None,
        *,
        pixel_values_videos: Maybe = None,
        video_grid_thw: Maybe = None,
        second_per_grid_ts: Seconds = None,
    ) -> Tensor:
        """Ids (B, T), patches (N, C * T * P * P), grids (n, 3) -> states (B, T, D).

        They are the language model's, after its final norm. attention_mask: (B, S). The images are
        those of all rows, in their order. ValueError where they and the placeholders do not agree.
        """
        c, past = self.config, cache.length if cache else 0
        given = {
            c.image_token_id: (pixel_values, image_grid_thw),
            c.video_token_id: (pixel_values_videos, video_grid_thw),
        }
        if any((pixels is None) != (grid is None) for pixels, grid in given.values()):
            raise ValueError(
                "images come as pixel_values and image_grid_thw, "
                "videos as pixel_values_videos and video_grid_thw"
            )
        images = {
            token: (pixels, grid)
            for token, (pixels, grid) in given.items()
            if pixels is not None and grid is not None
        }
        seen = None if attention_mask is None else attention_mask[:, past:]
        if past and not images:  # a placeholder in it was generated: it is text
            positions = text_positions(torch.ones_like(input_ids) if seen is None else seen)
        else:
            times = {"second_per_grid_ts": second_per_grid_ts}
            positions = self.position_ids(
                input_ids, image_grid_thw, seen, video_grid_thw=video_grid_thw, **times
            )
        if cache is not None:
            positions = positions + cache.next_position
            cache.next_position = positions.amax(dim=(0, 2))[:, None] + 1
        x, deep = self.embed(input_ids, images)
        return self.run(x, deep, positions, visible(x, attention_mask, cache), cache)


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL: another tower, and videos whose positions count seconds."""

    kind, tower = "qwen2_5_vl", Qwen25Vision

    def video_positions(self, grids: list[list[int]], seconds: Seconds) -> list[Tensor]:
        """As Qwen2-VL's; seconds a step in time, one number a video (absent: 1)."""
        seconds = [1.0] * len(grids) if seconds is None else seconds
        steps = seconds.tolist() if isinstance(seconds, Tensor) else seconds
        if len(steps) != len(grids):
            raise ValueError(
                f"{len(grids)} videos, but second_per_grid_ts has {len(steps)} numbers"
            )
        speed, pairs = self.config.vision.tokens_per_second, zip(grids, steps, strict=True)
        return [grid_positions(grid, speed * step) for grid, step in pairs]


class Qwen3VL(Qwen2VL):
    """Qwen3-VL: another tower, DeepStack, interleaved M-RoPE, q and k norms.

    A video is images with times as text.
    """

    kind, tower, interleaved = "qwen3_vl", Qwen3Vision, True

    def video_positions(self, grids: list[list[int]], seconds: Seconds) -> list[Tensor]:
        """As Qwen2-VL's, but each pair of frames is a run of its own."""
        pairs = [[1, h, w] for t, h, w in grids for _ in range(t)]
        return super().video_positions(pairs, seconds)
