"""08 · LLaVA (Liu et al. 2023): an image encoder, a projector, a language model.

Paper: "Visual Instruction Tuning".

Data: token ids (B, T) in which every image is a run of placeholder ids, and the images (M, C, H, W)
in the order of the placeholders -> logits (B, T, V). The placeholders' embeddings are replaced by
projected patch vectors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minivlm.clip import ClipVision, VisionConfig
from minivlm.multimodal import Prompted
from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.parts.layers import MLP, Maybe, init_weights
from minivlm.parts.masks import causal, runs


@dataclass(frozen=True)
class LlavaConfig:
    """A ``Llava``'s two models, and what lies between them."""

    vision: VisionConfig
    text: DecoderConfig
    image_token_id: int
    # hidden states of the image encoder that are read; several are concatenated
    feature_layers: tuple[int, ...] = (-2,)
    keep_class: bool = False  # the class vector among the image tokens ("full"), or not ("default")
    projector_act: str = "gelu"
    projector_bias: bool = True
    # an image's tokens see each other, later ones too; no published LLaVA does that
    two_way: bool = False


class Llava(Prompted):
    """CLIP's image tower, an MLP as the projector, a ``Decoder``."""

    def __init__(self, config: LlavaConfig):
        super().__init__()
        c = self.config = config
        self.image_token_id = c.image_token_id
        states = c.vision.layers + 1
        for layer in c.feature_layers:
            if not -states <= layer < states:
                raise ValueError(
                    f"feature layer {layer} is not among the {states} hidden states "
                    "of the vision tower"
                )
        self.vision = ClipVision(c.vision)
        features, width = c.vision.width * len(c.feature_layers), c.text.width
        self.projector = MLP(features, width, c.projector_act, out=width, bias=c.projector_bias)
        self.projector.apply(init_weights)
        self.decoder = Decoder(c.text)

    def mask(self, input_ids: Tensor) -> Maybe:
        """Ids (B, T) -> who sees whom (B, 1, T, T), or None for causal."""
        if not self.config.two_way:
            return None
        image = runs(input_ids == self.image_token_id)
        return causal(input_ids.shape[1]).to(input_ids.device) | image

    @property
    def image_tokens(self) -> int:
        """Placeholders that one image takes."""
        return self.vision.patches + self.config.keep_class

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, N, D) in the language model's width."""
        states = self.vision.hidden_states(pixel_values)
        features = torch.cat([states[layer] for layer in self.config.feature_layers], dim=-1)
        return self.projector(features if self.config.keep_class else features[:, 1:])


def train_llava_stage(model: Llava, stage: int) -> None:
    """Of the two stages (section 4.2): 1 trains the projector, 2 the language model too.

    The image encoder is never trained.
    """
    if stage not in (1, 2):
        raise ValueError(f"LLaVA has stages 1 and 2, not {stage!r}")
    model.requires_grad_(False)
    model.projector.requires_grad_(True)
    model.decoder.requires_grad_(stage == 2)
