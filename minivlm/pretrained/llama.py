"""Llama as published: ``model_type`` llama, and the language model within LLaVA and Qwen-VL."""

from collections.abc import Mapping

from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.pretrained.checkpoints import Names
from minivlm.pretrained.config import (
    Section,
    fields,
    published,
    read_setting,
    refuse,
    require,
    section,
    share_out,
)

LLAMA_KEYS = {  # our field -> published key, and the default of transformers' LlamaConfig
    "vocab_size": ("vocab_size", 32000),
    "width": ("hidden_size", 4096),
    "layers": ("num_hidden_layers", 32),
    "heads": ("num_attention_heads", 32),
    "kv_heads": ("num_key_value_heads", None),  # absent: as many as heads
    "hidden": ("intermediate_size", 11008),
    "head_dim": ("head_dim", None),
    "theta": ("rope_theta", 10_000.0),
    "eps": ("rms_norm_eps", 1e-6),
    "act": ("hidden_act", "silu"),
    "attention_bias": ("attention_bias", False),
    "mlp_bias": ("mlp_bias", False),
    "tied": ("tie_word_embeddings", False),
}


def decoder_config(config: Mapping) -> DecoderConfig:
    """A published Llama config.json, or the text_config of a model that has a Llama inside."""
    require(config, "model_type", "llama")
    rope = rope_section(config)
    require(rope, "rope_type", "default")
    require(rope, "type", "default")
    ours = fields(config, LLAMA_KEYS)
    ours["kv_heads"] = ours["kv_heads"] or ours["heads"]
    ours["theta"] = read_setting(rope, "rope_theta", ours["theta"])
    check_heads(config, ours)
    return DecoderConfig(**ours)


def rope_section(config: Mapping) -> Section:
    """The settings of the rotary positions: newer files and older ones name them differently."""
    return section(config, "rope_parameters") or section(config, "rope_scaling")


def check_heads(config: Mapping, ours: dict) -> None:
    """ValueError where the numbers of a decoder's heads do not fit its width, or each other."""
    share_out(config, "num_key_value_heads", ours["heads"], ours["kv_heads"])
    if ours["head_dim"] is None:
        share_out(config, "num_attention_heads", ours["width"], ours["heads"], multiple=2)
    elif ours["head_dim"] % 2:
        raise refuse(config, "head_dim", "even: rotary positions turn pairs of features")


def publish_decoder(config: DecoderConfig) -> dict:
    """The config.json of a configuration of ours; ValueError for what no published Llama has."""
    theirs = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    theirs |= published(config, LLAMA_KEYS)
    if decoder_config(theirs) != config:
        raise ValueError(f"no published Llama has this configuration: {config}")
    return theirs


def build_llama(config: dict) -> Decoder:
    """The model of a published config.json."""
    return Decoder(decoder_config(config))


DECODER_NAMES = [  # our name -> the published one, within the language model
    (r"^embedding\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^head\.", "lm_head."),
    (r"^blocks\.", "model.layers."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.attention\.(q|k|v)\.", r".self_attn.\1_proj."),
    (r"\.attention\.(q|k)_norm\.", r".self_attn.\1_norm."),
    (r"\.attention\.out\.", ".self_attn.o_proj."),
    (r"\.mlp\.(gate|up|down)\.", r".mlp.\1_proj."),
]
LLAMA_NAMES = Names(published=DECODER_NAMES, ignored=("rotary_emb.inv_freq",))
