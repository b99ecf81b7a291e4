"""BLIP-2: the reference's numbers from its checkpoints, masks by perturbation, both stages."""

from dataclasses import replace
from random import Random

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
)

from minivlm.blip2 import (
    Blip2,
    ClipFeatures,
    FirstStage,
    QFormer,
    QFormerConfig,
    freeze,
    prompt_loss,
    second_stage,
)
from minivlm.clip import ClipVision, VisionConfig
from minivlm.opt import Opt
from minivlm.parts import masks
from minivlm.parts.decoder import Decoder, DecoderConfig, KVCache
from minivlm.parts.generation import generate
from minivlm.plotting import effective_mask
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.blip2 import BLIP2_NAMES, build_blip2
from minivlm.pretrained.opt import build_opt
from minivlm.vit import ViTConfig

IMAGE = 49  # the placeholder's id
SIDES = ["none", "right", "left"]


def random_config(seed: int, **options) -> Blip2Config:
    rng = Random(seed)

    def shape() -> dict:
        heads = rng.choice([1, 2, 3])
        return {
            "hidden_size": heads * 8 * rng.choice([1, 2]),
            "num_attention_heads": heads,
            "num_hidden_layers": rng.choice([1, 2, 3]),
        }

    patch = rng.choice([4, 5])
    vision = {
        "patch_size": patch,
        "image_size": patch * rng.choice([2, 3]),
        "qkv_bias": rng.random() < 0.7,
    }
    qformer = {
        "vocab_size": 50,
        "max_position_embeddings": 12,
        "hidden_act": rng.choice(["gelu", "gelu_new"]),
        "num_hidden_layers": rng.choice([2, 3, 5]),
        "cross_attention_frequency": rng.choice([1, 2, 3]),
        "use_qformer_text_input": True,
    }
    text = {
        "model_type": "opt",
        "vocab_size": 50,
        "max_position_embeddings": 20,
        "ffn_dim": rng.choice([20, 33]),
    }
    text |= shape()
    return Blip2Config(
        vision_config=shape() | vision | {"intermediate_size": rng.choice([20, 33])},
        qformer_config=shape() | qformer | {"intermediate_size": rng.choice([20, 33])},
        text_config=text | {"word_embed_proj_dim": text["hidden_size"]},
        num_query_tokens=rng.choice([1, 3, 4]),
        image_text_hidden_size=rng.choice([7, 16]),
        **options,
    )


