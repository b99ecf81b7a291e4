"""Do many processes give the loss and gradients of one with all pairs, and what do they send?

    torchrun --nproc-per-node 2 tools/check_distributed.py

One step of a toy CLIP and of a toy SigLIP on the same global batch of 128 scenes, in float64. The
mistakes that it is for leave the loss right and the gradients wrong: a gather without a gradient, a
DistributedDataParallel without a name, which is collected before the backward pass.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, Siglip, contrastive_loss, sigmoid_loss
from minivlm.parts.training import minibatches
from minivlm.scenes import sample
from minivlm.scenes.pixels import pixels
from minivlm.toys.clip import END, PAD, PARALLEL_LOSSES, Features, own_share, sentences, toy

ALONE = {"clip": contrastive_loss, "siglip": sigmoid_loss}


@contextmanager
def bytes_sent() -> Iterator[Counter]:
    """Count the bytes that this process sends through the functions that distributed.py calls."""
    sent = Counter()
    gather, reduce, exchange = dist.all_gather, dist.all_reduce, dist.batch_isend_irecv

    def size(tensor: Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    def all_gather(rows: list[Tensor], tensor: Tensor) -> None:
        sent["bytes"] += (len(rows) - 1) * size(tensor)
        gather(rows, tensor)

    def all_reduce(tensor: Tensor) -> None:
        sent["bytes"] += size(tensor)
        reduce(tensor)

    def batch_isend_irecv(operations: list[dist.P2POp]) -> list[dist.Work]:
        out = [operation for operation in operations if operation.op is dist.isend]
        sent["bytes"] += sum(size(operation.tensor) for operation in out)
        return exchange(operations)

    counted = {"all_gather": all_gather, "all_reduce": all_reduce}
    with patch.multiple(dist, **counted, batch_isend_irecv=batch_isend_irecv):
        yield sent


def check(kind: str, model: Clip | Siglip, batch: tuple[Tensor, ...]) -> None:
    """Do one step's loss and gradients differ from those of a single process with the global batch?
    In float64.
    """
    model, batch = model.double(), (batch[0].double(), batch[1])
    parallel, alone = PARALLEL_LOSSES[kind], ALONE[kind]
    expected = alone(*Features(model)(*batch))
    expected.backward()
    single = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    mine = next(own_share(iter([batch])))
    wrapped = DistributedDataParallel(
        Features(model)
    )  # by name: its hooks average gradients only while it lives
    with bytes_sent() as sent:
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
        print(f"  bytes of features sent by a process: {sent['bytes']:,}")


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    scenes = sample(600, seed=0)
    texts = [scene.caption for scene in scenes]
    tokenizer = BPETokenizer.train(texts, vocab_size=400, special_tokens=(END, PAD))
    ids = sentences(texts, tokenizer)
    batches = minibatches(pixels([scene.image for scene in scenes]), ids, batch_size=128)
    torch.manual_seed(0)
    for kind in PARALLEL_LOSSES:
        check(kind, toy(kind, tokenizer, ids.shape[1]), next(batches))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
