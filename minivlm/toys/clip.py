"""Train a small CLIP or SigLIP on scenes, on one process or many: the same numbers on any number.

python -m minivlm.toys.clip                               one process
torchrun --nproc-per-node 2 -m minivlm.toys.clip          two, with DistributedDataParallel

torchrun --nproc-per-node 2 tools/check_distributed.py     compares a step with that of a single
process
"""

import argparse
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minivlm import distributed
from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, Siglip
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained.clip import build_clip, build_siglip
from minivlm.scenes import sample
from minivlm.scenes.pixels import pixels
from minivlm.vit import sincos_2d

END, PAD = "<|end|>", "<|pad|>"


def toy_config(kind: str, tokenizer: BPETokenizer, length: int, layers: int = 2) -> dict:
    """For scenes, in the published format: 64 x 64 pixels, patches of 16, width 96; ``layers`` of
    the image tower.
    """
    shape = {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "intermediate_size": 192,
    }
    vision = shape | {"image_size": 64, "patch_size": 16, "num_hidden_layers": layers}
    text = shape | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": length}
    text["eos_token_id"] = tokenizer.special_tokens[END]
    return {"model_type": kind, "vision_config": vision, "text_config": text, "projection_dim": 96}


def toy(kind: str, tokenizer: BPETokenizer, length: int, **options) -> Clip | Siglip:
    """An untrained CLIP or SigLIP for scenes; options as for ``toy_config``."""
    model = {"clip": build_clip, "siglip": build_siglip}[kind](
        toy_config(kind, tokenizer, length, **options)
    )
    with (
        torch.no_grad()
    ):  # positions of patches start as a large map of the image, as in captioner.start_small
        model.vision.positions[-16:, :16] = 4 * sincos_2d(4, 4, 16, theta=10)
    return model


def sentences(texts: list[str], tokenizer: BPETokenizer, length: int = 0) -> Tensor:
    """Texts -> (B, T) ids, each ended by <|end|> and padded on the right, to ``length`` or to the
    longest.
    """
    end, pad = tokenizer.special_tokens[END], tokenizer.special_tokens[PAD]
    rows = [[*tokenizer.encode(text), end] for text in texts]
    longest = length or max(map(len, rows))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])


class Features(nn.Module):
    """Everything that a loss needs, from one forward: DistributedDataParallel sees only what passes
    through it.
    """

    def __init__(self, model: Clip | Siglip):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, ...]:
        """-> unit vectors (b, D) of images and texts, scale and, for SigLIP, bias."""
        pair = self.model.encode_image(pixel_values), self.model.encode_text(input_ids)
        scalars = (
            (self.model.scale, self.model.bias)
            if isinstance(self.model, Siglip)
            else (self.model.scale,)
        )
        return *pair, *scalars


def own_share(batches: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """This process's rows of every global batch."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for batch in batches:
        yield tuple(tensor.chunk(world)[rank] for tensor in batch)


LOSSES = {"clip": distributed.gathered_contrastive_loss, "siglip": distributed.rotated_sigmoid_loss}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CLIP or SigLIP on scenes.")
    parser.add_argument("--kind", choices=sorted(LOSSES), default="clip")
    parser.add_argument("--batch", type=int, default=128, help="pairs a step, over all processes")
    parser.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if chosen.batch % dist.get_world_size():
        raise ValueError(
            f"a batch of {chosen.batch} does not divide over {dist.get_world_size()} processes"
        )
    scenes = sample(8000, seed=0)
    texts = [scene.caption for scene in scenes]
    tokenizer = BPETokenizer.train(texts, vocab_size=400, special_tokens=(END, PAD))
    ids = sentences(texts, tokenizer)
    batches = minibatches(pixels([scene.image for scene in scenes]), ids, batch_size=chosen.batch)
    torch.manual_seed(0)
    loss = LOSSES[chosen.kind]
    parallel = DistributedDataParallel(
        Features(toy(chosen.kind, tokenizer, ids.shape[1]))
    )  # keep it: see the tool
    history = fit(parallel, own_share(batches), lambda m, batch: loss(*m(*batch)), chosen.steps)
    if dist.get_rank() == 0:
        print(f"last loss on this process: {history['loss'][-1]:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
