"""The small VQ-VAE of notebook 03, trained on scenes."""

import torch
from torch import Tensor

from minivlm.parts.training import fit, minibatches
from minivlm.scenes.drawing import BACKGROUND
from minivlm.vqvae import VQVAE, VQVAEConfig


def train_vqvae(
    images: Tensor, steps: int = 1500, *, seed: int = 0, kmeans_start: bool = False, **changes
) -> tuple[VQVAE, dict[str, list[float]]]:
    """Train on scenes (B, 3, H, W) in 0..1; returns model and history. ``changes`` are fields of
    the configuration.

    1,500 steps take 20 to 45 s on one core.
    """
    options = {"mean": tuple(value / 255 for value in BACKGROUND), "variance": images.var().item()}
    options |= {"decay": 0.95, "restart": 0.5}
    torch.manual_seed(seed)
    model = VQVAE(VQVAEConfig(**options | changes))
    if kmeans_start:
        model.start_codes(images[:64], seed)
    batches = minibatches(images, batch_size=16, seed=seed)
    return model, fit(model, batches, lambda model, batch: model.loss(batch[0]), steps, seed=seed)
