"""Load a published checkpoint into the course's own models: same weights in, same numbers out."""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from minivlm.pretrained.blip import BLIP_NAMES, build_blip
from minivlm.pretrained.blip2 import BLIP2_NAMES, build_blip2
from minivlm.pretrained.checkpoints import (
    Names,
    TensorFiles,
    as_published,
    fill,
    match,
    normalise_all,
    read_json,
    replacing,
    write_checkpoint,
)
from minivlm.pretrained.clip import CLIP_NAMES, SIGLIP_NAMES, build_clip, build_siglip
from minivlm.pretrained.llama import LLAMA_NAMES, build_llama
from minivlm.pretrained.llava import LLAVA_NAMES, build_llava
from minivlm.pretrained.qwen2_vl import (
    QWEN2_VL_NAMES,
    QWEN3_VL_NAMES,
    QWEN25_VL_NAMES,
    build_qwen2_vl,
    build_qwen3_vl,
    build_qwen25_vl,
)
from minivlm.pretrained.vit import VIT_NAMES, build_vit


@dataclass(frozen=True)
class Family:
    """What reads and writes the checkpoints of one model_type."""

    build: Callable[..., nn.Module]  # config.json -> the model
    names: Names
    by_weights: bool = False  # ``build`` takes the names of the weights too: they say which parts


FAMILIES = {  # model_type of config.json -> its family
    "vit": Family(build_vit, VIT_NAMES, by_weights=True),
    "clip": Family(build_clip, CLIP_NAMES),
    "siglip": Family(build_siglip, SIGLIP_NAMES),
    "blip": Family(build_blip, BLIP_NAMES, by_weights=True),
    "blip-2": Family(build_blip2, BLIP2_NAMES, by_weights=True),
    "llama": Family(build_llama, LLAMA_NAMES),
    "llava": Family(build_llava, LLAVA_NAMES),
    "qwen2_vl": Family(build_qwen2_vl, QWEN2_VL_NAMES),
    "qwen2_5_vl": Family(build_qwen25_vl, QWEN25_VL_NAMES),
    "qwen3_vl": Family(build_qwen3_vl, QWEN3_VL_NAMES),
}


def family_of(config: dict) -> Family:
    """The family of a config.json; ValueError for an unsupported model_type."""
    model_type = config.get("model_type")
    if model_type not in list(FAMILIES):  # it may be anything, also what has no hash
        said = reprlib.repr(model_type)
        raise ValueError(f"unsupported model_type {said}; supported: {sorted(FAMILIES)}")
    return FAMILIES[model_type]


def from_pretrained(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> nn.Module:
    """A folder of config.json and *.safetensors, one file or sharded -> the model, in eval mode.

    dtype: of its weights. device: where they go, by default the CPU. ValueError for an unsupported
    model_type or setting, a missing, extra or misshapen tensor, a broken file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {str(folder)!r}")
    config = read_json(folder / "config.json")
    family = family_of(config)
    files = TensorFiles(folder, family.names)
    model = _shape(config, set(files.shapes))
    fill(model, files.shapes, family.names, dtype, device, files.read)
    return model.eval()


def _shape(config: dict, weights: set[str]) -> nn.Module:
    """The model of a published config without its weights: they come from a file."""
    family = family_of(config)
    with torch.device("meta"):
        return family.build(config, weights) if family.by_weights else family.build(config)


def save_pretrained(model: nn.Module, config: dict, folder: str | Path) -> None:
    """Write a model of a published ``config``; from_pretrained reads it, here and elsewhere.

    The folder is replaced whole or not at all. ValueError if the config is of another model.
    """
    names = names_of(model, config)
    with replacing(Path(folder)) as new:
        write_checkpoint(model, config, names, new)


def names_of(model: nn.Module, config: dict) -> Names:
    """How the weights of a model are published; ValueError if ``config`` describes another one."""
    names = family_of(config).names
    tensors = normalise_all(as_published(model, names), names)
    described = _shape(config, set(tensors))
    try:
        match(described, tensors, names)
    except ValueError as error:
        kind = f"{type(model).__name__} is not what this config.json describes"
        raise ValueError(f"{kind} ({config['model_type']}): {error}") from None
    theirs = dict(described.named_modules())
    for name, module in model.named_modules():
        ours, other = getattr(module, "config", None), getattr(theirs.get(name), "config", None)
        if ours != other:
            raise ValueError(f"config.json describes {name or 'the model'} as {other}, not {ours}")
    return names