def reference(model_class, seed: int, **options) -> torch.nn.Module:
    """A reference model in which every parameter is random, also those that begin as 0 or 1."""
    torch.manual_seed(seed)
    return randomised(model_class(random_config(seed, **options)))


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def batch(
    config: Blip2Config, side: str, count: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Images, ids and an attention mask with padding on the given side."""
    size = config.vision_config.image_size
    pixels, ids = torch.randn(count, 3, size, size), torch.randint(3, 45, (count, 9))
    if side == "none":
        return pixels, ids, None
    lengths = torch.tensor([9, 5, 2, 7])[:count, None]
    seen = torch.arange(9) < lengths if side == "right" else torch.arange(9) >= 9 - lengths
    return pixels, ids.masked_fill(~seen, 1), seen.long()


def after_placeholders(
    ids: torch.Tensor, mask: torch.Tensor | None, queries: int
) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones_like(ids) if mask is None else mask
    return F.pad(ids, (queries, 0), value=IMAGE), F.pad(mask, (queries, 0), value=1)


@pytest.mark.parametrize("token", [None, IMAGE])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("seed", range(6))
def test_retrieval_and_matching_equal_the_reference(seed, side, token, tmp_path):
    theirs = reference(Blip2ForImageTextRetrieval, seed, image_token_index=token)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    pixels, ids, mask = batch(theirs.config, side)
    with torch.no_grad():
        match, similarity = ours.match(pixels, ids, mask), ours.similarity(pixels, ids, mask)
        image, text = ours.encode_image(pixels), ours.encode_text(ids, mask)
        seen = torch.ones_like(ids) if mask is None else mask
        if token:  # the reference then expects the placeholders of the queries before the text
            ids, seen = after_placeholders(ids, mask, theirs.config.num_query_tokens)
            assert torch.equal(ours.match(pixels, ids, seen), match)
            assert torch.equal(ours.similarity(pixels, ids, seen), similarity)
        expected = theirs(pixels, ids, seen, use_image_text_matching_head=True).logits_per_image
        cosine = theirs(pixels, ids, seen).logits_per_image
    assert (match - expected).abs().max() < 1e-5
    assert (similarity - cosine).abs().max() < 1e-5
    assert (image.norm(dim=2) - 1).abs().max() < 1e-5 and (text.norm(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("seed", range(6))
def test_the_language_model_after_the_queries_equals_the_reference(seed, side, tmp_path):
    theirs = reference(Blip2ForConditionalGeneration, seed, image_token_index=IMAGE)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    pixels, ids, mask = batch(theirs.config, side)
    ids, seen = after_placeholders(ids, mask, theirs.config.num_query_tokens)
    if side == "left":  # the padding, wherever it is
        order = seen.argsort(dim=1, stable=True)
        ids, seen = ids.gather(1, order), seen.gather(1, order)
    with torch.no_grad():
        queries = theirs.get_image_features(
            pixels, return_dict=True
        ).qformer_outputs.last_hidden_state
        assert (ours.qformer(ours.vision(pixels)) - queries).abs().max() < 1e-5
        expected = theirs(pixel_values=pixels, input_ids=ids, attention_mask=seen).logits
        assert ((ours(ids, pixels, seen) - expected) * seen[..., None]).abs().max() < 1e-5
        if mask is None:
            assert (ours(ids, pixels) - expected).abs().max() < 1e-5


def test_generated_ids_are_those_of_the_reference_with_and_without_a_cache(tmp_path):
    theirs = reference(Blip2ForConditionalGeneration, 2, image_token_index=IMAGE)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    pixels, ids, mask = batch(theirs.config, "right")
    ids, seen = after_placeholders(ids[:, :5], mask[:, :5], theirs.config.num_query_tokens)
    order = seen.argsort(dim=1, stable=True)
    left, left_seen = ids.gather(1, order), seen.gather(1, order)
    expected = theirs.generate(
        pixels,
        left,
        left_seen,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=1,
    )[:, -6:]
    for use_cache in (True, False):
        got = generate(ours, ids, 6, attention_mask=seen, pixel_values=pixels, use_cache=use_cache)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("seed", range(4))
def test_queries_that_see_an_instruction_equal_instructblips(seed, side):
    blip2 = random_config(seed)
    shape = {
        name: value
        for name, value in blip2.qformer_config.to_dict().items()
        if name != "model_type"
    }
    torch.manual_seed(seed)
    theirs = randomised(InstructBlipQFormerModel(InstructBlipQFormerConfig(**shape)))
    ours = stage1(seed).qformer
    weights = {"qformer." + name: value for name, value in theirs.state_dict().items()}
    copy_weights(ours, weights)
    pixels, ids, mask = batch(blip2, side)
    image = torch.randn(3, 5, blip2.vision_config.hidden_size)
    seen = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        expected = theirs(
            input_ids=ids,
            attention_mask=F.pad(seen, (ours.config.queries, 0), value=1),
            query_embeds=ours.queries.expand(3, -1, -1),
            encoder_hidden_states=image,
        ).last_hidden_state
        assert (ours(image, ids, mask) - expected[:, : ours.config.queries]).abs().max() < 1e-5
        assert (ours(image, ids, mask) - ours(image)).abs().max() > 1e-3


def copy_weights(ours: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """InstructBLIP keeps the embeddings within its Q-Former; else the names are BLIP-2's."""
    for name, parameter in ours.named_parameters():
        if name != "queries":
            theirs = BLIP2_NAMES.publish("qformer." + name).replace(
                "qformer.layernorm", "embeddings.layernorm"
            )
            source = weights["qformer." + theirs.removeprefix("qformer.")]
            assert source.shape == parameter.shape
            parameter.data.copy_(source)


def stage1(seed: int = 0) -> Blip2:
    """A random model with all parts of stage 1."""
    torch.manual_seed(seed)
    model = build_blip2(random_config(seed).to_dict(), {"embeddings.word_embeddings.weight"})
    return randomised(Blip2(model.vision.config, model.qformer.config, width=6))


# Masks


def test_masks_of_two_queries_and_three_tokens_are_the_papers():
    assert masks.unimodal(2, 3).int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[0, 0, 1, 1, 1]] * 3
    assert masks.multimodal_causal(2, 3).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize(
    "kind", [masks.unimodal, masks.multimodal_causal, lambda q, t: masks.bidirectional(q + t)]
)
def test_the_q_former_obeys_exactly_the_mask_it_is_given(kind):
    qformer = stage1(1).qformer
    queries, image = qformer.config.queries, torch.randn(1, 5, qformer.config.memory)
    mask = kind(queries, 4)
    x = torch.randn(1, queries + 4, qformer.config.width)
    one = qformer.blocks[0]
    assert torch.equal(effective_mask(lambda x: one(x, mask, image), x), mask)
    # these three do not widen over several blocks
    assert torch.equal(effective_mask(lambda x: qformer.run(x, mask, image), x), mask)


