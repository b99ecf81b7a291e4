"""Load a published checkpoint into the course's own models: same weights in, same numbers out."""

from pathlib import Path

import torch
from torch import nn

from minivlm import blip, blip2, checkpoints, clip, decoder, llava, qwen2_vl, vit

MODELS = {  # model_type of config.json -> class with from_hf, and how the checkpoint names its weights
    "vit": (vit.ViT, vit.HF_NAMES),
    "clip": (clip.Clip, clip.CLIP_NAMES),
    "siglip": (clip.Siglip, clip.SIGLIP_NAMES),
    "blip": (blip.Blip, blip.HF_NAMES),
    "blip-2": (blip2.Blip2, blip2.HF_NAMES),
    "llama": (decoder.Decoder, decoder.HF_NAMES),
    "llava": (llava.Llava, llava.HF_NAMES),
    "qwen2_vl": (qwen2_vl.Qwen2VL, qwen2_vl.QWEN2_VL_NAMES),
    "qwen2_5_vl": (qwen2_vl.Qwen25VL, qwen2_vl.QWEN25_VL_NAMES),
    "qwen3_vl": (qwen2_vl.Qwen3VL, qwen2_vl.QWEN3_VL_NAMES),
}


def _entry(config: dict) -> tuple[type, checkpoints.Names]:
    model_type = config.get("model_type")
    if model_type not in MODELS:
        raise ValueError(f"unsupported model_type {model_type!r}; supported: {sorted(MODELS)}")
    return MODELS[model_type]


def from_pretrained(folder: str | Path) -> nn.Module:
    """A checkpoint folder (config.json and *.safetensors, one file or sharded) -> the model, float32, in eval mode.

    ValueError for an unsupported model_type or setting, a missing, extra or misshapen tensor, a broken file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {str(folder)!r}")
    config = checkpoints.read_json(folder / "config.json")
    model_class, names = _entry(config)
    tensors = checkpoints.normalise_all(checkpoints.read_tensors(folder), names)
    with torch.device("meta"):  # shapes only: the weights come from the file
        model = model_class.from_hf(config, set(tensors))
    checkpoints.fill(model, tensors, names)
    return model.eval()


def save_pretrained(model: nn.Module, config: dict, folder: str | Path) -> None:
    """Write a model that was made by ``from_hf(config)`` so that from_pretrained, here or elsewhere, reads it."""
    checkpoints.write(model, config, _entry(config)[1], Path(folder))
