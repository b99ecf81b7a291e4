"""05 · What notebook 05 shows and counts: figures, prompts, readers of words, published sizes."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from minivlm import clip
from minivlm.plotting import CYCLE, DASHES
from minivlm.pretrained.clip import build_clip, build_siglip
from minivlm.scenes import Scene, grammar, is_true
from minivlm.scenes.pixels import pixels

# The problem


def nearest_by_pixels(asked: Sequence[Scene], known: Sequence[Scene]) -> list[Scene]:
    """For each scene the known one with the nearest pixels."""
    offered, wanted = (_whole_numbers(some) for some in (known, asked))
    distance = offered.square().sum(1) - 2 * wanted @ offered.T  # up to a number for each row
    return [known[i] for i in distance.argmin(1).tolist()]


def _whole_numbers(scenes: Sequence[Scene]) -> Tensor:
    """Pixels (N, 12288), background 0; products of whole numbers are exact in float64."""
    return (255 / 8 * pixels([scene.image for scene in scenes])).flatten(1).round().double()


# Figures


def unlike(scenes: Sequence[Scene], count: int) -> list[Scene]:
    """The first scenes with alike objects of which no caption is true of another."""
    chosen: list[Scene] = []
    for scene in scenes:
        met = [is_true(a.caption, b) for c in chosen for a, b in ((scene, c), (c, scene))]
        if grammar.alike(scene.objects) and not any(met) and len(chosen) < count:
            chosen.append(scene)
    return chosen


def show_all_pairs(scenes: Sequence[Scene], cosine: Tensor) -> Figure:
    """The cosines (B, B) of images (rows, drawn) and captions (columns), the diagonal outlined."""
    n = len(scenes)
    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    shown = ax.imshow(cosine, cmap="cividis", vmin=-1, vmax=1, extent=(0, n, n, 0))
    for i in range(n):
        ax.add_patch(plt.Rectangle((i + 0.03, i + 0.03), 0.94, 0.94, fill=False, ec="red", lw=2))
        ax.imshow(scenes[i].image, extent=(-1.02, -0.08, i + 0.97, i + 0.03))
        for j in range(n):
            ink = "black" if cosine[i, j] > 0.2 else "white"
            ax.text(j + 0.5, i + 0.5, f"{cosine[i, j]:.2f}", color=ink, ha="center", va="center")
    ax.set(xlim=(-1.1, n), ylim=(n, 0), ylabel="an image asks: which caption is mine?")
    places = [i + 0.5 for i in range(n)]
    ax.set_xticks(places, [scene.caption for scene in scenes], rotation=22, ha="left", fontsize=8)
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    figure.colorbar(shown, label="cosine", shrink=0.8)
    return figure


def _line(ax: Axes, x: Tensor, y: Tensor, place: int, label: str) -> None:
    """One curve with its own colour, dash and marker."""
    look = {"color": CYCLE[place], "linestyle": DASHES[place], "marker": "os^"[place]}
    ax.plot(x.detach(), y.detach(), label=label, markersize=3, **look)  # type: ignore[arg-type]


def _two_panels() -> tuple[Axes, Axes]:
    """Side by side, with a cosine on both axes below."""
    _, (left, right) = plt.subplots(1, 2, figsize=(9.3, 3.1), layout="constrained")
    for ax in (left, right):
        ax.set_xlabel("cosine of a negative")
        ax.spines[["top", "right"]].set_visible(False)
    return left, right


def show_temperatures(taus: Iterable[float]) -> dict[float, float]:
    """The push on 31 negatives beside a positive of cosine 0.5; the share of the five hardest."""
    cosines = torch.cat([torch.tensor([0.5]), torch.linspace(-0.6, 0.6, 31)])
    left, right = _two_panels()
    hardest = {}
    for place, tau in enumerate(taus):
        asked = cosines.clone().requires_grad_()
        F.cross_entropy(asked / tau, torch.tensor(0)).backward()
        assert asked.grad is not None
        push = asked.grad[1:]
        share = push / push.sum()
        hardest[tau] = share[cosines[1:] > 0.42].sum().item()
        _line(left, cosines[1:], share, place, f"τ = {tau}")
        _line(right, cosines[1:], push, place, f"τ = {tau}")
    left.set(title="share of all the push", ylabel="share", ylim=(0, None))
    right.set(title="the push itself: probability / τ", ylabel="derivative")
    right.set(yscale="log", ylim=(1e-4, 200))
    left.legend(frameon=False)
    return hardest


def show_biases(biases: Iterable[float], scale: float = 10.0) -> None:
    """What SigLIP's loss does to one negative, and how its first loss grows with the batch."""
    left, right = _two_panels()
    cosine = torch.linspace(-0.6, 1, 33)
    batches = torch.tensor([16.0, 64, 256, 1024, 4096])
    for place, bias in enumerate(biases):
        _line(left, cosine, scale * torch.sigmoid(scale * cosine + bias), place, f"b = {bias:g}")
        logit = torch.tensor(float(bias))
        first = F.softplus(-logit) + (batches - 1) * F.softplus(logit)  # all cosines are 0
        _line(right, batches, first, place, f"b = {bias:g}")
    left.set(title="push on one negative", ylabel="derivative", ylim=(0, None))
    right.set(title="first loss, all cosines 0", xlabel="pairs in the batch", ylabel="loss")
    right.set(xscale="log", yscale="log")
    left.legend(frameon=False)


