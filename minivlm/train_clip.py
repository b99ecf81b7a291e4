"""Train a small CLIP or SigLIP on scenes, on one process or many: the same numbers on any number.

python -m minivlm.train_clip                               one process
torchrun --nproc-per-node 2 -m minivlm.train_clip          two, with DistributedDataParallel
torchrun --nproc-per-node 2 -m minivlm.train_clip --check  compare a step of both with a single process, then stop
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
from minivlm.captioner import pixels
from minivlm.clip import Clip, Siglip, contrastive_loss, sigmoid_loss
from minivlm.scenes import sample
from minivlm.training import fit, minibatches
from minivlm.vit import sincos_2d

END, PAD = "<|end|>", "<|pad|>"


def toy(kind: str, tokenizer: BPETokenizer, length: int) -> Clip | Siglip:
    """A CLIP or SigLIP for scenes, in the published format: 64 x 64 pixels, patches of 16, width 96, two layers."""
    shape = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 192}
    vision = shape | {"image_size": 64, "patch_size": 16}
    text = shape | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": length}
    text["eos_token_id"] = tokenizer.special_tokens[END]
    config = {"vision_config": vision, "text_config": text, "projection_dim": 96}
    model = {"clip": Clip, "siglip": Siglip}[kind].from_hf(config)
    with torch.no_grad():  # positions of patches start as a large map of the image, as in captioner.start_small
        model.vision.positions[-16:, :16] = 4 * sincos_2d(4, 4, 16, theta=10)
    return model


def sentences(texts: list[str], tokenizer: BPETokenizer, length: int = 0) -> Tensor:
    """Texts -> (B, T) ids, each ended by <|end|> and padded on the right, to ``length`` or to the longest."""
    end, pad = tokenizer.special_tokens[END], tokenizer.special_tokens[PAD]
    rows = [[*tokenizer.encode(text), end] for text in texts]
    longest = length or max(map(len, rows))
    return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])


class Features(nn.Module):
    """Everything that a loss needs, from one forward: DistributedDataParallel sees only what passes through it."""

    def __init__(self, model: Clip | Siglip):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> tuple[Tensor, ...]:
        """-> unit vectors (b, D) of images and texts, scale and, for SigLIP, bias."""
        pair = self.model.encode_image(pixel_values), self.model.encode_text(input_ids)
        return (
            (*pair, self.model.scale, self.model.bias) if isinstance(self.model, Siglip) else (*pair, self.model.scale)
        )


def own_share(batches: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """This process's rows of every global batch."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for batch in batches:
        yield tuple(tensor.chunk(world)[rank] for tensor in batch)


LOSSES = {  # over all processes, and alone
    "clip": (distributed.gathered_contrastive_loss, contrastive_loss),
    "siglip": (distributed.rotated_sigmoid_loss, sigmoid_loss),
}


def check(kind: str, model: Clip | Siglip, batch: tuple[Tensor, ...]) -> None:
    """Do one step's loss and gradients differ from those of a single process with the global batch? In float64."""
    model, batch = model.double(), (batch[0].double(), batch[1])
    parallel, alone = LOSSES[kind]
    expected = alone(*Features(model)(*batch))
    expected.backward()
    single = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    distributed.sent["bytes"] = 0
    mine = next(own_share(iter([batch])))
    wrapped = DistributedDataParallel(Features(model))  # by name: its hooks average gradients only while it lives
    loss = parallel(*wrapped(*mine))
    loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    total /= dist.get_world_size()
    worst = max((p.grad - g).abs().max().item() for p, g in zip(model.parameters(), single, strict=True))
    if dist.get_rank() == 0:
        print(f"{kind}: {dist.get_world_size()} processes, global batch {len(batch[0])}")
        print(f"  loss differs by less than 1e-6: {abs(total.item() - expected.item()) < 1e-6}")
        print(f"  gradients differ by less than 1e-6: {worst < 1e-6}")
        print(f"  bytes of features sent by a process: {distributed.sent['bytes']:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CLIP or SigLIP on scenes.")
    parser.add_argument("--kind", choices=sorted(LOSSES), default="clip")
    parser.add_argument("--batch", type=int, default=128, help="pairs a step, over all processes")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--check", action="store_true", help="compare a step of both kinds with a single process")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    if chosen.batch % dist.get_world_size():
        raise ValueError(f"a batch of {chosen.batch} does not divide over {dist.get_world_size()} processes")
    scenes = sample(600 if chosen.check else 8000, seed=0)
    texts = [scene.caption for scene in scenes]
    tokenizer = BPETokenizer.train(texts, vocab_size=400, special_tokens=(END, PAD))
    ids = sentences(texts, tokenizer)
    batches = minibatches(pixels([scene.image for scene in scenes]), ids, batch_size=chosen.batch)
    torch.manual_seed(0)
    if chosen.check:
        for kind in LOSSES:
            check(kind, toy(kind, tokenizer, ids.shape[1]), next(batches))
    else:
        loss = LOSSES[chosen.kind][0]
        parallel = DistributedDataParallel(Features(toy(chosen.kind, tokenizer, ids.shape[1])))
        history = fit(parallel, own_share(batches), lambda m, batch: loss(*m(*batch)), chosen.steps)
        if dist.get_rank() == 0:
            print(f"last loss on this process: {history['loss'][-1]:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
