"""What once went wrong without a word, or with an unclear one: padding, precision, bad input."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_configs import LLAMA, QWEN, QWEN_TEXT, TOWER, WHOLE
from transformers import (
    Blip2ForConditionalGeneration,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from minivlm import blip, multimodal
from minivlm.blip2 import Blip2, QFormerConfig
from minivlm.clip import VisionConfig
from minivlm.llava import Llava, LlavaConfig
from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.parts.generation import generate
from minivlm.parts.layers import Attention, attend
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.loading import FAMILIES
from minivlm.pretrained.qwen2_vl import image_options
from minivlm.qwen2_vision import TowerConfig, preprocess
from minivlm.qwen2_vl import Qwen2VL, Qwen2VLConfig
from minivlm.vit import ViTConfig
from minivlm.vqvae import VQVAE, VQVAEConfig

VISION = ViTConfig((8, 8), patch=4, width=8, layers=1, heads=2, hidden=8)
TEXT = DecoderConfig(30, 16, 2, 2, 1, 16)


def shaken(model: torch.nn.Module, std: float = 0.5) -> torch.nn.Module:
    """The model with weights large enough that every input matters."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()


# Prompts of unequal length


def speakers() -> dict:
    """BLIP's decoder and BLIP-2's ITG: both add learned positions to the words."""
    med = blip.MedConfig(30, 12, 8, 2, 2, 8, memory=8)
    former = QFormerConfig(30, 12, 8, 2, 2, 8, memory=8, queries=3)
    return {
        "blip": shaken(blip.Blip(VISION, med, 8)),
        "itg": shaken(Blip2(VISION, former, width=6)).itg,
    }


