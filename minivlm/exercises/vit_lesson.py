"""02 · What notebook 02 trains on and how it draws: code that its reader need not read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import cbook
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor, nn

from minivlm.plotting import CYCLE, DASHES, show_curves
from minivlm.scenes import Scene
from minivlm.scenes.drawing import BACKGROUND
from minivlm.scenes.grammar import COLORS, SHAPES
from minivlm.vit import ViT, ViTConfig, patchify, to_pixels, unpatchify

PAPER = tuple(value / 255 for value in BACKGROUND)
SMALL = ViTConfig(image_size=(64, 64), patch=16, width=96, layers=2, heads=6, hidden=384)
EMPTY = 0.05  # what a patch without an object stays below
READABLE: dict[str, Any] = {  # black on white edges: legible on any patch
    "fontsize": 8,
    "ha": "center",
    "path_effects": [withStroke(linewidth=2, foreground="white")],
}

# Data


def on_zero_background(chosen: Sequence[Scene]) -> Tensor:
    """Scenes -> (B, 3, H, W), with the background colour at zero."""
    return to_pixels([scene.image for scene in chosen], mean=PAPER)


def as_shown(pixels: Tensor) -> np.ndarray:
    """The way back, to look at: (3, H, W) -> (H, W, 3), from 0 to 1."""
    shown = pixels / 2 + torch.tensor(PAPER)[:, None, None]
    return shown.clamp(0, 1).permute(1, 2, 0).numpy()


def single_objects(stream: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Scenes with one object: pixels, and its (colour, shape) as numbers (B, 2)."""
    chosen = [scene for scene in stream if len(scene.objects) == 1]
    things = [scene.objects[0] for scene in chosen]
    answers = [[COLORS.index(thing.color), SHAPES.index(thing.shape)] for thing in things]
    return on_zero_background(chosen), torch.tensor(answers)


def left_or_right(stream: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Two objects of two colours in two columns: pixels, and 1 where the first colour is right.

    The first colour is the one that comes first in COLORS.
    """
    chosen, answers = [], []
    for scene in stream:
        if len(scene.objects) == 2 and len({thing.color for thing in scene.objects}) == 2:
            first, other = sorted(scene.objects, key=lambda thing: COLORS.index(thing.color))
            columns = first.box[0] // scene.cell, other.box[0] // scene.cell
            if columns[0] != columns[1]:
                chosen.append(scene)
                answers.append(int(columns[0] > columns[1]))
    return on_zero_background(chosen), torch.tensor(answers)


def small_vit(positions: Tensor | None = None, seed: int = 0, **changes: Any) -> ViT:
    """An untrained ViT for scenes; positions (N, D): where its table starts, which then learns.

    Without them the table is zero and stays so. changes: fields of the configuration.
    """
    torch.manual_seed(seed)
    model = ViT(replace(SMALL, **changes))
    if positions is None:
        nn.init.zeros_(model.positions).requires_grad_(False)
    else:
        with torch.no_grad():
            model.positions[:, 1:] = positions
    return model


def filled_patches(pixels: Tensor, patch: int) -> Tensor:
    """Which patches hold a part of an object: (B, N)."""
    return patchify(pixels, patch).abs().amax(2) > EMPTY


def swap_objects(pixels: Tensor, patch: int) -> tuple[Tensor, list[int]]:
    """One image (1, 3, H, W) with its two filled patches exchanged, and their numbers."""
    patches = patchify(pixels, patch)
    a, b = filled_patches(pixels, patch)[0].nonzero().flatten().tolist()
    order = list(range(patches.shape[1]))
    order[a], order[b] = b, a
    return unpatchify(patches[:, order], patch, pixels.shape[2] // patch), [a, b]


def sample_photo(side: int = 224) -> Image.Image:
    """Matplotlib's photograph of Grace Hopper, cut to a square."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:  # type: ignore[union-attr]
        return Image.open(file).convert("RGB").crop((0, 0, 512, 512)).resize((side, side))


# Figures


def show_photo_in_patches(photo: Image.Image, patch: int = 16, corner: int = 3) -> Figure:
    """A photograph (in 48 colours) with a frame of 7 x 7 patches, and those patches apart."""
    photo = photo.quantize(48).convert("RGB")  # a tenth of the bytes
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]  # (1, 3, H, W)
    across, step = photo.width // patch, patch + 3  # three white pixels between patches
    tiles = patchify(pixels, patch)[0].unflatten(1, (3, patch, patch)).permute(0, 2, 3, 1)
    page = np.full((7 * step, 7 * step, 3), 255, dtype=np.uint8)
    for row, column in np.ndindex(7, 7):
        y, x = step * row, step * column
        page[y : y + patch, x : x + patch] = tiles[across * (row + 1) + column + corner]
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 3.3), layout="constrained")
    left.imshow(photo, interpolation="nearest")
    place, side = (corner * patch, patch), 7 * patch
    left.add_patch(plt.Rectangle(place, side, side, fill=False, edgecolor="white", linewidth=2))
    left.set_title(f"{photo.height} x {photo.width} pixels", fontsize=9)
    right.imshow(page, interpolation="nearest")
    right.set_title(f"49 of its {across**2} patches", fontsize=9)
    for ax in (left, right):
        ax.axis("off")
    return figure


