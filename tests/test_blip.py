"""BLIP: the reference's numbers from the reference's checkpoints, and the three losses by hand."""

from random import Random

import pytest
import torch
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from minivlm.blip import Blip, Marks, MedConfig, Pretraining, draw_negatives
from minivlm.clip import contrastive_loss
from minivlm.parts.generation import generate
from minivlm.parts.masks import bidirectional, causal
from minivlm.plotting import effective_mask
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.blip import build_blip
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
    text = shape() | {
        "vocab_size": 50,
        "max_position_embeddings": 12,
        "bos_token_id": 46,
        "sep_token_id": 47,
    }
    return BlipConfig(
        vision_config=vision, text_config=text, image_text_hidden_size=rng.choice([7, 16])
    )


def reference(model_class, seed: int):
    """A reference model in which every parameter is random, also those that begin as 0 or 1."""
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
    model = randomised(build_blip(config))
    save_pretrained(model, config, tmp_path)
    again = from_pretrained(tmp_path)
    pixels, ids, mask = batch(random_config(3), "right")
    with torch.no_grad():
        assert torch.equal(model.match(pixels, ids, mask), again.match(pixels, ids, mask))
        assert torch.equal(
            model.caption_logits(pixels, ids, mask), again.caption_logits(pixels, ids, mask)
        )
    assert again.decoder.blocks[0].cross is again.encoder.blocks[0].cross
    assert again.decoder.blocks[0].attention is not again.encoder.blocks[0].attention


def test_what_we_save_of_each_role_is_read_by_the_reference(tmp_path):
    for model_class in (BlipForImageTextRetrieval, BlipForConditionalGeneration):
        theirs = reference(model_class, 4)
        theirs.save_pretrained(tmp_path / "theirs")
        save_pretrained(
            from_pretrained(tmp_path / "theirs"), theirs.config.to_dict(), tmp_path / "ours"
        )
        again = model_class.from_pretrained(tmp_path / "ours").state_dict()
        assert all(torch.equal(value, again[name]) for name, value in theirs.state_dict().items())


def test_calls_that_a_checkpoint_has_no_weights_for_say_so(tmp_path):
    reference(BlipForConditionalGeneration, 0).save_pretrained(tmp_path / "captioning")
    reference(BlipForImageTextRetrieval, 0).save_pretrained(tmp_path / "retrieval")
    captioner, retriever = (
        from_pretrained(tmp_path / name) for name in ("captioning", "retrieval")
    )
    pixels, ids, _ = batch(random_config(0), "none")
    for call in (lambda: captioner.match(pixels, ids), lambda: captioner.encode_image(pixels)):
        with pytest.raises(ValueError, match="captioning: it has no text encoder"):
            call()
    with pytest.raises(ValueError, match="retrieval: it has no text decoder"):
        retriever.caption_logits(pixels, ids)


def test_wrong_input_is_named():
    model = build_blip(random_config(0).to_dict())
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
        build_blip(random_config(0).to_dict(), {"text_model.embeddings.word_embeddings.weight"})


@pytest.mark.parametrize(
    "sharing, total", [("all", 224), ("all but self-attention", 252), ("none", 361)]
)
def test_full_size_has_the_papers_parameters(sharing, total):
    with torch.device("meta"):
        model = full_size(sharing)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert abs(millions - total) < 1


def full_size(sharing: str) -> Blip:
    vision = ViTConfig((224, 224), patch=16, width=768, layers=12, heads=12, hidden=3072)
    text = MedConfig(30524, 512, width=768, layers=12, heads=12, hidden=3072, memory=768)
    return Blip(vision, text, 256, sharing=sharing)


# The three losses of one batch


