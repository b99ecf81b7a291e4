"""A small CLIP or SigLIP for scenes, trained on any number of processes to the same numbers.

python -m minivlm.toys.clip                               one process
torchrun --nproc-per-node 2 -m minivlm.toys.clip          two, with DistributedDataParallel

torchrun --nproc-per-node 2 tools/check_distributed.py     compares a step with a single process
"""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # In the seconds in which torch is imported, an exception is a traceback, or is swallowed.
    signal.signal(signal.SIGINT, lambda *_: os.write(2, b"stopped\n") and os._exit(130))

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import log
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minivlm import distributed
from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, Siglip, TextConfig, VisionConfig, contrastive_loss
from minivlm.parts.training import default_device, fit, minibatches
from minivlm.scenes import Scene, grammar, sample
from minivlm.scenes.pixels import augment, pixels
from minivlm.toys.common import (
    RATES,
    TOY_WIDTH,
    batches_with_mates,
    image_map,
    pad_right,
    truth_table,
)

END, PAD = "<|end|>", "<|pad|>"
PUBLISHED_SETTINGS = {  # of every published checkpoint
    "clip": {"eps": 1e-5, "act": "quick_gelu"},
    "siglip": {"eps": 1e-6, "act": "gelu_pytorch_tanh"},
}


def towers(
    kind: str, tokenizer: BPETokenizer, length: int, layers: int = 2
) -> tuple[VisionConfig, TextConfig]:
    """For scenes of 64 x 64 pixels and texts of ``length`` tokens; layers: of the image tower."""
    shape: dict[str, Any] = {"width": TOY_WIDTH, "heads": 6, "hidden": 2 * TOY_WIDTH}
    shape |= PUBLISHED_SETTINGS[kind]
    end = tokenizer.special_tokens[END]
    return (
        VisionConfig(64, patch=16, layers=layers, **shape),
        TextConfig(tokenizer.vocab_size, length, layers=2, eos_id=end, **shape),
    )


def toy(kind: str, tokenizer: BPETokenizer, length: int, layers: int = 2) -> Clip | Siglip:
    """An untrained CLIP or SigLIP for scenes; arguments as those of ``towers``."""
    vision, text = towers(kind, tokenizer, length, layers)
    # The scale of CLIP is the logarithm of 1 / 0.07, rounded as published.
    model = Clip(vision, text, TOY_WIDTH, scale=2.6592) if kind == "clip" else Siglip(vision, text)
    with torch.no_grad():  # of the class token and of the other features, positions are random
        model.vision.positions[-16:, :16] = image_map(4)
    return model


def sentences(texts: Sequence[str], tokenizer: BPETokenizer, length: int = 0) -> Tensor:
    """Texts -> (B, T) ids, each ended by <|end|> and padded, to ``length`` or to the longest."""
    end, pad = tokenizer.special_tokens[END], tokenizer.special_tokens[PAD]
    return pad_right([[*tokenizer.encode(text), end] for text in texts], pad, length)


