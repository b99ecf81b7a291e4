"""Checkpoint folders in Hugging Face format: config.json and *.safetensors, one file or sharded.

Everything is strict: a missing tensor, an extra one or a wrong shape is an error that names it, and
nothing is ever unpickled. Each model says in a table how the published checkpoint names its
weights.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Rules = list[tuple[str, str]]  # (regular expression, replacement), applied in order


@dataclass(frozen=True)
class Names:
    """How a published checkpoint spells the names of a model's parameters."""

    published: Rules = field(default_factory=list)  # our name -> published name
    parts: dict[str, tuple[str, Rules]] = field(
        default_factory=dict
    )  # submodule -> published prefix, rules within
    spellings: Rules = field(
        default_factory=list
    )  # other published spellings -> the one of ``published``
    buffers: tuple[
        str, ...
    ] = ()  # published tensors that are no weights, by the end of their names

    def publish(self, name: str) -> str:
        part, _, rest = name.partition(".")
        if part in self.parts:
            prefix, rules = self.parts[part]
            return prefix + _rewrite(rest, rules)
        return _rewrite(name, self.published)

    def normalise(self, name: str) -> str:
        return _rewrite(name, self.spellings)

    def is_buffer(self, name: str) -> bool:
        return name.endswith(self.buffers) if self.buffers else False


def _rewrite(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def read_json(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json lists."""
    if (folder / "model.safetensors").is_file():
        return _read_file(folder / "model.safetensors")
    if not (folder / "model.safetensors.index.json").is_file():
        raise ValueError(
            f"{folder} has neither model.safetensors nor its index (pickled .bin files are never read)"
        )
    weight_map = read_json(folder / "model.safetensors.index.json").get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise ValueError(
            f"{folder / 'model.safetensors.index.json'} has no weight_map of tensor name -> file name"
        )
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise ValueError(f"shard {shard!r} does not lie in the checkpoint folder")
        for name, tensor in _read_file(folder / shard).items():
            if weight_map.get(name) != shard:
                raise ValueError(
                    f"shard {shard} holds {name}, which the index places in {weight_map.get(name)}"
                )
            tensors[name] = tensor
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise ValueError(
            f"missing tensor {missing[0]}: the index places it in {weight_map[missing[0]]}"
        )
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}")
    try:
        return load_file(path)
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
    """Bring every tensor to the one spelling of its name; leave out published buffers."""
    result = {}
    for name, tensor in tensors.items():
        new = names.normalise(name)
        for part, value in split_qkv(new, tensor):
            if part in result:
                raise ValueError(f"extra tensor {name}: {part} is there already under another name")
            if not names.is_buffer(part):
                result[part] = value
    return result


def fill(
    model: nn.Module, tensors: dict[str, Tensor], names: Names, dtype: torch.dtype = torch.float32
) -> None:
    """Put the tensors (named as published) into the model, each one into exactly one parameter."""
    aliases = dict(
        model.named_parameters(remove_duplicate=False)
    )  # with the second names of tied weights
    unique = dict(model.named_parameters())
    published = {names.publish(name): name for name in aliases}
    extra = sorted(tensors.keys() - published.keys())
    if extra:
        raise ValueError(
            f"extra tensor{'s' * (len(extra) > 1)} {', '.join(extra[:5])}: the model has no such weight"
        )
    source = {}  # parameter -> (published name, tensor); a tied weight may stand in the file twice, but alike
    for theirs, tensor in tensors.items():
        parameter = aliases[published[theirs]]
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"tensor {theirs} has shape {tuple(tensor.shape)}, needs {tuple(parameter.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"tensor {theirs} holds {tensor.dtype}, not floating-point weights")
        if parameter in source and not torch.equal(source[parameter][1], tensor):
            raise ValueError(f"tensors {source[parameter][0]} and {theirs} are tied, but differ")
        source[parameter] = (theirs, tensor)
    missing = [names.publish(name) for name, parameter in unique.items() if parameter not in source]
    if missing:
        raise ValueError(f"missing tensor{'s' * (len(missing) > 1)} {', '.join(missing[:5])}")
    for name, parameter in aliases.items():
        owner, _, attribute = name.rpartition(".")
        value = source[parameter]
        if not isinstance(value, nn.Parameter):
            value = source[parameter] = nn.Parameter(value[1].to(dtype))
        setattr(model.get_submodule(owner), attribute, value)


def write(model: nn.Module, config: dict, names: Names, folder: Path) -> None:
    """Write config.json and model.safetensors as published, so that other libraries read them too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {
        names.publish(name): p.detach().cpu().contiguous() for name, p in model.named_parameters()
    }
    save_file(join_qkv(tensors), folder / "model.safetensors", metadata={"format": "pt"})