def show_right(right: dict[str, list[float]], kinds: Sequence[str]) -> None:
    """Bars: how often each model (a list over the kinds of questions) prefers what is true."""
    figure, ax = plt.subplots(figsize=(8.5, 3.2), layout="constrained")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the dotted line
    for i, (name, heights) in enumerate(right.items()):
        places = np.arange(len(kinds)) + 0.38 * i - 0.19
        style = {"color": CYCLE[i], "hatch": ("", "//")[i], "edgecolor": "white"}
        bars = ax.bar(places, heights, 0.36, label=name, **style)  # type: ignore[arg-type]
        written = [f"{height:.0%}" for height in heights]
        ax.bar_label(bars, written, padding=2, fontsize=8, bbox=box)
    ax.axhline(0.5, color="black", linestyle=":")
    ax.annotate("a coin: 50 %", (5.6, 0.51), ha="right")
    ax.set_xticks(range(len(kinds)), [kind.replace(" ", "\n") for kind in kinds])
    ax.set(ylabel="true sentence nearer", ylim=(0, 1.08), xlim=(-0.6, 5.6))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper right", bbox_to_anchor=(1.0, 0.95))


# Zero-shot


def zero_shot_prompts() -> dict[tuple[str, str], list[list[str]]]:
    """(What is asked, the wording) -> the prompts of each class."""
    colors, shapes = grammar.COLORS, grammar.SHAPES
    by_color = [[text for s in shapes for text in templates(c, s)] for c in colors]
    by_shape = [[text for c in colors for text in templates(c, s)] for s in shapes]
    return {
        ("colour", "bare word"): [[color] for color in colors],
        ("colour", "one template"): [[f"a {color} object"] for color in colors],
        ("colour", "ensemble"): by_color,
        ("shape", "bare word"): [[shape] for shape in shapes],
        ("shape", "one template"): [[f"a {shape}"] for shape in shapes],
        ("shape", "ensemble"): by_shape,
    }


def templates(color: str, shape: str) -> list[str]:
    """Captions as training has them: in both sizes, of one object and of several."""
    things = [f"{size} {color} {shape}" for size in grammar.SIZES]
    many = [f"{n} {thing}s" for n in ("two", "three", "four") for thing in things]
    return [f"a {thing}" for thing in things] + many


# Readers that see all of an image and little of a sentence


