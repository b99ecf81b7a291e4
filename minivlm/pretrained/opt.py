"""OPT as published, the language model within BLIP-2."""

from minivlm.clip import TextConfig
from minivlm.opt import Opt
from minivlm.pretrained.clip import CLIP_BLOCK_NAMES, CLIP_TEXT_KEYS
from minivlm.pretrained.config import Section, fields, require, share_out

OPT_KEYS = CLIP_TEXT_KEYS | {  # where OPTConfig of transformers differs from CLIPTextConfig
    "vocab_size": ("vocab_size", 50272),
    "length": ("max_position_embeddings", 2048),
    "width": ("hidden_size", 768),
    "heads": ("num_attention_heads", 12),
    "hidden": ("ffn_dim", 3072),
    "act": ("activation_function", "relu"),
}


def build_opt(config: Section) -> Opt:
    """The model of a published config.json."""
    require(config, "model_type", "opt")
    # OPT-350m alone embeds in another width, and alone is post-norm.
    require(config, "word_embed_proj_dim", config.get("hidden_size", 768), None)
    require(config, "_remove_final_layer_norm", False)
    required = ("do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine")
    for key in (*required, "tie_word_embeddings"):
        require(config, key, True)
    ours = fields(config, OPT_KEYS)
    share_out(config, "num_attention_heads", ours["width"], ours["heads"])
    return Opt(TextConfig(**ours))


OPT_NAMES = [  # our name -> the published one, within the language model
    (r"^head\.", "lm_head."),
    (r"^positions", "model.decoder.embed_positions.weight"),
    (r"^embedding\.", "model.decoder.embed_tokens."),
    (r"^norm\.|norm2\.", "final_layer_norm."),
    (r"^final", "model.decoder.final"),
    (r"^blocks\.", "model.decoder.layers."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    *CLIP_BLOCK_NAMES,
    (r"\.mlp\.", "."),
]