def show_sequence(image: Image.Image, patches: Tensor, patch: int = 16) -> Figure:
    """An image under its grid, and its 16 patches (16, C * p * p) in reading order."""
    figure = plt.figure(figsize=(9, 2.5), layout="constrained")
    grid = figure.add_gridspec(2, 10, width_ratios=[3, 0.4, *[1] * 8])
    left, lines = figure.add_subplot(grid[:, 0]), range(0, image.width + 1, patch)
    left.imshow(image)
    left.set_xticks(np.array(lines) - 0.5, [*map(str, lines)], fontsize=8)
    left.set_yticks(np.array(lines) - 0.5, [*map(str, lines)], fontsize=8)
    left.grid(color="#777777", linewidth=0.8)
    tiles = patches.unflatten(1, (-1, patch, patch)) / 2 + 0.5  # back to 0..1
    for n, tile in enumerate(tiles):
        ax = figure.add_subplot(grid[n // 8, 2 + n % 8])
        ax.imshow(tile.permute(1, 2, 0).numpy())
        ax.set_title(str(n) if n else "token 0", fontsize=8)
        ax.set(xticks=[], yticks=[])
    return figure


def show_position_maps(
    tables: Mapping[str, Tensor], grid: tuple[int, int], row: int, column: int
) -> Figure:
    """How similar the position of each place is to that of one place, a panel for each table."""
    figure, axes = plt.subplots(1, len(tables), figsize=(9, 3), layout="constrained")
    for ax, (name, positions) in zip(axes, tables.items(), strict=True):
        unit = F.normalize(positions, dim=1)
        similarity = (unit @ unit[grid[1] * row + column]).view(grid)
        shown = ax.imshow(similarity, cmap="cividis", vmin=-0.2, vmax=1)
        ax.plot(column, row, "wx", markersize=7, markeredgewidth=2)
        ax.plot(column, row, "kx", markersize=6, markeredgewidth=1)
        ax.set_title(f"{name}\nleast similar: {similarity.min():.2f}", fontsize=9)
        ax.set(xlabel="column", xticks=[0, 5, 10], yticks=[0, 5, 10])
    axes[0].set_ylabel("row")
    figure.colorbar(shown, ax=axes, label="cosine similarity", shrink=0.8)
    return figure


def show_starts(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Losses of two answers, beside that of a guess."""
    figure, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    show_curves(dict(curves), smooth=15, ax=ax)
    ax.axhline(np.log(2), color="black", linestyle=":", linewidth=1, label="guessing: ln 2")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
    return figure


def show_gaze(pixels: Tensor, weights: Tensor, patch: int = 16) -> Figure:
    """Images (B, 3, H, W); below, for each layer, their patches as bright as their weight.

    weights: (L, B, rows, columns), of the class token.
    """
    layers, count, rows, columns = weights.shape
    figure, axes = plt.subplots(
        1 + layers, count, figsize=(1.9 * count, 1.9 * (1 + layers)), layout="constrained"
    )
    for b, image in enumerate(map(as_shown, pixels)):
        axes[0, b].imshow(image)
        for layer in range(layers):
            light = weights[layer, b] / weights[layer, b].max()
            light = light.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[..., None]
            axes[1 + layer, b].imshow(image * (0.15 + 0.85 * light.numpy()))
            for r, c in np.ndindex(rows, columns):
                place, share = (patch * (c + 0.5), patch * (r + 1) - 2), weights[layer, b, r, c]
                axes[1 + layer, b].text(*place, f"{100 * share.item():.0f}", **READABLE)
    for ax, name in zip(axes[:, 0], ["image", "layer 1", "layer 2"], strict=True):
        ax.set_ylabel(name)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    return figure


def show_sides(sides: Sequence[int], ways: Mapping[str, Sequence[float]], trained: int) -> Figure:
    """The accuracy of each way to handle an image of another size."""
    figure, ax = plt.subplots(figsize=(6.4, 3.1), layout="constrained")
    for k, (name, values) in enumerate(ways.items()):
        style: dict[str, Any] = {"marker": "os^"[k], "linestyle": DASHES[k], "color": CYCLE[k]}
        ax.plot(sides, [100 * value for value in values], label=name, **style)
    ax.axhline(50, color="black", linestyle=":", linewidth=1)
    ax.text(sides[0], 51, "chance", fontsize=8)
    ax.axvline(trained, color="#999999", linewidth=0.8)
    ax.text(trained + 0.05, 58, "trained here", fontsize=8)
    ax.set(xlabel="patches on each side", ylabel="right, in %", xticks=sides, ylim=(45, 102))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def show_patch_sizes(costs: Mapping[int, float], accuracies: Mapping[int, float]) -> Figure:
    """Accuracy against millions of multiply-adds, a mark for each patch size."""
    figure, ax = plt.subplots(figsize=(5.6, 3), layout="constrained")
    for k, patch in enumerate(sorted(costs)):
        place = costs[patch] / 1e6, 100 * accuracies[patch]
        ax.plot(*place, "os^"[k], markersize=9, color=CYCLE[k])
        ax.annotate(f"patch {patch}", place, (8, -14), textcoords="offset points")
    ax.set(xlabel="million multiply-adds an image", ylabel="colour and shape right, in %")
    lowest = min(100 * accuracy for accuracy in accuracies.values())
    ax.set(xlim=(0, 25), ylim=(lowest - 2, 100.5))
    ax.spines[["top", "right"]].set_visible(False)
    return figure
