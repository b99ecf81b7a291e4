"""Figures of the course, in one style: attention masks (declared and measured), images, curves.

Colours are Okabe & Ito's, which colour-blind readers can tell apart; colour is never the only cue.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image
from torch import Tensor

HUES = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
KINDS = {  # kind of token -> (colour, mark before its label)
    "text": (HUES["blue"], ""),
    "image": (HUES["vermillion"], "▪ "),
    "query": (HUES["green"], "? "),
    "special": (HUES["purple"], "◆ "),
    "padding": ("#777777", "· "),
}
CYCLE = [HUES[name] for name in ("blue", "vermillion", "green", "purple", "orange", "black")]
DASHES = ["-", "--", "-.", ":"]


def show_mask(
    mask: Tensor,
    labels: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    *,
    query_labels: Sequence[str] | None = None,
    query_kinds: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw an attention mask (T, S): filled where the query (row) may attend to the key (column).

    labels and kinds (of KINDS) name the S keys; the queries have the same ones unless they get
    their own.
    """
    mask = torch.as_tensor(mask).bool().cpu()
    if mask.ndim != 2:
        raise ValueError(f"a mask to draw is (T, S), got shape {tuple(mask.shape)}")
    rows, columns = mask.shape
    query_labels = labels if query_labels is None and rows == columns else query_labels
    query_kinds = kinds if query_kinds is None and rows == columns else query_kinds
    ax = ax or plt.subplots(figsize=(1.6 + 0.3 * columns, 1.2 + 0.3 * rows))[1]
    ax.imshow(
        mask.numpy(), cmap=ListedColormap(["#F4F4F4", "#44546A"]), vmin=0, vmax=1, aspect="equal"
    )
    ax.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1)
    ax.tick_params(which="both", length=0)
    _name_positions(ax.xaxis, labels, kinds, columns, rotation=90)
    _name_positions(ax.yaxis, query_labels, query_kinds, rows, rotation=0)
    ax.set(xlabel="key: attended to", ylabel="query: attends", title=title or "")
    patches = _patches({*(kinds or ()), *(query_kinds or ())})
    if len(patches) > 1:
        ax.legend(
            handles=patches, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8
        )
    return ax


def _patches(kinds: Collection[str]) -> list[Patch]:
    """The entries of a legend for the kinds that occur."""
    return [
        Patch(color=color, label=mark + kind)
        for kind, (color, mark) in KINDS.items()
        if kind in kinds
    ]


def _name_positions(
    axis: Axis,
    labels: Sequence[str] | None,
    kinds: Sequence[str | None] | None,
    count: int,
    rotation: int,
) -> None:
    """Name the positions of one side, coloured and marked by kind."""
    labels = [str(i) for i in range(count)] if labels is None else labels
    kinds = [None] * count if kinds is None else kinds
    unknown = {kind for kind in kinds if kind is not None and kind not in KINDS}
    if len(labels) != count or len(kinds) != count or unknown:
        raise ValueError(
            f"{count} positions, but {len(labels)} labels and {len(kinds)} kinds; "
            f"unknown kinds: {sorted(unknown)}"
        )
    marks = [KINDS[kind][1] if kind else "" for kind in kinds]
    names = [mark + label for mark, label in zip(marks, labels, strict=True)]
    axis.set_ticks(range(count), names, fontsize=8)
    for tick, kind in zip(axis.get_ticklabels(), kinds, strict=True):
        tick.set(rotation=rotation, color=KINDS[kind][0] if kind else "black")


def show_masks(
    masks: dict[str, Tensor],
    labels: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    **options: Any,
) -> Figure:
    """Several masks side by side under their titles: a declared one and the one measured."""
    rows, columns = next(iter(masks.values())).shape
    size = (len(masks) * (1.3 + 0.27 * columns) + 1, 1.4 + 0.27 * rows)
    figure, axes = plt.subplots(1, len(masks), figsize=size, squeeze=False, layout="constrained")
    for ax, (title, mask) in zip(axes[0], masks.items(), strict=True):
        show_mask(mask, labels, kinds, title=title, ax=ax, **options)
        if ax is not axes[0][-1] and ax.get_legend():
            ax.get_legend().remove()
    return figure


