"""Small published folders, written by transformers with random weights: model, tokenizer, images.

Each function writes one into a folder and returns transformers' model and processor of it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from test_published_tokenizers import bert, clip, llava, opt, siglip
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

LLAVA_TEMPLATE = (  # of llava-hf/llava-1.5-7b-hf
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CUTTING = ("max_length", "stride", "truncation_side", "truncation_strategy")
Oracle = tuple[Any, Any]  # transformers' model and processor


def tower(**options: Any) -> dict[str, Any]:
    """The sizes of a small transformer."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return sizes | {"intermediate_size": 20} | options


def randomised(model: Any, scale: float, seed: int = 0) -> Any:
    """The model with weights at which it does not say one token only."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            small = 0.1 if name.endswith("bias") else 1  # else a BLIP says one word for ever
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale * small)
    return model.eval()


def rows(tokenizer: Any) -> int:
    """The table of words is larger than the tokenizer, as in published models."""
    return len(tokenizer) + 5


def untruncated(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer without what a folder may say of cutting: a processor takes it at its word."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.init_kwargs = {
        key: value for key, value in tokenizer.init_kwargs.items() if key not in CUTTING
    }
    tokenizer.save_pretrained(folder)
    return type(tokenizer).from_pretrained(folder)


def write_llava(folder: Path, *, side: int = 24, full: bool = False, **options: Any) -> Oracle:
    tokenizer = untruncated(llava(folder), folder)
    token, strategy = tokenizer.convert_tokens_to_ids("<image>"), "full" if full else "default"
    text = tower(model_type="llama", vocab_size=rows(tokenizer), max_position_embeddings=512)
    text |= {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    vision = tower(model_type="clip_vision_model", image_size=side, patch_size=8)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text | options,
        image_token_index=token,
        vision_feature_select_strategy=strategy,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return saved(folder, LlavaForConditionalGeneration(config), processor)


def write_blip2(folder: Path, *, side: int = 24, queries: int = 3, **options: Any) -> Oracle:
    tokenizer = opt(folder)
    text = tower(model_type="opt", ffn_dim=20, word_embed_proj_dim=16, vocab_size=rows(tokenizer))
    text |= {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    config = Blip2Config(
        vision_config=tower(image_size=side, patch_size=8),
        qformer_config=tower(),
        text_config=text | options,
        num_query_tokens=queries,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = BlipImageProcessorPil(size={"height": side, "width": side})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=queries)
    return saved(folder, Blip2ForConditionalGeneration(config), processor)


def write_blip(folder: Path, *, side: int = 24, **options: Any) -> Oracle:
    tokenizer = bert(folder)
    text = tower(vocab_size=rows(tokenizer), projection_dim=16, eos_token_id=3, pad_token_id=0)
    text |= {"bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.sep_token_id}
    vision = tower(image_size=side, patch_size=8)
    config = BlipConfig(vision_config=vision, text_config=text | options)
    images = BlipImageProcessorPil(size={"height": side, "width": side})
    processor = BlipProcessor(images, tokenizer)
    return saved(folder, BlipForConditionalGeneration(config), processor)


def write_clip(folder: Path, *, side: int = 24, legacy: bool = False) -> Oracle:
    tokenizer = clip(folder)
    text = tower(vocab_size=len(tokenizer), max_position_embeddings=40, projection_dim=12)
    text |= {"bos_token_id": 0, "eos_token_id": 2 if legacy else tokenizer.eos_token_id}
    vision = tower(image_size=side, patch_size=8, projection_dim=12)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return saved(folder, CLIPModel(config), CLIPProcessor(images, tokenizer))


def write_siglip(folder: Path, *, side: int = 24) -> Oracle:
    tokenizer = siglip(folder)
    text = tower(vocab_size=rows(tokenizer), max_position_embeddings=32, projection_size=16)
    vision = tower(image_size=side, patch_size=8)
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    images = SiglipImageProcessorPil(size={"height": side, "width": side})
    images.save_pretrained(folder)  # apart: SiglipProcessor asks for sentencepiece
    return saved(folder, model, None)[0], (images, tokenizer)


def saved(folder: Path, model: Any, processor: Any, scale: float = 0.8) -> Oracle:
    model = randomised(model, scale)
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return model, processor


def write_pictures(folder: Path) -> list[Path]:
    """Files of odd sizes and of many kinds."""
    noise = np.random.default_rng(0)

    def drawn(height: int, width: int, channels: int = 3) -> Image.Image:
        small = noise.integers(0, 256, (5, 7, channels), dtype=np.uint8)
        image = Image.fromarray(small.squeeze())
        return image.resize((width, height), Image.Resampling.BICUBIC)

    turned, clear = Image.Exif(), drawn(31, 47).quantize(16)
    turned[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "wide.png": (drawn(23, 61), {}),
        "tall.jpg": (drawn(67, 29), {"quality": 80}),
        "grey.png": (drawn(33, 25, 1), {}),
        "grey.jpg": (drawn(17, 41, 1), {}),
        "transparent.png": (drawn(37, 35, 4), {}),
        "grey_transparent.png": (drawn(21, 39, 2), {}),
        "palette.png": (clear, {"transparency": 3}),
        "turned.jpg": (drawn(27, 51), {"exif": turned}),
        "tiny.png": (drawn(2, 3), {}),
    }
    for name, (image, options) in kinds.items():
        image.save(folder / name, **options)
    return [folder / name for name in kinds]
