"""CLIP (Radford et al. 2021): the image tower, a ViT with three changes.

A norm before the blocks, no bias on the patch projection, QuickGELU for GELU.
Data: pixel_values (B, C, H, W) -> (B, 1 + N, D) after each block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minivlm.layers import init_weights
from minivlm.vit import EncoderBlock


@dataclass(frozen=True)
class ClipVisionConfig:
    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    channels: int = 3
    eps: float = 1e-5
    act: str = "quick_gelu"

    @classmethod
    def from_hf(cls, config: dict) -> "ClipVisionConfig":
        return cls(
            image_size=config.get("image_size", 224),
            patch=config.get("patch_size", 32),
            width=config.get("hidden_size", 768),
            layers=config.get("num_hidden_layers", 12),
            heads=config.get("num_attention_heads", 12),
            hidden=config.get("intermediate_size", 3072),
            channels=config.get("num_channels", 3),
            eps=config.get("layer_norm_eps", 1e-5),
            act=config.get("hidden_act", "quick_gelu"),
        )


class ClipVision(nn.Module):
    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        c = self.config = config
        self.patches = (c.image_size // c.patch) ** 2
        self.patch = nn.Conv2d(c.channels, c.width, c.patch, stride=c.patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(c.width))
        self.positions = nn.Parameter(torch.empty(1 + self.patches, c.width))
        self.pre_norm = nn.LayerNorm(c.width, c.eps)
        self.blocks = nn.ModuleList(
            EncoderBlock(c.width, c.heads, c.hidden, eps=c.eps, act=c.act) for _ in range(c.layers)
        )
        self.post_norm = nn.LayerNorm(c.width, c.eps)
        self.apply(init_weights)
        nn.init.normal_(self.class_token, std=c.width**-0.5)
        nn.init.normal_(self.positions, std=0.02)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D), normalised."""
        c = self.config
        expected = (c.channels, c.image_size, c.image_size)
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != expected:
            raise ValueError(f"pixel_values must be (B, *{expected}), got {tuple(pixel_values.shape)}")
        patches = self.patch(pixel_values).flatten(2).transpose(1, 2)  # (B, N, D)
        token = self.class_token.expand(len(patches), 1, -1)
        return self.pre_norm(torch.cat([token, patches], dim=1) + self.positions)

    def hidden_states(self, pixel_values: Tensor) -> list[Tensor]:
        """The L + 1 states (B, 1 + N, D): what enters the first block, then what leaves each block; no final norm."""
        states = [self.embed(pixel_values)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states


VISION_NAMES = [  # our name -> the published one, within the image tower
    (r"^class_token", "embeddings.class_embedding"),
    (r"^patch\.", "embeddings.patch_embedding."),
    (r"^positions", "embeddings.position_embedding.weight"),
    (r"^pre_norm\.", "pre_layrnorm."),
    (r"^post_norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm(1|2)\.", r".layer_norm\1."),
    (r"\.attention\.(q|k|v|out)\.", r".self_attn.\1_proj."),
    (r"\.mlp\.up\.", ".mlp.fc1."),
    (r"\.mlp\.down\.", ".mlp.fc2."),
]
