"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL as published: ``model_type`` qwen2_vl, qwen2_5_vl, qwen3_vl."""

from dataclasses import replace
from functools import partial
from math import isqrt

from minivlm.parts.decoder import DecoderConfig
from minivlm.pretrained.checkpoints import Names
from minivlm.pretrained.config import fields, require
from minivlm.pretrained.llama import DECODER_NAMES, decoder_config
from minivlm.qwen2_vision import TowerConfig
from minivlm.qwen2_vl import Qwen2VL, Qwen3VL, Qwen25VL, QwenVLConfig

TOWER_KEYS = {  # our field -> published key, and the default of transformers' configs
    "width": ("hidden_size", 3584),
    "layers": ("depth", 32),
    "heads": ("num_heads", 16),
    "hidden": ("intermediate_size", None),  # Qwen2-VL's follows from mlp_ratio
    "out": ("out_hidden_size", 3584),
    "patch": ("patch_size", 14),
    "merge": ("spatial_merge_size", 2),
    "depth": ("temporal_patch_size", 2),
    "channels": ("in_channels", 3),
    "act": ("hidden_act", None),
    "tokens_per_second": ("tokens_per_second", 2),
}
TOWER_DEFAULTS = {  # what a family leaves out of its vision_config
    "qwen2_vl": {"embed_dim": 1280, "mlp_ratio": 4, "hidden_act": "quick_gelu"},
    "qwen2_5_vl": {
        "intermediate_size": 3420,
        "hidden_act": "silu",
        "tokens_per_second": 4,
        "fullatt_block_indexes": (7, 15, 23, 31),
    },
    "qwen3_vl": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "hidden_act": "gelu_pytorch_tanh",
        "patch_size": 16,
        "deepstack_visual_indexes": (8, 16, 24),
    },
}
TEXT_DEFAULTS = {  # the same of its text_config
    "qwen2_vl": {
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "mrope_section": (16, 24, 24),
    },
    "qwen3_vl": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "rope_theta": 5e5,
        "mrope_section": (24, 20, 20),
    },
}
TEXT_DEFAULTS["qwen2_5_vl"] = TEXT_DEFAULTS["qwen2_vl"]
LANGUAGE = {  # what sets the language model apart from Llama
    "qwen2_vl": {"attention_bias": True, "out_bias": False},
    "qwen2_5_vl": {"attention_bias": True, "out_bias": False},
    "qwen3_vl": {"qk_norm": True},
}


def tower_config(config: dict, kind: str) -> TowerConfig:
    """The vision_config of a published model of type ``kind``."""
    c = {"spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "patch_size": 14}
    c |= TOWER_DEFAULTS[kind] | config
    rope = c.get("rope_parameters") or {}
    require(c, "model_type", kind, f"{kind}_vision")
    require(rope, "rope_type", "axial")
    require(c, "in_chans", c["in_channels"])
    for key in ("patch_size", "spatial_merge_size", "temporal_patch_size"):
        if not isinstance(c[key], int):
            raise ValueError(
                f"config.json: {key} = {c[key]!r} is not supported; it must be one number"
            )
    ours = fields(c, TOWER_KEYS)
    if kind == "qwen2_vl":  # names its widths differently
        ours |= {"out": ours["width"], "width": c["embed_dim"]}
        ours["hidden"] = int(c["embed_dim"] * c["mlp_ratio"])
    merged = c.get("window_size", 112) // ours["merge"] // ours["patch"]  # tokens a window's side
    table = c.get("num_position_embeddings", 2304)
    require(c, "num_position_embeddings", isqrt(table) ** 2)
    return TowerConfig(
        **ours,
        theta=rope.get("rope_theta", 10_000.0),
        window=merged * ours["merge"],
        full=tuple(c.get("fullatt_block_indexes", ())),
        table=isqrt(table),
        deep=tuple(c.get("deepstack_visual_indexes", ())),
    )


def language_config(text: dict, rope: dict, tied: bool, kind: str) -> DecoderConfig:
    """The text_config of a published model of type ``kind``, with its rope settings beside it."""
    for key in ("rope_type", "type"):
        require(rope, key, "default", "mrope")
    require(rope, "mrope_interleaved", kind == "qwen3_vl")
    require(text, "model_type", kind, f"{kind}_text")
    require(text, "use_sliding_window", False, None)
    for layer in text.get("layer_types") or ():
        require({"layer_types": layer}, "layer_types", "full_attention")
    theta = {"rope_theta": rope.get("rope_theta", text["rope_theta"])}
    llama = {"model_type": "llama", "rope_parameters": theta, "tie_word_embeddings": tied}
    return replace(decoder_config(text | llama), **LANGUAGE[kind])


def build_qwen(model_class: type[Qwen2VL], config: dict, names: set[str] = frozenset()) -> Qwen2VL:
    """The model of a published config.json, flat or with a text_config."""
    kind = model_class.kind
    text = TEXT_DEFAULTS[kind] | (config.get("text_config") or config)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    tied = config.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
    return model_class(
        QwenVLConfig(
            tower_config(config.get("vision_config", {}), kind),
            language_config(text, rope, tied, kind),
            tuple(rope.get("mrope_section", text["mrope_section"])),
            image_token_id=config.get("image_token_id", 151655),
            video_token_id=config.get("video_token_id", 151656),
        )
    )


build_qwen2_vl = partial(build_qwen, Qwen2VL)
build_qwen25_vl = partial(build_qwen, Qwen25VL)
build_qwen3_vl = partial(build_qwen, Qwen3VL)

TOWER_NAMES = [  # our name -> the published one, within the tower
    (r"^patch\.", "patch_embed.proj."),
    (r"^positions", "pos_embed.weight"),
    (r"^deep\.", "deepstack_merger_list."),
    (r"\.attention\.(q|k|v)\.", r".attn.qkv.\1."),
    (r"\.attention\.out\.", ".attn.proj."),
]
OLD_MERGER = [
    (r"^merger\.norm\.", "merger.ln_q."),
    (r"^merger\.mlp\.up\.", "merger.mlp.0."),
    (r"^merger\.mlp\.down\.", "merger.mlp.2."),
]
QWEN2_TOWER = [
    *TOWER_NAMES,
    *OLD_MERGER,
    (r"\.mlp\.up\.", ".mlp.fc1."),
    (r"\.mlp\.down\.", ".mlp.fc2."),
]
QWEN25_TOWER = [*TOWER_NAMES, *OLD_MERGER, (r"\.mlp\.(gate|up|down)\.", r".mlp.\1_proj.")]
QWEN3_TOWER = [
    *TOWER_NAMES,
    (r"^(merger|deepstack_merger_list\.\d+)\.mlp\.", r"\1."),
    (r"\.up\.", ".linear_fc1."),
    (r"\.down\.", ".linear_fc2."),
]
older = partial(  # Qwen2-VL and Qwen2.5-VL; the spellings are those of some versions
    Names,
    spellings=[(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")],
    buffers=("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq"),
)
QWEN2_VL_NAMES = older(parts={"vision": ("visual.", QWEN2_TOWER), "decoder": ("", DECODER_NAMES)})
QWEN25_VL_NAMES = older(parts={"vision": ("visual.", QWEN25_TOWER), "decoder": ("", DECODER_NAMES)})
LANGUAGE_NAMES = [*DECODER_NAMES, (r"^model\.", "model.language_model.")]
QWEN3_VL_NAMES = Names(
    parts={"vision": ("model.visual.", QWEN3_TOWER), "decoder": ("", LANGUAGE_NAMES)}
)
