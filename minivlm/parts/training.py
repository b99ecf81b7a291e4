"""One training loop for the whole course: Muon on the hidden matrices, AdamW on the rest.

Muon (Jordan et al. 2024) makes the update of a matrix orthogonal before it is applied; embeddings,
output heads, norms, biases and convolutions are no hidden matrices and go to AdamW.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from minivlm.parts.resuming import (
    History,
    check_sum,
    draw_batch,
    generator_states,
    kind_of,
    map_tensors,
    options_of,
    restore_training,
    save_training,
    set_generators,
    state_of,
)


def default_device() -> torch.device:
    """The device named by MINIVLM_DEVICE, else the CPU."""
    return torch.device(os.environ.get("MINIVLM_DEVICE") or "cpu")


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of the Linear layers that train, each (out, in).

    Without output layers (named head or classifier) and tied embeddings.
    """
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = [(name, m.weight) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    hidden = [w for name, w in linear if name.split(".")[-1] not in ("head", "classifier")]
    return [weight for weight in hidden if weight.requires_grad and weight not in embeddings]


def orthogonal(x: Tensor) -> Tensor:
    """Nearly the nearest orthogonal matrix, of the same shape (m, n).

    By five steps of a quintic Newton-Schulz iteration (Jordan et al. 2024).
    """
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (2.0315 * gram @ gram - 4.7750 * gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Momentum (Nesterov), made orthogonal: what torch.optim.Muon would give in float32.

    That one computes in bfloat16, for which many processors have no instructions: there its step
    takes 14 times as long, which is more than the rest of a training step of the toy captioner.
    """

    def __init__(
        self, params: Iterable, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update; a closure computes the gradients first, and its loss is returned."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - momentum)
                update = orthogonal(p.grad.lerp(average, momentum))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * max(1, p.shape[0] / p.shape[1]) ** 0.5)
        return loss


def schedule(step: int, steps: int, warmup: float = 0.05, decay: float = 0.6) -> float:
    """The share of the learning rate at a step: a linear rise, a plateau, a linear fall to zero.

    The rise takes the first ``warmup`` of all steps, the fall the last ``decay``.
    """
    rise = max(1, round(warmup * steps))
    return min(1.0, (step + 1) / rise, (steps - step) / (decay * steps))


def minibatches(*tensors: Tensor, batch_size: int, seed: int = 0) -> Iterator[tuple[Tensor, ...]]:
    """Endless random batches of rows, each at most once an epoch; the same for the same seed.

    Rows that fill no whole batch at the end of an epoch are left out, others in each epoch.
    """
    n, lengths = len(tensors[0]), [len(tensor) for tensor in tensors]
    if set(lengths) != {n} or not 0 < batch_size <= n:
        raise ValueError(f"cannot cut batches of {batch_size} from rows {lengths}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            yield tuple(tensor[rows] for tensor in tensors)


def progress(iterable: Iterable, **options: Any) -> tqdm:
    """The course's progress bar: plain text on stdout, silent where TQDM_DISABLE=1."""
    return tqdm(iterable, file=sys.stdout, ncols=90, mininterval=0.5, **options)


# The course's one entry to training: its options are separate keywords, not an object of options.
def fit(  # noqa: PLR0913
    model: nn.Module,
    batches: Iterable,
    loss: Callable[[Any, Any], Tensor],
    steps: int,
    *,
    muon_lr: float = 0.02,
    adamw_lr: float = 3e-3,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    checkpoint: str | Path | None = None,
    every: int = 100,
) -> History:
    """Train for a fixed number of steps; returns "loss" and "grad_norm", one number a step.

    batches: tensors, tuples or dicts of tensors, gone through again from the start when they end.
    loss(model, batch) is a scalar, or several by name: their sum is minimised, and the history
    holds each. ValueError if one of them or the gradient is not finite, before the weights change.
    Parameters with requires_grad=False stay as they are; the model comes back to the device it was
    on. seed: of all that is drawn, by torch, numpy or Python. With ``checkpoint`` (a file) the
    state is written every ``every`` steps, and a later call with the same arguments goes on from
    there to the same result; ValueError for the file of another training. A loss with options is
    told from another where it is a ``functools.partial``.
    """
    training: dict[str, Any] = {"number of steps": steps, "clip": clip, "muon_lr": muon_lr}
    training |= {"adamw_lr": adamw_lr, "weight_decay": weight_decay}
    for name, number in (training | {"every": every - 1}).items():
        if not 0 <= number < inf:
            raise ValueError(f"{name} cannot be {number}")
    device = torch.device(device) if device else default_device()
    home = next((p.device for p in model.parameters()), device)
    model.to(device).train()
    torch.manual_seed(seed)
    optimizers = _optimizers(model, muon_lr, adamw_lr, weight_decay)
    parameters = [p for p in model.parameters() if p.requires_grad]
    history: History = {"loss": [], "grad_norm": []}
    training |= {"seed": seed, "device": device.type} | options_of(loss)
    training |= {name: kind_of(value) for name, value in state_of(model).items()}
    stream, file, crc = _endless(batches), Path(checkpoint or ""), 0
    if checkpoint and file.exists():
        about = restore_training(file, model, optimizers, history, training)
        for step in range(len(history["loss"])):  # so that the data goes on where it stopped
            crc = check_sum(draw_batch(stream, seed, step, device), crc)
        if crc != about["crc"]:
            raise ValueError(f"{file} is of another training: another sequence of batches")
        set_generators(about["generators"], device)
    done = len(history["loss"])
    for step in (bar := progress(range(done, steps), initial=done, total=steps)):
        batch = draw_batch(stream, seed, step, device)
        value = loss(model, map_tensors(lambda tensor: tensor.to(device), batch))
        parts: dict[str, Tensor] = value if isinstance(value, dict) else {}
        total = value if isinstance(value, Tensor) else sum(parts.values(), torch.zeros(()))
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        for name, figure in ({"loss": total, "grad_norm": norm} | parts).items():
            if not figure.isfinite():
                raise ValueError(f"step {step}: {name} is {figure.item()}: nothing to learn from")
            history.setdefault(name, []).append(figure.item())
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, steps)
            optimizer.step()
        bar.set_postfix_str(f"loss {total.item():.3f}", refresh=False)
        crc = check_sum(batch, crc) if checkpoint else 0
        if checkpoint and (step + 1) % every == 0:
            about = {"training": training, "crc": crc, "generators": generator_states(device)}
            save_training(file, model, optimizers, history, about)
    model.to(home).eval()
    return history


def _optimizers(
    model: nn.Module, muon_lr: float, adamw_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    hidden = hidden_matrices(model)
    rest = [p for p in model.parameters() if p.requires_grad and not any(p is h for h in hidden)]
    if not hidden and not rest:
        raise ValueError("no parameter requires a gradient: there is nothing to train")
    made: list[torch.optim.Optimizer] = []
    if hidden:
        made.append(Muon([{"params": hidden, "peak": muon_lr}], weight_decay=weight_decay))
    if rest:
        groups = [{"params": rest, "peak": adamw_lr}]
        made.append(torch.optim.AdamW(groups, weight_decay=weight_decay))
    return made


def _endless(batches: Iterable) -> Iterator:
    while True:
        count = 0
        for count, batch in enumerate(batches, 1):  # noqa: B007  (counts on after the loop)
            yield batch
        if not count:
            raise ValueError("batches ran out: pass what can start again, no iterator")
