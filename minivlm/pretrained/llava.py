"""LLaVA as published: ``model_type`` llava, a CLIP image tower and a Llama."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from torch import Tensor

from minivlm.llava import Llava, LlavaConfig
from minivlm.pretrained.chat_templates import Message, warn_of_template
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
from minivlm.pretrained.preprocessing import Images
from minivlm.pretrained.processing import (
    Said,
    SpeakingProcessor,
    alternate,
    check_length,
    one_row,
)

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
    return Llava(
        LlavaConfig(
            vision=clip_vision_config(vision),
            text=decoder_config(text.under({"tie_word_embeddings": tied})),
            image_token_id=llava_image_token(config),
            feature_layers=feature_layers(config),
            keep_class=config.get("vision_feature_select_strategy") == "full",
            **fields(config, LLAVA_KEYS),
        )
    )


def llava_image_token(config: dict) -> int:
    """The id of an image's placeholders, under its older key or the newer."""
    return read_setting(config, "image_token_index", read_setting(config, "image_token_id", 32000))


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


EXAMPLE = ("What is it?", "A star.", "Where?")  # on which a folder's template is compared


class LlavaProcessor(SpeakingProcessor):
    """LLaVA-1.5's: the images in the first turn, then the conversation, by Vicuna's names.

    USER: <image>\nquestion ASSISTANT: answer USER: question ASSISTANT:

    That is the template of the published folders. The authors' training data had </s> after an
    answer, in the place of the space.
    """

    image_kind = "Llava"
    mark = "<image>"

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.image_token = llava_image_token(self.config)
        if self.tokenizer.special_tokens.get(self.mark) != self.image_token:
            raise ValueError(
                f"{folder}: the tokenizer has no {self.mark} of id {self.image_token}, "
                "which config.json says an image has"
            )
        tower = clip_vision_config(section(self.config, "vision_config"))
        whole = self.config.get("vision_feature_select_strategy") == "full"
        self.image_tokens = (tower.image_size // tower.patch) ** 2 + whole
        said = [{"type": "text", "text": text} for text in EXAMPLE]
        messages: list[Message] = [
            {"role": "user", "content": [{"type": "image"}, said[0]]},
            {"role": "assistant", "content": [said[1]]},
            {"role": "user", "content": [said[2]]},
        ]
        warn_of_template(folder, messages, llava_chat(EXAMPLE, images=1))

    def caption_inputs(self, image: Images) -> dict[str, Tensor]:
        """What the model takes for a caption: a question like another."""
        return self.inputs(image, "Describe the image.")

    def inputs(self, image: Images, text: str, before: Said = ()) -> dict[str, Tensor]:
        """A question about one image or several, and the conversation that it follows.

        input_ids and attention_mask (1, T), pixel_values (M, 3, H, W). ValueError for a special
        token in what was said, and for a prompt that is longer than the model reads.
        """
        texts = [*chain.from_iterable(before), text]
        self.refuse_special_tokens(*texts)
        pixels = self.images(image)
        ids = self.tokenizer.encode(llava_chat(texts, len(pixels)), [self.mark])
        expanded = (
            [i] * self.image_tokens if i == self.image_token else [i]
            for i in [*self.tokenizer.prefix, *ids, *self.tokenizer.suffix]
        )
        given = one_row([*chain.from_iterable(expanded)], pixels)
        check_length(self.config, given["input_ids"])
        return given


def llava_chat(texts: Sequence[str], images: int) -> str:
    """A conversation as the published template writes it, up to where the answer begins.

    texts: question, answer, ..., question; the first is about that many images.
    """
    turns = alternate(("USER", "ASSISTANT"), ["<image>\n" * images + texts[0], *texts[1:]])
    return "".join(f"{role}: {text} " for role, text in turns) + "ASSISTANT:"
