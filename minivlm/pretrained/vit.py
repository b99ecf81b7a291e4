"""ViT as published: ``model_type`` vit."""

from minivlm.pretrained.checkpoints import Names
from minivlm.pretrained.config import fields, pair, require
from minivlm.vit import ViT, ViTConfig

KEYS = {  # our field -> published key, and the default of transformers' ViTConfig
    "patch": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "hidden": ("intermediate_size", 3072),
    "channels": ("num_channels", 3),
    "eps": ("layer_norm_eps", 1e-12),
    "act": ("hidden_act", "gelu"),
    "bias": ("qkv_bias", True),
}


def build_vit(config: dict, names: set[str] = frozenset()) -> ViT:
    """The model of a published config.json; the names of its weights say which heads it has."""
    require(config, "pooler_act", "tanh")
    classes = len(config.get("id2label") or "12")
    return ViT(
        ViTConfig(
            image_size=pair(config.get("image_size", 224)),
            classes=classes if "classifier.weight" in names else 0,
            pooler="pooler.dense.weight" in names,
            **fields(config, KEYS),
        )
    )


VIT_NAMES = Names(
    published=[  # our name -> the published one
        (r"^patch\.", "embeddings.patch_embeddings.projection."),
        (r"^class_token", "embeddings.cls_token"),
        (r"^positions", "embeddings.position_embeddings"),
        (r"^blocks\.", "encoder.layer."),
        (r"\.attention\.out\.", ".attention.output.dense."),
        (r"\.attention\.q\.", ".attention.attention.query."),
        (r"\.attention\.k\.", ".attention.attention.key."),
        (r"\.attention\.v\.", ".attention.attention.value."),
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.mlp\.up\.", ".intermediate.dense."),
        (r"\.mlp\.down\.", ".output.dense."),
        (r"^norm\.", "layernorm."),
        (r"^pooler\.", "pooler.dense."),
    ],
    spellings=[(r"^vit\.", "")],  # other published spellings -> the one above
)
