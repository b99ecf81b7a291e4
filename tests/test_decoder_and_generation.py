"""The causal language model, its cache, and decoding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from minivlm.parts import masks, rope
from minivlm.parts.decoder import Decoder, DecoderConfig, KVCache
from minivlm.parts.generation import generate, left_align_padding, top_p_filter
from minivlm.plotting import effective_mask
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.checkpoints import Names, fill, read_json
from minivlm.pretrained.llama import DECODER_NAMES, decoder_config

CONFIG = DecoderConfig(vocab_size=40, width=24, layers=2, heads=4, kv_heads=2, hidden=32)


def decoder(seed: int = 0, config: DecoderConfig = CONFIG) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, tied", [(4, 4, None, False), (6, 2, 8, True), (4, 1, 16, False)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_those_of_transformers_llama(heads, kv_heads, head_dim, tied, bias):
    torch.manual_seed(heads + bias)
    theirs_config = LlamaConfig(
        vocab_size=50, hidden_size=heads * 8, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, intermediate_size=40,
        tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    theirs = LlamaForCausalLM(theirs_config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = Decoder(decoder_config(theirs_config.to_dict()))
    weights = {name: p.detach() for name, p in theirs.named_parameters()}
    fill(ours, weights, Names(published=DECODER_NAMES))
    ids = torch.randint(50, (2, 9))
    mask = torch.tensor([[0, 0] + [1] * 7, [1] * 9])
    with torch.no_grad():
        difference = ours(ids, mask) - theirs(input_ids=ids, attention_mask=mask).logits
    assert difference.abs().max() < 1e-5


def test_a_llama_folder_of_transformers_is_read_and_one_of_ours_is_read_there(tmp_path):
    torch.manual_seed(0)
    for tied in (False, True):
        shape = {
            "hidden_size": 24,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "intermediate_size": 20,
        }
        theirs = LlamaForCausalLM(
            LlamaConfig(vocab_size=50, num_hidden_layers=2, tie_word_embeddings=tied, **shape)
        )
        theirs.eval().save_pretrained(tmp_path / "theirs")
        ours = from_pretrained(tmp_path / "theirs")
        save_pretrained(ours, read_json(tmp_path / "theirs" / "config.json"), tmp_path / "ours")
        back = LlamaForCausalLM.from_pretrained(tmp_path / "ours")
        ids = torch.randint(50, (2, 9))
        with torch.no_grad():
            expected = theirs(ids).logits
            assert torch.allclose(ours(ids), expected, atol=1e-5)
            assert torch.allclose(back(ids).logits, expected, atol=1e-5)


def test_rotary_tables_turn_like_the_reference_and_keep_lengths():
    x = torch.randn(2, 3, 5, 8)
    cos, sin = rope.rotary_tables(torch.arange(5), 8)
    ours = rope.rotate(x, cos, sin)
    theirs, _ = apply_rotary_pos_emb(x, x, cos[None], sin[None])
    assert torch.equal(ours, theirs)
    assert torch.allclose(ours.norm(dim=-1), x.norm(dim=-1), atol=1e-5)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 500))
def test_rotated_dot_products_depend_on_the_distance_alone(i, j, shift):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 16, generator=generator, dtype=torch.float64)

    def score(a: int, b: int) -> float:
        (cos_a, sin_a), (cos_b, sin_b) = (rope.rotary_tables(torch.tensor([p]), 16) for p in (a, b))
        return (rope.rotate(q, cos_a, sin_a) * rope.rotate(k, cos_b, sin_b)).sum().item()

    assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=1e-3)


def test_the_decoder_obeys_the_causal_mask():
    model = decoder()
    x = torch.randn(1, 7, 24)
    assert torch.equal(effective_mask(lambda x: model(embeds=x), x), masks.causal(7))


def test_the_decoder_obeys_another_mask_and_padding():
    model, x = decoder(), torch.randn(1, 7, 24)
    declared = masks.prefix(7, 3)
    assert torch.equal(effective_mask(lambda x: model(embeds=x, mask=declared), x), declared)
    keep = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    seen = effective_mask(lambda x: model(embeds=x, attention_mask=keep), x)
    assert torch.equal(seen[2:], (masks.causal(7) & masks.padding(keep)[0, 0])[2:])


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_cached_continuation_gives_the_logits_of_one_pass(cut):
    model, ids = decoder(), torch.randint(40, (3, 9))
    cache = KVCache()
    with torch.no_grad():
        whole = model(ids)
        parts = torch.cat(
            [model(ids[:, :cut], cache=cache), model(ids[:, cut:], cache=cache)], dim=1
        )
    assert cache.length == 9
    assert torch.allclose(whole, parts, atol=1e-5)


@given(st.integers(0, 2**16), st.integers(1, 4), st.integers(1, 6), st.sampled_from([0, 0.7, 1.5]))
@settings(deadline=None, max_examples=30)
def test_cached_and_uncached_generation_give_the_same_ids(seed, batch, length, temperature):
    model = decoder(seed % 7)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(40, (batch, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()  # padding on the right
    runs = [
        generate(
            model, ids, 6, temperature, 0.9, eos_id=3, attention_mask=mask, use_cache=use_cache,
            generator=torch.Generator().manual_seed(seed),
        )
        for use_cache in (True, False)
    ]  # fmt: skip
    assert torch.equal(*runs)


def test_padding_on_either_side_and_no_padding_give_the_same_continuation():
    model = decoder()
    prompt = torch.tensor([[5, 6, 7]])
    alone = generate(model, prompt, 5)
    left, right = torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([[5, 6, 7, 0, 0]])
    for ids, mask in ((left, [[0, 0, 1, 1, 1]]), (right, [[1, 1, 1, 0, 0]])):
        assert torch.equal(generate(model, ids, 5, attention_mask=torch.tensor(mask)), alone)


def test_greedy_generation_is_the_argmax_one_token_at_a_time():
    model, ids = decoder(3), torch.randint(40, (2, 4))
    expected = ids
    for _ in range(5):
        with torch.no_grad():
            expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generate(model, ids, 5), expected[:, 4:])


def test_a_row_is_filled_with_eos_after_its_own_and_the_loop_ends_when_all_are_done():
    ids = torch.randint(40, (8, 3), generator=torch.Generator().manual_seed(1))
    model = decoder()
    free = generate(model, ids, 12)
    eos = free[0, 2].item()
    stopped = generate(model, ids, 12, eos_id=eos)
    for with_eos, without in zip(stopped.tolist(), free.tolist(), strict=True):
        end = without.index(eos) if eos in without else 12
        assert with_eos[: end + 1] == without[: min(end + 1, len(with_eos))]
        assert set(with_eos[end:]) <= {eos}
    assert generate(model, ids[:1], 12, eos_id=eos).shape[1] == free[0].tolist().index(eos) + 1


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=12), st.floats(0.05, 1))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(weights, top_p):
    probs = torch.tensor([weights], dtype=torch.float64)
    probs = probs / probs.sum()
    kept = top_p_filter(probs, top_p)[0]
    nucleus = probs[0][kept > 0]
    assert kept.sum().item() == pytest.approx(1)
    assert nucleus.sum() >= top_p - 1e-9
    assert nucleus.sum() - nucleus.min() < top_p + 1e-9
    assert (kept == 0).sum() == 0 or nucleus.min() >= probs[0][kept == 0].max()


def test_sampling_follows_the_temperature():
    model, ids = decoder(), torch.randint(40, (1, 3)).expand(400, -1)
    with torch.no_grad():
        expected = (model(ids[:1])[0, -1] / 2).softmax(-1)
    drawn = generate(model, ids, 1, temperature=2, generator=torch.Generator().manual_seed(0))[:, 0]
    share = torch.bincount(drawn, minlength=40) / 400
    assert (share - expected).abs().max() < 0.08


def test_left_align_padding_moves_tokens_but_keeps_their_order():
    ids = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    ids, mask = left_align_padding(ids, mask)
    assert ids.tolist() == [[0, 0, 1, 2], [3, 4, 5, 6]]
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


IDS = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda m: m(torch.tensor([[40]])), "40"),
        (lambda m: m(torch.tensor([[-200]])), "-200"),
        (lambda m: m(IDS, torch.ones(2, 4)), r"\(2, 4\)"),
        (lambda m: generate(m, IDS, 0), "0"),
        (lambda m: generate(m, IDS, 1, temperature=-1), "-1"),
        (lambda m: generate(m, IDS, 1, top_p=0), "0"),
        (lambda m: generate(m, IDS[0], 1), r"\(3,\)"),
        (lambda m: generate(m, IDS, 1, attention_mask=torch.ones(2, 2)), r"\(2, 2\)"),
        (
            lambda m: generate(m, IDS, 1, attention_mask=torch.tensor([[0, 0, 0], [1, 1, 1]])),
            "row 0",
        ),
        (lambda m: rope.inverse_frequencies(5), "5"),
        (lambda m: Decoder(DecoderConfig(8, 8, 1, 4, 3, 8)), "4 query heads"),
        (lambda m: decoder_config({"rope_scaling": {"rope_type": "llama3"}}), "llama3"),
        (lambda m: decoder_config({"model_type": "opt"}), "opt"),
    ],
)
def test_bad_input_is_refused_by_name(call, names):
    with pytest.raises(ValueError, match=names):
        call(decoder())
