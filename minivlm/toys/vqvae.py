"""The small VQ-VAE of notebook 03, trained on scenes, and its folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivlm.parts.training import fit, minibatches
from minivlm.pretrained.checkpoints import Names, fill, match, read_json, read_tensors
from minivlm.scenes.drawing import BACKGROUND
from minivlm.toys.common import FROZEN, save_toy
from minivlm.vqvae import VQVAE, VQVAEConfig


def train_vqvae(
    images: Tensor, steps: int = 1500, *, seed: int = 0, kmeans_start: bool = False, **changes: Any
) -> tuple[VQVAE, dict[str, list[float]]]:
    """Train on scenes (B, 3, H, W) in 0..1; returns model and history.

    changes: fields of the configuration. 1,500 steps take 20 to 45 s on one core.
    """
    options = {
        "mean": tuple(value / 255 for value in BACKGROUND),
        "variance": images.var().item(),
        "decay": 0.95,
        "restart": 0.5,
    }
    torch.manual_seed(seed)
    model = VQVAE(VQVAEConfig(**options | changes))
    if kmeans_start:
        model.start_codes(images[:64], seed)
    batches = minibatches(images, batch_size=16, seed=seed)
    return model, fit(model, batches, lambda model, batch: model.loss(batch[0]), steps, seed=seed)


def save_vqvae(model: VQVAE, folder: str | Path) -> None:
    """config.json and model.safetensors: weights and codebook, not the state of a training."""
    save_toy(model, asdict(model.config), folder)


def _read_config(path: Path, tensors: dict[str, Tensor]) -> VQVAEConfig:
    """The configuration; ValueError for sizes that no part of these weights has."""
    content = read_json(path)
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
    }
    try:
        config = VQVAEConfig(**fields)
    except TypeError as error:
        raise ValueError(f"{path} is no VQVAEConfig: {error}") from None
    if not isinstance(config.widths, tuple) or not 0 < len(config.widths) < len(tensors):
        raise ValueError(f"{path}: widths is {config.widths!r}, no list of sizes")
    most = max((tensor.numel() for tensor in tensors.values()), default=0)
    sizes = [(key, getattr(config, key), 1, most) for key in ("codes", "dim", "hidden", "channels")]
    sizes += [("widths", width, 1, most) for width in config.widths]
    for key, value, least, largest in [*sizes, ("blocks", config.blocks, 0, len(tensors))]:
        if type(value) is not int or not least <= value <= largest:
            raise ValueError(f"{path}: {key} is {value!r}, which no part of the weights has")
    return config


def load_vqvae(folder: str | Path = FROZEN / "vqvae") -> VQVAE:
    """What ``save_vqvae`` wrote; ValueError for a missing, extra or misshapen tensor."""
    folder = Path(folder)
    tensors = read_tensors(folder)
    config = _read_config(folder / "config.json", tensors)
    with torch.device("meta"):  # before memory is taken for what the weights do not have
        match(VQVAE(config), tensors, Names())
    model = VQVAE(config)
    fill(model, tensors, Names())
    codebook = model.quantizer.codebook.requires_grad_(not model.config.ema)
    model.quantizer.place(torch.arange(model.config.codes), codebook.detach().clone())
    return model.eval()
