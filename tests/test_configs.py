"""A config.json that says something impossible ends in one ValueError that names key and value."""

import json
import time
from copy import deepcopy

import pytest
import torch
from transformers import CLIPModel

from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.clip import build_clip
from minivlm.pretrained.config import KINDS
from minivlm.pretrained.loading import FAMILIES
from minivlm.pretrained.vit import build_vit

TOWER = {
    "image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 12, "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
}  # fmt: skip
WORDS = {
    "vocab_size": 30, "max_position_embeddings": 16, "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 12, "layer_norm_eps": 1e-5,
    "hidden_act": "gelu", "eos_token_id": 29,
}  # fmt: skip
BERT = {key: value for key, value in WORDS.items() if key != "eos_token_id"}
LLAMA = {
    "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 12, "head_dim": 4, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
OPT = {
    "model_type": "opt", "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "ffn_dim": 12, "max_position_embeddings": 16,
    "activation_function": "relu", "do_layer_norm_before": True,
}  # fmt: skip
QWEN_TEXT = {
    "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "intermediate_size": 12, "rms_norm_eps": 1e-6,
    "layer_types": ["full_attention"],
}  # fmt: skip
QWEN_TOWER = {
    "depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "in_channels": 3,
    "temporal_patch_size": 2, "hidden_act": "silu",
}  # fmt: skip
QWEN = {"image_token_id": 5, "video_token_id": 6, "tie_word_embeddings": False}
MROPE = {"rope_theta": 1e4, "type": "mrope", "mrope_section": [2, 1, 1]}
WHOLE = {
    "vit": TOWER | {"num_channels": 3, "qkv_bias": True},
    "clip": {
        "vision_config": TOWER, "text_config": WORDS, "projection_dim": 6,
        "logit_scale_init_value": 2.6,
    },
    "siglip": {"vision_config": TOWER, "text_config": WORDS | {"projection_size": 8}},
    "blip": {"vision_config": TOWER, "text_config": BERT, "image_text_hidden_size": 6},
    "blip-2": {
        "vision_config": TOWER, "num_query_tokens": 3, "image_token_index": 29, "text_config": OPT,
        "qformer_config": BERT | {"cross_attention_frequency": 2},
    },
    "llama": LLAMA,
    "llava": {
        "vision_config": TOWER, "text_config": LLAMA, "image_token_index": 7,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu", "multimodal_projector_bias": True,
    },
    "qwen2_vl": QWEN | QWEN_TEXT | {
        "rope_scaling": MROPE,
        "vision_config": QWEN_TOWER | {"embed_dim": 8, "hidden_size": 8, "mlp_ratio": 2},
    },
    "qwen2_5_vl": QWEN | QWEN_TEXT | {
        "rope_scaling": MROPE,
        "vision_config": QWEN_TOWER | {
            "hidden_size": 8, "intermediate_size": 12, "out_hidden_size": 8, "window_size": 16,
            "fullatt_block_indexes": [0], "tokens_per_second": 2,
        },
    },
    "qwen3_vl": QWEN | {
        "text_config": QWEN_TEXT | {
            "head_dim": 8, "rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        "vision_config": QWEN_TOWER | {
            "hidden_size": 8, "intermediate_size": 12, "out_hidden_size": 8,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
    },
}  # fmt: skip
DEEP: list = []
for _ in range(300):
    DEEP = [DEEP]
WRONG = [
    None, -1, 0, 0.5, 10**12, 10**400, float("nan"), float("inf"), True, "x", "", [], [-1], [0, 0],
    ["x"], [None] * 3, {}, {"a": []}, DEEP,
]  # fmt: skip


def build(config: dict) -> torch.nn.Module:
    """The model of a configuration, its shapes alone."""
    with torch.device("meta"):
        return FAMILIES[config["model_type"]].build(config)


def places(config: dict, path: tuple = ()) -> list[tuple]:
    """Every key of a configuration, those of its sections too."""
    found = []
    for key, value in config.items():
        found.append((*path, key))
        found += places(value, (*path, key)) if isinstance(value, dict) else []
    return found


def changed(config: dict, path: tuple, value: object) -> dict:
    """A copy with another value at one place."""
    copy = deepcopy(config)
    part = copy
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return copy


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_configuration_that_is_changed_below_is_a_good_one(kind):
    assert sum(p.numel() for p in build({"model_type": kind} | WHOLE[kind]).parameters()) > 0


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_changed_value_gives_a_model_or_one_value_error_that_names_it(kind):
    config = {"model_type": kind} | WHOLE[kind]
    for path in places(WHOLE[kind]):
        for value in WRONG:
            start = time.perf_counter()
            try:
                build(changed(config, path, value))
            except ValueError as error:
                said = str(error)
                assert len(said) < 500, f"{path}: {len(said)} characters"
            assert time.perf_counter() - start < 5, (path, value)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_value_of_the_wrong_type_or_sign_is_refused_under_its_own_name(kind):
    config = {"model_type": kind} | WHOLE[kind]
    for path in places(WHOLE[kind]):
        if path[-1] not in KINDS or (kind == "qwen2_vl" and path[-1] == "intermediate_size"):
            continue
        for value in (-1, 10**12, {"a": 1}, "no such thing", float("nan")):
            if value in KINDS[path[-1]] and not isinstance(value, str):
                continue
            with pytest.raises(ValueError, match=r"config\.json: |unknown activation") as caught:
                build(changed(config, path, value))
            activation = "unknown activation" in str(caught.value)
            assert activation or ".".join(path) in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "kind, path, value, named",
    [
        ("vit", ("hidden_size",), None, "config.json: hidden_size = None"),
        ("vit", ("num_attention_heads",), 0, "num_attention_heads = 0"),
        ("vit", ("patch_size",), 0, "patch_size = 0"),
        ("vit", ("patch_size",), [4, 2], r"patch_size = \[4, 2\]"),
        ("clip", ("text_config", "num_attention_heads"), 3, "text_config.num_attention_heads = 3"),
        ("clip", ("vision_config",), [], r"vision_config = \[\]"),
        ("llava", ("image_token_index",), "abc", "image_token_index = 'abc'"),
        ("llava", ("vision_feature_layer",), [], r"vision_feature_layer = \[\]"),
        ("llama", ("rope_parameters", "rope_theta"), "x", "rope_parameters.rope_theta = 'x'"),
        ("llama", ("num_key_value_heads",), 3, "num_key_value_heads = 3"),
        ("llama", ("num_hidden_layers",), 10**12, "num_hidden_layers = 1000000000000"),
        ("llama", ("head_dim",), 3, "head_dim = 3"),
        ("qwen2_5_vl", ("vision_config", "window_size"), 1, "vision_config.window_size = 1"),
        ("qwen3_vl", ("vision_config", "num_heads"), 8, "vision_config.num_heads = 8"),
    ],
)
def test_file_key_and_value_are_named(kind, path, value, named):
    with pytest.raises(ValueError, match=named):
        build(changed({"model_type": kind} | WHOLE[kind], path, value))


# What older and newer files say in other ways


@pytest.mark.parametrize("patch", [4, [4, 4]])
def test_a_patch_may_be_published_by_its_two_sides(patch):
    assert build_vit(WHOLE["vit"] | {"patch_size": patch}).config.patch == 4


def test_a_section_that_is_null_has_its_defaults_as_in_transformers():
    with torch.device("meta"):
        config = build_clip({"text_config": None, "vision_config": None}).text.config
    assert (config.width, config.eos_id, config.act) == (512, 49407, "quick_gelu")


def test_an_older_second_copy_of_a_section_wins_with_its_defaults_as_in_transformers(tmp_path):
    """The plain section says gelu, 2 and another epsilon; the second copy does not, so its class
    defaults count: quick_gelu, 49407, 1e-5.
    """
    torch.manual_seed(0)
    plain = {"hidden_act": "gelu", "layer_norm_eps": 0.1}
    text = WORDS | {"vocab_size": 49410, "eos_token_id": 2}
    sizes = {tower: {k: v for k, v in whole.items() if k not in (*plain, "eos_token_id")}
             for tower, whole in (("vision", TOWER), ("text", text))}  # fmt: skip
    config = {
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 6,
        "vision_config": TOWER | plain, "vision_config_dict": sizes["vision"],
        "text_config": text | plain, "text_config_dict": sizes["text"],
    }  # fmt: skip
    model = build_clip(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_pretrained(model, config, tmp_path)
    ours, theirs = from_pretrained(tmp_path), CLIPModel.from_pretrained(tmp_path).eval()
    ids, pixels = (
        torch.tensor([[3, 49407, 49409, 7], [49409, 5, 49407, 1]]),
        torch.randn(2, 3, 8, 8),
    )
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels)
        assert (ours(pixels, ids) - expected.logits_per_image).abs().max() < 1e-5
    assert json.loads((tmp_path / "config.json").read_text()) == config
