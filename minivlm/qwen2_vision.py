"""10 · The image encoders of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any size, without padding.

Papers: Wang et al. 2024 (Qwen2-VL), section 2.1; Bai et al. 2025 (Qwen2.5-VL), section 2.1; Qwen
Team 2025 (Qwen3-VL).

Data: PIL images -> pixel_values (N, C * T * P * P), the patches of all images one after another,
each from T = 2 frames, and grid_thw (n, 3), the patches of an image in time, height and width
-> (N / 4, D), a vector for 2 x 2. The four patches of such a square are neighbours in the
sequence. An image is a video of one frame, shown twice.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minivlm.clip import CLIP_MEAN, CLIP_STD
from minivlm.parts.layers import (
    MLP,
    RMSNorm,
    SwiGLU,
    attend,
    init_weights,
    merge_heads,
    split_heads,
)
from minivlm.parts.masks import segments, windows
from minivlm.parts.rope import Tables, axial_tables, rotate
from minivlm.vit import as_rgb, to_pixels


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 1280,
) -> tuple[int, int]:
    """The (H, W) at which an image is seen: multiples of ``factor``, its own shape, few pixels.

    As published, quirks too: halves round to even, so a side of half a factor becomes 0 and then
    counts as too small. ValueError for an aspect ratio above 200.
    """
    if factor < 1:
        raise ValueError(f"sides are multiples of patch * merge, which must not be {factor}")
    if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"an image of {height} x {width} pixels: sides must be 1 or more, the ratio 200 or less"
        )
    if not 0 < min_pixels <= max_pixels:
        raise ValueError(f"need 0 < min_pixels <= max_pixels, got {min_pixels} and {max_pixels}")
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        rows, columns = (max(1, math.floor(side / scale / factor)) for side in (height, width))
    elif rows * columns * factor**2 < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * scale / factor) for side in (height, width))
    return rows * factor, columns * factor


def preprocess(
    images: Image.Image | Sequence[Image.Image],
    *,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 1280,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Images of any mode and size -> pixel_values (N, C * T * P * P), grid_thw (n, 3).

    Options and errors: those of ``preprocess_videos``. Transparency is laid on white, a camera's
    EXIF turn undone.
    """
    images = [images] if isinstance(images, Image.Image) else images
    return preprocess_videos(
        [[image] for image in images], min_pixels=min_pixels, max_pixels=max_pixels, **options
    )


