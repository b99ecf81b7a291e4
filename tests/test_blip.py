"""BLIP: the reference's numbers from the reference's checkpoints, and the three losses by hand."""

from random import Random

import pytest
import torch
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from minivlm.pretrained import from_pretrained


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
    model = model_class(random_config(seed))
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
