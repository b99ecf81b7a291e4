"""BLIP: the reference's numbers from the reference's checkpoints, and the three losses by hand."""

from random import Random

import pytest
import torch
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from minivlm.blip import Blip, MedConfig
from minivlm.generation import generate
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.vit import ViTConfig


def random_config(seed: int) -> BlipConfig:
    rng = Random(seed)

    def shape() -> dict:
        heads = rng.choice([1, 2, 3])
        return {
            "hidden_size": heads * 8 * rng.choice([1, 2]),
            "num_attention_heads": heads,
            "num_hidden_layers": rng.choice([1, 2, 3]),
            "intermediate_size": rng.choice([20, 33]),
            "hidden_act": rng.choice(["gelu", "gelu_new"]),
        }

    patch = rng.choice([4, 5])
    vision = shape() | {"patch_size": patch, "image_size": patch * rng.choice([2, 3])}
    text = shape() | {"vocab_size": 50, "max_position_embeddings": 12, "bos_token_id": 46, "sep_token_id": 47}
    return BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=rng.choice([7, 16]))


def reference(model_class, seed: int):
    """A reference model in which every parameter is random, also those that begin as zeros or ones."""
    torch.manual_seed(seed)
    return randomised(model_class(random_config(seed)))


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def batch(config: BlipConfig, side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Images, ids and an attention mask with padding on the given side."""
    size = config.vision_config.image_size
    pixels, ids = torch.randn(3, 3, size, size), torch.randint(1, 45, (3, 9))
    if side == "none":
        return pixels, ids, None
    lengths = torch.tensor([9, 5, 2])[:, None]
    seen = torch.arange(9) < lengths if side == "right" else torch.arange(9) >= 9 - lengths
    return pixels, ids.masked_fill(~seen, 0), seen.long()


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("seed", range(6))
def test_retrieval_and_matching_equal_the_reference(seed, side, tmp_path):
    theirs = reference(BlipForImageTextRetrieval, seed)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    pixels, ids, mask = batch(theirs.config, side)
    with torch.no_grad():
        expected = theirs(ids, pixels, attention_mask=mask).itm_score
        cosine = theirs(ids, pixels, attention_mask=mask, use_itm_head=False).itm_score
        assert (ours.match(pixels, ids, mask) - expected).abs().max() < 1e-5
        image, text = ours.encode_image(pixels), ours.encode_text(ids, mask)
    assert (image @ text.T - cosine).abs().max() < 1e-5
    assert (image.norm(dim=1) - 1).abs().max() < 1e-5 and (text.norm(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("seed", range(6))
def test_captioning_equals_the_reference(seed, side, tmp_path):
    theirs = reference(BlipForConditionalGeneration, seed)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    pixels, ids, mask = batch(theirs.config, side)
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits
        difference = (ours.caption_logits(pixels, ids, mask) - expected).abs()
    assert (difference if mask is None else difference[mask.bool()]).max() < 1e-5


def test_a_pretrained_model_is_saved_and_read_back_with_its_sharing(tmp_path):
    config = random_config(3).to_dict()
    model = randomised(Blip.from_hf(config))
    save_pretrained(model, config, tmp_path)
    again = from_pretrained(tmp_path)
    pixels, ids, mask = batch(random_config(3), "right")
    with torch.no_grad():
        assert torch.equal(model.match(pixels, ids, mask), again.match(pixels, ids, mask))
        assert torch.equal(model.caption_logits(pixels, ids, mask), again.caption_logits(pixels, ids, mask))
    assert again.decoder.blocks[0].cross is again.encoder.blocks[0].cross
    assert again.decoder.blocks[0].attention is not again.encoder.blocks[0].attention


def test_what_we_save_of_each_role_is_read_by_the_reference(tmp_path):
    for model_class in (BlipForImageTextRetrieval, BlipForConditionalGeneration):
        theirs = reference(model_class, 4)
        theirs.save_pretrained(tmp_path / "theirs")
        save_pretrained(from_pretrained(tmp_path / "theirs"), theirs.config.to_dict(), tmp_path / "ours")
        again = model_class.from_pretrained(tmp_path / "ours").state_dict()
        assert all(torch.equal(value, again[name]) for name, value in theirs.state_dict().items())


def test_calls_that_a_checkpoint_has_no_weights_for_say_so(tmp_path):
    reference(BlipForConditionalGeneration, 0).save_pretrained(tmp_path / "captioning")
    reference(BlipForImageTextRetrieval, 0).save_pretrained(tmp_path / "retrieval")
    captioner, retriever = (from_pretrained(tmp_path / name) for name in ("captioning", "retrieval"))
    pixels, ids, _ = batch(random_config(0), "none")
    for call in (lambda: captioner.match(pixels, ids), lambda: captioner.encode_image(pixels)):
        with pytest.raises(ValueError, match="captioning: it has no text encoder"):
            call()
    with pytest.raises(ValueError, match="retrieval: it has no text decoder"):
        retriever.caption_logits(pixels, ids)


def test_wrong_input_is_named():
    model = Blip.from_hf(random_config(0).to_dict())
    pixels, ids, _ = batch(random_config(0), "none")
    with pytest.raises(ValueError, match="token id 50 is outside the vocabulary of 50"):
        model.match(pixels, ids.index_fill(1, torch.tensor([3]), 50))
    with pytest.raises(ValueError, match="3 images for 2 texts"):
        model.match(pixels, ids[:2])
    with pytest.raises(ValueError, match=r"1 <= T <= 12, got \(3, 18\)"):
        model.encode_text(torch.cat([ids, ids], dim=1))
    with pytest.raises(ValueError, match=r"attention_mask must be \(3, 9\), got \(3, 8\)"):
        model.match(pixels, ids, torch.ones(3, 8))
    with pytest.raises(ValueError, match="sharing must be one of .* got 'some'"):
        Blip(model.vision.config, model.encoder.config, 4, sharing="some")
    with pytest.raises(ValueError, match="use_cache=False"):
        generate(model, ids[:, :1], 2, image=model.vision(pixels))
    with pytest.raises(ValueError, match="neither for retrieval nor for captioning"):
        Blip.from_hf(random_config(0).to_dict(), {"text_model.embeddings.word_embeddings.weight"})


@pytest.mark.parametrize("sharing, total", [("all", 224), ("all but self-attention", 252), ("none", 361)])
def test_full_size_has_the_papers_parameters(sharing, total):
    with torch.device("meta"):
        model = full_size(sharing)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert abs(millions - total) < 1


def full_size(sharing: str) -> Blip:
    vision = ViTConfig((224, 224), patch=16, width=768, layers=12, heads=12, hidden=3072)
    text = MedConfig(30524, 512, width=768, layers=12, heads=12, hidden=3072, memory=768)
    return Blip(vision, text, 256, sharing=sharing)
