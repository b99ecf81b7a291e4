"""Load a published checkpoint into the course's own models: same weights in, same numbers out."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from minivlm.pretrained import checkpoints
from minivlm.pretrained.blip import BLIP_NAMES, build_blip
from minivlm.pretrained.blip2 import BLIP2_NAMES, build_blip2
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

Build = Callable[[dict, set[str]], nn.Module]  # config.json, the names of the weights -> the model
FAMILIES: dict[str, tuple[Build, checkpoints.Names]] = {  # model_type of config.json -> its family
    "vit": (build_vit, VIT_NAMES),
    "clip": (build_clip, CLIP_NAMES),
    "siglip": (build_siglip, SIGLIP_NAMES),
    "blip": (build_blip, BLIP_NAMES),
    "blip-2": (build_blip2, BLIP2_NAMES),
    "llama": (build_llama, LLAMA_NAMES),
    "llava": (build_llava, LLAVA_NAMES),
    "qwen2_vl": (build_qwen2_vl, QWEN2_VL_NAMES),
    "qwen2_5_vl": (build_qwen25_vl, QWEN25_VL_NAMES),
    "qwen3_vl": (build_qwen3_vl, QWEN3_VL_NAMES),
}


def family(config: dict) -> tuple[Build, checkpoints.Names]:
    """What builds the model of a config.json, and how its weights are named."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"unsupported model_type {model_type!r}; supported: {sorted(FAMILIES)}")
    return FAMILIES[model_type]


def from_pretrained(folder: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A checkpoint folder (config.json and *.safetensors, one file or sharded) -> the model, in eval
    mode, its weights as ``dtype``.

    ValueError for an unsupported model_type or setting, a missing, extra or misshapen tensor, a
    broken file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {str(folder)!r}")
    config = checkpoints.read_json(folder / "config.json")
    build, names = family(config)
    tensors = checkpoints.normalise_all(checkpoints.read_tensors(folder), names)
    with torch.device("meta"):  # shapes only: the weights come from the file
        model = build(config, set(tensors))
    checkpoints.fill(model, tensors, names, dtype)
    return model.eval()


def save_pretrained(model: nn.Module, config: dict, folder: str | Path) -> None:
    """Write a model of a published ``config`` so that from_pretrained, here or elsewhere, reads it."""
    checkpoints.write(model, config, family(config)[1], Path(folder))
