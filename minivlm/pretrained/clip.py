"""CLIP and SigLIP as published: ``model_type`` clip and siglip."""

import reprlib
from collections.abc import Sequence

import torch
from torch import Tensor

from minivlm.clip import Clip, Siglip, TextConfig, VisionConfig
from minivlm.pretrained.checkpoints import Names
from minivlm.pretrained.config import (
    Section,
    fields,
    published,
    read_setting,
    require,
    section,
    share_out,
)
from minivlm.pretrained.processing import PublishedProcessor

CLIP_VISION_KEYS = {  # our field -> published key, and its default in CLIPVisionConfig
    "image_size": ("image_size", 224),
    "patch": ("patch_size", 32),
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "hidden": ("intermediate_size", 3072),
    "channels": ("num_channels", 3),
    "eps": ("layer_norm_eps", 1e-5),
    "act": ("hidden_act", "quick_gelu"),
}
CLIP_TEXT_KEYS = {  # the same of CLIPTextConfig
    "vocab_size": ("vocab_size", 49408),
    "length": ("max_position_embeddings", 77),
    "width": ("hidden_size", 512),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 8),
    "hidden": ("intermediate_size", 2048),
    "eps": ("layer_norm_eps", 1e-5),
    "act": ("hidden_act", "quick_gelu"),
    "eos_id": ("eos_token_id", 49407),
}
SIGLIP_TEXT = {  # SiglipTextConfig's defaults where they differ
    "vocab_size": 32000,
    "max_position_embeddings": 64,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
SIGLIP_VISION = {"patch_size": 16, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"}


def clip_vision_config(config: Section) -> VisionConfig:
    """A published vision_config of CLIP or, with its own defaults filled in, of SigLIP."""
    ours = fields(config, CLIP_VISION_KEYS)
    share_out(config, "num_attention_heads", ours["width"], ours["heads"])
    return VisionConfig(**ours)


def clip_text_config(config: Section) -> TextConfig:
    """A published text_config, likewise."""
    ours = fields(config, CLIP_TEXT_KEYS)
    share_out(config, "num_attention_heads", ours["width"], ours["heads"])
    return TextConfig(**ours)


def tower_section(config: dict, key: str) -> Section:
    """A tower's settings; older files have a second copy of them, under the key and "_dict".

    transformers fills that copy with class defaults and lets all of it win: what the first copy
    alone says counts for nothing.
    """
    older = f"{key}_dict"
    return section(config, key if config.get(older) is None else older)


def build_clip(config: dict) -> Clip:
    """The model of a published config.json."""
    vision, text = (tower_section(config, f"{tower}_config") for tower in ("vision", "text"))
    scale = float(read_setting(config, "logit_scale_init_value", 2.6592))
    width = read_setting(config, "projection_dim", 512)
    return Clip(clip_vision_config(vision), clip_text_config(text), width, scale)


def build_siglip(config: dict) -> Siglip:
    """The model of a published config.json."""
    vision, text = section(config, "vision_config"), section(config, "text_config")
    require(vision, "vision_use_head", True)
    return Siglip(
        clip_vision_config(vision.over(SIGLIP_VISION)),
        clip_text_config(text.over(SIGLIP_TEXT)),
        read_setting(text, "projection_size"),
    )


def publish_clip(model: Clip | Siglip) -> dict:
    """The config.json of a model of ours."""
    vision = published(model.vision.config, CLIP_VISION_KEYS)
    text = published(model.text.config, CLIP_TEXT_KEYS)
    if isinstance(model, Siglip):
        text["projection_size"] = model.text_head.out_features
        return {"model_type": "siglip", "vision_config": vision, "text_config": text}
    width = model.text_projection.out_features
    towers = {"vision_config": vision, "text_config": text}
    return {"model_type": "clip", "projection_dim": width} | towers


CLIP_BLOCK_NAMES = [  # our name -> the published one, within either tower
    (r"^positions", "embeddings.position_embedding.weight"),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm(1|2)\.", r".layer_norm\1."),
    (r"\.attention\.(q|k|v|out)\.", r".self_attn.\1_proj."),
    (r"\.mlp\.up\.", ".mlp.fc1."),
    (r"\.mlp\.down\.", ".mlp.fc2."),
]
CLIP_VISION_NAMES = [  # the same of the image tower
    (r"^class_token", "embeddings.class_embedding"),
    (r"^patch\.", "embeddings.patch_embedding."),
    (r"^pre_norm\.", "pre_layrnorm."),
    (r"^post_norm\.", "post_layernorm."),
    (r"^head\.norm\.", "head.layernorm."),
    (r"^head\.qkv\.", "head.attention.in_proj_"),
    (r"^head\.out\.", "head.attention.out_proj."),
    *CLIP_BLOCK_NAMES,
]
CLIP_TEXT_NAMES = [
    (r"^embedding\.", "embeddings.token_embedding."),
    (r"^norm\.", "final_layer_norm."),
    *CLIP_BLOCK_NAMES,
]
CLIP_NAMES = Names(
    published=[(r"^scale$", "logit_scale"), (r"^image_projection", "visual_projection")],
    parts={
        "vision": ("vision_model.", CLIP_VISION_NAMES),
        "text": ("text_model.", CLIP_TEXT_NAMES),
    },
    ignored=("embeddings.position_ids",),
)
SIGLIP_NAMES = Names(
    published=[(r"^(scale|bias)$", r"logit_\1"), (r"^text_head\.", "text_model.head.")],
    parts=CLIP_NAMES.parts,
    ignored=CLIP_NAMES.ignored,
)


class ClipProcessor(PublishedProcessor):
    """CLIP's: the texts between their two marks, padded to the longest."""

    longest, padded = 77, False  # tokens of a text; whether each is as long

    def part(self, key: str) -> Section:
        return tower_section(self.config, key)

    def texts(self, texts: str | Sequence[str]) -> dict[str, Tensor]:
        """One text or several -> input_ids and attention_mask (B, T).

        ValueError for a special token in a text, and for one that is longer than the model reads.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        if not several:
            raise ValueError("no text given")
        tok, longest = self.tokenizer, self._positions()
        rows = [[*tok.prefix, *tok.encode(text), *tok.suffix] for text in several]
        for text, row in zip(several, rows, strict=True):
            if len(row) > longest:
                shown = reprlib.repr(text)
                raise ValueError(f"{len(row)} tokens, but the model reads {longest}: {shown}")
        length = longest if self.padded else max(map(len, rows))
        pad = self.pad_id(tok.suffix[-1] if tok.suffix else 0)
        gaps = [length - len(row) for row in rows]
        ids = [row + [pad] * gap for row, gap in zip(rows, gaps, strict=True)]
        mask = [[1] * (length - gap) + [0] * gap for gap in gaps]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    def _positions(self) -> int:
        return read_setting(self.text, "max_position_embeddings", self.longest)


class SiglipProcessor(ClipProcessor):
    """SigLIP's: each text is padded to all the positions, and the padding is read like the text."""

    image_kind, longest, padded = "Siglip", 64, True

    def part(self, key: str) -> Section:
        return section(self.config, key)

    def texts(self, texts: str | Sequence[str]) -> dict[str, Tensor]:
        """One text or several -> input_ids (B, T); ValueError as for CLIP."""
        return {"input_ids": super().texts(texts)["input_ids"]}