def train_clip(
    scenes: Sequence[Scene], steps: int, *, layers: int = 2, batch: int = 128, **options: Any
) -> tuple[Clip, BPETokenizer]:
    """A CLIP of the scenes and their captions; in every second batch each caption has its mate."""
    images = pixels([scene.image for scene in scenes])
    captions = [scene.caption for scene in scenes]
    tokenizer = BPETokenizer.train(captions, vocab_size=400, special_tokens=(END, PAD))
    ids = sentences(captions, tokenizer)
    torch.manual_seed(0)
    model = toy("clip", tokenizer, ids.shape[1], layers)

    def loss(model: Clip, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            model.scale.clamp_(max=log(100))
        image = model.encode_image(augment(batch[0]))
        return contrastive_loss(image, model.encode_text(batch[1]), model.scale)

    batches = batches_with_mates(images, ids, captions, batch=batch)
    fit(model, batches, loss, steps, **RATES | {"weight_decay": 0.1} | options)
    return model, tokenizer


# Questions that a bag of words cannot answer


def sentence_pairs(scene: Scene) -> dict[str, tuple[str, str]]:
    """Kind -> a true sentence and a false one of nearly the same words.

    Both name the objects in the order in which the scene holds them, which is random: the wording
    gives nothing away.
    """
    a, *others = scene.objects
    absent = next(c for c in grammar.COLORS if all(o.color != c for o in scene.objects))
    say = grammar.describe_en
    if grammar.alike(scene.objects):
        n = len(scene.objects)
        return {
            "another colour": (say(a, n), say(replace(a, color=absent), n)),
            "number changed": (say(a, n), say(a, n % 4 + 1)),
            "negation": (
                f"there is no {absent} {a.shape}",
                f"there is no {a.color} {a.shape}",
            ),
        }
    b = others[0]
    relation = grammar.main_relations(a, b, scene.cell)[0]
    true = f"{say(a)} {relation} {say(b)}"
    false = {
        "another colour": f"{say(replace(a, color=absent))} {relation} {say(b)}",
        "relation reversed": f"{say(a)} {grammar.OPPOSITE[relation]} {say(b)}",
        "objects swapped": f"{say(b)} {relation} {say(a)}",
    }
    if a.color != b.color and a.shape != b.shape:
        x, y = replace(a, color=b.color), replace(b, color=a.color)
        false["colours swapped"] = f"{say(x)} {relation} {say(y)}"
    return {kind: (true, text) for kind, text in false.items()}


def hard_pair(scene: Scene, rng: Random) -> tuple[str, str]:
    """One of the ``sentence_pairs``: a number changed, a relation reversed or colours swapped."""
    asked = sentence_pairs(scene)
    kinds = [k for k in ("number changed", "relation reversed", "colours swapped") if k in asked]
    return asked[rng.choice(kinds)]


def hard_pair_in_order(scene: Scene, rng: Random) -> tuple[str, str]:
    """The same, but its true sentence names the objects in reading order, as captions do."""
    things = grammar.reading_order(scene.objects, scene.cell)
    return hard_pair(replace(scene, objects=things), rng)


@torch.no_grad()
def recall_at_1(model: Clip, tokenizer: BPETokenizer, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of scenes whose likeliest caption is true, and of captions true of their scene."""
    captions = [scene.caption for scene in scenes]
    ids = sentences(captions, tokenizer, model.text.config.length)
    image = model.encode_image(pixels([scene.image for scene in scenes]))
    cosine, true = image @ model.encode_text(ids).T, truth_table(scenes, captions)
    ways = {"image to text": (cosine, true), "text to image": (cosine.T, true.T)}
    return {
        way: right.gather(1, scores.argmax(dim=1, keepdim=True)).float().mean().item()
        for way, (scores, right) in ways.items()
    }


class Features(nn.Module):
    """Everything that a loss needs, from one forward.

    DistributedDataParallel sees only what passes through it.
    """

    def __init__(self, model: Clip | Siglip):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, ...]:
        """-> unit vectors (b, D) of images and texts, scale and, for SigLIP, bias."""
        model = self.model
        vectors = model.encode_image(pixel_values), model.encode_text(input_ids)
        bias = (model.bias,) if isinstance(model, Siglip) else ()
        return *vectors, model.scale, *bias


def own_share(batches: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """This process's rows of every global batch."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for batch in batches:
        yield tuple(tensor.chunk(world)[rank] for tensor in batch)


PARALLEL_LOSSES = {
    "clip": distributed.gathered_contrastive_loss,
    "siglip": distributed.rotated_sigmoid_loss,
}


def train_in_parallel(kind: str, batch: int, steps: int) -> float:
    """Train on this process's share, a whole part of a batch (or ValueError); the last loss."""
    if batch % dist.get_world_size():
        raise ValueError(
            f"a batch of {batch} does not divide over {dist.get_world_size()} processes"
        )
    if kind == "clip" and batch < 2:
        raise ValueError(f"a batch of {batch} pair has no wrong pair to tell it from")
    scenes = sample(8000, seed=0)
    texts = [scene.caption for scene in scenes]
    tokenizer = BPETokenizer.train(texts, vocab_size=400, special_tokens=(END, PAD))
    ids = sentences(texts, tokenizer)
    batches = minibatches(pixels([scene.image for scene in scenes]), ids, batch_size=batch)
    torch.manual_seed(0)
    # Keep it in a variable of its own: tools/check_distributed.py says why.
    parallel = DistributedDataParallel(Features(toy(kind, tokenizer, ids.shape[1])))
    loss = PARALLEL_LOSSES[kind]
    history = fit(parallel, own_share(batches), lambda model, batch: loss(*model(*batch)), steps)
    return history["loss"][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CLIP or SigLIP on scenes.")
    parser.add_argument("--kind", choices=sorted(PARALLEL_LOSSES), default="clip")
    parser.add_argument("--batch", type=int, default=128, help="pairs a step, over all processes")
    parser.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args()
    for name in ("batch", "steps"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(chosen, name)}")
    try:
        torch.zeros(1, device=default_device()).item()
    except (RuntimeError, AssertionError) as error:  # torch raises either
        parser.error(f"the device of MINIVLM_DEVICE cannot be used: {error}")
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        last = train_in_parallel(chosen.kind, chosen.batch, chosen.steps)
        if dist.get_rank() == 0:
            print(f"last loss on this process: {last:.3f}", flush=True)
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)  # as shells count it
    except OSError as error:
        if error.filename is not None:  # it is not the output that cannot be written
            raise
        # What is still in the buffer would raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else who read it has read enough
            sys.exit(f"the output cannot be written: {error}")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
