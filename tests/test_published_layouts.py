"""Folders laid out as the released ones are, scaled down: they say what they say in transformers.

Each config.json and each preprocessor_config.json holds what the published file holds, at sizes
that a test can afford; the weights are random, the tokenizer small.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from published_folders import (
    LLAVA_TEMPLATE,
    randomised,
    untruncated,
    write_pictures,
)
from test_published_tokenizers import bert, clip, llava, opt, siglip
from transformers import (
    AutoConfig,
    Blip2ForConditionalGeneration,
    BlipForConditionalGeneration,
    CLIPModel,
    LlavaForConditionalGeneration,
    SiglipModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from minivlm.scenes.files import read_picture
from minivlm.speaking import open_checkpoint

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = ["a photo of a star", "two circles, side by side", "x"]


def write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))


def with_weights(folder: Path, kind: type, config: dict[str, Any]) -> Any:
    """Transformers' model of this config.json, which stays in the folder as it is."""
    write(folder, "config.json", config)
    model = randomised(kind(AutoConfig.from_pretrained(folder)), scale=0.8)
    model.save_pretrained(folder)
    write(folder, "config.json", config)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return kind.from_pretrained(folder, dtype=torch.float32).float().eval()


OPENAI_IMAGES = {  # of openai/clip-vit-base-patch32 and openai/clip-vit-large-patch14
    "crop_size": 24,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": 24,
}


def openai_clip(tokenizer: Any, second_copy: bool) -> dict[str, Any]:
    """The layout of 2021: every default of every model is written down, twice or null."""
    generation = {"do_sample": False, "max_length": 20, "top_k": 50, "id2label": {"0": "LABEL_0"}}
    text = generation | SIZES | {"intermediate_size": 20, "hidden_act": "quick_gelu"}
    text |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "dropout": 0.0}
    text |= {"max_position_embeddings": 40, "vocab_size": len(tokenizer), "layer_norm_eps": 1e-05}
    vision = generation | SIZES | {"intermediate_size": 20, "hidden_act": "quick_gelu"}
    vision |= {"image_size": 24, "patch_size": 8, "layer_norm_eps": 1e-05}
    text["model_type"], vision["model_type"] = "clip_text_model", "clip_vision_model"
    copied = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    more = {"projection_dim": 12}
    text_copy = {key: text[key] for key in (*copied, "vocab_size")} | more
    vision_copy = {key: vision[key] for key in (*copied, "image_size", "patch_size")} | more
    return {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 12,
        "text_config": text,
        "text_config_dict": text_copy if second_copy else None,
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": vision,
        "vision_config_dict": vision_copy if second_copy else None,
    }


@torch.no_grad()
@pytest.mark.parametrize("second_copy", [False, True], ids=["base-patch32", "large-patch14"])
def test_clip_as_openai_laid_it_out_scores_as_in_transformers(tmp_path, second_copy):
    tokenizer = clip(tmp_path)
    config = openai_clip(tokenizer, second_copy)
    if second_copy:  # which has the defaults of the class for what it does not say
        config["text_config"]["max_position_embeddings"] = 77
    model = with_weights(tmp_path, CLIPModel, config)
    write(tmp_path, "preprocessor_config.json", OPENAI_IMAGES)
    scorer = open_checkpoint(tmp_path)
    images = CLIPImageProcessorPil(size=24, crop_size=24, image_mean=MEAN, image_std=STD)
    shown = [read_picture(path).convert("RGB") for path in write_pictures(tmp_path)[:3]]
    words = tokenizer(TEXTS, padding=True, return_tensors="pt")
    theirs = model(**words, **images(shown, return_tensors="pt")).logits_per_image
    difference = scorer.similarity(shown, TEXTS) - theirs
    assert difference.abs().max() < 1e-5 * theirs.abs().max().clamp(min=1)