PLACES = {"left", "right", "above", "below", "over", "under"}
PLACES |= {"of", "to", "the", "there", "is", "are"}


def bag_of_words(text: str) -> list[str]:
    """The words, in no order."""
    return sorted(text.split())


def words_without_place(text: str) -> list[str]:
    """The same without those that say where."""
    return [word for word in bag_of_words(text) if word not in PLACES]


def which_objects(text: str) -> list[str]:
    """Which objects, each with its colour, shape and size; not where."""
    return sorted(map(repr, _understood(text)[0]))


def _understood(text: str) -> tuple[tuple[grammar.Phrase, ...], str | None]:
    """The phrases of a caption and its relation."""
    found = grammar.parse(text)
    assert found is not None, text
    return found


def recall_of_reader(scenes: Sequence[Scene], true: Tensor, reads: Callable) -> float:
    """R@1 of one that sees each scene but only ``reads`` a caption; it guesses among equals."""
    texts, score = [reads(scene.caption) for scene in scenes], 0.0
    for scene, right in zip(scenes, true.tolist(), strict=True):
        mine = [reads(text) for text in scene.captions]
        fits = [text in mine for text in texts]
        score += sum(t for t, fit in zip(right, fits, strict=True) if fit) / sum(fits)
    return score / len(scenes)


def false_meetings(scenes: Sequence[Scene], batches: Iterable[list[int]]) -> int:
    """How many images met, in their batch, their own objects in a relation that is false."""
    parsed = [_understood(scene.caption) for scene in scenes]
    objects = [frozenset(map(repr, phrases)) for phrases, _ in parsed]
    met = 0
    for batch in batches:
        for i in batch:
            same = [j for j in batch if objects[i] == objects[j]]
            other = [j for j in same if parsed[i][1] != parsed[j][1]]
            met += any(not is_true(scenes[j].caption, scenes[i]) for j in other)
    return met


# Published sizes


def _vit(width: int, layers: int, heads: int, hidden: int, patch: int) -> dict:
    """The settings of an image tower for 224 x 224 pixels."""
    part = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return part | {"intermediate_size": hidden, "patch_size": patch, "image_size": 224}


def _clip(vision: dict, text_width: int = 512, joint: int = 512) -> dict:
    """The settings of a CLIP."""
    text = {"hidden_size": text_width, "num_attention_heads": text_width // 64}
    text |= {"intermediate_size": 4 * text_width}
    return {"vision_config": vision, "text_config": text, "projection_dim": joint}


def published_sizes() -> dict[str, int]:
    """Parameters of the published models, built on the meta device."""
    base, large, giant = (768, 12, 12, 3072), (1024, 24, 16, 4096), (1408, 40, 16, 6144)
    sizes = {
        "CLIP ViT-B/32": (build_clip, _clip(_vit(*base, 32))),
        "CLIP ViT-L/14": (build_clip, _clip(_vit(*large, 14), 768, 768)),
        "SigLIP B/16-224": (build_siglip, {"vision_config": _vit(*base, 16), "text_config": {}}),
        "CLIP ViT-B/16": (build_clip, _clip(_vit(*base, 16))),
        "EVA-CLIP g/14, as a CLIP": (build_clip, _clip(_vit(*giant, 14), 768, 1024)),
    }
    return {name: _count(partial(build, given)) for name, (build, given) in sizes.items()}


def _count(build: Callable[[], nn.Module]) -> int:
    """Parameters of what is built without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


def chinese_clip_size(clip_b16: int) -> tuple[int, int]:
    """From the size of CLIP ViT-B/16: Chinese-CLIP's, and that of its RoBERTa."""
    bert = 12 * (12 * 768**2 + 13 * 768) + (21128 + 512 + 2 + 2) * 768  # blocks; embeddings, norm
    text = _count(lambda: clip.TextTower(clip.TextConfig(49408, 77, 512, 12, 8, 2048)))
    return clip_b16 - text - 512 * 512 + bert + 768 * 512, bert
