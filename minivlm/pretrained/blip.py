"""BLIP as published: ``model_type`` blip."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from minivlm.blip import Blip, MedConfig
from minivlm.pretrained.checkpoints import Names
from minivlm.pretrained.config import (
    Section,
    fields,
    pair,
    published,
    read_setting,
    require,
    section,
    share_out,
)
from minivlm.pretrained.preprocessing import Images
from minivlm.pretrained.processing import (
    Said,
    SpeakingProcessor,
    never_asked,
    one_row,
    single,
)
from minivlm.vit import ViTConfig

BLIP_VISION_KEYS = {  # our field -> published key, and its default in BlipVisionConfig
    "image_size": ("image_size", 384),
    "patch": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "hidden": ("intermediate_size", 3072),
    "eps": ("layer_norm_eps", 1e-5),
    "act": ("hidden_act", "gelu"),
    "bias": ("qkv_bias", True),
}
MED_KEYS = {  # the same of BlipTextConfig
    "vocab_size": ("vocab_size", 30524),
    "length": ("max_position_embeddings", 512),
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 8),
    "hidden": ("intermediate_size", 3072),
    "eps": ("layer_norm_eps", 1e-12),
    "act": ("hidden_act", "gelu"),
}
ROLE_WEIGHTS = {  # role -> a weight that every checkpoint with this role has
    "encoder": "itm_head.weight",
    "decoder": "text_decoder.cls.predictions.bias",
}


def blip_vision_config(config: Section) -> ViTConfig:
    """A published vision_config of BLIP or, with its own defaults filled in, of BLIP-2."""
    size = pair(config, "image_size", 384)
    ours = fields(config.under({"image_size": size[0]}), BLIP_VISION_KEYS)
    share_out(config, "num_attention_heads", ours["width"], ours["heads"])
    return ViTConfig(**ours | {"image_size": size})


def build_blip(config: dict, names: Collection[str] = ()) -> Blip:
    """The model of a published config.json; the names of its weights say which roles it has.

    Both roles in one checkpoint is what ``save_pretrained`` writes of a pre-trained model: shared
    as in the paper.
    """
    text = section(config, "text_config")
    for part in (config, text):
        require(part, "tie_word_embeddings", True)
    roles = tuple(role for role, name in ROLE_WEIGHTS.items() if name in names or not names)
    if not roles:
        weights = [*ROLE_WEIGHTS.values()]
        raise ValueError(
            f"this BLIP is neither for retrieval nor for captioning: none of {weights}"
        )
    image = blip_vision_config(section(config, "vision_config"))
    med = MedConfig(**fields(text, MED_KEYS), memory=image.width)
    share_out(text, "num_attention_heads", med.width, med.heads)
    return Blip(image, med, read_setting(config, "image_text_hidden_size", 256), roles=roles)


def publish_blip(model: Blip) -> dict:
    """The config.json of a model of ours, whatever its roles."""
    text = model.encoder or model.decoder
    if text is None:
        raise ValueError("this BLIP has no text transformer: no published one is like that")
    vision = published(model.vision.config, BLIP_VISION_KEYS)
    height, width = vision["image_size"]
    vision["image_size"] = height if height == width else [height, width]
    theirs: dict[str, object] = {
        "model_type": "blip",
        "vision_config": vision,
        "text_config": published(text.config, MED_KEYS),
    }
    if model.encoder:
        theirs["image_text_hidden_size"] = model.image_projection.out_features
    return theirs


BLIP_VISION_NAMES = [  # our name -> the published one, within the image tower
    (r"^class_token", "embeddings.class_embedding"),
    (r"^patch\.", "embeddings.patch_embedding."),
    (r"^positions", "embeddings.position_embedding"),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm(1|2)\.", r".layer_norm\1."),
    (r"\.attention\.(q|k|v)\.", r".self_attn.qkv.\1."),  # published as one matrix
    (r"\.attention\.out\.", ".self_attn.projection."),
    (r"\.mlp\.up\.", ".mlp.fc1."),
    (r"\.mlp\.down\.", ".mlp.fc2."),
    (r"^norm\.", "post_layernorm."),
]
BERT = {"q": "self.query", "k": "self.key", "v": "self.value", "out": "output.dense"}
MED_NAMES = [
    (r"^words\.", "embeddings.word_embeddings."),
    (r"^positions\.", "embeddings.position_embeddings."),
    (r"^norm\.", "embeddings.LayerNorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.cross", ".crossattention"),
    *((rf"attention\.{ours}\.", f"attention.{theirs}.") for ours, theirs in BERT.items()),
    (r"attention_norm\.", "attention.output.LayerNorm."),
    (r"crossattention_norm\.", "crossattention.output.LayerNorm."),
    (r"\.mlp\.up\.", ".intermediate.dense."),
    (r"\.mlp\.down\.", ".output.dense."),
    (r"\.mlp_norm\.", ".output.LayerNorm."),
]
HEAD_NAMES = [
    (r"^(dense|norm)\.", r"transform.\1."),
    (r"norm", "LayerNorm"),
    (r"^out\.", "decoder."),
]
BLIP_NAMES = Names(
    published=[
        (r"^image_projection", "vision_proj"),
        (r"^text_projection", "text_proj"),
        (r"^match_head", "itm_head"),
    ],
    parts={
        "vision": ("vision_model.", BLIP_VISION_NAMES),
        "encoder": ("text_encoder.", MED_NAMES),
        "decoder": ("text_decoder.bert.", MED_NAMES),
        "head": ("text_decoder.cls.predictions.", HEAD_NAMES),
    },
    ignored=("embeddings.position_ids",),
)


class BlipProcessor(SpeakingProcessor):
    """BLIP's for captions: [DEC], then how the caption begins."""

    image_kind, side = "Blip", 384

    def caption_inputs(self, image: Images) -> dict[str, Tensor]:
        """What the model takes for a caption that begins with nothing."""
        return self.inputs(image, "")

    def inputs(self, image: Images, text: str, before: Said = ()) -> dict[str, Tensor]:
        """One image and how its caption begins: what ``caption_logits`` takes.

        transformers' processor writes [CLS] ... [SEP]; its ``generate`` makes of it what stands
        here: [DEC] in the first place, and no [SEP]. ValueError for what was said ``before``.
        """
        if before:
            raise never_asked(self.folder)
        self.refuse_special_tokens(text)
        start = self.token("bos_token_id", 30522)
        ids = [30522 if start is None else start, *self.tokenizer.encode(text)]
        return one_row(ids, self.images(single(image)))

    def prompt(self, model: nn.Module, given: dict[str, Tensor]) -> dict[str, Any]:
        return looked_at(model, given)

    def ends(self) -> int | list[int] | None:
        """[SEP]."""
        return self.own_ends("sep_token_id", 102)


@torch.no_grad()
def looked_at(blip: nn.Module, given: dict[str, Tensor]) -> dict[str, Any]:
    """The inputs of ``caption_logits`` as ``generate`` takes them: the image is read once."""
    states = blip.vision(given["pixel_values"])
    return {"input_ids": given["input_ids"], "image": states, "use_cache": False}