@torch.no_grad()
def test_siglip_as_google_laid_it_out_scores_as_in_transformers(tmp_path):
    tokenizer = siglip(tmp_path)
    text = SIZES | {"intermediate_size": 20, "vocab_size": len(tokenizer) + 3}
    config = {  # of google/siglip-base-patch16-224, which says only what is no default
        "architectures": ["SiglipModel"],
        "initializer_factor": 1.0,
        "model_type": "siglip",
        "text_config": text | {"model_type": "siglip_text_model"},
        "torch_dtype": "float32",
        "vision_config": SIZES
        | {"intermediate_size": 20, "model_type": "siglip_vision_model"}
        | {"image_size": 32},
    }
    model = with_weights(tmp_path, SiglipModel, config)
    said = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 32, "width": 32},
    }
    write(tmp_path, "preprocessor_config.json", said)
    scorer = open_checkpoint(tmp_path)
    shown = [read_picture(path).convert("RGB") for path in write_pictures(tmp_path)[:3]]
    words = tokenizer(TEXTS, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pixels = images(shown, return_tensors="pt")["pixel_values"]
    theirs = model(input_ids=words, pixel_values=pixels).logits_per_image
    difference = scorer.similarity(shown, TEXTS) - theirs
    assert difference.abs().max() < 1e-5 * theirs.abs().max().clamp(min=1)


BLIP_IMAGES = {  # of Salesforce/blip-image-captioning-base
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "BlipImageProcessor",
    "image_std": STD,
    "processor_class": "BlipProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 24, "width": 24},
    "size_divisor": 32,
}


def test_a_blip_as_salesforce_laid_it_out_captions_as_in_transformers(tmp_path):
    tokenizer = bert(tmp_path)
    text = SIZES | {"intermediate_size": 20, "vocab_size": len(tokenizer), "is_decoder": True}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": 2, "pad_token_id": 0}
    text |= {"sep_token_id": tokenizer.sep_token_id, "projection_dim": 768, "layer_norm_eps": 1e-12}
    text |= {"model_type": "blip_text_model", "encoder_hidden_size": 16, "use_cache": True}
    vision = SIZES | {"intermediate_size": 20, "image_size": 24, "patch_size": 8}
    vision |= {"model_type": "blip_vision_model", "layer_norm_eps": 1e-05, "num_channels": 3}
    config = {
        "architectures": ["BlipForConditionalGeneration"],
        "image_text_hidden_size": 256,
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "blip",
        "projection_dim": 512,
        "text_config": text,
        "vision_config": vision,
    }
    model = with_weights(tmp_path, BlipForConditionalGeneration, config)
    write(tmp_path, "preprocessor_config.json", BLIP_IMAGES)
    speaker = open_checkpoint(tmp_path)
    images = BlipImageProcessorPil(size={"height": 24, "width": 24})
    for path in write_pictures(tmp_path)[:3]:
        image = read_picture(path).convert("RGB")
        pixels = images(image, return_tensors="pt")["pixel_values"]
        new = model.generate(pixel_values=pixels, max_new_tokens=10, do_sample=False)
        said = tokenizer.batch_decode(new, skip_special_tokens=True)[0].strip()
        assert speaker.caption(image, max_tokens=10) == said


def test_a_blip_2_as_salesforce_laid_it_out_ends_at_a_new_line(tmp_path):
    tokenizer = opt(tmp_path)
    line = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    text = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "activation_dropout": 0.0}
    text |= SIZES | {"ffn_dim": 20, "word_embed_proj_dim": 16, "vocab_size": len(tokenizer) + 7}
    text |= {"eos_token_id": line, "prefix": "</s>", "torch_dtype": "float16"}
    vision = SIZES | {"intermediate_size": 20, "image_size": 24, "patch_size": 8}
    config = {
        "architectures": ["Blip2ForConditionalGeneration"],
        "image_text_hidden_size": 256,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "initializer_factor": 1.0,
        "model_type": "blip-2",
        "num_query_tokens": 4,
        "qformer_config": SIZES | {"intermediate_size": 20, "model_type": "blip_2_qformer"},
        "text_config": text,
        "use_decoder_only_language_model": True,
        "vision_config": vision | {"model_type": "blip_2_vision_model", "qkv_bias": True},
    }
    model = with_weights(tmp_path, Blip2ForConditionalGeneration, config)
    write(tmp_path, "preprocessor_config.json", BLIP_IMAGES | {"processor_class": "Blip2Processor"})
    write(tmp_path, "generation_config.json", {"eos_token_id": line, "pad_token_id": 1})
    speaker = open_checkpoint(tmp_path)
    images = BlipImageProcessorPil(size={"height": 24, "width": 24})
    for path in write_pictures(tmp_path)[:3]:
        image = read_picture(path).convert("RGB")
        pixels = images(image, return_tensors="pt")["pixel_values"]
        ids = tokenizer("Question: what? Answer:", return_tensors="pt")["input_ids"]
        ids = torch.cat([torch.full((1, 4), config["image_token_index"]), ids], dim=1)
        for given in ({}, {"input_ids": ids}):
            new = model.generate(pixel_values=pixels, max_new_tokens=10, do_sample=False, **given)
            new = new[:, ids.shape[1] :] if given else new  # else special tokens alone precede
            said = tokenizer.batch_decode(new, skip_special_tokens=True)[0].strip()
            how = {"max_tokens": 10}
            ours = speaker.ask(image, "what?", **how) if given else speaker.caption(image, **how)
            assert ours == said
    assert speaker.processor.ends() == line


