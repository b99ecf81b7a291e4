"""Two and three processes give the loss and the gradients of one with all the pairs."""

from math import log

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F

from check_distributed import bytes_sent
from minivlm import distributed
from minivlm.clip import contrastive_loss, sigmoid_loss


def features(model: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two linear towers, as one parameter (2, in, D)."""
    return F.normalize(x @ model[0], dim=-1), F.normalize(x.flip(1) @ model[1], dim=-1)


def parameters() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    return tuple(p.requires_grad_() for p in (model, torch.tensor(log(10.0)), torch.tensor(-2.0)))


def work(rank: int, world: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = {}
    for name in ("clip", "siglip"):
        model, scale, bias = parameters()
        pair = features(model, x.chunk(world)[rank])
        with bytes_sent() as sent:
            if name == "clip":
                loss = distributed.gathered_contrastive_loss(*pair, scale)
            else:
                loss = distributed.rotated_sigmoid_loss(*pair, scale, bias)
            loss.backward()
        gradients = [p.grad for p in (model, scale, bias) if p.grad is not None]
        for tensor in (loss := loss.detach(), *gradients):
            dist.all_reduce(tensor)
            tensor /= world
        results[name] = {"loss": loss, "gradients": gradients, "bytes": sent["bytes"]}
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_losses_of_many_processes_are_those_of_one(tmp_path, world):
    multiprocessing.spawn(work, (world, str(tmp_path / "store"), str(tmp_path)), nprocs=world)
    results = torch.load(tmp_path / "results.pt")
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name, alone in {"clip": contrastive_loss, "siglip": sigmoid_loss}.items():
        model, scale, bias = parameters()
        loss = alone(*features(model, x), scale, *([bias] if name == "siglip" else []))
        loss.backward()
        assert torch.allclose(results[name]["loss"], loss.detach(), atol=1e-12)
        expected = [p.grad for p in (model, scale, bias) if p.grad is not None]
        for ours, theirs in zip(results[name]["gradients"], expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-12)
    block = 6 // world * 4 * 8  # bytes of the texts of one process
    assert results["siglip"]["bytes"] == 2 * (world - 1) * block  # forward and back
    assert results["clip"]["bytes"] >= results["siglip"]["bytes"]