@pytest.mark.parametrize(
    "kind, leaks",
    [(masks.unimodal, False), (masks.multimodal_causal, False), (None, True)],
    ids=["itc", "itg", "itm"],
)
def test_a_changed_token_moves_the_queries_only_where_they_match(kind, leaks):
    qformer = stage1(3).qformer
    queries, image = qformer.config.queries, torch.randn(2, 5, qformer.config.memory)
    ids = torch.randint(3, 45, (2, 6))
    mask = kind(queries, 6) if kind else None
    with torch.no_grad():
        before = qformer.states(image, ids, mask=mask)
        after = qformer.states(image, ids.index_fill(1, torch.tensor([3]), 46), mask=mask)
        moved = (before != after).any(dim=2)
        assert moved[:, :queries].all() if leaks else not moved[:, :queries].any()
        assert moved[:, queries + 3].all()
        assert moved[:, queries : queries + 3].any() == (kind is not masks.multimodal_causal)
        if not leaks:
            assert torch.allclose(before[:, :queries], qformer(image), atol=1e-5)
        # and the reverse: text that sees the image
        other = qformer.states(torch.randn_like(image), ids, mask=mask)
        assert (other != before).any(dim=2)[:, queries:].all() == (kind is not masks.unimodal)
        if kind is masks.unimodal:
            assert torch.allclose(before[:, queries:], qformer.read(ids), atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("seed", range(4))
def test_captions_in_one_pass_and_after_cached_queries_are_the_same(seed, side):
    model = stage1(seed).double()
    pixels, ids, mask = batch(random_config(seed), side)
    seen = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        image = model.vision(pixels.double())
        whole, cache = model.itg(ids, image, mask), KVCache()
        at_once = model.itg(ids, image, mask, cache)
        assert whole.shape == (3, 9, 50) and cache.length == model.qformer.config.queries + 9
        one_by_one, cache = [], KVCache()
        for t in range(9):
            one_by_one.append(model.itg(ids[:, t : t + 1], image, seen[:, : t + 1], cache))
    assert (at_once - whole).abs().max() < 1e-10
    assert (torch.cat(one_by_one, dim=1) - whole)[seen.bool()].abs().max() < 1e-10


def test_the_q_former_says_the_same_caption_with_and_without_a_cache():
    model = stage1(2)
    image = model.vision(torch.randn(2, 3, *model.vision.config.image_size)).detach()
    start = torch.full((2, 1), 47)
    cached, anew = (
        generate(model.itg, start, 8, image=image, use_cache=flag) for flag in (True, False)
    )
    assert torch.equal(cached, anew)


# Both stages


def test_the_three_losses_are_those_by_hand():
    model = stage1(4)
    stage = FirstStage(model, dec=48, pad=1)
    # two pairs: the negatives are certain
    pixels, ids, seen = batch(random_config(4), "right", count=2)
    losses = stage(pixels, ids)
    similarity = model.similarity(pixels, ids, seen) / 0.07
    by_hand = 0.0
    for logits in (similarity, similarity.T):
        for i in range(2):
            target = torch.full((2,), 0.05).index_fill(0, torch.tensor(i), 0.95)
            by_hand -= (target * logits[i].log_softmax(-1)).sum() / 4
    assert torch.allclose(losses["itc"], by_hand, atol=1e-5)
    logits = [
        model.match(pixels[[i]], ids[[j]], seen[[j]])[0]
        for i, j in [(0, 0), (1, 1), (0, 1), (1, 0), (1, 0), (0, 1)]
    ]
    by_hand = F.cross_entropy(torch.stack(logits), torch.tensor([1, 1, 0, 0, 0, 0]))
    assert torch.allclose(losses["itm"], by_hand, atol=1e-5)
    said = model.itg(
        torch.cat([torch.full((2, 1), 48), ids[:, 1:]], dim=1), model.vision(pixels), seen
    ).log_softmax(-1)
    terms = [
        -0.9 * said[b, t - 1, ids[b, t]] - 0.1 * said[b, t - 1].mean()
        for b in range(2)
        for t in range(1, 9)
        if seen[b, t]
    ]
    assert torch.allclose(losses["itg"], torch.stack(terms).mean(), atol=1e-5)


def test_stage_one_teaches_every_part_but_the_image_encoder():
    stage = FirstStage(stage1(5), dec=48, pad=1)
    pixels, ids, _ = batch(random_config(5), "right")
    sum(stage(pixels, ids).values()).backward()
    for name, parameter in stage.named_parameters():
        frozen = name.startswith("model.vision.") and not name.startswith("model.vision.norm.")
        assert parameter.requires_grad != frozen
        assert (parameter.grad is None) == frozen, name


@pytest.mark.parametrize("kind", ["decoder", "opt"])
def test_stage_two_is_the_loss_of_the_text_after_a_soft_prompt(kind):
    first = stage1(6)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 20}
    language = Decoder(DecoderConfig(50, 16, layers=2, heads=2, kv_heads=1, hidden=20))
    language = build_opt(shape | {"vocab_size": 50}) if kind == "opt" else language
    model = randomised(Blip2(first.vision.config, first.qformer.config, decoder=language))
    model.qformer.drop_text()
    freeze(model)
    pixels, ids, seen = batch(random_config(6), "right")
    loss = prompt_loss(model, pixels, ids, seen)
    soft = model.projection(model.qformer(model.vision(pixels)))
    terms = []
    for b in range(3):
        text = ids[[b], : seen[b].sum()]
        logits = language(embeds=torch.cat([soft[[b]], language.embed(text)], dim=1))[0]
        logits = logits[soft.shape[1] - 1 : -1]
        terms.append(F.cross_entropy(logits, text[0], reduction="none"))
    assert torch.allclose(loss, torch.cat(terms).mean(), atol=1e-5)
    loss.backward()
    trained_names = {
        name
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert {name.split(".")[0] for name in trained_names} == {"vision", "qformer", "projection"}
    assert {name for name in trained_names if name.startswith("vision")} == {
        "vision.norm.weight",
        "vision.norm.bias",
    }
    generated = generate(model, torch.full((3, soft.shape[1]), -1), 4, pixel_values=pixels)
    assert generated.shape == (3, 4)


def test_an_instruction_reaches_the_queries_through_every_call_of_stage_two():
    first = stage1(6)
    language = build_opt(
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    )
    model = randomised(Blip2(first.vision.config, first.qformer.config, decoder=language))
    queries = model.qformer.config.queries
    pixels, ids, mask = batch(random_config(6), "right")
    asked = {"instruction": ids, "instruction_mask": mask}
    prompt = torch.cat([torch.full((3, queries), -1), torch.randint(3, 45, (3, 4))], dim=1)
    with torch.no_grad():
        soft = model.projection(model.qformer(model.vision(pixels), ids, mask))
        expected = language(embeds=torch.cat([soft, language.embed(prompt[:, queries:])], dim=1))
        assert (model(prompt, pixels, **asked) - expected).abs().max() < 1e-5
        assert (model(prompt, pixels) - expected).abs().max() > 1e-3
        loss = F.cross_entropy(
            expected[:, queries - 1 : -1].flatten(0, 1), prompt[:, queries:].flatten()
        )
        assert torch.allclose(
            prompt_loss(model, pixels, prompt[:, queries:], **asked), loss, atol=1e-5
        )
    said = [
        generate(model, prompt, 5, pixel_values=pixels, use_cache=flag, **asked)
        for flag in (True, False)
    ]
    assert torch.equal(*said)


def full_size(language: Opt | None) -> Blip2:
    vision = ViTConfig((224, 224), patch=14, width=1408, layers=39, heads=16, hidden=6144, eps=1e-6)
    qformer = QFormerConfig(30523, 512, width=768, layers=12, heads=12, hidden=3072, memory=1408)
    return (
        Blip2(vision, qformer, decoder=language) if language else Blip2(vision, qformer, width=256)
    )


def trained(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_full_size_has_the_published_parameters():
    with torch.device("meta"):
        first = full_size(None)
        assert sum(p.numel() for p in first.vision.parameters()) == 985_952_256
        assert trained(FirstStage(first, dec=30522, pad=0)) == 186_705_470  # the paper says 188M
        cross = [
            p
            for block in first.qformer.blocks
            if block.cross
            for p in (*block.cross.parameters(), *block.cross_norm.parameters())
        ]
        assert sum(p.numel() for p in cross) == 20_081_664
        for width, heads, total in [(2560, 32, 107_133_696), (4096, 32, 108_314_880)]:
            shape = {
                "hidden_size": width,
                "num_attention_heads": heads,
                "num_hidden_layers": 1,
                "ffn_dim": 4 * width,
            }
            second = full_size(build_opt(shape))
            second.qformer.drop_text()
            freeze(second)
            assert trained(second) == total
        # every default is the published one
        model = build_blip2({"text_config": {"model_type": "opt"}})
        assert model.vision.config == first.vision.config
        assert model.qformer.config == replace(first.qformer.config, vocab_size=30522)


# Checkpoints and wrong input


def test_what_we_save_is_read_by_the_reference(tmp_path):
    for model_class in (Blip2ForImageTextRetrieval, Blip2ForConditionalGeneration):
        theirs = reference(model_class, 4, image_token_index=IMAGE)
        theirs.save_pretrained(tmp_path / "theirs")
        save_pretrained(
            from_pretrained(tmp_path / "theirs"), theirs.config.to_dict(), tmp_path / "ours"
        )
        again = model_class.from_pretrained(tmp_path / "ours").state_dict()
        assert all(torch.equal(value, again[name]) for name, value in theirs.state_dict().items())


def test_a_captioner_without_text_parts_is_read(tmp_path):
    config = random_config(1, image_token_index=IMAGE)
    config.qformer_config.use_qformer_text_input = False
    randomised(Blip2ForConditionalGeneration(config)).save_pretrained(tmp_path)
    assert from_pretrained(tmp_path).qformer.blocks[0].mlp is None


def test_calls_that_a_checkpoint_has_no_weights_for_say_so(tmp_path):
    reference(Blip2ForConditionalGeneration, 0).save_pretrained(tmp_path / "captioning")
    reference(Blip2ForImageTextRetrieval, 0).save_pretrained(tmp_path / "retrieval")
    captioner, retriever = (
        from_pretrained(tmp_path / name) for name in ("captioning", "retrieval")
    )
    pixels, ids, _ = batch(random_config(0), "none")
    for call in (captioner.match, captioner.similarity, lambda p, i: captioner.encode_text(i)):
        with pytest.raises(ValueError, match="has no heads for retrieval"):
            call(pixels, ids)
    with pytest.raises(ValueError, match="has no language model"):
        retriever(ids, pixels)
    with pytest.raises(ValueError, match="has no language model"):
        retriever(ids)
    with pytest.raises(ValueError, match="has no language-model head"):
        retriever.itg(ids, retriever.vision(pixels))
    with pytest.raises(ValueError, match="reads no text"):
        captioner.qformer(captioner.vision(pixels), ids)


@pytest.mark.parametrize(
    "change, names",
    [
        ({"word_embed_proj_dim": 8}, "word_embed_proj_dim = 8"),
        ({"do_layer_norm_before": False}, "do_layer_norm_before = False"),
        ({"model_type": "t5"}, "model_type = 't5'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"activation_function": "maxout"}, "maxout"),
    ],
)
def test_unsupported_language_models_are_refused_by_name(change, names):
    text = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1} | change
    with pytest.raises(ValueError, match=names), torch.device("meta"):
        build_blip2({"text_config": text})


def test_wrong_input_is_named(tmp_path):
    model = stage1(0)
    pixels, ids, _ = batch(random_config(0), "none")
    with pytest.raises(ValueError, match="token id 50 is outside the vocabulary of 50"):
        model.match(pixels, ids.index_fill(1, torch.tensor([3]), 50))
    with pytest.raises(ValueError, match="3 images for 2 texts"):
        model.match(pixels, ids[:2])
    with pytest.raises(ValueError, match=r"1 <= T <= 12, got \(3, 18\)"):
        model.match(pixels, torch.cat([ids, ids], dim=1))
    with pytest.raises(ValueError, match=r"attention_mask must be \(3, 9\), got \(3, 8\)"):
        model.match(pixels, ids, torch.ones(3, 8))
    with pytest.raises(ValueError, match=r"attention_mask must hold 0 and 1 only, got \[1, 2\]"):
        model.match(pixels, ids, torch.ones_like(ids).index_fill(1, torch.tensor([3]), 2))
    with pytest.raises(ValueError, match=r"image states must be \(B, N, .*got \(3, 5, 7\)"):
        model.qformer(torch.randn(3, 5, 7))
    reference(Blip2ForConditionalGeneration, 0, image_token_index=IMAGE).save_pretrained(tmp_path)
    captioner = from_pretrained(tmp_path)
    places, mask = after_placeholders(ids, None, captioner.qformer.config.queries)
    with pytest.raises(ValueError, match="placeholders .id 49., but no image"):
        captioner(places)
    with pytest.raises(ValueError, match="3 images take"):
        captioner(ids, pixels)
    with pytest.raises(ValueError, match=r"attention_mask must be .* got \(3, 4\)"):
        captioner(places, pixels, mask[:, :4])
    with pytest.raises(ValueError, match="27 tokens, but 20 positions"):
        captioner(torch.cat([ids, ids, ids], dim=1))
    with pytest.raises(ValueError, match="token id 60"):
        captioner(ids.index_fill(1, torch.tensor([3]), 60))


def test_queries_read_clip_before_its_last_block_and_only_the_norm_after_it_trains():
    torch.manual_seed(0)
    tower, images = ClipVision(VisionConfig(16, 8, 16, 3, 2, 20)), torch.randn(2, 3, 16, 16)
    config = QFormerConfig(1, 8, 16, 2, 2, 20, memory=16, queries=3)
    model = Blip2(
        ClipFeatures(tower), config, decoder=Decoder(DecoderConfig(9, 12, 1, 2, 2, 8))
    ).eval()
    x = tower.embed(images)
    for block in tower.blocks[:2]:
        x = block(x)
    x = F.layer_norm(x, (16,))
    assert torch.allclose(
        model.encode_images(images), model.projection(model.qformer(x)), atol=1e-5
    )
    freeze(model)
    trained_names = {name for name, p in model.vision.named_parameters() if p.requires_grad}
    assert trained_names == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("every", [1, 2, 3])
def test_attention_maps_say_which_image_vectors_each_query_reads(every):
    torch.manual_seed(0)
    config = QFormerConfig(1, 8, 16, 4, 2, 20, memory=12, queries=3, every=every)
    net, image = QFormer(config).eval(), torch.randn(2, 5, 12)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    read = []  # by the attention itself: what enters each cross-attention, asked again
    for block in net.blocks:
        if block.cross is not None:
            block.cross.register_forward_hook(
                lambda m, args, kw, out: read.append((m, args[0])), with_kwargs=True
            )
    with torch.no_grad():
        net(image)
    maps = net.attention_maps(image)
    assert maps.shape == (-(-4 // every), 2, 2, 3, 5)
    assert torch.allclose(maps.sum(dim=-1), torch.ones(maps.shape[:-1]), atol=1e-5)
    for got, (cross, x) in zip(maps, read[: len(maps)], strict=True):
        assert torch.allclose(got, cross.weights(x, memory=image), atol=1e-5)


def test_the_second_stage_leaves_the_scaffolding_of_the_first_and_freezes_both_models():
    torch.manual_seed(0)
    vision = ViTConfig((16, 16), patch=8, width=16, layers=1, heads=2, hidden=20)
    decoder = Decoder(DecoderConfig(9, 12, 1, 2, 2, 8))
    model = Blip2(
        vision, QFormerConfig(30, 8, 16, 2, 2, 20, memory=16, queries=3), width=8, decoder=decoder
    ).eval()
    images = torch.randn(2, 3, 16, 16)
    before = model.encode_images(images)
    second_stage(model)
    assert torch.equal(model.encode_images(images), before)
    parts = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert parts == {"vision", "qformer", "projection"}
    assert {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and name.startswith("vision")
    } == {
        "vision.norm.weight",
        "vision.norm.bias",
    }
    with pytest.raises(ValueError, match="no heads for retrieval"):
        model.encode_image(images)
