"""BLIP-2 as published: ``model_type`` blip-2, for retrieval or with an OPT that speaks."""

from collections.abc import Collection

from torch import Tensor

from minivlm.blip2 import Blip2, QFormerConfig
from minivlm.pretrained.blip import BLIP_VISION_NAMES, MED_KEYS, MED_NAMES, blip_vision_config
from minivlm.pretrained.checkpoints import Names
from minivlm.pretrained.config import Section, fields, read_setting, section, share_out
from minivlm.pretrained.opt import OPT_NAMES, build_opt
from minivlm.pretrained.preprocessing import Images
from minivlm.pretrained.processing import Said, SpeakingProcessor, one_row, single

# The defaults of transformers' Blip2VisionConfig: EVA-CLIP's ViT-g/14 without its last block.
VIT_G = {
    "hidden_size": 1408,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "intermediate_size": 6144,
    "image_size": 224,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
}
QFORMER_KEYS = MED_KEYS | {  # Blip2QFormerConfig, where it differs from BlipTextConfig
    "vocab_size": ("vocab_size", 30522),
    "heads": ("num_attention_heads", 12),
    "every": ("cross_attention_frequency", 2),
}


def qformer_config(config: Section, memory: int, queries: int) -> QFormerConfig:
    """A published qformer_config; memory: the width of the image states."""
    ours = fields(config, QFORMER_KEYS)
    share_out(config, "num_attention_heads", ours["width"], ours["heads"])
    return QFormerConfig(**ours, memory=memory, queries=queries)


def blip2_image_token(config: dict) -> int:
    """The id of the queries' places; the first published files say none."""
    return read_setting(config, "image_token_index", read_setting(config, "image_token_id", -1))


def build_blip2(config: dict, names: Collection[str] = ()) -> Blip2:
    """The model of a published config.json; the names of its weights say what it is for.

    Without names: it speaks, and the Q-Former reads text only if the config says so.
    """
    vision = blip_vision_config(section(config, "vision_config").over(VIT_G))
    text = section(config, "qformer_config")
    reads = "embeddings.word_embeddings.weight" in names
    speaks = "language_projection.weight" in names or not names
    model = Blip2(
        vision,
        qformer_config(text, vision.width, read_setting(config, "num_query_tokens", 32)),
        width=read_setting(config, "image_text_hidden_size", 256) if reads else 0,
        decoder=build_opt(section(config, "text_config")) if speaks else None,
        token=blip2_image_token(config),
    )
    model.head = None  # of the checkpoints of stage 1, none has the language-model head
    if not reads:
        model.qformer.drop_text(mlps=not read_setting(text, "use_qformer_text_input", False))
    return model


BLIP2_NAMES = Names(
    published=[  # our name -> the published one
        (r"^qformer\.queries$", "query_tokens"),
        (r"^qformer\.(word|position)s\.", r"embeddings.\1_embeddings."),
        (r"^qformer\.norm\.", "qformer.layernorm."),
        (r"^qformer\.blocks\.", "qformer.encoder.layer."),
        (r"\.query_mlp\.up\.", ".intermediate_query.dense."),
        (r"\.query_mlp\.down\.", ".output_query.dense."),
        (r"\.query_norm\.", ".output_query.LayerNorm."),
        *MED_NAMES,
        (r"attention\.self\.", "attention.attention."),
        (r"^image_projection", "vision_projection"),
        (r"^projection", "language_projection"),
        (r"^match_head", "itm_head"),
    ],
    parts={
        "vision": ("vision_model.", BLIP_VISION_NAMES),
        "decoder": ("language_model.", OPT_NAMES),
    },
    ignored=("embeddings.position_ids",),
)


class Blip2Processor(SpeakingProcessor):
    """BLIP-2's with OPT: the queries' places, the tokenizer's own first token, the prompt."""

    image_kind = "Blip"

    def caption_inputs(self, image: Images) -> dict[str, Tensor]:
        """What the model takes for a caption: an empty prompt."""
        start = self.token("bos_token_id", 2)
        return self._after_queries(image, self.tokenizer.prefix if start is None else [start])

    def inputs(self, image: Images, text: str, before: Said = ()) -> dict[str, Tensor]:
        """A question about one image, and the conversation that it follows.

        Question: question Answer: answer. Question: question Answer:

        input_ids and attention_mask (1, Q + T), pixel_values (1, 3, H, W). ValueError for a special
        token in what was said.
        """
        self.refuse_special_tokens(text, *(said for turn in before for said in turn))
        turns = [f"Question: {question} Answer: {answer}. " for question, answer in before]
        said = "".join(turns) + f"Question: {text} Answer:"
        tok = self.tokenizer
        return self._after_queries(image, [*tok.prefix, *tok.encode(said), *tok.suffix])

    def _after_queries(self, image: Images, ids: list[int]) -> dict[str, Tensor]:
        queries = read_setting(self.config, "num_query_tokens", 32)
        token = blip2_image_token(self.config)
        return one_row([token] * queries + ids, self.images(single(image)))

    def ends(self) -> int | list[int] | None:
        """As transformers: the language model's own end, whatever generation_config.json says."""
        return self.own_ends("eos_token_id", 2)