@pytest.mark.parametrize("name, use_cache", [("blip", False), ("itg", False), ("itg", True)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_says_beside_a_longer_one_what_it_says_alone(name, use_cache, side):
    model, states = speakers()[name], torch.randn(3, 5, 8)
    rows = [torch.randint(30, (length,)) for length in (2, 6, 4)]
    ids, mask = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(6 - len(row), 6)
        ids[i, place], mask[i, place] = row, 1
    together = generate(model, ids, 5, attention_mask=mask, image=states, use_cache=use_cache)
    for i, row in enumerate(rows):
        alone = generate(model, row[None], 5, image=states[i : i + 1], use_cache=use_cache)
        assert torch.equal(together[i], alone[0])


# A model that says a placeholder


def always(model: torch.nn.Module, token: int) -> torch.nn.Module:
    """The model, which says one token again and again, and sees what it says."""
    head = model.decoder.head
    head.register_forward_hook(
        lambda _, args, out: out.index_fill(-1, torch.tensor([token]), 1e3 + out.mean().item())
    )
    return model


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_placeholder_that_is_said_is_text_with_a_cache_and_without(kind, padded):
    if kind == "llava":
        vision = VisionConfig(8, 4, 8, 1, 2, 8)
        model, token = Llava(LlavaConfig(vision, TEXT, image_token_id=7)), 7
        given = {"pixel_values": torch.randn(2, 3, 8, 8)}
    else:
        tower = TowerConfig(8, 1, 2, hidden=32, out=16, patch=4)
        biased = DecoderConfig(30, 16, 2, 2, 1, 16, attention_bias=True, out_bias=False)
        model, token = Qwen2VL(Qwen2VLConfig(tower, biased, (2, 1, 1), 7, 8)), 7
        grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
        given = {"pixel_values": torch.randn(32, 96), "image_grid_thw": grid}
    model = always(shaken(model), token)
    ids = torch.tensor([[1, 7, 7, 7, 7, 4], [0, 7, 7, 7, 7, 3]])
    mask = torch.tensor([[1] * 6, [0] + [1] * 5]) if padded else None
    cached, anew = (
        generate(model, ids, 4, attention_mask=mask, use_cache=flag, **given)
        for flag in (True, False)
    )
    assert torch.equal(cached, anew) and (cached == token).all()


# The end, and logits that are none


def says(*ids: int):
    """A model that says these ids, whatever it reads: the n-th after n tokens."""

    def model(input_ids, attention_mask=None, cache=None):
        after = torch.tensor([ids[input_ids.shape[1] - 1]] * len(input_ids))
        return torch.nn.functional.one_hot(after, 10).float()[:, None]

    return model


def test_any_of_several_ends_ends_a_row():
    start = torch.tensor([[0]])
    said = generate(says(4, 5, 6, 7), start, 4, eos_id=[9, 6], use_cache=False)
    assert said.tolist() == [[4, 5, 6]]
    assert generate(says(4, 5, 6, 7), start, 4, eos_id=5, use_cache=False).tolist() == [[4, 5]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_end_generation(value, temperature):
    def model(ids, **inputs):
        logits = torch.zeros(2, 1, 5)
        logits[1, 0, 3] = value
        return logits

    with pytest.raises(ValueError, match="logits of row 1 hold NaN or infinity"):
        generate(model, torch.zeros(2, 1, dtype=torch.long), 2, temperature)


# Half precision


def family(kind: str, folder) -> tuple:
    """A folder of random weights, what its model takes, and transformers' class for it."""
    config = {"model_type": kind} | WHOLE[kind]
    if kind == "llava":
        config["text_config"] = LLAMA | {"model_type": "llama"}
        config["vision_config"] = TOWER | {"model_type": "clip_vision_model"}
    model = shaken(FAMILIES[kind].build(config), 0.2)
    save_pretrained(model, config, folder)
    given = {"input_ids": torch.tensor([[1, 2, 3, 4]])}
    if kind == "llava":
        given = {"input_ids": torch.tensor([[1, 7, 7, 7, 7, 4]])}
        given["pixel_values"] = torch.randn(1, 3, 8, 8)
    elif kind == "blip-2":
        given = {"input_ids": torch.tensor([[29, 29, 29, 2, 3]])}
        given["pixel_values"] = torch.randn(1, 3, 8, 8)
    elif kind.startswith("qwen"):
        given = {"input_ids": torch.tensor([[1, 5, 5, 5, 5, 4]])}
        given["pixel_values"] = torch.randn(16, 96)
        given["image_grid_thw"] = torch.tensor([[1, 4, 4]])
    return given


THEIRS = {
    "llama": LlamaForCausalLM,
    "llava": LlavaForConditionalGeneration,
    "blip-2": Blip2ForConditionalGeneration,
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}


def of_precision(given: dict, dtype: torch.dtype) -> dict:
    """The same with its floats in another precision."""
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in given.items()}


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_are_near_the_whole(kind, dtype, tmp_path):
    given = family(kind, tmp_path)
    with torch.no_grad():
        whole = from_pretrained(tmp_path)(**given)
        half = of_precision(given, dtype)
        read = from_pretrained(tmp_path, dtype=dtype)(**half)
        turned = from_pretrained(tmp_path).to(dtype)(**half)
        with torch.autocast("cpu", dtype=dtype):
            cast = from_pretrained(tmp_path)(**given)
    assert read.dtype == dtype and torch.equal(read, turned)
    near = {torch.bfloat16: 0.05, torch.float16: 0.01}[dtype] * whole.abs().max()
    assert (read - whole).abs().max() < near and (cast - whole).abs().max() < near
    if kind.startswith("qwen"):
        half["mm_token_type_ids"] = (given["input_ids"] == 5).int()
    if kind != "blip-2":
        loader = THEIRS[kind].from_pretrained(tmp_path, dtype=dtype).eval()
        with torch.no_grad():
            theirs = loader(**half).logits
        assert (theirs - read).abs().max() < near


# What is refused by its value


def test_vectors_of_another_width_are_not_spliced():
    places = torch.tensor([[True, True, False, False]])
    with pytest.raises(ValueError, match=r"\(1, 2, 6\) do not fit into \(1, 4, 3\)"):
        multimodal.splice(torch.zeros(1, 4, 3), places, torch.ones(1, 2, 6))


@pytest.mark.parametrize(
    "mask", [torch.full((2, 2), 0.5), torch.ones(2, 2), torch.ones(2, 2).int()]
)
def test_a_mask_that_is_not_boolean_is_refused(mask):
    x = torch.randn(1, 1, 2, 4)
    with pytest.raises(ValueError, match="a mask is boolean"):
        attend(x, x, x, mask)


@pytest.mark.parametrize("shape", [(1, 3, 8), (2, 3, 7)])
def test_a_memory_of_other_rows_or_another_width_is_refused(shape):
    with pytest.raises(ValueError, match=r"memory must be \(2, S, 8\)"):
        Attention(8, 2)(torch.randn(2, 4, 8), memory=torch.randn(shape))


def fusions() -> list:
    """The three ways to fuse, with weights that matter."""
    wide = replace(VISION, width=16)  # early fusion knows one width
    return [
        shaken(multimodal.EarlyFusion(wide, TEXT)),
        shaken(multimodal.LateFusion(VISION, TEXT, 8)),
        shaken(multimodal.CrossFusion(VISION, TEXT, 8)),
    ]


@pytest.mark.parametrize("number", range(3))
def test_padding_on_either_side_gives_the_answer_of_the_row_alone(number):
    model, pixels = fusions()[number], torch.randn(2, 3, 8, 8)
    short, long = torch.tensor([[4, 5]]), torch.tensor([[6, 7, 8, 9]])
    with torch.no_grad():
        alone = model(short, torch.ones_like(short), pixels[:1])[0]
        for ids, mask in (([0, 0, 4, 5], [0, 0, 1, 1]), ([4, 5, 0, 0], [1, 1, 0, 0])):
            both = torch.cat([torch.tensor([ids]), long])
            answer = model(both, torch.tensor([mask, [1] * 4]), pixels)[0]
            assert (answer - alone).abs().max() < 1e-4 * alone.abs().max()


@pytest.mark.parametrize("number", range(3))
def test_one_image_is_not_lent_to_two_questions(number):
    ids = torch.tensor([[4, 5], [6, 7]])
    with pytest.raises(ValueError, match="1 images for 2 questions"):
        fusions()[number](ids, torch.ones_like(ids), torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    "ids, names", [(torch.tensor([1, 2]), r"int64 \(2,\)"), (torch.ones(1, 2), r"float32 \(1, 2\)")]
)
def test_ids_of_one_dimension_or_of_floats_are_refused(ids, names):
    with pytest.raises(ValueError, match=names):
        Decoder(TEXT)(ids)


@pytest.mark.parametrize("ids", [torch.zeros(0, 2, dtype=torch.long), torch.ones(1, 2)])
def test_generate_refuses_no_rows_and_floats(ids):
    with pytest.raises(ValueError, match="input_ids must be integers"):
        generate(Decoder(TEXT), ids, 2)


def test_bytes_are_no_images_in_0_to_1():
    with pytest.raises(ValueError, match=r"floats in 0\.\.1, got torch.float32 in 0\.\.255"):
        VQVAE(VQVAEConfig()).encode(torch.tensor([0.0, 255.0]).repeat(1, 3, 8, 4))


def test_a_batch_of_one_has_no_wrong_pair():
    with pytest.raises(ValueError, match="a wrong pair needs another: 1 in the batch"):
        blip.draw_negatives(torch.zeros(1, 1))


def test_pixels_of_integers_are_refused():
    model = Llava(LlavaConfig(VisionConfig(8, 4, 8, 1, 2, 8), TEXT, image_token_id=7))
    with pytest.raises(ValueError, match="torch.uint8"):
        model.encode_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


# The sizes of Qwen's images


@pytest.mark.parametrize("file", [None, "preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("size", [(64, 96), (700, 500), (30, 90)])
def test_the_limits_of_images_are_the_familys_or_the_folders(file, size, tmp_path):
    config = {"model_type": "qwen3_vl"} | QWEN | {"text_config": QWEN_TEXT}
    (tmp_path / "config.json").write_text(json.dumps(config))
    published = {"shortest_edge": 65536, "longest_edge": 16777216}
    limits = published if file is None else {"shortest_edge": 4096, "longest_edge": 40960}
    half = [0.5, 0.5, 0.5]
    said = {"size": limits, "patch_size": 16, "image_mean": half, "image_std": half}
    if file is not None:
        content = {"image_processor": said} if file == "processor_config.json" else said
        (tmp_path / file).write_text(json.dumps(content))
    image = Image.effect_noise(size, 80).convert("RGB")
    pixels, grid = preprocess(image, **image_options(tmp_path))
    theirs = Qwen2VLImageProcessorPil(**said)(image, return_tensors="pt")
    assert torch.equal(grid, theirs["image_grid_thw"])
    assert (pixels - theirs["pixel_values"]).abs().max() < 2e-6


def test_the_families_have_their_own_limits_where_a_folder_says_none(tmp_path):
    for kind, limits in (("qwen2_vl", (3136, 1003520)), ("qwen3_vl", (65536, 16777216))):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        options = image_options(tmp_path)
        assert (options["min_pixels"], options["max_pixels"]) == limits
    (tmp_path / "preprocessor_config.json").write_text('{"min_pixels": "few"}')
    with pytest.raises(ValueError, match="min_pixels = 'few'"):
        image_options(tmp_path)
