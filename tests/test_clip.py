"""CLIP and SigLIP: the reference's numbers from its checkpoints, and the losses by hand."""

import json
from math import log
from random import Random

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from minivlm.clip import Clip, Siglip, contrastive_loss, end_of_text, sigmoid_loss
from minivlm.parts import masks
from minivlm.plotting import effective_mask
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.clip import build_clip, build_siglip


def shape(rng: Random, width_step: int = 8) -> dict:
    heads = rng.choice([1, 2, 3])
    return {
        "hidden_size": heads * width_step * rng.choice([1, 2]),
        "num_attention_heads": heads,
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "intermediate_size": rng.choice([20, 33]),
    }


def clip_config(seed: int, eos: int) -> CLIPConfig:
    rng = Random(seed)
    patch = rng.choice([4, 5])
    vision = shape(rng) | {"image_size": patch * rng.choice([2, 3]), "patch_size": patch}
    text = shape(rng) | {"vocab_size": 50, "max_position_embeddings": 12, "eos_token_id": eos}
    for part in (vision, text):
        part["hidden_act"] = rng.choice(["quick_gelu", "gelu"])
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=rng.choice([7, 16]))


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter random, also those that begin as zeros or ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(torch.rand(parameter.shape, generator=generator))
    return model.eval()


