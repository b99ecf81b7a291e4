"""Checkpoint folders: strict, sharded or not, never unpickled, published spellings, and back again."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, ViTConfig, ViTModel

from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.llava import build_llava


def write_vit(folder):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(folder)
    return folder / "model.safetensors"


def change(file, edit):
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def test_sharded_checkpoints_give_the_same_model(tmp_path):
    write_vit(tmp_path / "one")
    model = ViTModel.from_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="4KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (from_pretrained(tmp_path / name).state_dict() for name in ("one", "many"))
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)


def test_half_precision_is_read_as_float32(tmp_path):
    file = write_vit(tmp_path)
    change(file, lambda t: t.update({name: value.to(torch.bfloat16) for name, value in t.items()}))
    model = from_pretrained(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training


@pytest.mark.parametrize(
    "edit, names",
    [
        (lambda t: t.pop("layernorm.bias"), "missing tensor layernorm.bias"),
        (lambda t: t.update(spare=torch.zeros(1)), "extra tensor spare"),
        (
            lambda t: t.update({"layernorm.bias": torch.zeros(7)}),
            r"layernorm.bias has shape \(7,\), needs \(16,\)",
        ),
        (
            lambda t: t.update({"layernorm.bias": torch.zeros(16, dtype=torch.long)}),
            "layernorm.bias holds torch.int64",
        ),
        (lambda t: t.update({"vit.layernorm.bias": torch.zeros(16)}), "already under another name"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(tmp_path, edit, names):
    change(write_vit(tmp_path), edit)
    with pytest.raises(ValueError, match=names):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "config, names",
    [
        ({"model_type": "mamba"}, "mamba"),
        ({}, "None"),
        ([], "JSON object"),
        ("{", "valid JSON"),
        ({"model_type": "vit", "hidden_act": "swish2"}, "swish2"),
        ({"model_type": "vit", "pooler_act": "relu"}, "relu"),
    ],
)
def test_bad_configs_are_refused_by_name(tmp_path, config, names):
    write_vit(tmp_path)
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ValueError, match=names):
        from_pretrained(tmp_path)


def test_folders_without_usable_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="config.json"):
        from_pretrained(tmp_path)
    file = write_vit(tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        from_pretrained(tmp_path)
    file.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="never read"):
        from_pretrained(tmp_path)


def test_an_index_that_lies_is_refused(tmp_path):
    file = write_vit(tmp_path)
    names = list(load_file(file))
    index = tmp_path / "model.safetensors.index.json"
    file.rename(tmp_path / "a.safetensors")

    def write(weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))

    write(dict.fromkeys(names, "a.safetensors") | {"ghost": "a.safetensors"})
    with pytest.raises(ValueError, match="missing tensor ghost"):
        from_pretrained(tmp_path)
    write(dict.fromkeys(names, "../a.safetensors"))
    with pytest.raises(ValueError, match="does not lie in"):
        from_pretrained(tmp_path)
    write(dict.fromkeys(names[1:], "a.safetensors"))
    with pytest.raises(ValueError, match="the index places in None"):
        from_pretrained(tmp_path)
    write(dict.fromkeys(names, "b.safetensors"))
    with pytest.raises(ValueError, match="no b.safetensors"):
        from_pretrained(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        from_pretrained(tmp_path)


TOY = {
    "model_type": "llava",
    "image_token_index": 3,
    "vision_feature_layer": -1,
    "vision_config": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 16,
        "patch_size": 8,
        "model_type": "clip_vision_model",
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "vocab_size": 40,
        "rope_theta": 700.0,
    },
}  # fmt: skip  (flat rope_theta, as older checkpoints have it)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = build_llava(TOY).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_pretrained(model, TOY, tmp_path)
    return model, tmp_path


def test_what_we_save_we_read_and_transformers_reads_with_the_same_logits(saved):
    model, folder = saved
    ids, pixels = torch.tensor([[1, 3, 3, 3, 3, 5, 6]]), torch.randn(1, 3, 16, 16)
    theirs, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        logits = model(ids, pixels)
        assert torch.equal(from_pretrained(folder)(ids, pixels), logits)
        assert (
            theirs.eval()(input_ids=ids, pixel_values=pixels).logits - logits
        ).abs().max() < 1e-5


@pytest.mark.parametrize(
    "respell",
    [
        lambda n: n.replace("language_model.lm_head", "lm_head").replace(
            "language_model.model", "model.language_model"
        ),
        lambda n: n.replace("vision_tower", "model.vision_tower").replace(
            "multi_modal", "model.multi_modal"
        ),
        lambda n: n.replace("vision_tower.vision_model", "vision_tower"),
    ],
)
def test_every_published_spelling_of_the_names_is_read(saved, respell):
    model, folder = saved
    file = folder / "model.safetensors"
    tensors = {respell(name): value for name, value in load_file(file).items()}
    assert tensors.keys() != load_file(file).keys()
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[
        None
    ]  # a published buffer
    save_file(tensors, file)
    loaded = from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
