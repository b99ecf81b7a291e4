"""Checkpoint folders in Hugging Face format: config.json and *.safetensors, one file or sharded.

Everything is strict: a missing tensor, an extra one or a wrong shape is an error that names it, and
nothing is ever unpickled. Each model says in a table how the published checkpoint names its
weights.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minivlm.formats.tokenizer_files import load_json

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

Rules = list[tuple[str, str]]  # (regular expression, replacement), applied in order


@dataclass(frozen=True)
class Names:
    """How a published checkpoint spells the names of a model's parameters."""

    # Our name -> the published name.
    published: Rules = field(default_factory=list)
    # A submodule of ours -> its published prefix, and the rules within.
    parts: dict[str, tuple[str, Rules]] = field(default_factory=dict)
    # Other published spellings -> the one of ``published``.
    spellings: Rules = field(default_factory=list)
    # Published tensors that our model has no use for, by the end of their names.
    ignored: tuple[str, ...] = ()

    def publish(self, name: str) -> str:
        """Our name -> the published name."""
        part, _, rest = name.partition(".")
        if part in self.parts:
            prefix, rules = self.parts[part]
            return prefix + _rewrite(rest, rules)
        return _rewrite(name, self.published)

    def normalise(self, name: str) -> str:
        """Any published spelling -> the one that ``publish`` gives."""
        return _rewrite(name, self.spellings)

    def is_ignored(self, name: str) -> bool:
        """Does the model have no use for the published tensor of this name?"""
        return name.endswith(self.ignored)


