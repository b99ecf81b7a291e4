"""Do many processes give the loss and the gradients of one that has all pairs? And how much do they
send for it?

    torchrun --nproc-per-node 2 tools/check_distributed.py

One step of a toy CLIP and of a toy SigLIP on the same global batch of 128 scenes, in float64. The
mistakes that it is for leave the loss right and the gradients wrong: a gather without a gradient, a
DistributedDataParallel without a name, which is collected before the backward pass.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from minivlm import distributed
from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, Siglip, contrastive_loss, sigmoid_loss
from minivlm.parts.training import minibatches
from minivlm.scenes import sample
from minivlm.scenes.pixels import pixels
from minivlm.toys.clip import END, LOSSES, PAD, Features, own_share, sentences, toy

ALONE = {"clip": contrastive_loss, "siglip": sigmoid_loss}


def check(kind: str, model: Clip | Siglip, batch: tuple[Tensor, ...]) -> None:
    """Do one step's loss and gradients differ from those of a single process with the global batch?
    In float64.
    """
    model, batch = model.double(), (batch[0].double(), batch[1])
    parallel, alone = LOSSES[kind], ALONE[kind]
    expected = alone(*Features(model)(*batch))
    expected.backward()
    single = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    distributed.sent["bytes"] = 0
    mine = next(own_share(iter([batch])))
    wrapped = DistributedDataParallel(
        Features(model)
    )  # by name: its hooks average gradients only while it lives
    loss = parallel(*wrapped(*mine))
    loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    total /= dist.get_world_size()
    worst = max(
        (p.grad - g).abs().max().item() for p, g in zip(model.parameters(), single, strict=True)
    )
    if dist.get_rank() == 0:
        print(f"{kind}: {dist.get_world_size()} processes, global batch {len(batch[0])}")
        print(f"  loss differs by less than 1e-6: {abs(total.item() - expected.item()) < 1e-6}")
        print(f"  gradients differ by less than 1e-6: {worst < 1e-6}")
        print(f"  bytes of features sent by a process: {distributed.sent['bytes']:,}")


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    scenes = sample(600, seed=0)
    texts = [scene.caption for scene in scenes]
    tokenizer = BPETokenizer.train(texts, vocab_size=400, special_tokens=(END, PAD))
    ids = sentences(texts, tokenizer)
    batches = minibatches(pixels([scene.image for scene in scenes]), ids, batch_size=128)
    torch.manual_seed(0)
    for kind in LOSSES:
        check(kind, toy(kind, tokenizer, ids.shape[1]), next(batches))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
