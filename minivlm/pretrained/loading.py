"""Load a published checkpoint into the course's own models: same weights in, same numbers out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from minivlm.pretrained.blip import BLIP_NAMES, build_blip
from minivlm.pretrained.blip2 import BLIP2_NAMES, build_blip2
from minivlm.pretrained.checkpoints import (
    Names,
    fill,
    normalise_all,
    read_json,
    read_tensors,
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
    if model_type not in FAMILIES:
        raise ValueError(f"unsupported model_type {model_type!r}; supported: {sorted(FAMILIES)}")
    return FAMILIES[model_type]


def from_pretrained(folder: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A folder of config.json and *.safetensors, one file or sharded -> the model, in eval mode.

    dtype: of its weights. ValueError for an unsupported model_type or setting, a missing, extra or
    misshapen tensor, a broken file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {str(folder)!r}")
    config = read_json(folder / "config.json")
    family = family_of(config)
    tensors = normalise_all(read_tensors(folder), family.names)
    with torch.device("meta"):  # shapes only: the weights come from the file
        build = family.build
        model = build(config, set(tensors)) if family.by_weights else build(config)
    fill(model, tensors, family.names, dtype)
    return model.eval()


def save_pretrained(model: nn.Module, config: dict, folder: str | Path) -> None:
    """Write a model of a published ``config``; from_pretrained reads it, here and elsewhere."""
    write_checkpoint(model, config, family_of(config).names, Path(folder))