def sentences(generator: torch.Generator, eos: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of different lengths that end in eos, padded on the right, and their mask."""
    lengths = torch.tensor([9, 5, 2])
    ids = torch.randint(3, 48, (3, 9), generator=generator)
    place = torch.arange(9)
    ids = torch.where(place == lengths[:, None] - 1, eos, ids)
    return torch.where(place >= lengths[:, None], pad, ids), (place < lengths[:, None]).long()


def compare(ours, theirs, pixels, ids, mask) -> None:
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask)
        assert torch.allclose(ours(pixels, ids, mask), expected.logits_per_image, atol=1e-5)
        assert torch.allclose(ours.encode_image(pixels), expected.image_embeds, atol=1e-5)
        assert torch.allclose(ours.encode_text(ids, mask), expected.text_embeds, atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("eos, pad", [(49, 49), (49, 0), (2, 0)])
@pytest.mark.parametrize("seed", range(3))
def test_clip_gives_the_numbers_of_the_reference(tmp_path, seed, eos, pad, masked):
    config = clip_config(seed, eos)
    torch.manual_seed(seed)
    reference = randomise(CLIPModel(config), seed)
    reference.save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(seed)
    ids, mask = sentences(generator, 49, pad)  # with the old rule, too, the end is the largest id
    side = config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side, generator=generator)
    compare(from_pretrained(tmp_path), reference, pixels, ids, mask if masked else None)


@pytest.mark.parametrize("side", ["left", "right", None])
@pytest.mark.parametrize("seed", range(4))
def test_siglip_gives_the_numbers_of_the_reference(tmp_path, seed, side):
    rng = Random(seed)
    patch = rng.choice([4, 5])
    vision = shape(rng) | {"image_size": patch * rng.choice([2, 3]), "patch_size": patch}
    text = shape(rng) | {"vocab_size": 50, "max_position_embeddings": 12}
    text["hidden_size"], text["projection_size"] = 24, vision["hidden_size"]
    text["num_attention_heads"] = rng.choice([2, 3])
    torch.manual_seed(seed)
    reference = randomise(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)), seed)
    reference.save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(seed)
    ids, mask = sentences(generator, 49, 1)
    if side == "left":
        ids, mask = ids.flip(1), mask.flip(1)
    pixels = torch.randn(2, 3, vision["image_size"], vision["image_size"], generator=generator)
    compare(from_pretrained(tmp_path), reference, pixels, ids, mask if side else None)


@pytest.mark.parametrize("reference, model_type", [(CLIPModel, "clip"), (SiglipModel, "siglip")])
def test_what_we_save_the_reference_reads(tmp_path, reference, model_type):
    if model_type == "clip":
        config = clip_config(5, 49).to_dict()
    else:
        small = {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "intermediate_size": 20,
        }
        vision, text = small | {"image_size": 8, "patch_size": 4}, small | {"vocab_size": 50}
        config = SiglipConfig(vision_config=vision, text_config=text).to_dict()
    model = {"clip": build_clip, "siglip": build_siglip}[model_type](config).eval()
    save_pretrained(model, config, tmp_path)
    theirs = reference.from_pretrained(tmp_path).eval()
    ids, mask = sentences(torch.Generator().manual_seed(0), 49, 0)
    side = config["vision_config"]["image_size"]
    compare(model, theirs, torch.randn(2, 3, side, side), ids, mask)


@pytest.mark.parametrize(
    "build, config, count",
    [
        (build_clip, {"vision_config": {}, "text_config": {}}, 151_277_313),
        (
            build_clip,
            {
                "projection_dim": 768,
                "vision_config": {
                    "hidden_size": 1024,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 16,
                    "intermediate_size": 4096,
                    "patch_size": 14,
                },
                "text_config": {
                    "hidden_size": 768,
                    "num_attention_heads": 12,
                    "intermediate_size": 3072,
                },
            },
            427_616_513,
        ),
        (build_siglip, {"vision_config": {}, "text_config": {}}, 203_155_970),
    ],
)
def test_published_sizes_have_the_published_numbers_of_parameters(build, config, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build(config).parameters()) == count


def test_an_old_config_with_dicts_beside_its_parts_is_read(tmp_path):
    config = {
        "text_config": {"hidden_size": 512},
        "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12},
    }
    with torch.device("meta"):
        assert build_clip(config).text.config.width == 768
    assert json.dumps(config)  # as read from a file


# Which token is read, and who sees whom


def test_the_end_of_text_is_the_first_one_or_by_the_old_rule_the_largest():
    ids = torch.tensor([[7, 5, 49, 49, 49], [5, 49, 0, 0, 0], [1, 2, 3, 4, 49]])
    assert end_of_text(ids, 49).tolist() == [2, 1, 4] == end_of_text(ids, 2).tolist()
    added = torch.tensor([[7, 60, 49, 0]])  # a token added to the vocabulary breaks the old rule
    assert end_of_text(added, 49).item() == 2 and end_of_text(added, 2).item() == 1


def toys() -> tuple[Clip, Siglip]:
    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 20,
    }
    vision = small | {"image_size": 8, "patch_size": 4}
    text = small | {"vocab_size": 50, "max_position_embeddings": 9, "eos_token_id": 49}
    config = {"vision_config": vision, "text_config": text, "projection_dim": 8}
    return build_clip(config).eval(), build_siglip(config).eval()


def test_clips_text_tower_is_causal_and_siglips_is_not():
    clip, siglip = toys()
    x = torch.randn(1, 5, 16)

    def through(blocks, mask):
        def run(x):
            for block in blocks:
                x = block(x, mask)
            return x

        return run

    causal = masks.causal(5)
    assert torch.equal(effective_mask(through(clip.text.blocks, causal), x), causal)
    assert effective_mask(through(siglip.text.blocks, None), x).all()
    ids = torch.randint(3, 48, (1, 5))
    later = ids.clone()
    later[0, 4] = 48
    with torch.no_grad():
        assert torch.equal(clip.text(ids, mask=causal)[:, :4], clip.text(later, mask=causal)[:, :4])
        assert not torch.allclose(siglip.text(ids)[:, :4], siglip.text(later)[:, :4])


@pytest.mark.parametrize("which", [0, 1])
def test_padding_changes_nothing_that_the_mask_hides(which):
    model = toys()[which]
    ids = torch.tensor([[5, 6, 7, 49]])
    padded, mask = torch.tensor([[5, 6, 7, 49, 11, 12]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    other = torch.tensor([[5, 6, 7, 49, 30, 12]])
    with torch.no_grad():
        assert torch.allclose(
            model.text(padded, mask)[:, :4], model.text(other, mask)[:, :4], atol=1e-6
        )
        if which == 0:
            assert torch.allclose(
                model.encode_text(ids), model.encode_text(padded, mask), atol=1e-6
            )


# The losses


def unit(n: int, d: int = 6) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, dtype=torch.float64), dim=-1)


def test_the_contrastive_loss_by_hand():
    torch.manual_seed(0)
    image, text, scale = unit(4), unit(4), torch.tensor(log(1 / 0.07))
    terms = []
    for i in range(4):
        by_text = [(scale.exp() * image[i] @ text[j]).exp() for j in range(4)]
        by_image = [(scale.exp() * image[j] @ text[i]).exp() for j in range(4)]
        terms += [-(by_text[i] / sum(by_text)).log() / 2, -(by_image[i] / sum(by_image)).log() / 2]
    assert contrastive_loss(image, text, scale).item() == pytest.approx(
        float(sum(terms) / 4), abs=1e-9
    )


def test_the_sigmoid_loss_by_hand_is_a_sum_over_pairs_divided_by_rows():
    torch.manual_seed(0)
    image, text, scale, bias = unit(4), unit(4), torch.tensor(log(10.0)), torch.tensor(-10.0)
    total = 0.0
    for i in range(4):
        for j in range(4):
            logit = (scale.exp() * image[i] @ text[j] + bias) * (1 if i == j else -1)
            total -= torch.sigmoid(logit).log().item()
    assert sigmoid_loss(image, text, scale, bias).item() == pytest.approx(total / 4, abs=1e-9)


@pytest.mark.parametrize(
    "pixels, ids, mask, names",
    [
        ((1, 3, 9, 8), [[1, 49]], None, r"\(1, 3, 9, 8\)"),
        ((1, 3, 8, 8), [[1, 50]], None, "50"),
        ((1, 3, 8, 8), [[1] * 10], None, r"\(1, 10\)"),
        ((1, 3, 8, 8), [[1, 49]], [[1]], r"\(1, 2\), got \(1, 1\)"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_bad_input_is_refused_by_name(which, pixels, ids, mask, names):
    with pytest.raises(ValueError, match=names):
        toys()[which](
            torch.zeros(pixels), torch.tensor(ids), None if mask is None else torch.tensor(mask)
        )