def show_tokens(
    tokens: Sequence[str],
    kinds: Sequence[str],
    learned: Sequence[bool] = (),
    *,
    width: int = 100,
    title: str = "",
) -> Axes:
    """Tokens as boxes in lines of ``width`` characters, coloured and marked by kind (of KINDS).

    A token that is ``learned`` (its label is not ignored) has a filled box, every other one an
    outlined box.
    """
    learned = [bool(flag) for flag in learned] or [False] * len(tokens)
    if not len(tokens) == len(kinds) == len(learned) or not {*kinds} <= {*KINDS}:
        raise ValueError(
            f"{len(tokens)} tokens, {len(kinds)} kinds, {len(learned)} flags; "
            f"known kinds: {list(KINDS)}"
        )
    figure, ax = plt.subplots(layout="constrained")
    x, line = 0.0, 0
    for token, kind, flag in zip(tokens, kinds, learned, strict=True):
        color, mark = KINDS[kind]
        text = mark + token.replace("\n", "⏎").replace(" ", "␣")
        side = len(text) + 1
        if x and x + side > width:
            x, line = 0.0, line + 1
        ax.add_patch(
            Rectangle((x, line), side, 0.8, facecolor=color if flag else "white", edgecolor=color)
        )
        style: dict[str, Any] = {
            "ha": "center",
            "va": "center_baseline",
            "fontsize": 8,
            "family": "monospace",
        }
        ax.text(x + side / 2, line + 0.4, text, color="white" if flag else color, **style)
        x += side + 0.4
    figure.set_size_inches(0.076 * width + 0.2, 0.25 * (line + 1) + 0.45 + 0.2 * bool(title))
    ax.set(xlim=(-0.5, width + 0.5), ylim=(line + 1, -0.3), title=title)
    ax.axis("off")
    states = {"learned": "#444444", "not learned": "white"} if any(learned) else {}
    legend = _patches(kinds) + [
        Patch(facecolor=color, edgecolor="#444444", label=name) for name, color in states.items()
    ]
    ax.legend(
        handles=legend, loc="upper left", bbox_to_anchor=(0, 0), ncols=7, frameon=False, fontsize=8
    )
    return ax


def show_merge_tree(tokens: Sequence[str], ranks: dict[tuple[str, str], int]) -> Axes:
    """How BPE joins the bytes of a word (below): always the pair of lowest rank, one level a join.

    ranks: {(left, right): rank of the merge}. What is joined no further is filled.
    """
    figure, ax = plt.subplots(layout="constrained")
    color, level = HUES["blue"], 0
    box: dict[str, Any] = {"boxstyle": "round,pad=0.3", "edgecolor": color}
    style: dict[str, Any] = {"ha": "center", "va": "center", "family": "monospace", "fontsize": 9}
    nodes = [(float(x), 0.0, token) for x, token in enumerate(tokens)]  # place, level, text
    drawn = list(nodes)
    while True:
        pairs = [(left[2], right[2]) for left, right in pairwise(nodes)]
        known = [i for i, pair in enumerate(pairs) if pair in ranks]
        if not known:
            break
        i = min(known, key=lambda i: ranks[pairs[i]])
        (x1, y1, left), (x2, y2, right) = nodes[i : i + 2]
        level += 1
        ax.plot([x1, x1, x2, x2], [y1, level, level, y2], color=color, linewidth=1.2, zorder=1)
        ax.text(x2 + 0.1, level, f"rank {ranks[left, right]}", fontsize=8, color="#555555")
        nodes[i : i + 2] = [((x1 + x2) / 2, level, left + right)]
        drawn.append(nodes[i])
    for node in drawn:
        face, ink = (color, "white") if node in nodes else ("white", color)
        ax.text(*node, color=ink, bbox=box | {"facecolor": face}, **style)
    ax.set(xlim=(-0.6, len(tokens)), ylim=(-0.5, level + 0.6), xticks=[], ylabel="join")
    ax.set_yticks(range(level + 1))
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    figure.set_size_inches(0.8 * len(tokens) + 1, 0.45 * level + 1)
    return ax


def effective_mask(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The mask that a function really obeys, from its gradients: (T, S) bool.

    fn maps x (S, D) or (1, S, D) to (T, E) or (1, T, E). Entry (t, s) is True when some feature of
    output t has a non-zero derivative with respect to some feature of input s. A masked softmax
    gives exactly zero there. What is derived is a random projection of output t, in which its
    features cannot cancel each other.
    """
    x = x.detach().clone().requires_grad_()
    y = fn(x)
    if (
        x.ndim not in (2, 3)
        or y.ndim not in (2, 3)
        or (x.ndim == 3 and len(x) != 1)
        or (y.ndim == 3 and len(y) != 1)
    ):
        raise ValueError(
            f"x and fn(x) must be (T, D) or (1, T, D), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    y = y.reshape(y.shape[-2:])  # (T, E)
    directions = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
    rows = []
    for t in range(len(y)):
        (gradient,) = torch.autograd.grad(y[t] @ directions[t], x, retain_graph=True)
        rows.append(gradient.reshape(x.shape[-2:]).ne(0).any(dim=-1))  # (S,)
    return torch.stack(rows).cpu()


def show_images(
    images: Sequence, titles: Sequence[str] | None = None, *, columns: int = 6, size: float = 1.6
) -> Figure:
    """A grid of images (PIL, numpy (H, W, 3) or tensor (3, H, W) in 0..1) with sharp pixels."""
    if not len(images) or (titles is not None and len(titles) != len(images)):
        raise ValueError(f"{len(images)} images, but {0 if titles is None else len(titles)} titles")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    lines = max((title.count("\n") + 1 for title in titles), default=0) if titles else 0
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(size * columns, (size + 0.19 * lines) * rows + 0.1),
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat:
        ax.axis("off")
    for i, image in enumerate(images):
        ax = axes.flat[i]
        shown = image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) else image
        ax.imshow(shown, interpolation="nearest")
        if titles:
            ax.set_title(titles[i], fontsize=8)
    return figure


def show_boxes(
    image: Image.Image,
    boxes: dict[str, Sequence[Sequence[float]]],
    *,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A PIL image with boxes (x1, y1, x2, y2) in pixels, x2 and y2 just outside.

    Each name in ``boxes`` has its own colour and dashes.
    """
    ax = ax or plt.subplots(figsize=(2.6, 3), layout="constrained")[1]
    # pixel edges at integers
    ax.imshow(image, extent=(0, image.width, image.height, 0), interpolation="nearest")
    for i, (name, corners) in enumerate(boxes.items()):
        color, dash = CYCLE[i % len(CYCLE)], DASHES[i % len(DASHES)]
        style: dict[str, Any] = {"edgecolor": color, "linestyle": dash, "fill": False}
        for j, (x1, y1, x2, y2) in enumerate(corners):
            label = name if j == 0 else None
            ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, linewidth=2, label=label, **style))
    ax.set_title(title, fontsize=8)
    ax.axis("off")
    if any(boxes.values()):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False, fontsize=8)
    return ax


