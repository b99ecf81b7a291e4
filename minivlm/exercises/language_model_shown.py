"""00 · The figures of notebook 00, and how a model's captions are judged."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minivlm.parts.decoder import Decoder, DecoderBlock
from minivlm.parts.layers import attention_weights, split_heads
from minivlm.parts.rope import inverse_frequencies, rotary_tables, rotate
from minivlm.parts.training import schedule
from minivlm.plotting import CYCLE, show_images, show_mask
from minivlm.scenes import Scene, is_true
from minivlm.scenes.grammar import alike

HATCHES = ("", "///", "...")
KINDS_OF_SCENE = ("one object", "several alike", "two in a relation")


def show_word_losses(words: Sequence[str], losses: Mapping[str, Tensor]) -> Figure:
    """A group of bars for each word: what each model paid for it, -log of its probability."""
    figure, ax = plt.subplots(figsize=(9, 2.5), layout="constrained")
    width, places = 0.8 / len(losses), np.arange(len(words))
    for i, (name, values) in enumerate(losses.items()):
        style: dict[str, Any] = {
            "color": CYCLE[i],
            "hatch": HATCHES[i],
            "edgecolor": "white",
            "label": name,
        }
        ax.bar(places + i * width, values.numpy(), width, **style)
    ax.set_xticks(places + 0.4 - width / 2, words, rotation=90, fontsize=9)
    ax.set(ylabel="loss of the word", xlim=(-0.6, len(words)))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, ncols=3, fontsize=9)
    return figure


def show_weights(weights: Tensor, queries: Sequence[str], keys: Sequence[str]) -> Figure:
    """Attention weights (T, S) with their numbers."""
    size = (1.6 + 0.62 * len(keys), 0.9 + 0.34 * len(queries))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    ax.imshow(weights, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), weight in np.ndenumerate(weights.numpy()):
        ink = "black" if weight > 0.5 else "white"
        ax.text(column, row, f"{weight:.2f}", ha="center", va="center", color=ink, fontsize=9)
    ax.set_xticks(range(len(keys)), keys, fontsize=9)
    ax.set_yticks(range(len(queries)), queries, fontsize=9)
    ax.set(xlabel="key: read from", ylabel="query: asks")
    return figure


def attention_maps(model: Decoder, ids: Tensor) -> Tensor:
    """Who looks at whom in a row of ids (1, T): the weights of all heads, (layers * h, T, T)."""
    found = []

    def keep(block: DecoderBlock, given: tuple, output: Tensor) -> None:
        x, mask, rotary, _ = given
        layer, x = block.attention, block.norm1(x)
        q = rotate(split_heads(layer.q(x), layer.heads), *rotary)
        k = rotate(split_heads(layer.k(x), layer.kv_heads), *rotary)
        k = k.repeat_interleave(layer.heads // layer.kv_heads, dim=1)
        found.append(attention_weights(q, k, mask)[0])

    hooks = [block.register_forward_hook(keep) for block in model.blocks]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return torch.cat(found)


def show_looks(weights: Tensor, words: Sequence[str], colon: int) -> Figure:
    """One head's weights (T, T): what it reads of the listing to write each word of a caption."""
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    image = ax.imshow(weights[colon : len(words) - 1, :colon], cmap="cividis", vmin=0, vmax=1)
    ax.set_xticks(range(colon), words[:colon], rotation=90, fontsize=9)
    ax.set_yticks(range(len(words) - 1 - colon), words[colon + 1 :], fontsize=9)
    ax.set(xlabel="word of the listing: read from", ylabel="word to be written")
    figure.colorbar(image, ax=ax, label="weight", shrink=0.8)
    return figure