@pytest.mark.parametrize("newer", [False, True], ids=["as first published", "with newer files"])
def test_llava_as_its_folder_is_laid_out_answers_as_in_transformers(tmp_path, newer):
    tokenizer = untruncated(llava(tmp_path), tmp_path)
    token = tokenizer.convert_tokens_to_ids("<image>")
    text = SIZES | {"intermediate_size": 20, "num_key_value_heads": 2, "model_type": "llama"}
    text |= {"_name_or_path": "lmsys/vicuna-7b-v1.5", "max_position_embeddings": 4096}
    text |= {"rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": len(tokenizer) + 9}
    vision = SIZES | {"intermediate_size": 20, "image_size": 24, "patch_size": 8}
    vision |= {"model_type": "clip_vision_model", "projection_dim": 768, "vocab_size": 32000}
    config = {  # of llava-hf/llava-1.5-7b-hf
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": token,
        "model_type": "llava",
        "pad_token_id": 0,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    if newer:
        config |= {"image_seq_length": 9}
    model = with_weights(tmp_path, LlavaForConditionalGeneration, config)
    images = {key: value for key, value in BLIP_IMAGES.items() if "_p" not in key}
    images |= {"crop_size": {"height": 24, "width": 24}, "do_center_crop": True}
    images |= {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}}
    write(tmp_path, "preprocessor_config.json", images)
    if newer:
        whole = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 8}
        write(tmp_path, "processor_config.json", whole | {"processor_class": "LlavaProcessor"})
        write(tmp_path, "chat_template.json", {"chat_template": LLAVA_TEMPLATE})
        write(tmp_path, "generation_config.json", {"eos_token_id": 2, "pad_token_id": 0})
    speaker = open_checkpoint(tmp_path)
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    ids = tokenizer(f"USER: {'<image>' * 9}\nwhat? ASSISTANT:", return_tensors="pt")["input_ids"]
    for path in write_pictures(tmp_path)[:3]:
        image: Image.Image = read_picture(path).convert("RGB")
        pixels = theirs(image, return_tensors="pt")["pixel_values"]
        new = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=10, do_sample=False)
        said = tokenizer.batch_decode(new[:, ids.shape[1] :], skip_special_tokens=True)[0].strip()
        assert speaker.ask(image, "what?", max_tokens=10) == said
        assert torch.equal(speaker.inputs(image, "what?")["input_ids"], ids)
