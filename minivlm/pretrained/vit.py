"""ViT as published: ``model_type`` vit."""

from collections.abc import Collection

from minivlm.pretrained.checkpoints import Names
from minivlm.pretrained.config import fields, pair, read_setting, require, share_out, square
from minivlm.vit import ViT, ViTConfig

VIT_KEYS = {  # our field -> published key, and the default of transformers' ViTConfig
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


def build_vit(config: dict, names: Collection[str] = ()) -> ViT:
    """The model of a published config.json; the names of its weights say if it has a classifier."""
    require(config, "pooler_act", "tanh")
    labels = len(read_setting(config, "id2label") or "12")  # two where the file says nothing
    config = config | {"patch_size": square(config, "patch_size", 16)}
    ours = fields(config, VIT_KEYS)
    share_out(config, "num_attention_heads", ours["width"], ours["heads"])
    return ViT(
        ViTConfig(
            image_size=pair(config, "image_size", 224),
            classes=labels if "classifier.weight" in names else 0,
            **ours,
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
    ],
    spellings=[(r"^vit\.", "")],  # other published spellings -> the one above
    ignored=(
        "pooler.dense.weight",
        "pooler.dense.bias",
    ),  # what reads the states is another model's
)