def show_rotations(width: int = 16, theta: float = 10_000.0) -> Figure:
    """Three pairs of features at positions 0 to 5, and scores at equal distances."""
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.4), width_ratios=[1, 1, 1, 1.7])
    figure.set_layout_engine("constrained")
    frequencies = inverse_frequencies(width, theta)
    for pair, ax in enumerate(axes[:3]):
        for place in range(6):
            angle = (0.3 + place * frequencies[pair]).item()
            tip = np.cos(angle), np.sin(angle)
            ax.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "->", "color": CYCLE[pair]})
            if pair < 2:
                ax.text(1.2 * tip[0], 1.2 * tip[1], place, ha="center", va="center", fontsize=8)
        ax.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal", xticks=[], yticks=[])
        ax.set_title(f"pair {pair}: {frequencies[pair]:.2f} a step", fontsize=9)
    for start, dash in ((0, "-"), (50, "--")):
        scores = scores_by_distance(width, theta, start)
        label = f"query at {40 + start}"
        axes[3].plot(scores, dash, color=CYCLE[start // 50], linewidth=3 - start / 30, label=label)
    axes[3].set(xlabel="distance from query to key", ylabel="score")
    axes[3].legend(frameon=False, fontsize=8)
    axes[3].spines[["top", "right"]].set_visible(False)
    return figure


def scores_by_distance(width: int, theta: float, start: int) -> Tensor:
    """The score of one query at 40 + start with one key at 40, 39, ... positions before: (41,)."""
    x = torch.ones(1, 41, width)
    keys = rotate(x, *rotary_tables(torch.arange(start, start + 41), width, theta))[0]
    return (keys @ keys[-1]).flip(0) / width**0.5


def show_nucleus(words: Sequence[str], probs: Tensor, kept: Mapping[str, Tensor]) -> Figure:
    """What is left of one distribution, a panel each; filled: kept, outlined: as it was."""
    figure, axes = plt.subplots(1, len(kept), figsize=(9, 2.3), sharey=True, layout="constrained")
    for ax, (title, left) in zip(axes, kept.items(), strict=True):
        ax.bar(words, left.numpy(), color=CYCLE[0], label="drawn from")
        ax.bar(words, probs.numpy(), fill=False, edgecolor="black", linestyle="--", label="model's")
        ax.tick_params(axis="x", rotation=60, labelsize=8)
        ax.set_title(title, fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("probability")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def show_decoder_masks(masks: Mapping[str, Tensor], words: Sequence[str]) -> Figure:
    """The masks of a decoder, side by side; what has no word is padding, on the left."""
    figure, axes = plt.subplots(1, len(masks), figsize=(9.2, 3.5), layout="constrained")
    for ax, (title, mask) in zip(axes, masks.items(), strict=True):
        rows, columns = mask.shape
        labels = [*["pad"] * (columns - len(words)), *words]
        kinds = ["padding" if label == "pad" else "text" for label in labels]
        names = {"query_labels": labels[-rows:], "query_kinds": kinds[-rows:]}
        show_mask(mask, labels, kinds, title=title, ax=ax, **names)
        ax.title.set_fontsize(9)
        if ax.get_legend():
            ax.get_legend().remove()
    return figure


def show_schedule(steps: int) -> Figure:
    """The share of the learning rate at each step."""
    figure, ax = plt.subplots(figsize=(5, 2), layout="constrained")
    ax.plot([schedule(step, steps) for step in range(steps)], color=CYCLE[0])
    ax.set(xlabel="step", ylabel="share of the peak rate", ylim=(0, 1.05))
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def show_verdicts(scenes: Sequence[Scene], said: Sequence[str]) -> Figure:
    """Images with a model's sentences and the program's verdicts."""
    verdicts = [
        f"{'true' if is_true(text, scene) else 'FALSE'}: {text}"
        for scene, text in zip(scenes, said, strict=True)
    ]
    titles = [fill(verdict, 24) for verdict in verdicts]
    return show_images([scene.image for scene in scenes], titles, columns=5, size=1.75)


def kind_of_scene(scene: Scene) -> str:
    """One of KINDS_OF_SCENE."""
    if len(scene.objects) == 1:
        return KINDS_OF_SCENE[0]
    return KINDS_OF_SCENE[1 if alike(scene.objects) else 2]


def share_true(scenes: Sequence[Scene], said: Sequence[str]) -> dict[str, float]:
    """How many of the sentences are true, in per cent: by kind of scene, and of all."""
    right = defaultdict(list)
    for scene, text in zip(scenes, said, strict=True):
        for kind in (kind_of_scene(scene), "all"):
            right[kind].append(is_true(text, scene))
    return {kind: 100 * np.mean(right[kind]).item() for kind in (*KINDS_OF_SCENE, "all")}