def _rewrite(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def read_json(path: Path) -> dict:
    """The object in a JSON file of a checkpoint; ValueError if there is none."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}")
    return load_json(path)


class TensorFiles:
    """The tensors of model.safetensors, or of the shards that its index lists, by our spelling of
    their names.

    Only names and shapes are read at once, the numbers of a tensor when they are asked for. So no
    more than one has to lie in memory beside the model that it is for.
    """

    def __init__(self, folder: Path, names: Names | None = None):
        self.names = names or Names()
        self.places: dict[str, Path] = {}  # name in its file -> the file
        stored: dict[str, Tensor] = {}  # on the meta device, where tensors have no numbers
        for path in _files(folder):
            with _opened(path) as file:
                for name in list(file.keys()):
                    stored[name] = file.get_tensor(name).to("meta")
                    self.places[name] = path
        self.shapes = normalise_all(stored, self.names)
        self.origins = {
            part: name for name, tensor in stored.items() for part, _ in self._parts(name, tensor)
        }

    def read(self, name: str) -> Tensor:
        """One of ``shapes`` with its numbers, for as long as the file lasts: it is not copied."""
        origin = self.origins[name]
        with _opened(self.places[origin]) as file:
            return dict(self._parts(origin, file.get_tensor(origin)))[name]

    def _parts(self, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
        return split_qkv(self.names.normalise(name), tensor)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder at once."""
    files = TensorFiles(folder)
    return {name: files.read(name) for name in files.shapes}


def _files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards; ValueError unless they hold what the index says."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = _read_index(folder / "model.safetensors.index.json")
    found: set[str] = set()
    shards = sorted(set(index.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise ValueError(f"shard {shard!r} does not lie in the checkpoint folder")
        with _opened(folder / shard) as file:
            for name in list(file.keys()):
                if index.get(name) != shard:
                    place = index.get(name)
                    raise ValueError(
                        f"shard {shard} holds {name}, which the index places in {place}"
                    )
                found.add(name)
    if missing := sorted(index.keys() - found):
        raise ValueError(f"missing tensor {missing[0]}: the index places it in {index[missing[0]]}")
    return [folder / shard for shard in shards]


def _read_index(path: Path) -> dict[str, str]:
    """Name of a tensor -> the file that holds it."""
    if not path.is_file():
        raise ValueError(
            f"{path.parent} has neither model.safetensors nor its index "
            "(pickled .bin files are never read)"
        )
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise ValueError(f"{path} has no weight_map of tensor name -> file name")
    return index


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file; ValueError where it is none, or broken."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


QKV = re.compile(r"\.qkv\.(weight|bias)$")


def split_qkv(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """What is published as one matrix for queries, keys and values -> three: "x.qkv.weight" ->
    "x.qkv.q.weight", ...
    """
    if not QKV.search(name):
        return [(name, tensor)]
    if len(tensor) % 3:
        raise ValueError(
            f"tensor {name} of shape {tuple(tensor.shape)} does not divide into q, k and v"
        )
    return [
        (QKV.sub(rf".qkv.{x}.\1", name), part)
        for x, part in zip("qkv", tensor.chunk(3), strict=True)
    ]


def join_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo ``split_qkv`` for every tensor of a checkpoint."""
    joined: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():  # q, k, v in the order of the modules
        joined.setdefault(re.sub(r"\.qkv\.[qkv]\.", ".qkv.", name), []).append(tensor)
    return {
        name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in joined.items()
    }


def normalise_all(tensors: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Bring every tensor to the one spelling of its name; leave out those that are ignored."""
    result = {}
    for name, tensor in tensors.items():
        for part, value in split_qkv(names.normalise(name), tensor):
            if part in result:
                raise ValueError(f"extra tensor {name}: {part} is there already under another name")
            if not names.is_ignored(part):
                result[part] = value
    return result


def fill(
    model: nn.Module,
    tensors: dict[str, Tensor],
    names: Names,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """Put the tensors (named as published) into the model, each one into exactly one parameter.

    device: where they go, by default the CPU. read: name -> the tensor, if ``tensors`` hold shapes
    alone. ValueError for a missing, extra or misshapen tensor, for two unlike tensors of a tied
    weight, and for numbers that are not finite.
    """
    read, filled = read or tensors.__getitem__, {}
    for parameter, (source, *others) in match(model, tensors, names).items():
        value = read(source).to(dtype, copy=True)  # a file may change or go
        _refuse_infinite(source, value)
        for other in others:
            if not torch.equal(read(other), read(source)):
                raise ValueError(f"tensors {source} and {other} are tied, but differ")
        filled[parameter] = nn.Parameter(value.to(device))
    for name, parameter in [*model.named_parameters(remove_duplicate=False)]:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, filled[parameter])


def match(
    model: nn.Module, tensors: dict[str, Tensor], names: Names
) -> dict[nn.Parameter, list[str]]:
    """Parameter of the model -> the published names of its tensor, several where it is tied.

    ValueError for a missing, extra or misshapen tensor.
    """
    # A tied weight is one parameter under several names of the model.
    parameters = model.named_parameters(remove_duplicate=False)
    published = {names.publish(name): parameter for name, parameter in parameters}
    _refuse_extra(tensors, published)
    sources = _match(tensors, published)
    _refuse_missing(model, sources, names)
    return sources


def _refuse_infinite(name: str, tensor: Tensor) -> None:
    """ValueError for NaN and infinity, which pass through minimum and maximum."""
    if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise ValueError(f"tensor {name} holds NaN or infinite numbers as {tensor.dtype}")


def _refuse_extra(tensors: dict[str, Tensor], published: dict[str, nn.Parameter]) -> None:
    """ValueError for tensors that no parameter of the model is published as."""
    if extra := sorted(tensors.keys() - published.keys()):
        plural = "s" * (len(extra) > 1)
        raise ValueError(
            f"extra tensor{plural} {', '.join(extra[:5])}: the model has no such weight"
        )


def _match(
    tensors: dict[str, Tensor], published: dict[str, nn.Parameter]
) -> dict[nn.Parameter, list[str]]:
    """Parameter -> the published names of its tensor; ValueError for a wrong shape or integers."""
    sources: dict[nn.Parameter, list[str]] = {}
    for name, tensor in tensors.items():
        parameter = published[name]
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"tensor {name} has shape {tuple(tensor.shape)}, needs {tuple(parameter.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"tensor {name} holds {tensor.dtype}, not floating-point weights")
        sources.setdefault(parameter, []).append(name)
    return sources


def _refuse_missing(model: nn.Module, sources: dict[nn.Parameter, list[str]], names: Names) -> None:
    """ValueError for parameters that no tensor is there for."""
    parameters = model.named_parameters()
    missing = [names.publish(name) for name, parameter in parameters if parameter not in sources]
    if missing:
        raise ValueError(f"missing tensor{'s' * (len(missing) > 1)} {', '.join(missing[:5])}")


def write_checkpoint(model: nn.Module, config: dict, names: Names, folder: Path) -> None:
    """Write config.json and model.safetensors as published; other libraries read them too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    tensors = as_published(model, names)
    for name, tensor in tensors.items():
        _refuse_infinite(name, tensor)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors lets the owner alone read its file; who may read the one may read the other.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def as_published(model: nn.Module, names: Names) -> dict[str, Tensor]:
    """The weights as they lie in a published file."""
    tensors = {
        names.publish(name): parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
    }
    return join_qkv(tensors)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write a checkpoint into: it takes the place of ``folder`` when all is
    written, and after an error everything is as before.

    Of the older folder only what is no checkpoint's stays. What a killed process leaves beside the
    folder is cleared up by the next one. ValueError for a file, and for the working directory.
    """
    try:
        folder = folder.resolve()
    except RuntimeError:
        raise ValueError(f"{folder} is a link that leads to itself") from None
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, no folder for a checkpoint")
    if folder.exists() and Path.cwd().is_relative_to(folder):
        raise ValueError(f"{folder} holds the working directory: a checkpoint needs its own folder")
    new, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent):
        _settle(folder, old)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            if folder.exists():
                shutil.copymode(folder, new)
                os.rename(folder, old)
            os.rename(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            _settle(folder, old)


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Only one process at once replaces a folder in ``parent``; the others wait, or take over
    where it was killed.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network drives know no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _settle(folder: Path, old: Path) -> None:
    """End a replacement: undone if it had not come to the new folder, else the old one goes."""
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    if not old.exists():
        return
    for path in old.iterdir():
        of_checkpoint = path.name == "config.json" or ".safetensors" in path.name
        if not of_checkpoint and not (folder / path.name).exists():
            os.rename(path, folder / path.name)
    shutil.rmtree(old)