def pretraining(**options) -> tuple[Pretraining, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    config = random_config(2)
    model = randomised(build_blip(config.to_dict()))
    pixels, ids, _ = batch(config, "right")
    return Pretraining(model, Marks(cls=45, enc=46, dec=47, pad=0), queue=5, **options), pixels, ids


def test_the_slow_copy_is_a_moving_average_and_gets_no_gradient():
    module, pixels, ids = pretraining(momentum=0.9)
    pairs = dict(module.model.vision.named_parameters()), dict(module.slow[0].named_parameters())
    before = {name: p.clone() for name, p in pairs[1].items()}
    with torch.no_grad():
        for parameter in pairs[0].values():
            parameter.add_(1)
    sum(module(pixels, ids).values()).backward()
    for name, now in pairs[1].items():
        assert torch.allclose(now, before[name] + 0.1, atol=1e-5) and now.grad is None
    assert all(p.grad is not None for p in pairs[0].values())


def test_queues_take_in_the_batch_and_lose_the_oldest():
    module, pixels, ids = pretraining()
    first_queue = module.images.clone()
    module(pixels, ids, ("itc",))
    assert torch.equal(module.images[3:], first_queue[:2]) and module.images.shape == (
        5,
        module.images.shape[1],
    )
    newest = module.slow_features(pixels, ids, (ids != 0).long())
    assert torch.allclose(module.images[:3], newest[0]) and torch.allclose(
        module.texts[:3], newest[1]
    )
    assert (module.images.norm(dim=1) - 1).abs().max() < 1e-5


def test_without_softening_and_queue_itc_is_clips_loss_against_the_slow_features():
    module, pixels, ids = pretraining(soften=0.0, momentum=0.0)  # the copy equals the model
    module.images, module.texts = module.images[:0], module.texts[:0]
    loss = module(pixels, ids, ("itc",))["itc"]
    seen = (ids != 0).long()
    image, text = module.model.encode_image(pixels), module.model.encode_text(ids, seen)
    expected = contrastive_loss(image, text, torch.tensor(1 / 0.07).log())
    assert abs(loss.item() - expected.item()) < 1e-5


def test_softened_targets_lie_between_the_copys_opinion_and_the_pair():
    losses = {}
    for soften in (0.0, 0.4, 1.0):
        module, pixels, ids = pretraining(soften=soften)
        module.step = 1
        losses[soften] = module(pixels, ids, ("itc",))["itc"].item()
    assert abs(losses[0.4] - (0.6 * losses[0.0] + 0.4 * losses[1.0])) < 1e-4
    assert abs(losses[0.0] - losses[1.0]) > 0.01


def test_softening_begins_at_zero_and_rises_over_the_ramp():
    hard, soft = ([], [])
    for losses, soften in ((hard, 0.0), (soft, 0.4)):
        module, pixels, ids = pretraining(soften=soften, ramp=2)
        losses += [module(pixels, ids, ("itc",))["itc"].item() for _ in range(3)]
    assert hard[0] == soft[0] and hard[1] != soft[1]


def test_negatives_are_never_the_own_pair_and_likelier_where_similar():
    similar = torch.tensor([[9.0, 5.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    drawn = torch.stack([draw_negatives(similar) for _ in range(2000)])  # (2000, 3)
    assert (drawn != torch.arange(3)).all()
    assert (drawn[:, 0] == 1).float().mean() > 0.95
    assert 0.45 < (drawn[:, 1] == 0).float().mean() < 0.55


def test_matching_asks_three_pairs_an_item_and_knows_which_are_true():
    module, pixels, ids = pretraining()
    asked = []

    def match_states(image, texts, seen):
        asked.append((image, texts))
        known = torch.tensor(
            [
                [image[i].equal(states[j]) and texts[i, 1:].equal(ids[j, 1:]) for j in range(3)]
                for i in range(len(texts))
            ]
        ).any(dim=1)
        return 20 * torch.stack([~known, known], dim=1).float()

    states = module.model.vision(pixels)
    module.model.match_states = match_states
    loss = module.matching(states, ids, (ids != 0).long(), [torch.zeros(3, 3)] * 2)
    image, texts = asked[0]
    assert len(texts) == 9 and (texts[:, 0] == 46).all() and loss.item() < 1e-6


def test_captioning_starts_with_dec_predicts_the_end_and_ignores_padding():
    module, pixels, ids = pretraining(smoothing=0.0)
    states, seen = module.model.vision(pixels), (ids != 0).long()
    loss = module.captioning(states, ids, seen)
    logits = module.model(
        torch.cat([torch.full((3, 1), 47), ids[:, 1:]], dim=1), states, seen
    ).log_softmax(-1)
    expected = [
        -logits[b, t, ids[b, t + 1]] for b in range(3) for t in range(8) if ids[b, t + 1] != 0
    ]
    assert torch.allclose(loss, torch.stack(expected).mean(), atol=1e-5)


def test_only_the_losses_asked_for_are_computed():
    module, pixels, ids = pretraining()
    assert [*module(pixels, ids)] == ["itc", "itm", "lm"]
    assert [*module(pixels, ids, ("lm", "itm"))] == ["itm", "lm"]
    with pytest.raises(ValueError, match="unknown loss 'mlm'"):
        module(pixels, ids, ("mlm",))


@pytest.mark.parametrize("mode", ["text", "image-grounded encoder", "decoder"])
def test_each_mode_obeys_its_mask(mode):
    model = randomised(build_blip(random_config(1).to_dict()))
    med = model.decoder if mode == "decoder" else model.encoder
    mask = causal(6) if mode == "decoder" else bidirectional(6)
    x, image = torch.randn(1, 6, med.config.width), torch.randn(1, 4, med.config.memory)
    seen = None if mode == "text" else image

    def run(x, image):
        for block in med.blocks:
            x = block(x, mask, image)
        return x

    assert torch.equal(effective_mask(lambda x: run(x, seen), x), mask)
    if seen is not None:
        assert effective_mask(lambda image: run(x, image), image).all()
