"""Checkpoint folders: strict, sharded or not, never unpickled, any spelling, and back again."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BlipForImageTextRetrieval,
    CLIPModel,
    LlavaForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from minivlm import scenes
from minivlm.blip import Blip, MedConfig
from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, Siglip, TextConfig, VisionConfig
from minivlm.llava import Llava, LlavaConfig
from minivlm.parts.decoder import DecoderConfig
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.blip import build_blip, publish_blip
from minivlm.pretrained.clip import build_clip, build_siglip, publish_clip
from minivlm.pretrained.llama import build_llama, publish_decoder
from minivlm.pretrained.llava import build_llava, publish_llava
from minivlm.pretrained.qwen2_vl import build_qwen, publish_qwen
from minivlm.qwen2_vision import TowerConfig
from minivlm.qwen2_vl import Qwen2VL, Qwen2VLConfig, Qwen3VL, Qwen25VL
from minivlm.scenes.pixels import pixels
from minivlm.toys.blip import ToyBlip
from minivlm.toys.captioner import Captioner
from minivlm.toys.clip import END, PAD, sentences, toy
from minivlm.toys.common import SPEAKER, save_toy
from minivlm.toys.decoder import LanguageModel
from minivlm.toys.qwen2_vl import AnySizeCaptioner
from minivlm.vit import ViTConfig as OurViTConfig


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


# What is published of our configurations is read as the same configurations

heads = st.integers(1, 3)
sides = st.sampled_from([1, 2, 3])
layers = st.integers(1, 3)
small = st.integers(1, 40)
eps = st.sampled_from([1e-5, 1e-6, 1e-12])
acts = st.sampled_from(["gelu", "quick_gelu", "gelu_pytorch_tanh", "silu"])


@st.composite
def towers(draw) -> VisionConfig:
    patch, n = draw(st.integers(1, 5)), draw(heads)
    return VisionConfig(
        draw(sides) * patch,
        patch,
        4 * n,
        draw(layers),
        n,
        draw(small),
        eps=draw(eps),
        act=draw(acts),
    )


@st.composite
def texts(draw) -> TextConfig:
    n, length = draw(heads), draw(small)
    shape = 4 * n, draw(layers), n, draw(small)
    return TextConfig(
        9, length, *shape, eps=draw(eps), act=draw(acts), eos_id=draw(st.integers(0, 8))
    )


@st.composite
def decoders(draw) -> DecoderConfig:
    kv_heads = draw(heads)
    n = kv_heads * draw(heads)
    return DecoderConfig(
        draw(small), 4 * n, draw(layers), n, kv_heads, draw(small),
        head_dim=draw(st.sampled_from([None, 2, 6])), theta=draw(st.sampled_from([1e3, 1e4, 5e5])),
        eps=draw(eps), act=draw(acts), attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()), tied=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def qwens(draw) -> tuple[type[Qwen2VL], Qwen2VLConfig]:
    kind = draw(st.sampled_from([Qwen2VL, Qwen25VL, Qwen3VL]))
    n, patch, merge, width = draw(heads), draw(st.integers(1, 5)), draw(sides), 8 * draw(heads)
    own = {
        Qwen2VL: {"hidden": 4 * n * draw(sides)},
        Qwen25VL: {
            "hidden": draw(small), "window": merge * draw(sides),
            "full": tuple(draw(st.lists(st.integers(0, 3), unique=True))),
            "tokens_per_second": draw(st.sampled_from([2, 4])),
        },
        Qwen3VL: {
            "hidden": draw(small), "table": draw(sides),
            "deep": tuple(range(draw(st.integers(0, 1)))),
        },
    }  # fmt: skip
    theta = draw(st.sampled_from([1e3, 1e4]))
    vision = TowerConfig(
        4 * n, draw(layers), n, out=width, patch=patch, merge=merge, act=draw(acts),
        depth=draw(sides), channels=draw(sides), theta=theta, **own[kind],
    )  # fmt: skip
    text = draw(decoders())
    language = {"attention_bias": True, "out_bias": False, "head_dim": None}
    if kind is Qwen3VL:
        language = {"qk_norm": True, "head_dim": 8}
    text = replace(text, width=width, heads=width // 8, kv_heads=1, mlp_bias=False, **language)
    ids = draw(st.integers(0, 9)), draw(st.integers(10, 19))
    return kind, Qwen2VLConfig(vision, text, (1, 2, 1), *ids)


def as_file(config: dict) -> dict:
    """The same after it was written and read."""
    return json.loads(json.dumps(config))


@settings(deadline=None, max_examples=40)
@given(towers(), texts(), small)
def test_a_published_clip_or_siglip_is_read_as_the_same(vision, text, width):
    with torch.device("meta"):
        for ours, build in ((Clip, build_clip), (Siglip, build_siglip)):
            model = ours(vision, text, width)
            again = build(as_file(publish_clip(model)))
            assert again.vision.config == vision and again.text.config == text
            shapes = {name: p.shape for name, p in model.named_parameters()}
            assert shapes == {name: p.shape for name, p in again.named_parameters()}


@settings(deadline=None, max_examples=40)
@given(
    towers(), texts(), small, st.sampled_from([("encoder",), ("decoder",), ("encoder", "decoder")])
)
def test_a_published_blip_is_read_as_the_same(v, t, width, roles):
    size = v.image_size, v.image_size
    vision = OurViTConfig(size, v.patch, v.width, v.layers, v.heads, v.hidden, eps=v.eps, act=v.act)
    text = MedConfig(
        t.vocab_size, t.length, t.width, t.layers, t.heads, t.hidden, vision.width, t.eps
    )
    with torch.device("meta"):
        model = Blip(vision, text, width, roles=roles)
        names = {"itm_head.weight"} if "encoder" in roles else set()
        names |= {"text_decoder.cls.predictions.bias"} if "decoder" in roles else set()
        again = build_blip(as_file(publish_blip(model)), names)
    assert again.vision.config == vision
    assert (again.encoder or again.decoder).config == text
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert shapes == {name: p.shape for name, p in again.named_parameters()}


@settings(deadline=None, max_examples=40)
@given(
    towers(),
    decoders(),
    st.integers(0, 50),
    st.booleans(),
    st.lists(st.integers(-2, 1), min_size=1),
)
def test_a_published_llava_or_llama_is_read_as_the_same(vision, text, token, keep_class, read):
    config = LlavaConfig(vision, text, token, tuple(read), keep_class, projector_bias=keep_class)
    with torch.device("meta"):
        assert build_llava(as_file(publish_llava(Llava(config)))).config == config
        assert build_llama(as_file(publish_decoder(text))).config == text


@settings(deadline=None, max_examples=60)
@given(qwens())
def test_a_published_qwen_is_read_as_the_same(made):
    kind, config = made
    with torch.device("meta"):
        again = build_qwen(kind, as_file(publish_qwen(kind(config)))).config
    assert again == config


def test_what_no_published_model_is_like_is_not_published():
    vision = VisionConfig(8, patch=4, width=8, layers=1, heads=2, hidden=8)
    text = DecoderConfig(9, width=8, layers=1, heads=2, kv_heads=2, hidden=8)
    with pytest.raises(ValueError, match="two_way"):
        publish_llava(Llava(LlavaConfig(vision, text, 0, two_way=True)))
    with pytest.raises(ValueError, match="no published Llama"):
        publish_decoder(replace(text, qk_norm=True))
    tower = TowerConfig(8, 1, 2, hidden=12, out=8)  # an MLP of one and a half times the width
    biased = replace(text, attention_bias=True, out_bias=False)
    for odd in (
        Qwen2VLConfig(tower, biased, (1, 1, 0)),
        Qwen2VLConfig(replace(tower, hidden=16), text, (1, 1, 0)),
    ):
        with pytest.raises(ValueError, match="no published qwen2_vl"):
            publish_qwen(Qwen2VL(odd))


# What the toys save

SOME = scenes.load("val")[:4]
CAPTIONS, IMAGES = [scene.caption for scene in SOME], [scene.image for scene in SOME]


def read_by_transformers(kind: type, folder):
    """Their model of a folder, every weight of which is ours."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    return model.eval()