def show_bars(
    values: dict[str, Sequence[float]], kinds: Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """A group of bars for each name, a bar for each of the kinds, its value above it."""
    ax = ax or plt.subplots(figsize=(6.4, 3.2), layout="constrained")[1]
    width = 0.76 / len(kinds)
    for k, kind in enumerate(kinds):
        heights = [group[k] for group in values.values()]
        places = np.arange(len(values)) + (k - (len(kinds) - 1) / 2) * width
        style: dict[str, Any] = {"color": CYCLE[k], "hatch": ["", "//", "..", "xx"][k % 4]}
        bars = ax.bar(places, heights, 0.94 * width, label=kind, edgecolor="white", **style)
        ax.bar_label(bars, fmt="%.2f", fontsize=8)
    ax.set_xticks(np.arange(len(values)), list(values))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def show_curves(
    curves: dict[str, Sequence[float]],
    *,
    xlabel: str = "step",
    ylabel: str = "loss",
    smooth: int = 1,
    ax: Axes | None = None,
) -> Axes:
    """A line for each name, in its own colour and dashes: a running mean of ``smooth`` values."""
    ax = ax or plt.subplots(figsize=(5, 3), layout="constrained")[1]
    for i, (name, values) in enumerate(curves.items()):
        window = min(smooth, len(values))
        y = np.convolve(np.asarray(values, dtype=float), np.ones(window) / window, mode="valid")
        x = np.arange(len(values) - len(y), len(values))
        ax.plot(x, y, color=CYCLE[i % len(CYCLE)], linestyle=DASHES[i % len(DASHES)], label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def show_row(processor: Any, row: dict, index: int = 0, title: str = "") -> Axes:
    """A row of a batch that a processor made: its tokens by kind, filled where it has a label.

    Placeholders show their number within their image.
    """
    ids, labels = row["input_ids"][index].tolist(), row["labels"][index].tolist()
    kinds, names, count = processor.kinds(ids), [], 0
    for i, kind in zip(ids, kinds, strict=True):
        count = count + 1 if kind == "image" else 0
        short = {"image": str(count), "padding": "pad"}
        names.append(short.get(kind, processor.tokenizer.decode([i])))
    return show_tokens(names, kinds, [label >= 0 for label in labels], title=title)


def show_scores(
    scores: dict[str, dict[str, float]], guesses: Sequence[float], *, ax: Axes | None = None
) -> Axes:
    """Shares in 0..1 as bars with their values: a group for each task, a bar for each model.

    scores: model -> task -> share. guesses: of each task, what a blind guess reaches, dashed.
    """
    ax = ax or plt.subplots(figsize=(7, 2.8), layout="constrained")[1]
    tasks, side = list(next(iter(scores.values()))), 0.8 / len(scores)
    for k, (name, shares) in enumerate(scores.items()):
        style: dict[str, Any] = {"color": CYCLE[k], "hatch": ["", "//", "..", "xx"][k % 4]}
        at, heights = np.arange(len(tasks)) + side * k, [100 * shares[task] for task in tasks]
        bars = ax.bar(at, heights, 0.92 * side, label=name, edgecolor="white", **style)
        ax.bar_label(bars, fmt="%.0f", fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 1})
    for task, guess in enumerate(guesses):
        ends = [task - 0.6 * side, task + 0.8 - 0.4 * side]
        ax.plot(ends, [100 * guess] * 2, color="black", linewidth=1, linestyle="--")
    ax.set_xticks(np.arange(len(tasks)) + 0.4 - side / 2, tasks, fontsize=9)
    ax.set(ylabel="right, in %", ylim=(0, 110))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.spines[["top", "right"]].set_visible(False)
    return ax
