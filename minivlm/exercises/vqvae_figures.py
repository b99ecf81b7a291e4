"""03 · Figures and harnesses of notebook 03 that a reader need not read."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import itemgetter

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minivlm.diagrams import Style
from minivlm.lesson import Arrow, Box, Picture, Tokens, diagram
from minivlm.plotting import CYCLE, HUES, effective_mask, show_mask
from minivlm.scenes import Scene
from minivlm.vqvae import VQVAE, nearest

BLUE, RED = HUES["blue"], HUES["vermillion"]


# The model


def vqvae_diagram(image: Image.Image, ids: Tensor, drawn: Tensor) -> Figure:
    """The model, with an image, its ids (8, 8) and what is drawn from them (3, 64, 64)."""
    gradient = "the gradient\nskips the\ncodebook"
    codebook = "128 codes of\n16 numbers;\nrestarts: 2.6"
    cells = [[str(k) for k in row] for row in ids.tolist()]
    conv: Style = {"kind": "image", "trained": True, "section": "2.1"}
    table: Style = {"lines": codebook, "trained": True, "size": (0.52, 0.95), "section": "2.5"}
    loss: Style = {"lines": "squared error\nof the pixels\n+ commitment", "section": "2.4"}
    return diagram(
        Picture("image", (-0.02, 0.3), image, (8, 8), width=0.62),
        Box("encoder", (1.1, 0.3), lines="3 strided\nconvolutions", **conv),
        Box("nearest code", (2.4, 0.3), lines="id of the\nsmallest |z − e|", kind=2, section="2.2"),
        Tokens("ids", (3.8, 1.75), cells, kinds=[[1] * 8] * 8, title=""),
        Box("codebook", (2.4, 1.75), kind=2, **table),
        Box("look-up", (2.4, 3.2), lines="row e of\neach id", kind=2),
        Box("decoder", (1.1, 3.2), lines="3 transposed\nconvolutions", **conv),
        Picture("drawn", (-0.02, 3.2), drawn.permute(1, 2, 0), width=0.62, title=""),
        Box("loss", (-0.02, 1.75), size=(0.56, 0.8), **loss),
        "image -> (64, 64, 3) -> encoder -> z (8, 8, 16) -> nearest code",
        Arrow("nearest code", "ids", "64 integers (8, 8)", kind="image"),
        Arrow("ids", "look-up", kind="image", bend="vh"),
        "codebook -> -> nearest code; codebook -> -> look-up",
        "look-up -> e (8, 8, 16) -> decoder -> (64, 64, 3) -> drawn",
        "image -> -> loss; drawn -> -> loss",
        Arrow("decoder", "encoder", gradient, section="2.3", dashed="the path of the gradient"),
        columns=5,
    )


# Section 2


def draw_regions(points: Tensor, codes: Tensor) -> Figure:
    """Vectors (N, 2), codes (K, 2), the region that each code owns and where each vector goes."""
    side = torch.linspace(-3, 3, 240)
    y, x = torch.meshgrid(side, side, indexing="ij")
    regions = nearest(torch.stack([x.flatten(), y.flatten()], dim=1), codes).view(240, 240)
    figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    borders = np.arange(len(codes) + 1) - 0.5
    ax.contourf(side, side, regions, levels=borders, cmap="cividis", alpha=0.35)
    ax.contour(side, side, regions, levels=borders[1:], colors="white", linewidths=1)
    arrow = {"arrowstyle": "->", "color": "#555555"}
    for z, e in zip(points, codes[nearest(points, codes)], strict=True):
        ax.annotate("", e.tolist(), z.tolist(), arrowprops=arrow)
    ax.plot(*points.T, "o", color=BLUE, label="vector of the encoder")
    ax.plot(*codes.T, "s", color=RED, markersize=8, label="code")
    for k, e in enumerate(codes):
        ax.annotate(str(k), e.tolist(), (6, 5), textcoords="offset points")
    ax.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[])
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def draw_staircase(codes: Sequence[float], target: float) -> Figure:
    """The loss (e - target)^2 of the nearest code e to z, and where the copied gradient sends z."""
    figure, ax = plt.subplots(figsize=(7, 2.9), layout="constrained")
    low, high = min(codes) - 0.9, max(codes) + 0.9
    borders = [low, *((a + b) / 2 for a, b in pairwise(codes)), high]
    for code, (left, right) in zip(codes, pairwise(borders), strict=True):
        loss, move = (code - target) ** 2, -np.sign(code - target)
        ax.plot([left, right], [loss, loss], color=RED, linewidth=2.5)
        ax.plot(code, loss, "s", color=RED, markersize=8)
        label: Style = {"textcoords": "offset points", "ha": "right" if move > 0 else "left"}
        ax.annotate(f"code {code:g}", (code, loss), (-6 * move, -16), **label)
        arrow = {"arrowstyle": "-|>", "color": BLUE, "lw": 2, "shrinkA": 0, "shrinkB": 0}
        start, height = code - 0.2 * move, loss + 0.16
        ax.annotate("", (start + 0.4 * move, height), (start, height), arrowprops=arrow)
    z = np.linspace(low, high, 200)
    ax.plot(z, (z - target) ** 2, "--", color="#777777", label="without a codebook")
    ax.plot([], color=RED, label="with a codebook: a staircase")
    ax.plot([], color=BLUE, marker=">", label="where the copied gradient sends z")
    ax.set(xlabel="z", ylabel="loss", ylim=(-0.25, 3.2))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper center")
    return figure


# Section 3


def measured_fields(model: VQVAE, codes: int = 8) -> tuple[Tensor, Tensor]:
    """What depends on what along a strip of 8 x (8 codes) pixels, from gradients.

    Encoder: code on pixel column, (codes, pixels). Decoder: pixel column on code.
    """
    stride, generator = model.config.stride, torch.Generator().manual_seed(0)
    pixels = stride * codes

    def encode_columns(columns: Tensor) -> Tensor:  # (pixels, 3 * stride) -> (codes, D)
        image = columns.view(pixels, 3, stride).permute(1, 2, 0)[None]
        return model.encode(image)[0, :, 0].T

    def decode_columns(vectors: Tensor) -> Tensor:  # (codes, D) -> (pixels, 3 * stride)
        return model.decoder(vectors.T[None, :, None])[0].permute(2, 0, 1).flatten(1)

    columns = torch.rand(pixels, 3 * stride, generator=generator)
    vectors = torch.randn(codes, model.config.dim, generator=generator)
    return effective_mask(encode_columns, columns), effective_mask(decode_columns, vectors)


def seen_codes(pixel: int, blocks: int = 1) -> tuple[int, int]:
    """First and last code (may lie outside) that a pixel of the decoder's output depends on."""
    kernel, stride, padding = 4, 2, 1
    first = last = pixel
    for _ in range(3):  # transposed: output y gets input x if 0 <= y + padding - stride x < kernel
        first = -((kernel - 1 - first - padding) // stride)
        last = (last + padding) // stride
    return first - 1 - blocks, last + 1 + blocks


def draw_fields(encoder: Tensor, decoder: Tensor) -> Figure:
    """Masks (codes, pixels) and (pixels, codes), patch by patch: filled if any pixel counts."""
    count = len(encoder)
    pixels = [f"pixels {8 * i}–{8 * i + 7}" for i in range(count)]
    codes = [f"code {i}" for i in range(count)]
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.7), layout="constrained")
    image, special = ["image"] * count, ["special"] * count
    mask = encoder.unflatten(1, (count, 8)).any(2)
    options = {"query_labels": codes, "query_kinds": special, "title": "encoder", "ax": axes[0]}
    show_mask(mask, pixels, image, **options)
    mask = decoder.unflatten(0, (count, 8)).any(1)
    options = {"query_labels": pixels, "query_kinds": image, "title": "decoder", "ax": axes[1]}
    show_mask(mask, codes, special, **options)
    axes[0].set(xlabel="input: is seen", ylabel="output: sees")
    axes[1].set(xlabel="input: is read", ylabel="output: is drawn from")
    for ax in axes:
        ax.get_legend().remove()
    return figure


