"""LLaVA against transformers: random checkpoints in, the same logits and greedy ids out."""

import itertools
from dataclasses import replace

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration
from transformers import LlavaConfig as TheirConfig

from minivlm.llava import Llava, train_llava_stage
from minivlm.parts import masks
from minivlm.parts.generation import generate
from minivlm.plotting import effective_mask
from minivlm.pretrained import from_pretrained
from minivlm.pretrained.llava import build_llava

IMAGE = 49


def reference(seed: int, **options) -> LlavaForConditionalGeneration:
    """A random LLaVA of transformers; the shape varies with the seed."""
    shapes = [(4, 2, 2, 4), (3, 3, 1, 8), (6, 1, 3, 4), (2, 1, 2, 8)]
    heads, kv_heads, depth, patch = shapes[seed % 4]
    vision = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=depth, num_attention_heads=2 ** (seed % 3),
        intermediate_size=24, image_size=16, patch_size=patch,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=heads * 8, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=20, vocab_size=50,
        rope_parameters={"rope_type": "default", "rope_theta": 300.0},
    )  # fmt: skip
    model = LlavaForConditionalGeneration(
        TheirConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, **options)
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def prompts(tokens: int, side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows with two images and one, padded on a side: ids, attention mask, pixels."""
    run = [IMAGE] * tokens
    rows = [[1, *run, 3, 4, *run, 5], [7, 8, *run, 9]]
    longest = max(map(len, rows))
    pads = [[0] * (longest - len(row)) for row in rows]
    joined = [
        pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)
    ]
    ones = [[1] * len(row) for row in rows]
    mask = [pad + one if side == "left" else one + pad for pad, one in zip(pads, ones, strict=True)]
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.tensor(joined), torch.tensor(mask), pixels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layer", [-1, -2, [-1, -2]])
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_logits_and_greedy_ids_are_those_of_transformers(tmp_path, seed, layer, strategy):
    theirs = reference(seed, vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    for side in ("left", "right"):
        ids, mask, pixels = prompts(ours.image_tokens, side)
        with torch.no_grad():
            expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits
            difference = (ours(ids, pixels, mask) - expected) * mask[..., None]
        assert expected.std() > 0.05 and difference.abs().max() < 1e-5
    ids, mask, pixels = prompts(ours.image_tokens, "left")
    expected = theirs.generate(
        input_ids=ids, pixel_values=pixels, attention_mask=mask, max_new_tokens=7, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )[:, ids.shape[1] :]  # fmt: skip
    for side, use_cache in itertools.product(("left", "right"), (True, False)):
        ids, mask, pixels = prompts(ours.image_tokens, side)
        if use_cache or IMAGE not in expected:
            got = generate(
                ours, ids, 7, attention_mask=mask, pixel_values=pixels, use_cache=use_cache
            )
            assert torch.equal(got, expected)


def test_tied_output_layers_are_read_and_may_be_in_the_file_twice(tmp_path):
    from safetensors.torch import load_file, save_file

    theirs = reference(0)
    text = theirs.config.text_config
    text.tie_word_embeddings = True
    theirs = LlavaForConditionalGeneration(
        TheirConfig(
            vision_config=theirs.config.vision_config,
            text_config=text,
            image_token_index=IMAGE,
            tie_word_embeddings=True,
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    ids, mask, pixels = prompts(16, "left")
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits
    ours = from_pretrained(tmp_path)
    assert ours.decoder.head.weight is ours.decoder.embedding.weight
    assert ((ours(ids, pixels, mask) - expected) * mask[..., None]).abs().max() < 1e-5
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    twice = tensors | {
        "language_model.lm_head.weight": tensors["language_model.model.embed_tokens.weight"].clone()
    }
    save_file(twice, file)
    assert from_pretrained(tmp_path).decoder.head.weight.equal(ours.decoder.head.weight)
    twice["language_model.lm_head.weight"][0, 0] += 1
    save_file(twice, file)
    with pytest.raises(ValueError, match="tied"):
        from_pretrained(tmp_path)


def toy() -> Llava:
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 20,
    }
    torch.manual_seed(0)
    return build_llava(
        {
            "image_token_index": 900,  # outside the vocabulary, as in the paper's own code
            "vision_feature_layer": -1,
            "vision_config": shape | {"image_size": 8, "patch_size": 4},
            "text_config": shape | {"vocab_size": 30},
        }
    ).eval()


def test_image_vectors_are_at_their_placeholders_in_order():
    model = toy()
    pixels = torch.randn(2, 3, 8, 8)
    ids = torch.tensor([[1, 900, 900, 900, 900, 2], [900, 900, 900, 900, 3, 4]])
    embeds, images = model.embed(ids, pixels), model.encode_images(pixels)
    assert torch.equal(embeds[0, 1:5], images[0]) and torch.equal(embeds[1, :4], images[1])
    assert torch.equal(embeds[1, 4], model.decoder.embedding.weight[3])


def test_every_later_token_sees_the_image_and_no_earlier_one_does():
    model = toy()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([[1, 900, 900, 900, 900, 2, 3]])
    pixels = torch.randn(1, 3, 8, 8, requires_grad=True)
    logits = model(ids, pixels)
    reached = [
        torch.autograd.grad(logits[0, t, 5], pixels, retain_graph=True)[0].abs().sum().item() > 0
        for t in range(7)
    ]
    assert reached == [False] + [True] * 6
    x = model.embed(ids, pixels.detach())
    assert torch.equal(effective_mask(lambda x: model.decoder(embeds=x), x), masks.causal(7))


@pytest.mark.parametrize(
    "row", [[1, 900, 900, 900, 900, 2, 900, 900, 900, 900, 3], [900] * 4 + [4, 5]]
)
def test_with_two_way_images_each_image_is_a_block_and_the_rest_is_causal(row):
    model, ids = toy(), torch.tensor([row])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.config = replace(model.config, two_way=True)
    pixels = torch.randn(row.count(900) // 4, 3, 8, 8)
    expected = masks.causal(len(row))
    for start in range(len(row) - 3):
        if row[start : start + 4] == [900] * 4 and (start == 0 or row[start - 1] != 900):
            expected[start : start + 4, start : start + 4] = True
    assert torch.equal(model.mask(ids)[0, 0], expected)
    x, mask = model.embed(ids, pixels), model.mask(ids)
    assert torch.equal(effective_mask(lambda x: model.decoder(embeds=x, mask=mask), x), expected)
    assert torch.allclose(model(ids, pixels), model.decoder(embeds=x, mask=mask))
    assert toy().mask(ids) is None


def test_two_way_images_generate_the_same_with_and_without_a_cache_and_padding():
    model = toy()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.config = replace(model.config, two_way=True)
    rows = [[1, 900, 900, 900, 900, 2, 3], [900, 900, 900, 900, 5]]
    pixels = torch.randn(2, 3, 8, 8)
    ids = torch.tensor([row + [0] * (7 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (7 - len(row)) for row in rows])
    new = generate(model, ids, 6, attention_mask=mask, pixel_values=pixels)
    assert torch.equal(
        new, generate(model, ids, 6, attention_mask=mask, pixel_values=pixels, use_cache=False)
    )
    for i, row in enumerate(rows):
        assert torch.equal(
            new[i : i + 1], generate(model, torch.tensor([row]), 6, pixel_values=pixels[i : i + 1])
        )


def test_each_stage_trains_what_the_paper_trains():
    model = toy()
    for stage, trained in ((1, {"projector"}), (2, {"projector", "decoder"})):
        train_llava_stage(model, stage)
        assert {
            name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad
        } == trained
        assert all(
            p.requires_grad == (n.split(".")[0] in trained) for n, p in model.named_parameters()
        )
    with pytest.raises(ValueError, match="3"):
        train_llava_stage(model, 3)


@pytest.mark.parametrize(
    "ids, images, names",
    [
        ([[1, 900, 900, 900, 900]], 2, "2 images take 8 placeholders"),
        ([[1, 900, 900, 900]], 1, r"\[3\]"),
        ([[900] * 3 + [1] * 2, [900] * 5], 2, r"\[3, 5\]"),
        ([[1, 30]], 0, "30"),
        ([[1, 900, 900, 900, 900]], None, "900"),
    ],
)
def test_images_and_placeholders_must_agree(ids, images, names):
    pixels = None if images is None else torch.zeros(images, 3, 8, 8)
    with pytest.raises(ValueError, match=names):
        toy()(torch.tensor(ids), pixels)


@pytest.mark.parametrize(
    "change, names",
    [
        ({"vision_feature_layer": 3}, "feature layer 3"),
        ({"vision_feature_select_strategy": "cls"}, "cls"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip_vision_model"),
        ({"text_config": {"model_type": "mamba"}}, "mamba"),
        ({"projector_hidden_act": "maxout"}, "maxout"),
    ],
)
def test_unsupported_settings_are_refused_by_name(change, names):
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 20,
    }
    config = {
        "vision_config": shape,
        "text_config": shape | {"vocab_size": 30},
        "vision_feature_layer": -1,
    } | change
    with torch.device("meta"), pytest.raises(ValueError, match=names):
        build_llava(config)


def test_wrong_image_sizes_are_refused_by_shape():
    with pytest.raises(ValueError, match=r"\(1, 3, 9, 8\)"):
        toy()(torch.tensor([[900] * 4]), torch.zeros(1, 3, 9, 8))
