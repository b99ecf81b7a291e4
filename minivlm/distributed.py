"""05 · Contrastive losses over several processes: what each must know of the others.

Every process embeds its own b pairs, but the losses want all B = W * b of them. CLIP gathers: each
process receives all features. SigLIP (Zhai et al. 2023, section 3.3) rotates: texts go around the
ring, one neighbour at a time, and a process computes b * b logits at a time (autograd keeps each
block for the backward pass). Both give the loss and the gradients of one process with all pairs,
when the gradients are averaged over processes, as DistributedDataParallel does.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def shift(tensor: Tensor, by: int) -> Tensor:
    """Send a tensor ``by`` places on in the ring of processes, and receive one from as far back."""
    rank, world = dist.get_rank(), dist.get_world_size()
    received = torch.empty_like(tensor)
    out = dist.P2POp(dist.isend, tensor.contiguous(), (rank + by) % world)
    into = dist.P2POp(dist.irecv, received, (rank - by) % world)
    for work in dist.batch_isend_irecv([out, into]):
        work.wait()
    return received


class Rotate(torch.autograd.Function):
    """``shift`` by one, with a gradient: what came from the left goes back to the left."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """This process's tensor -> its left neighbour's, of the same shape."""
        return shift(tensor, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient of what came -> that of what was sent."""
        return shift(gradient, -1)


class Gather(torch.autograd.Function):
    """The rows of all processes; the gradient of each is the sum of those of all processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """(b, D) -> (W * b, D)."""
        rows = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, tensor.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """(W * b, D) -> (b, D)."""
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gathered_contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss on this process's b pairs against everybody's: unit vectors (b, D) -> scalar.

    The mean over processes is ``contrastive_loss`` of all pairs.
    """
    images, texts = Gather.apply(image), Gather.apply(text)  # (W * b, D)
    target = torch.arange(len(image), device=image.device) + dist.get_rank() * len(image)
    by_image = F.cross_entropy(scale.exp() * image @ texts.T, target)  # b * W b logits, not (W b)^2
    return (by_image + F.cross_entropy(scale.exp() * text @ images.T, target)) / 2


def rotated_sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss: b images against all texts, one neighbour's at a time: (b, D) -> scalar.

    The mean over processes is ``sigmoid_loss`` of all pairs. Only the first block holds positives.
    """
    loss, world = image.new_zeros(()), dist.get_world_size()
    sign = 2 * torch.eye(len(image), device=image.device) - 1
    for step in range(world):
        logits = scale.exp() * image @ text.T + bias  # (b, b)
        loss = loss - F.logsigmoid(sign * logits).sum()
        if step < world - 1:
            text, sign = Rotate.apply(text), -torch.ones_like(sign)
    return loss / len(image)
