"""One training loop for the whole course: Muon on the hidden matrices, AdamW on the rest.

Muon (Jordan et al. 2024) makes the update of a matrix orthogonal before it is applied; embeddings,
output heads, norms, biases and convolutions are no hidden matrices and go to AdamW.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm


def default_device() -> torch.device:
    """The device named by MINIVLM_DEVICE, else the CPU."""
    return torch.device(os.environ.get("MINIVLM_DEVICE", "cpu"))


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """The weights of the Linear layers that train, each (out, in).

    Without output layers (named head or classifier) and tied embeddings.
    """
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = [(name, m.weight) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    hidden = [
        weight for name, weight in linear if name.split(".")[-1] not in ("head", "classifier")
    ]
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
    """Endless random batches of rows, each at most once an epoch; the same for the same seed."""
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
) -> dict[str, list[float]]:
    """Train for a fixed number of steps; returns "loss" and "grad_norm", one number a step.

    batches: tensors, tuples or dicts of tensors, gone through again from the start when they end.
    loss(model, batch) is a scalar. Parameters with requires_grad=False stay as they are. With
    ``checkpoint`` (a file) the state is written every ``every`` steps, and a later call with the
    same arguments goes on from there to the same result.
    """
    device = torch.device(device) if device else default_device()
    model.to(device).train()
    torch.manual_seed(seed)
    optimizers = _optimizers(model, muon_lr, adamw_lr, weight_decay)
    parameters = [p for p in model.parameters() if p.requires_grad]
    history: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    if checkpoint and Path(checkpoint).exists():
        _restore(Path(checkpoint), model, optimizers, history, steps)
    stream, done = _endless(batches), len(history["loss"])
    for _ in range(done):  # so that the data goes on where it stopped
        next(stream)
    for step in (bar := progress(range(done, steps), initial=done, total=steps)):
        value = loss(model, _move(next(stream), device))
        for optimizer in optimizers:
            optimizer.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, steps)
            optimizer.step()
        history["loss"].append(value.item())
        history["grad_norm"].append(norm.item())
        bar.set_postfix_str(f"loss {value.item():.3f}", refresh=False)
        if checkpoint and (step + 1) % every == 0:
            _save(Path(checkpoint), model, optimizers, history, steps)
    model.eval()
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
        made.append(
            torch.optim.AdamW([{"params": rest, "peak": adamw_lr}], weight_decay=weight_decay)
        )
    return made


def _endless(batches: Iterable) -> Iterator:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "batches ran out: an iterator cannot start again; "
                "pass a list, a loader or minibatches(...)"
            )


def _move(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _move(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_move(value, device) for value in batch)
    return batch


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under one name each."""
    tensors = *model.named_parameters(), *model.named_buffers()
    return {f"model.{name}": tensor for name, tensor in tensors}


def _save(
    path: Path, model: nn.Module, optimizers: list, history: dict[str, list[float]], steps: int
) -> None:
    """Write everything the next step depends on: first beside the file, then in its place."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in _state(model).items()}
    for i, optimizer in enumerate(optimizers):
        for j, entries in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in entries.items()}
    tensors |= {
        f"history.{name}": torch.tensor(values, dtype=torch.float64)
        for name, values in history.items()
    }
    tensors |= {"rng": torch.get_rng_state(), "steps": torch.tensor(steps)}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    save_file(tensors, beside)
    os.replace(beside, path)


def _restore(
    path: Path, model: nn.Module, optimizers: list, history: dict[str, list[float]], steps: int
) -> None:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from None
    state = _state(model)
    saved = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    shapes, saved_shapes = ({n: tuple(t.shape) for n, t in part.items()} for part in (state, saved))
    if shapes != saved_shapes or tensors["steps"].item() != steps:
        raise ValueError(
            f"{path} belongs to another training: "
            f"another model or another number of steps than {steps}"
        )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(saved[name])
    for i, optimizer in enumerate(optimizers):
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, j, key = name.split(".")
                entries.setdefault(int(j), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": entries})
    for name, values in history.items():
        values.extend(tensors[f"history.{name}"].tolist())
    torch.set_rng_state(tensors["rng"])
