"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL as published: ``model_type`` qwen2_vl, qwen2_5_vl, qwen3_vl."""

from dataclasses import replace
from functools import partial
from math import isqrt
from pathlib import Path

from minivlm.clip import CLIP_MEAN, CLIP_STD
from minivlm.parts.decoder import DecoderConfig
from minivlm.pretrained.checkpoints import Names, read_json
from minivlm.pretrained.config import (
    Number,
    Section,
    fields,
    published,
    read_setting,
    refuse,
    require,
    section,
    share_out,
)
from minivlm.pretrained.llama import DECODER_NAMES, LLAMA_KEYS, decoder_config, rope_section
from minivlm.pretrained.preprocessing import read_image_settings
from minivlm.qwen2_vision import TowerConfig
from minivlm.qwen2_vl import Qwen2VL, Qwen2VLConfig, Qwen3VL, Qwen25VL

TOWER_KEYS = {  # our field -> published key, and the default of transformers' configs
    "width": ("hidden_size", 3584),
    "layers": ("depth", 32),
    "heads": ("num_heads", 16),
    "hidden": ("intermediate_size", None),
    "out": ("out_hidden_size", 3584),
    "patch": ("patch_size", 14),
    "merge": ("spatial_merge_size", 2),
    "depth": ("temporal_patch_size", 2),
    "channels": ("in_channels", 3),
    "act": ("hidden_act", None),
}
TOWER_DEFAULTS: dict[str, dict] = {  # what a family leaves out of its vision_config
    "qwen2_vl": {"embed_dim": 1280, "mlp_ratio": 4, "hidden_act": "quick_gelu"},
    "qwen2_5_vl": {
        "intermediate_size": 3420,
        "hidden_act": "silu",
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
TEXT_DEFAULTS: dict[str, dict] = {  # the same of its text_config
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
ARCHITECTURES = {  # the class of transformers that has the language model's head
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
LANGUAGE: dict[str, dict] = {  # what sets the language model apart from Llama
    "qwen2_vl": {"attention_bias": True, "out_bias": False},
    "qwen2_5_vl": {"attention_bias": True, "out_bias": False},
    "qwen3_vl": {"qk_norm": True},
}


def qwen_tower_config(config: Section, kind: str) -> TowerConfig:
    """The vision_config of a published model of type ``kind``."""
    c = config.over(TOWER_DEFAULTS[kind])
    rope = section(c, "rope_parameters")
    require(c, "model_type", kind, f"{kind}_vision")
    require(rope, "rope_type", "axial")
    require(c, "in_chans", c.get("in_channels", 3))
    ours = fields(c, TOWER_KEYS) | {"theta": read_setting(rope, "rope_theta", 10_000.0)}
    own = {"qwen2_vl": _qwen2_fields, "qwen2_5_vl": _qwen25_fields, "qwen3_vl": _qwen3_fields}
    ours |= own[kind](c, ours)
    share_out(c, "num_heads", ours["width"], ours["heads"], multiple=4)  # for two axes of pairs
    return TowerConfig(**ours)


def _qwen2_fields(c: Section, ours: dict) -> dict:
    """Qwen2-VL names its widths differently."""
    width, ratio = read_setting(c, "embed_dim"), read_setting(c, "mlp_ratio")
    return {"width": width, "hidden": max(1, int(width * ratio)), "out": ours["width"]}


def _qwen25_fields(c: Section, ours: dict) -> dict:
    """Windows are published in pixels; they hold whole tokens."""
    tokens = read_setting(c, "window_size", 112) // ours["merge"] // ours["patch"]  # a side
    if not tokens:
        raise refuse(c, "window_size", f"at least {ours['merge'] * ours['patch']}, a token's side")
    full = tuple(read_setting(c, "fullatt_block_indexes"))
    speed = read_setting(c, "tokens_per_second", 4)
    return {"window": tokens * ours["merge"], "full": full, "tokens_per_second": speed}


def _qwen3_fields(c: Section, ours: dict) -> dict:
    """The learned table is published by its number of positions."""
    table = read_setting(c, "num_position_embeddings", 2304)
    require(c, "num_position_embeddings", isqrt(table) ** 2)
    return {"table": isqrt(table), "deep": tuple(read_setting(c, "deepstack_visual_indexes"))}


def qwen_language_config(text: Section, rope: Section, tied: bool, kind: str) -> DecoderConfig:
    """The text_config of a published model of type ``kind``, with its rope settings beside it."""
    for key in ("rope_type", "type"):
        require(rope, key, "default", "mrope")
    require(rope, "mrope_interleaved", kind == "qwen3_vl")
    require(text, "model_type", kind, f"{kind}_text")
    require(text, "use_sliding_window", False, None)
    for layer in read_setting(text, "layer_types", ()):
        require({"layer_types": layer}, "layer_types", "full_attention")
    theta = {"rope_theta": read_setting(rope, "rope_theta", read_setting(text, "rope_theta"))}
    llama = {"model_type": "llama", "rope_parameters": theta, "tie_word_embeddings": tied}
    return replace(decoder_config(text.under(llama)), **LANGUAGE[kind])


def qwen_config(kind: str, config: dict) -> Qwen2VLConfig:
    """A published config.json of a model of type ``kind``, flat or with a text_config."""
    text = (section(config, "text_config") or Section(config)).over(TEXT_DEFAULTS[kind])
    rope = rope_section(text)
    tied = read_setting(config, "tie_word_embeddings", False) or read_setting(
        text, "tie_word_embeddings", False
    )
    time, row, column = read_setting(rope, "mrope_section", read_setting(text, "mrope_section"))
    return Qwen2VLConfig(
        qwen_tower_config(section(config, "vision_config"), kind),
        qwen_language_config(text, rope, tied, kind),
        (time, row, column),
        image_token_id=read_setting(config, "image_token_id", 151655),
        video_token_id=read_setting(config, "video_token_id", 151656),
    )


def build_qwen(model_class: type[Qwen2VL], config: dict) -> Qwen2VL:
    """The model of a published config.json."""
    return model_class(qwen_config(model_class.kind, config))


build_qwen2_vl = partial(build_qwen, Qwen2VL)
build_qwen25_vl = partial(build_qwen, Qwen25VL)
build_qwen3_vl = partial(build_qwen, Qwen3VL)


def publish_qwen(model: Qwen2VL) -> dict:
    """The config.json of a model of ours, flat or, for Qwen3-VL, with a text_config.

    ValueError for what no published model of its type has.
    """
    c, kind = model.config, model.kind
    theirs = {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "image_token_id": c.image_token_id,
        "video_token_id": c.video_token_id,
        "tie_word_embeddings": c.text.tied,
        "vision_config": _published_tower(c.vision, kind),
    }
    text = _published_language(c, kind)
    theirs |= {"text_config": text} if kind == "qwen3_vl" else text
    if _explicit(qwen_config(kind, theirs)) != _explicit(c):
        raise ValueError(f"no published {kind} has this configuration: {c}")
    return theirs


def _explicit(c: Qwen2VLConfig) -> Qwen2VLConfig:
    """The same with the width of a head as a number."""
    return replace(c, text=replace(c.text, head_dim=c.text.rotary_dim))


def _published_tower(c: TowerConfig, kind: str) -> dict:
    theirs = published(c, TOWER_KEYS)
    theirs["rope_parameters"] = {"rope_type": "axial", "rope_theta": c.theta}
    if kind == "qwen2_vl":
        del theirs["intermediate_size"], theirs["out_hidden_size"]
        widths = {"embed_dim": c.width, "hidden_size": c.out, "mlp_ratio": c.hidden // c.width}
        return theirs | widths
    if kind == "qwen2_5_vl":
        theirs |= {"window_size": c.window * c.patch, "fullatt_block_indexes": list(c.full)}
        return theirs | {"tokens_per_second": c.tokens_per_second}
    return theirs | {
        "num_position_embeddings": c.table**2,
        "deepstack_visual_indexes": list(c.deep),
    }


def _published_language(c: Qwen2VLConfig, kind: str) -> dict:
    theirs, sections = published(c.text, LLAMA_KEYS), list(c.sections)
    del theirs["mlp_bias"], theirs["tie_word_embeddings"]
    if kind == "qwen3_vl":
        theirs["head_dim"] = c.text.rotary_dim
        rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": sections}
    else:
        del theirs["head_dim"], theirs["attention_bias"]  # always width / heads; of q, k, v alone
        rope = {"type": "mrope", "mrope_section": sections}
    return theirs | {"rope_scaling": rope}


PREPARE = {  # option of ``preprocess`` -> key of a folder's settings; the family's where it is not
    "patch": "patch_size",
    "merge": "merge_size",
    "min_pixels": "min_pixels",
    "max_pixels": "max_pixels",
    "mean": "image_mean",
    "std": "image_std",
}
QWEN2_IMAGES = (14, 2, 56 * 56, 28 * 28 * 1280, CLIP_MEAN, CLIP_STD)  # transformers' defaults
QWEN3_IMAGES = (16, 2, 256 * 256, 4096 * 4096, (0.5,) * 3, (0.5,) * 3)  # as published
IMAGES = {"qwen2_vl": QWEN2_IMAGES, "qwen2_5_vl": QWEN2_IMAGES, "qwen3_vl": QWEN3_IMAGES}


def image_options(folder: str | Path) -> dict:
    """How a checkpoint's images are made: what ``preprocess(image, **options)`` takes.

    processor_config.json or preprocessor_config.json says it; the rest is the family's. ValueError
    for another family.
    """
    kind = read_json(Path(folder) / "config.json").get("model_type")
    settings = read_image_settings(folder)
    if kind not in list(IMAGES):
        raise ValueError(f"config.json: model_type = {kind!r} is none of {[*IMAGES]}")
    size = section(settings, "size")
    edges = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    said = edges | {key: value for key, value in settings.items() if value is not None}
    defaults = zip(PREPARE.items(), IMAGES[kind], strict=True)
    options = {}
    for (ours, theirs), default in defaults:
        options[ours] = default if said.get(theirs) is None else said[theirs]
    for ours in ("patch", "merge", "min_pixels", "max_pixels"):
        if options[ours] not in Number(1, 2**40):
            raise refuse(settings, PREPARE[ours], "a whole number of pixels", options[ours])
    return options


QWEN_TOWER_NAMES = [  # our name -> the published one, within the tower
    (r"^patch\.", "patch_embed.proj."),
    (r"^positions", "pos_embed.weight"),
    (r"^deep\.", "deepstack_merger_list."),
    (r"\.attention\.(q|k|v)\.", r".attn.qkv.\1."),
    (r"\.attention\.out\.", ".attn.proj."),
]
OLD_MERGER_NAMES = [
    (r"^merger\.norm\.", "merger.ln_q."),
    (r"^merger\.mlp\.up\.", "merger.mlp.0."),
    (r"^merger\.mlp\.down\.", "merger.mlp.2."),
]
QWEN2_TOWER_NAMES = [
    *QWEN_TOWER_NAMES,
    *OLD_MERGER_NAMES,
    (r"\.mlp\.up\.", ".mlp.fc1."),
    (r"\.mlp\.down\.", ".mlp.fc2."),
]
QWEN25_TOWER_NAMES = [
    *QWEN_TOWER_NAMES,
    *OLD_MERGER_NAMES,
    (r"\.mlp\.(gate|up|down)\.", r".mlp.\1_proj."),
]
QWEN3_TOWER_NAMES = [
    *QWEN_TOWER_NAMES,
    (r"^(merger|deepstack_merger_list\.\d+)\.mlp\.", r"\1."),
    (r"\.up\.", ".linear_fc1."),
    (r"\.down\.", ".linear_fc2."),
]
_older_names = partial(  # Qwen2-VL and Qwen2.5-VL; the spellings are those of some versions
    Names,
    spellings=[(r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model.")],
    ignored=("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq"),
)
QWEN2_VL_NAMES = _older_names(
    parts={"vision": ("visual.", QWEN2_TOWER_NAMES), "decoder": ("", DECODER_NAMES)}
)
QWEN25_VL_NAMES = _older_names(
    parts={"vision": ("visual.", QWEN25_TOWER_NAMES), "decoder": ("", DECODER_NAMES)}
)
QWEN3_LANGUAGE_NAMES = [*DECODER_NAMES, (r"^model\.", "model.language_model.")]
QWEN3_VL_NAMES = Names(
    parts={"vision": ("model.visual.", QWEN3_TOWER_NAMES), "decoder": ("", QWEN3_LANGUAGE_NAMES)}
)
