"""What a training stores, so that it can be stopped and goes on to the same result.

Weights, buffers and counters of the model, the optimisers' averages, the history and the states of
the random generators, in one safetensors file; with it a description of the training, by which the
file of another one is told. Each batch is drawn under a seed of its own, and a check sum of all
numbers drawn so far proves that the data go on where they stopped.
"""

import json
import os
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

History = dict[str, list[float]]  # one number a step
APART = 1_000_003  # the seeds of two batches


def map_tensors(change: Callable[[Tensor], Any], batch: Any) -> Any:
    """The batch with every tensor changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {key: map_tensors(change, value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(map_tensors(change, value) for value in batch)
    return batch


def check_sum(batch: Any, crc: int) -> int:
    """A check sum of all numbers of a batch, going on from ``crc``, that of those before."""
    tensors: list[Tensor] = []
    map_tensors(tensors.append, batch)
    for tensor in tensors:
        crc = zlib.crc32(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes(), crc)
    return crc


def draw_batch(stream: Iterator, seed: int, step: int, device: torch.device) -> Any:
    """The batch of a step, by generators of its own: what the model draws does not change it."""
    seed += APART * (step + 1)
    before = generator_states(device)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    batch = next(stream)
    set_generators(before, device)
    return batch


def _generators(device: torch.device) -> list[Any]:
    """The modules that have torch's generators; ``draw_batch`` seeds those of numpy and Python."""
    module = torch.get_device_module(device)
    return [torch, module] if hasattr(module, "get_rng_state") else [torch]


def generator_states(device: torch.device) -> list[Tensor]:
    return [module.get_rng_state() for module in _generators(device)]


def set_generators(states: Iterable, device: torch.device) -> None:
    for module, state in zip(_generators(device), states, strict=True):
        module.set_rng_state(torch.as_tensor(state, dtype=torch.uint8))


def state_of(model: nn.Module) -> dict[str, Any]:
    """Of a model and its modules under one name each: parameters, buffers, plain numbers."""
    state: dict[str, Any] = dict([*model.named_parameters("model"), *model.named_buffers("model")])
    for name, module in model.named_modules(prefix="model"):
        for key, value in vars(module).items():
            if type(value) in (int, float):  # such as a count of steps
                state[f"{name}.{key}"] = value
    return state


def kind_of(value: Any) -> Any:
    """What tells one part of a model from another: a number, or the kind of a tensor."""
    if not isinstance(value, Tensor):
        return value
    return f"{tuple(value.shape)} {value.dtype} {'trained' if value.requires_grad else 'fixed'}"


def options_of(loss: Callable) -> dict[str, str]:
    """What a ``functools.partial`` gives to a loss: numbers and texts, of all else the type."""
    if not isinstance(loss, partial):
        return {}
    given: list[tuple[Any, Any]] = [*enumerate(loss.args), *loss.keywords.items()]
    kind = lambda value: type(value).__name__
    return {f"{key} of the loss": json.dumps(value, default=kind) for key, value in given}


def save_training(
    path: Path, model: nn.Module, optimizers: list, history: History, about: dict
) -> None:
    """Write everything the next step depends on: first beside the file, then in its place."""
    state = state_of(model)
    tensors = {n: x.detach().contiguous() for n, x in state.items() if isinstance(x, Tensor)}
    for i, optimizer in enumerate(optimizers):
        for j, entries in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in entries.items()}
    for name, values in history.items():
        tensors[f"history.{name}"] = torch.tensor(values, dtype=torch.float64)
    about["numbers"] = {name: x for name, x in state.items() if not isinstance(x, Tensor)}
    text = json.dumps(about | {"tensors": sorted(tensors)}, default=Tensor.tolist)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")  # always the same: the next one replaces it
    beside.write_bytes(save(tensors, {"fit": text}))
    os.replace(beside, path)


def restore_training(
    path: Path, model: nn.Module, optimizers: list, history: History, ours: dict
) -> dict:
    """Go on from a file of ``save_training``, if it is of our training; returns what it says."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("fit", "{}"))
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from None
    if sorted(tensors) != about.get("tensors"):
        raise ValueError(f"{path} is not the whole checkpoint of a training")
    for what in ours | (theirs := about["training"]):
        if (there := theirs.get(what)) != (here := ours.get(what)):
            raise ValueError(f"{path} is of another training: another {what} than {here}: {there}")
    modules = dict(model.named_modules(prefix="model"))
    with torch.no_grad():
        for name, value in state_of(model).items():
            if isinstance(value, Tensor):
                value.copy_(tensors[name])
            else:
                module, _, key = name.rpartition(".")
                setattr(modules[module], key, about["numbers"][name])
    for i, optimizer in enumerate(optimizers):
        entries: dict[int, dict[str, Tensor]] = {}
        for name in (name for name in tensors if name.startswith(f"optimizer.{i}.")):
            _, _, j, key = name.split(".")
            entries.setdefault(int(j), {})[key] = tensors[name]
        optimizer.load_state_dict(optimizer.state_dict() | {"state": entries})
    for name in (name for name in tensors if name.startswith("history.")):
        history[name.removeprefix("history.")] = tensors[name].tolist()
    return about