@torch.no_grad()
def test_transformers_reads_a_saved_captioner(tmp_path):
    made = Captioner.new(CAPTIONS)
    made.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[SPEAKER] == "captioner"
    ids, seen = made.sequences(CAPTIONS), pixels(IMAGES)
    theirs = read_by_transformers(LlavaForConditionalGeneration, tmp_path)
    logits = theirs(input_ids=ids, pixel_values=seen).logits
    assert (logits - made.model(ids, seen)).abs().max() < 1e-5


@torch.no_grad()
def test_transformers_reads_the_encoder_of_a_saved_blip(tmp_path):
    """What the decoder shares with it is in the file once, under the encoder's names."""
    made = ToyBlip.new(CAPTIONS)
    made.save(tmp_path)
    ids, seen = made.texts(CAPTIONS), pixels(IMAGES)
    theirs = read_by_transformers(BlipForImageTextRetrieval, tmp_path)
    mask = (ids != made.marks.pad).long()
    logits = theirs(ids, seen, attention_mask=mask).itm_score
    assert (logits - made.model.match(seen, ids, mask)).abs().max() < 1e-5


@torch.no_grad()
def test_transformers_reads_a_saved_clip(tmp_path):
    tokenizer = BPETokenizer.train(CAPTIONS, vocab_size=300, special_tokens=(END, PAD))
    ids, seen = sentences(CAPTIONS, tokenizer), pixels(IMAGES)
    made = toy("clip", tokenizer, ids.shape[1], layers=3)
    save_toy(made, publish_clip(made), tmp_path, tokenizer)
    theirs = read_by_transformers(CLIPModel, tmp_path)
    logits = theirs(input_ids=ids, pixel_values=seen).logits_per_image
    assert (logits - made(seen, ids)).abs().max() < 1e-5


@torch.no_grad()
def test_transformers_reads_a_saved_language_model(tmp_path):
    talk = [[{"role": "user", "content": "where?"}, {"role": "assistant", "content": "there"}]]
    made = LanguageModel.new(talk)
    made.save(tmp_path)
    ids = made.processor.prepare(talk[0])["input_ids"]
    logits = read_by_transformers(AutoModelForCausalLM, tmp_path)(ids).logits
    assert (logits - made.model(ids)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [(Qwen2VL, Qwen2VLForConditionalGeneration), (Qwen3VL, Qwen3VLForConditionalGeneration)],
)
@torch.no_grad()
def test_transformers_reads_a_saved_captioner_of_any_size(tmp_path, kind, theirs):
    options = {"deep": (0, 1)} if kind is Qwen3VL else {}
    made = AnySizeCaptioner.new(kind, CAPTIONS, **options)
    made.model.half().float()  # what is saved is rounded
    made.save(tmp_path)
    reading = read_by_transformers(theirs, tmp_path).float()
    row = made.row(SOME[0])
    seen = {"pixel_values": row["values"], "image_grid_thw": row["grid"][None]}
    positions = row["positions"][:, None]
    logits = reading(input_ids=row["ids"][None], position_ids=positions, **seen).logits
    assert (logits - made.model(row["ids"][None], **seen)).abs().max() < 1e-5