# Section 4


def draw_collapse(results: dict[str, list[tuple]], codes: int) -> Figure:
    """Codes in use and PSNR of several settings: rows of (PSNR, in use, perplexity), one a seed."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.7), sharey=True, layout="constrained")
    labels = f"codes in use, of {codes}", "PSNR, dB"
    for ax, column, label in zip(axes, (1, 0), labels, strict=True):
        for place, rows in enumerate(results.values()):
            values = [row[column] for row in rows]
            ax.barh(place, np.mean(values), color=CYCLE[place], alpha=0.6)
            ax.plot(values, [place] * len(values), "kD", markersize=4)
        ax.set_yticks(range(len(results)), list(results))
        ax.set(xlabel=label)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    return figure


def draw_sizes(by_size: dict[int, list[tuple]]) -> Axes:
    """PSNR against the bytes of a scene, for several numbers of codes: rows (PSNR, in use)."""
    _, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
    lengths = [8 * np.log2(k) for k in by_size]
    means = [np.mean([db for db, _ in rows]) for rows in by_size.values()]
    ax.plot(lengths, means, "-", color=CYCLE[0])
    for length, mean, (k, rows) in zip(lengths, means, by_size.items(), strict=True):
        ax.plot([length] * len(rows), [db for db, _ in rows], "D", color="black", markersize=4)
        style: Style = {"textcoords": "offset points", "fontsize": 8}
        ax.annotate(f"{k} codes", (length, mean), (7, -10), **style)
    ax.set(xlabel="bytes a scene, 64 codes of equal length", ylabel="PSNR, dB")
    ax.set(xlim=(20, 84), ylim=(20, 28))
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def draw_code_map(images: Tensor, grids: Tensor, common: int) -> Figure:
    """Images (N, 3, 64, 64), each with the code of every place; a dot is the common code."""
    figure, axes = plt.subplots(1, len(images), figsize=(9, 3.1), layout="constrained")
    for ax, image, grid in zip(axes, images, grids, strict=True):
        ax.imshow(image.permute(1, 2, 0), alpha=0.55, interpolation="nearest")
        for (row, column), k in np.ndenumerate(grid.numpy()):
            text, at = "·" if k == common else str(k), (8 * column + 3.5, 8 * row + 3.5)
            ax.text(*at, text, ha="center", va="center", fontsize=8)
        ax.set_xticks(np.arange(0, 65, 8) - 0.5, [])
        ax.set_yticks(np.arange(0, 65, 8) - 0.5, [])
        ax.grid(color="white", linewidth=0.8)
        ax.tick_params(length=0)
    return figure


def objects_of_codes(scenes: Sequence[Scene], ids: Tensor) -> dict[int, Counter]:
    """code -> (colour, shape) of the objects whose boxes its 8 x 8 patches touch; None: of none."""
    found: dict[int, Counter] = defaultdict(Counter)
    for scene, grid in zip(scenes, ids, strict=True):
        for (row, column), code in np.ndenumerate(grid.numpy()):
            inside: list[tuple[str, str] | None] = [
                (thing.color, thing.shape)
                for thing in scene.objects
                if thing.box[0] < 8 * column + 8
                and thing.box[2] > 8 * column
                and thing.box[1] < 8 * row + 8
                and thing.box[3] > 8 * row
            ]
            found[int(code)].update(inside or [None])
    return dict(found)


def purest_shares(found: dict[int, Counter]) -> dict[str, list[float]]:
    """Of each code that lies mostly on objects: the share of its commonest colour, shape, pair."""
    keys: dict[str, Callable] = {"colour": itemgetter(0), "shape": itemgetter(1), "pair": tuple}
    shares: dict[str, list[float]] = {name: [] for name in keys}
    for counts in found.values():
        on = {pair: number for pair, number in counts.items() if pair}
        if counts.total() >= 5 and sum(on.values()) > counts.total() / 2:
            for name, key in keys.items():
                totals: Counter = Counter()
                for pair, number in on.items():
                    totals[key(pair)] += number
                shares[name].append(max(totals.values()) / totals.total())
    return shares


def patches_alone(images: Tensor, blank: Tensor) -> tuple[Tensor, Tensor]:
    """Every patch that is not blank, alone on a blank image: (M, 3, 64, 64).

    And where it was: image, row and column (M, 3).
    """
    busy = (images - blank).abs().amax(1).unfold(1, 8, 8).unfold(2, 8, 8).amax((3, 4)) > 0.1
    places = busy.nonzero()
    alone = blank.expand(len(places), 3, *images.shape[2:]).clone()
    for shown, (i, row, column) in zip(alone, places.tolist(), strict=True):
        rows, columns = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
        shown[:, rows, columns] = images[i, :, rows, columns]
    return alone, places


# Going deeper


def codes_in_background(model: VQVAE, order: Tensor) -> Tensor:
    """Each code (K,) alone in a field of the first one: the 24 x 24 pixels around it."""
    field = torch.full((len(order), 5, 5), int(order[0]))
    field[:, 2, 2] = order
    return model.decode_ids(field)[:, :, 8:32, 8:32]


def surroundings(images: Tensor, ids: Tensor, order: Tensor, blank: Tensor) -> Tensor:
    """The mean 24 x 24 pixels around the places of each code (K,): white if it has none."""
    padded = F.pad(images - blank, (8, 8, 8, 8)) + blank  # so that every place has neighbours
    around = padded.unfold(2, 24, 8).unfold(3, 24, 8)  # (B, 3, 8, 8, 24, 24)
    around = around.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # one for each place
    chose = F.one_hot(ids.flatten(), len(order)).float()
    mean = (chose.T @ around.flatten(1)).div(chose.sum(0).clamp(min=1)[:, None])
    used = chose.sum(0)[:, None] > 0
    return torch.where(used, mean, 1.0).view(len(order), 3, 24, 24)[order]


def draw_codebook(pages: dict[str, Tensor]) -> Figure:
    """Pages of 128 tiles (128, 3, 24, 24) side by side, each in 8 rows."""
    figure, axes = plt.subplots(1, len(pages), figsize=(7.2, 2.05), layout="constrained")
    for ax, (title, tiles) in zip(axes, pages.items(), strict=True):
        page = F.pad(tiles, (1, 1, 1, 1), value=0.6).view(8, 16, 3, 26, 26)
        ax.imshow(page.permute(0, 3, 1, 4, 2).reshape(8 * 26, 16 * 26, 3).clamp(0, 1))
        ax.set_title(title, fontsize=9)
        ax.axis("off")
    return figure
