"""Softmax against sigmoid, on CLIP's towers and on SigLIP's, at three batch sizes: the full table
of notebook 05.

    python tools/clip_against_siglip.py [--pairs 19200] [--batches 16 64 256] [--seeds 0 1]

Seven to twelve minutes on one core. Every run sees the same number of pairs, drawn with the same
seed, and starts from the same towers; the learning rates are those of the toy captioner for all.
Measured on 250 scenes of the composition stream with seed 5 (not the files in data/scenes): recall
at 1 both ways, where every true caption counts as right, and how often the true caption beats the
one with the colours of its two objects exchanged (chance 50 %).
"""

import argparse
import time
from dataclasses import replace
from math import log

import torch
from torch import Tensor, nn

from minivlm import scenes
from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, Siglip, contrastive_loss, sigmoid_loss
from minivlm.parts.training import fit, minibatches
from minivlm.scenes import Scene
from minivlm.scenes.grammar import describe_en, main_relations
from minivlm.scenes.pixels import pixels, vary_channels
from minivlm.toys.clip import END, PAD, sentences, toy
from minivlm.toys.common import RATES


def made(towers: str, loss: str, tokenizer: BPETokenizer, length: int, seed: int) -> Clip | Siglip:
    """Towers with the scale and bias at which a loss starts in its paper; softmax has no use for a
    bias.
    """
    torch.manual_seed(seed)
    model = toy(towers, tokenizer, length)
    softmax = loss == "softmax"
    model.scale = nn.Parameter(torch.tensor(log(1 / 0.07) if softmax else log(10.0)))
    model.bias = nn.Parameter(torch.tensor(-10.0), requires_grad=not softmax)
    return model


def softmax_loss(model: Clip | Siglip, batch: tuple[Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        model.scale.clamp_(max=log(100))
    return contrastive_loss(
        model.encode_image(vary_channels(batch[0])), model.encode_text(batch[1]), model.scale
    )


def pairwise_loss(model: Clip | Siglip, batch: tuple[Tensor, Tensor]) -> Tensor:
    pair = model.encode_image(vary_channels(batch[0])), model.encode_text(batch[1])
    return sigmoid_loss(*pair, model.scale, model.bias)


LOSSES = {"softmax": softmax_loss, "sigmoid": pairwise_loss}


def colours_swapped(scene: Scene) -> tuple[str, str] | None:
    """A true caption and the same with the colours exchanged, for two objects that differ in colour
    and shape.
    """
    a, b = scene.objects if len(scene.objects) == 2 else (None, None)
    if a is None or a.color == b.color or a.shape == b.shape:
        return None
    relation = main_relations(a, b, scene.cell)[0]
    wrong = replace(a, color=b.color), replace(b, color=a.color)
    return tuple(f"{describe_en(x)} {relation} {describe_en(y)}" for x, y in ((a, b), wrong))


@torch.no_grad()
def measured(model: Clip | Siglip, held_out: list[Scene], encode) -> tuple[float, float, float]:
    """(recall at 1 of texts, of images, share of colour swaps that are seen through)."""
    texts = [scene.caption for scene in held_out]
    cosine = (
        model.encode_image(pixels([s.image for s in held_out])) @ model.encode_text(encode(texts)).T
    )
    true = torch.tensor([[scenes.is_true(text, scene) for text in texts] for scene in held_out])
    recalls = [
        t.gather(1, c.argmax(1, keepdim=True)).float().mean().item()
        for c, t in ((cosine, true), (cosine.T, true.T))
    ]
    asked = [(scene, pair) for scene in held_out if (pair := colours_swapped(scene))]
    image = model.encode_image(pixels([scene.image for scene, _ in asked]))
    right, wrong = (
        (image * model.encode_text(encode(list(side)))).sum(1)
        for side in zip(*(p for _, p in asked), strict=True)
    )
    return *recalls, (right > wrong).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=19_200)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    train, held_out = scenes.sample(8000, seed=0), scenes.sample(250, seed=5, split="composition")
    texts = [scene.caption for scene in train]
    tokenizer = BPETokenizer.train(texts, vocab_size=400, special_tokens=(END, PAD))
    ids, images = sentences(texts, tokenizer), pixels([scene.image for scene in train])
    print(
        "| towers | loss | batch | seed | image to text R@1 | text to image R@1 | colours swapped | CPU seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for towers in ("clip", "siglip"):
        for loss, function in LOSSES.items():
            for batch in chosen.batches:
                for seed in chosen.seeds:
                    model = made(towers, loss, tokenizer, ids.shape[1], seed)
                    stream = minibatches(images, ids, batch_size=batch, seed=seed)
                    began = time.process_time()
                    fit(
                        model,
                        stream,
                        function,
                        chosen.pairs // batch,
                        seed=seed,
                        weight_decay=0.1,
                        **RATES,
                    )
                    seconds = time.process_time() - began
                    row = measured(model, held_out, lambda t: sentences(t, tokenizer, ids.shape[1]))
                    numbers = " | ".join(f"{value:.0%}" for value in row)
                    print(
                        f"| {towers} | {loss} | {batch} | {seed} | {numbers} | {seconds:.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