def preprocess_videos(
    videos: Sequence[Sequence[Image.Image]],
    *,
    patch: int = 14,
    merge: int = 2,
    min_pixels: int = 28 * 28 * 128,
    max_pixels: int = 28 * 28 * 768,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> tuple[Tensor, Tensor]:
    """Videos, each frames of one size -> pixel_values (N, C * T * P * P), grid_thw (n, 3).

    min_pixels, max_pixels: of a frame. Qwen3-VL has patch=16, 0.5 for each mean and std, and other
    limits: ``pretrained.qwen2_vl.image_options`` says all of it. An odd
    last frame is shown twice. ValueError for what is no image, for frames of different sizes, and
    from ``smart_resize``.
    """
    all_patches, grids = [], []
    for frames in videos:
        frames = list(frames)
        if not frames or not all(isinstance(frame, Image.Image) for frame in frames):
            kinds = [type(frame).__name__ for frame in frames]
            raise ValueError(f"a video is one PIL image or more, not {kinds}")
        frames = [as_rgb(frame) for frame in frames]  # which turns a camera's image upright
        sizes = sorted({frame.size for frame in frames})
        if len(sizes) > 1:
            raise ValueError(f"frames of one video need one size, got {sizes}")
        width, height = frames[0].size
        size = smart_resize(height, width, patch * merge, min_pixels, max_pixels)
        patches, grid = to_patches(to_pixels(frames, size, mean=mean, std=std), patch, merge)
        all_patches.append(patches)
        grids.append(grid)
    if not all_patches:
        raise ValueError("no image given")
    return torch.cat(all_patches), torch.tensor(grids)


def to_patches(
    frames: Tensor, patch: int, merge: int = 2, depth: int = 2
) -> tuple[Tensor, tuple[int, int, int]]:
    """Frames (F, C, H, W) -> patches (N, C * T * P * P) and their grid (t, h, w), N = t h w.

    T = depth. Order: time, then the merge windows row by row, then the patches of a window, too.
    """
    last = frames[-1:].expand(-len(frames) % depth, -1, -1, -1)
    x = torch.cat([frames, last]).unflatten(3, (-1, merge, patch)).unflatten(2, (-1, merge, patch))
    x = x.unflatten(0, (-1, depth))  # (t, T, C, h/m, m, P, w/m, m, P)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # (t, h/m, w/m, m, m, C, T, P, P)
    t, rows, columns = x.shape[:3]
    return x.flatten(5).flatten(0, 4), (t, rows * merge, columns * merge)


def check_grids(grid_thw: Tensor, merge: int) -> None:
    """ValueError unless the grids are integers (n, 3), n >= 1, of whole squares of patches."""
    shaped = grid_thw.ndim == 2 and grid_thw.shape[1] == 3 and len(grid_thw) > 0
    whole = shaped and not grid_thw.is_floating_point() and (grid_thw >= 1).all()
    if not whole or (grid_thw[:, 1:] % merge).any():
        raise ValueError(
            f"grid_thw must be integers (n, 3), h and w multiples of {merge}; "
            f"got {grid_thw.tolist()}"
        )


def patch_places(grid_thw: Tensor, merge: int = 2) -> tuple[Tensor, Tensor]:
    """Where each patch lies: row and column (2, N), and the number of its frame (N,).

    Frames are counted over all images.
    """
    places, frames, count = [], [], 0
    for t, h, w in grid_thw.tolist():
        grid = torch.cartesian_prod(torch.arange(h), torch.arange(w)).T  # (2, h * w)
        windows_first = grid.view(2, h // merge, merge, w // merge, merge).transpose(2, 3)
        places.append(windows_first.flatten(1).repeat(1, t))
        frames.append(torch.arange(count, count + t).repeat_interleave(h * w))
        count += t
    return torch.cat(places, dim=1), torch.cat(frames)


@dataclass(frozen=True)
class TowerConfig:
    """The sizes of a tower; some are of one generation alone."""

    width: int
    layers: int
    heads: int
    hidden: int  # width of the MLP
    out: int  # width of the language model
    patch: int = 14  # pixels a side
    merge: int = 2  # patches a side that become one token
    depth: int = 2  # frames a patch
    channels: int = 3
    act: str = "quick_gelu"
    theta: float = 10_000.0
    window: int = 8  # Qwen2.5-VL: patches a side of a window
    full: tuple[int, ...] = ()  # Qwen2.5-VL: blocks without windows
    tokens_per_second: float = 2  # Qwen2.5-VL: positions a second of video
    table: int = 48  # Qwen3-VL: positions a side of the learned table
    deep: tuple[int, ...] = ()  # Qwen3-VL: blocks that DeepStack reads


class RotaryAttention(nn.Module):
    """Attention of packed patches: positions turn queries and keys, a segment sees only itself."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, rotary: Tables, lengths: list[int]) -> Tensor:
        """x (N, D), tables (N, d), lengths of the segments, which add up to N -> (N, D)."""
        q, k, v = (split_heads(part(x[None]), self.heads) for part in (self.q, self.k, self.v))
        turned = rotate(q, *rotary), rotate(k, *rotary), v  # (1, h, N, d) each
        segments_of = zip(*(t.split(lengths, dim=2) for t in turned), strict=True)
        seen = torch.cat([attend(*segment) for segment in segments_of], dim=2)
        return self.out(merge_heads(seen)[0])


class VisionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), as ViT's."""

    def __init__(self, config: TowerConfig, norm: Callable[[int], nn.Module], mlp: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = norm(config.width), norm(config.width)
        self.attention = RotaryAttention(config.width, config.heads)
        self.mlp = mlp

    def forward(self, x: Tensor, rotary: Tables, lengths: list[int]) -> Tensor:
        """As ``RotaryAttention.forward``: (N, D) -> (N, D)."""
        x = x + self.attention(self.norm1(x), rotary, lengths)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """Four neighbours become one token of the language model: norm, side by side, MLP."""

    def __init__(self, config: TowerConfig, norm: nn.Module):
        super().__init__()
        self.wide = config.width * config.merge**2
        self.norm = norm
        self.mlp = MLP(self.wide, self.wide, "gelu", out=config.out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N / 4, out)."""
        return self.mlp(self.norm(x).view(-1, self.wide))


class DeepMerger(Merger):
    """DeepStack's merger: the norm comes after the four are side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N / 4, out)."""
        return self.mlp(self.norm(x.view(-1, self.wide)))


class Qwen2Vision(nn.Module):
    """Qwen2-VL's tower: a pre-norm ViT without class token, whose only positions are 2-D RoPE."""

    patch_bias = False

    def __init__(self, config: TowerConfig):
        super().__init__()
        c = self.config = config
        pixels = (c.depth, c.patch, c.patch)
        self.patch = nn.Conv3d(c.channels, c.width, pixels, stride=pixels, bias=self.patch_bias)
        self.blocks = nn.ModuleList(VisionBlock(c, self.norm, self.mlp()) for _ in range(c.layers))
        self.merger = Merger(c, self.norm(c.width))
        self.apply(init_weights)

    def norm(self, width: int) -> nn.Module:
        """The norm that this tower uses."""
        return nn.LayerNorm(width, eps=1e-6)

    def mlp(self) -> nn.Module:
        """The MLP of a block, (N, D) -> (N, D)."""
        return MLP(self.config.width, self.config.hidden, self.config.act)

    def embed(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Patches (N, C * T * P * P) -> (N, D): convolution with stride = kernel is one matrix."""
        weight = self.patch.weight.flatten(1)
        check_grids(grid_thw, self.config.merge)
        need = (grid_thw.prod(dim=1).sum().item(), weight.shape[1])
        got = tuple(pixel_values.shape)
        if got != need or not pixel_values.is_floating_point():
            raise ValueError(
                f"grid_thw {grid_thw.tolist()} needs pixel_values {need}, "
                f"got {got} of {pixel_values.dtype}"
            )
        return F.linear(pixel_values.to(weight.dtype), weight, self.patch.bias)

    def states(self, x: Tensor, grid_thw: Tensor) -> Iterator[Tensor]:
        """Embedded patches (N, D) -> the same after each block.

        Attention stays within a frame (pair) of an image.
        """
        places, frames = patch_places(grid_thw, self.config.merge)
        rotary, lengths = self.tables(places.to(x.device)), frames.bincount().tolist()
        for block in self.blocks:
            x = block(x, rotary, lengths)
            yield x

    def tables(self, places: Tensor) -> Tables:
        """Rows and columns (2, N) -> cos and sin, two (N, d)."""
        return axial_tables(places, self.config.width // self.config.heads, self.config.theta)

    def mask(self, grid_thw: Tensor, block: int = 0) -> Tensor:
        """Who sees whom in a block: (N, N), declared for the order of pixel_values."""
        return segments(patch_places(grid_thw, self.config.merge)[1][None])[0, 0]

    def forward(self, pixel_values: Tensor, grid_thw: Tensor) -> tuple[Tensor, list[Tensor]]:
        """-> image tokens (N / 4, out), and as many for each block that DeepStack reads."""
        x = self.embed(pixel_values, grid_thw)
        for after_block in self.states(x, grid_thw):
            x = after_block
        return self.merger(x), []


class Qwen25Vision(Qwen2Vision):
    """Qwen2.5-VL's tower: RMSNorm and SwiGLU, and in most blocks a patch sees only its window.

    A window has 112 x 112 pixels as published.
    """

    def __init__(self, config: TowerConfig):
        if config.window < config.merge:
            raise ValueError(
                f"a window of {config.window} patches a side is smaller than "
                f"one token's {config.merge}"
            )
        super().__init__(config)

    def norm(self, width: int) -> nn.Module:
        """The norm that this tower uses."""
        return RMSNorm(width)

    def mlp(self) -> nn.Module:
        """The MLP of a block, (N, D) -> (N, D)."""
        return SwiGLU(self.config.width, self.config.hidden, self.config.act, bias=True)

    def states(self, x: Tensor, grid_thw: Tensor) -> Iterator[Tensor]:
        """As Qwen2-VL's; the patches of a window are brought together first, as one segment."""
        places, frames = patch_places(grid_thw, self.config.merge)
        numbers = torch.stack([frames, *(places // self.config.window)])
        _, window = numbers.unique(dim=1, return_inverse=True)  # (N,), by frame, row, column
        order = window.argsort(stable=True).to(x.device)
        x, back = x[order], order.argsort()
        rotary = self.tables(places.to(x.device)[:, order])
        whole, parts = frames.bincount().tolist(), window.bincount().tolist()
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, whole if i in self.config.full else parts)
            yield x[back]

    def mask(self, grid_thw: Tensor, block: int = 0) -> Tensor:
        """As Qwen2-VL's."""
        frame = super().mask(grid_thw)
        places = patch_places(grid_thw, self.config.merge)[0]
        return frame if block in self.config.full else frame & windows(places, self.config.window)


class Qwen3Vision(Qwen2Vision):
    """Qwen3-VL's tower: learned positions beside 2-D RoPE, and some blocks read by DeepStack.

    DeepStack: Meng et al. 2024. There high-resolution tokens are stacked; here levels of the tower.
    """

    patch_bias = True

    def __init__(self, config: TowerConfig):
        super().__init__(config)
        wide = config.width * config.merge**2
        self.positions = nn.Parameter(torch.empty(config.table**2, config.width))
        mergers = (DeepMerger(config, self.norm(wide)) for _ in config.deep)
        self.deep = nn.ModuleList(mergers).apply(init_weights)
        nn.init.normal_(self.positions, std=0.02)

    def embed(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """As Qwen2-VL's, and positions: the learned table, resampled so that the corners meet."""
        x = super().embed(pixel_values, grid_thw)
        table = self.positions.T.unflatten(1, (self.config.table, -1))[None]  # (1, D, side, side)
        positions = []
        for t, h, w in grid_thw.tolist():
            rows, columns = patch_places(torch.tensor([[t, h, w]]), self.config.merge)[0]
            grid = F.interpolate(table, (h, w), mode="bilinear", align_corners=True)[0]  # (D, h, w)
            positions.append(grid[:, rows, columns].T)
        return x + torch.cat(positions)

    def forward(self, pixel_values: Tensor, grid_thw: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As Qwen2-VL's."""
        x, levels = self.embed(pixel_values, grid_thw), []
        for i, after_block in enumerate(self.states(x, grid_thw)):
            x = after_block
            if i in self.config.deep:
                merge = self.deep[self.config.deep.index(i)]
                levels.append(merge(x))
        return self.merger(x), levels
