"""LLaVA as published: ``model_type`` llava, a CLIP image tower and a Llama."""

from minivlm.llava import Llava, LlavaConfig
from minivlm.pretrained.checkpoints import Names
from minivlm.pretrained.clip import CLIP_VISION_KEYS, CLIP_VISION_NAMES, clip_vision_config
from minivlm.pretrained.config import (
    LAYERS,
    Number,
    Several,
    fields,
    published,
    read_setting,
    refuse,
    require,
    section,
)
from minivlm.pretrained.llama import DECODER_NAMES, decoder_config, publish_decoder

LLAVA_KEYS = {  # our field -> published key, and the default of transformers' LlavaConfig
    "projector_act": ("projector_hidden_act", "gelu"),
    "projector_bias": ("multimodal_projector_bias", True),
}


def build_llava(config: dict) -> Llava:
    """The model of a published config.json."""
    vision, text = section(config, "vision_config"), section(config, "text_config")
    require(vision, "model_type", "clip_vision_model")
    require(config, "vision_feature_select_strategy", "default", "full")
    tied = read_setting(config, "tie_word_embeddings", False) or read_setting(
        text, "tie_word_embeddings", False
    )
    token = read_setting(config, "image_token_index", read_setting(config, "image_token_id", 32000))
    return Llava(
        LlavaConfig(
            vision=clip_vision_config(vision),
            text=decoder_config(text.under({"tie_word_embeddings": tied})),
            image_token_id=token,
            feature_layers=feature_layers(config),
            keep_class=config.get("vision_feature_select_strategy") == "full",
            **fields(config, LLAVA_KEYS),
        )
    )


def feature_layers(config: dict) -> tuple[int, ...]:
    """The hidden states of the image tower that are read, published as one number or as several."""
    layers = config.get("vision_feature_layer", -2)
    several = [layers] if isinstance(layers, int) else layers
    if several not in Several(Number(-LAYERS.high, LAYERS.high)) or not several:
        raise refuse(config, "vision_feature_layer", "a whole number, or a list of them")
    return tuple(several)


def publish_llava(model: Llava) -> dict:
    """The config.json of a model of ours; ValueError for what no published LLaVA does."""
    c = model.config
    if c.two_way:
        raise ValueError(
            "two_way is not published: no config.json says that image tokens see each other"
        )
    vision = {"model_type": "clip_vision_model"} | published(c.vision, CLIP_VISION_KEYS)
    layers = list(c.feature_layers)
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": c.image_token_id,
        "vision_feature_layer": layers[0] if len(layers) == 1 else layers,
        "vision_feature_select_strategy": "full" if c.keep_class else "default",
        "tie_word_embeddings": c.text.tied,
        **published(c, LLAVA_KEYS),
        "vision_config": vision,
        "text_config": publish_decoder(c.text),
    }


LLAVA_NAMES = Names(
    parts={
        "vision": ("vision_tower.vision_model.", CLIP_VISION_NAMES),
        "projector": (
            "multi_modal_projector.",
            [(r"^up\.", "linear_1."), (r"^down\.", "linear_2.")],
        ),
        "decoder": ("language_model.", DECODER_NAMES),
    },
    spellings=[  # transformers 4.52 and later drop or move some prefixes
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    ],
    ignored=("embeddings.position_ids", "rotary_emb.inv_freq"),
)
