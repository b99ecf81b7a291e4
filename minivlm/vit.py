"""02 · The Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words").

Data: pixel_values (B, C, H, W) -> (B, 1 + N, D), a class vector and one vector for
each of the N patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from minivlm.parts.layers import MLP, Attention, LayerCache, Maybe, init_weights


def to_pixels(
    images: Sequence[Image.Image],
    size: tuple[int, int] | None = None,
    *,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
) -> Tensor:
    """PIL images of any mode -> pixel_values (B, 3, H, W) = (bytes / 255 - mean) / std.

    ``size`` (H, W) resizes them, bicubic. A camera's EXIF turn is undone, transparency is laid on
    white, one channel becomes three: ``as_rgb``. ValueError unless there are a mean and a std,
    above 0, for each of three channels.
    """
    if not images:
        raise ValueError("no image given")
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise ValueError(f"no normalisation of three channels: mean {mean}, std {std}")
    images = [as_rgb(image) for image in images]
    if size is not None:
        images = [image.resize((size[1], size[0]), Image.Resampling.BICUBIC) for image in images]
    sizes = sorted({image.size for image in images})
    if len(sizes) != 1:
        raise ValueError(f"images of one batch need one size, got {sizes}")
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # (B, H, W, 3)
    return ((pixels / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def as_rgb(image: Image.Image, paper: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Any PIL image, upright and as three channels of 8 bits: Pillow's conversion, on ``paper``.

    What Pillow would cut off keeps its range: floats within 0..1, and 16-bit grey above 255.
    ValueError for a picture, or EXIF data, that cannot be read.
    """
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # broken files raise anything: Pillow has no class of its own for it
        raise ValueError(f"the picture or its EXIF data cannot be read: {error!r}") from error
    if 0 in image.size:
        raise ValueError(f"a picture of {image.height} x {image.width} pixels shows nothing")
    if image.mode == "F" and np.all(abs(np.asarray(image) - 0.5) <= 0.5):
        image = Image.fromarray(np.rint(np.asarray(image) * 255).astype(np.uint8))
    if image.mode.startswith("I;16") and np.max(np.asarray(image)) > 255:
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, paper), image)
    return image.convert("RGB")


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C * p * p): patches, as (C, p, p), in reading order."""
    height, width = images.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"patches of {patch} do not divide {height} x {width} pixels")
    # (B, C, rows, p, columns, p)
    grid = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int, rows: int) -> Tensor:
    """Undo ``patchify``: (B, N, C * p * p) with N = rows * columns -> (B, C, H, W)."""
    if patches.shape[1] % rows or patches.shape[2] % patch**2:
        raise ValueError(
            f"{tuple(patches.shape)} are no patches of {patch} x {patch} in {rows} rows"
        )
    # (B, rows, columns, C, p, p)
    grid = patches.unflatten(2, (-1, patch, patch)).unflatten(1, (rows, -1))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def sincos_2d(rows: int, columns: int, width: int, theta: float = 10_000.0) -> Tensor:
    """Fixed 2-D positions (N, D): a quarter of the features for each sin and cos of row and column.

    Chen et al. 2021 (MoCo v3), section 4: 1-D sin-cos of both coordinates, side by side. ``theta``
    is the longest wavelength over 2 pi; a grid of four columns needs no more than 10.
    """
    if width % 4:
        raise ValueError(f"2-D sin-cos positions need a width divisible by 4, got {width}")
    frequency = theta ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [index.flatten()[:, None] * frequency for index in (row, column)]  # (N, D/4) each
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Patch positions (1, N, D) of a grid ``old`` (rows, columns), bicubic -> of ``new``."""
    if old == new:
        return positions
    grid = positions.unflatten(1, old).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a ``ViT``."""

    image_size: tuple[int, int]  # (H, W) that the positions are for; other sizes interpolate them
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int  # width of the MLP
    channels: int = 3
    eps: float = 1e-12
    act: str = "gelu"
    bias: bool = True  # of q, k, v
    classes: int = 0  # above 0: a linear classifier
    pool: str = "class"  # what it reads: the class token, or the mean of the patches

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch


class Patches(nn.Conv2d):
    """The patch projection of an image tower: a convolution whose stride is its kernel."""

    def __init__(self, channels: int, width: int, patch: int, *, bias: bool = True):
        super().__init__(channels, width, patch, stride=patch, bias=bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, rows, columns), in the precision of the weights.

        ValueError for what is no float, as bytes are, or no image of a patch or more.
        """
        got, channels, patch = tuple(pixel_values.shape), self.in_channels, self.kernel_size[0]
        fits = len(got) == 4 and got[1] == channels and min(got[2:]) >= patch
        if not fits or not pixel_values.is_floating_point():
            need = f"(B, {channels}, H, W) of floats, H and W >= {patch}"
            raise ValueError(f"pixel_values must be {need}; got {got} of {pixel_values.dtype}")
        return super().forward(pixel_values.to(self.weight.dtype))


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): ViT (eq. 2, 3), CLIP and OPT."""

    def __init__(
        self, width: int, heads: int, hidden: int, *, eps: float, act: str, bias: bool = True
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = Attention(width, heads, bias=bias)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, hidden, act)

    def forward(self, x: Tensor, mask: Maybe = None, cache: LayerCache | None = None) -> Tensor:
        """x (B, T, D), mask broadcastable to (B, h, T, S), cache -> (B, T, D)."""
        x = x + self.attention(self.norm1(x), mask, cache=cache)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Class token and patches, with positions, through pre-norm blocks; perhaps a classifier."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        c = self.config = config
        if c.pool not in ("class", "mean"):
            raise ValueError(f"pool must be 'class' or 'mean', got {c.pool!r}")
        self.patch = Patches(c.channels, c.width, c.patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, c.width))
        self.positions = nn.Parameter(torch.empty(1, 1 + c.grid[0] * c.grid[1], c.width))
        self.blocks = nn.ModuleList(
            EncoderBlock(c.width, c.heads, c.hidden, eps=c.eps, act=c.act, bias=c.bias)
            for _ in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.width, c.eps)
        self.classifier = nn.Linear(c.width, c.classes) if c.classes else None
        self.apply(init_weights)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D): class token and patches, with positions (eq. 1)."""
        c, shape = self.config, tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != c.channels or min(shape[2:]) < c.patch:
            raise ValueError(
                f"pixel_values must be (B, {c.channels}, H, W), H and W >= {c.patch}; got {shape}"
            )
        grid = self.patch(pixel_values)  # (B, D, rows, columns)
        patches = grid.flatten(2).transpose(1, 2)  # (B, N, D)
        class_position, positions = self.positions.split([1, c.grid[0] * c.grid[1]], dim=1)
        patches = patches + resize_positions(positions, c.grid, tuple(grid.shape[-2:]))
        token = (self.class_token + class_position).expand(len(patches), -1, -1)
        return torch.cat([token, patches], dim=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D), after the final norm (eq. 4)."""
        x = self.embed(pixel_values)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def classify(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes) logits."""
        if self.classifier is None:
            raise ValueError("this ViT has no classifier (classes = 0)")
        x = self(pixel_values)
        return self.classifier(x[:, 0] if self.config.pool == "class" else x[:, 1:].mean(dim=1))

    @torch.no_grad()
    def attention_maps(self, pixel_values: Tensor) -> Tensor:
        """Who looks at whom in every block: (L, B, h, 1 + N, 1 + N)."""
        x, maps = self.embed(pixel_values), []
        for block in self.blocks:
            maps.append(block.attention.weights(block.norm1(x)))
            x = block(x)
        return torch.stack(maps)
