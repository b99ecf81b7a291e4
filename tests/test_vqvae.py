"""The quantizer against independent arithmetic in numpy, and the VQ-VAE around it: sizes, errors,
files, resuming.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minivlm import scenes, vqvae
from minivlm.parts.training import fit
from minivlm.scenes.files import DATA
from minivlm.toys.vqvae import load_vqvae, save_vqvae, train_vqvae
from minivlm.vqvae import VQVAE, Quantizer, VQVAEConfig

SMALL = VQVAEConfig(codes=6, dim=3, widths=(4, 8), hidden=4)
seeds = st.integers(0, 10_000)


def new(**changes) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(replace(SMALL, **changes))


def brute_nearest(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Squared distances, one pair after the other."""
    return np.array(
        [np.argmin([((v - e) ** 2).sum() for e in codebook]) for v in vectors], dtype=int
    )


def numpy_ema_step(vectors, ids, codebook, counts, sums, c: VQVAEConfig):
    """Appendix A.1 of the paper, with sonnet's Laplace smoothing, in float64 and with loops."""
    n, m = np.zeros(c.codes), np.zeros((c.codes, c.dim))
    for vector, i in zip(vectors, ids, strict=True):
        n[i] += 1
        m[i] += vector
    counts = c.decay * counts + (1 - c.decay) * n
    sums = c.decay * sums + (1 - c.decay) * m
    total = counts.sum()
    smooth = (counts + c.epsilon) / (total + c.codes * c.epsilon) * total
    return sums / smooth[:, None], counts, sums


# The quantizer


@given(seeds, st.integers(1, 9), st.integers(1, 7), st.integers(1, 5))
@settings(deadline=None, max_examples=50)
def test_nearest_code_is_the_one_that_brute_force_finds(seed, n, k, dim):
    rng = np.random.default_rng(seed)
    vectors, codebook = rng.normal(size=(n, dim)), rng.normal(size=(k, dim))
    ids = vqvae.nearest(torch.tensor(vectors), torch.tensor(codebook))
    assert ids.tolist() == brute_nearest(vectors, codebook).tolist()


@given(
    seeds,
    st.integers(1, 20),
    st.integers(1, 7),
    st.integers(1, 5),
    st.floats(0, 1),
    st.sampled_from([1e-5, 0.1]),
)
@settings(deadline=None, max_examples=50)
def test_two_ema_steps_agree_with_an_independent_computation(seed, n, k, dim, decay, epsilon):
    decay = min(round(decay, 3), 0.999)  # float32 knows 1 - decay to seven digits
    c = replace(SMALL, codes=k, dim=dim, decay=decay, epsilon=epsilon)
    rng = np.random.default_rng(seed)
    quantizer = Quantizer(c)
    state = [
        t.detach().double().numpy() for t in (quantizer.codebook, quantizer.counts, quantizer.sums)
    ]
    for _ in range(2):
        vectors = rng.normal(size=(n, dim)).astype(np.float32)
        ids = rng.integers(k, size=n)
        quantizer.update(torch.tensor(vectors), torch.tensor(ids))
        state = numpy_ema_step(vectors, ids, *state, c)
    for got, expected in zip(
        (quantizer.codebook, quantizer.counts, quantizer.sums), state, strict=True
    ):
        assert np.allclose(got.detach().numpy(), expected, rtol=1e-3, atol=1e-5)


def test_forward_in_training_takes_exactly_one_ema_step_and_evaluation_takes_none():
    quantizer = new().quantizer
    z = torch.randn(2, 3, 4, 5)
    before = [t.detach().clone() for t in (quantizer.codebook, quantizer.counts, quantizer.sums)]
    quantizer.eval()(z)
    assert torch.equal(quantizer.codebook, before[0]) and torch.equal(quantizer.counts, before[1])
    _, ids, _ = quantizer.train()(z)
    flat = z.movedim(1, 3).flatten(0, 2).numpy()
    expected = numpy_ema_step(flat, ids.flatten().numpy(), *(t.numpy() for t in before), SMALL)
    assert np.allclose(quantizer.codebook.detach().numpy(), expected[0], atol=1e-6)


def test_a_code_that_nobody_chooses_stays_finite_however_long():
    quantizer = Quantizer(replace(SMALL, decay=0.5))
    for _ in range(300):  # 0.5 ** 300 is no float32
        quantizer.update(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))
    assert quantizer.counts[1] == 0 and torch.isfinite(quantizer.codebook).all()


@pytest.mark.parametrize("ema", [True, False])
def test_gradients_pass_straight_through_the_codes_to_the_encoder(ema):
    quantizer = new(ema=ema, beta=0.0).quantizer
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    codes, ids, _ = quantizer(z)
    weights = torch.randn(codes.shape)
    (codes * weights).sum().backward()
    assert torch.equal(z.grad, weights)  # as if the codes were z
    assert quantizer.codebook.grad is None  # the reconstruction teaches the codebook nothing


def test_codes_are_rows_of_the_codebook_at_their_places():
    quantizer = new().quantizer.eval()
    codes, ids, _ = quantizer(torch.randn(2, 3, 4, 5))
    assert ids.shape == (2, 4, 5) and ids.dtype == torch.int64
    assert torch.allclose(codes.movedim(1, 3), quantizer.codebook[ids], atol=1e-6)


def test_losses_are_those_of_equation_3():
    z = torch.randn(2, 3, 4, 5)
    for ema in (True, False):
        quantizer = new(ema=ema, beta=0.3).quantizer.eval()
        codes, _, loss = quantizer(z)
        error = (z - codes).pow(2).mean()
        assert torch.isclose(loss, (0.3 if ema else 1.3) * error)


def test_the_commitment_loss_moves_the_encoder_and_the_codebook_loss_the_codebook():
    quantizer = new(ema=False, beta=0.3).quantizer.eval()
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    codes, ids, loss = quantizer(z)
    loss.backward()
    difference = (z - codes).detach()
    assert torch.allclose(z.grad, 0.3 * 2 * difference / z.numel(), atol=1e-7)
    expected = torch.zeros(SMALL.codes, SMALL.dim)
    expected.index_add_(0, ids.flatten(), -2 * difference.movedim(1, 3).flatten(0, 2) / z.numel())
    assert torch.allclose(quantizer.codebook.grad, expected, atol=1e-7)


# Restarts and k-means


@pytest.mark.parametrize("ema", [True, False])
def test_restart_moves_only_dead_codes_and_puts_them_on_vectors_of_the_batch(ema):
    still = Quantizer(replace(SMALL, ema=ema, restart=0.0, decay=0.9))
    moving = Quantizer(replace(SMALL, ema=ema, restart=0.5, decay=0.9))
    counts = torch.tensor(
        [9.0, 0.1, 9.0, 0.2, 9.0, 0.555]
    )  # 0.9 * 0.555 is below a half, unless it is chosen
    for quantizer in (still, moving):
        quantizer.place(torch.arange(6), 5 * torch.eye(6)[:, :3])
        quantizer.counts.copy_(counts)
    vectors, ids = torch.randn(8, 3), torch.tensor([0, 0, 2, 2, 4, 4, 5, 5])
    still.update(vectors, ids)
    moving.update(vectors, ids)
    alive, dead = [0, 2, 4, 5], [1, 3]
    for name in ("codebook", "counts", "sums"):
        assert torch.equal(getattr(still, name)[alive], getattr(moving, name)[alive])
    for code in dead:
        assert (moving.codebook[code] == vectors).all(1).any()
        assert moving.counts[code] == 1 and torch.equal(moving.sums[code], moving.codebook[code])


def test_restart_prefers_vectors_that_no_code_stands_for():
    torch.manual_seed(0)
    quantizer = Quantizer(replace(SMALL, codes=2, restart=0.5, decay=0.9))
    quantizer.place(torch.arange(2), torch.tensor([[1.0, 0, 0], [90, 90, 90]]))
    quantizer.counts.copy_(torch.tensor([100.0, 0.0]))
    quantizer.sums[0] = torch.tensor([100.0, 0, 0])
    vectors = torch.tensor([[1.0, 0, 0]] * 99 + [[0, 7, 0]])  # 99 of 100 are background
    quantizer.update(vectors, torch.zeros(100, dtype=torch.long))
    assert quantizer.codebook[1].tolist() == [0, 7, 0]


@given(seeds, st.integers(1, 6))
@settings(deadline=None, max_examples=20)
def test_kmeans_finds_clusters_that_lie_apart(seed, k):
    generator = torch.Generator().manual_seed(seed)
    centres = 100 * torch.arange(k)[:, None] + torch.zeros(k, 3)
    vectors = (centres[:, None] + torch.randn(k, 20, 3, generator=generator)).flatten(0, 1)
    found = vqvae.kmeans(vectors, k, seed=seed)
    found = found[found[:, 0].argsort()]
    assert torch.allclose(found, vectors.unflatten(0, (k, 20)).mean(1), atol=1e-3)


def test_kmeans_copes_with_fewer_different_vectors_than_centres():
    found = vqvae.kmeans(torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]), 5)
    assert found.shape == (5, 2) and {tuple(row) for row in found.tolist()} == {
        (1.0, 2.0),
        (3.0, 4.0),
    }


def test_kmeans_start_puts_codes_where_the_encoder_speaks():
    model, images = new().eval(), torch.rand(4, 3, 16, 16)
    before = (model.encode(images) - model.quantizer(model.encode(images))[0]).pow(2).mean()
    model.start_codes(images)
    after = (model.encode(images) - model.quantizer(model.encode(images))[0]).pow(2).mean()
    assert after < 0.7 * before and torch.equal(model.quantizer.sums, model.quantizer.codebook)


# The model


@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 2), st.integers(0, 2)
)
@settings(deadline=None, max_examples=20)
def test_the_output_has_the_size_of_the_input(depth, rows, columns, batch, blocks):
    model = VQVAE(replace(SMALL, widths=(4,) * depth, blocks=blocks)).eval()
    size = (rows * 2**depth, columns * 2**depth)
    images = torch.rand(batch, 3, *size)
    reconstruction, ids, _ = model(images)
    assert reconstruction.shape == images.shape and ids.shape == (batch, rows, columns)
    assert model.decode_ids(ids).shape == images.shape


@pytest.mark.parametrize("size", [(3, 6, 8), (3, 8, 6), (3, 0, 8), (1, 8, 8), (4, 8, 8), (8, 8)])
def test_images_of_another_size_or_with_other_channels_are_refused_with_their_shape(size):
    images = torch.rand(2, *size)
    for call in (new(), new().encode_to_ids):
        with pytest.raises(ValueError, match=f"multiples of 4.*got .*{', '.join(map(str, size))}"):
            call(images)


def test_bytes_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        new()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("bad", [-1, 6, 99])
def test_an_id_outside_the_codebook_is_named(bad):
    ids = torch.zeros(1, 2, 2, dtype=torch.long)
    ids[0, 1, 0] = bad
    with pytest.raises(ValueError, match=f"id {bad} is outside the codebook of 6"):
        new().decode_ids(ids)


@pytest.mark.parametrize("ids", [torch.zeros(2, 2, dtype=torch.long), torch.zeros(1, 2, 2)])
def test_ids_that_are_no_grid_of_integers_are_refused(ids):
    with pytest.raises(ValueError, match="ids must be integers"):
        new().decode_ids(ids)


def test_ids_are_those_of_forward_and_their_decoding_is_its_reconstruction():
    model, images = new().eval(), torch.rand(2, 3, 8, 12)
    reconstruction, ids, _ = model(images)
    assert torch.equal(model.encode_to_ids(images), ids)
    assert torch.allclose(model.decode_ids(ids), reconstruction.clamp(0, 1), atol=1e-6)
    assert torch.equal(model.decode_ids(ids.int()), model.decode_ids(ids))


def test_signals_keep_their_size_through_the_layers_of_an_untrained_model():
    torch.manual_seed(0)
    for layer, x in (
        (nn.Conv2d(64, 64, 4, stride=2, padding=1), torch.randn(4, 64, 32, 32)),
        (nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1), torch.randn(4, 64, 16, 16)),
    ):
        vqvae.init_relu(layer)
        inner = layer(x.relu())[:, :, 2:-2, 2:-2]
        assert 0.9 < inner.pow(2).mean() / x.pow(2).mean() < 1.1


def test_perplexity_and_psnr_at_their_ends():
    assert vqvae.perplexity(torch.zeros(2, 3, dtype=torch.long), 5) == pytest.approx(1)
    assert vqvae.perplexity(torch.arange(5), 5) == pytest.approx(5)
    assert vqvae.psnr(torch.zeros(2, 3), torch.full((2, 3), 0.1)) == pytest.approx(20, abs=1e-4)


# Files and training


def test_save_and_load_keep_every_number(tmp_path):
    model, images = new(mean=(0.1, 0.2, 0.3), ema=False).eval(), torch.rand(1, 3, 8, 8)
    save_vqvae(model, tmp_path)
    again = load_vqvae(tmp_path)
    assert again.config == model.config and not again.training
    assert torch.equal(again(images)[0], model(images)[0])
    assert again.quantizer.codebook.requires_grad


def test_a_loaded_ema_codebook_goes_on_from_where_it_is(tmp_path):
    save_vqvae(new(), tmp_path)
    quantizer = load_vqvae(tmp_path).quantizer
    before = quantizer.codebook.detach().clone()
    assert not quantizer.codebook.requires_grad
    quantizer.update(before, torch.arange(6))
    assert torch.allclose(quantizer.codebook, before, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"codes": 7}, "codebook has shape"),
        ({"blocks": 0}, "extra tensor"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(tmp_path, change, message):
    save_vqvae(new(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_vqvae(tmp_path)


@pytest.mark.parametrize("ema", [True, False])
def test_a_training_that_was_interrupted_ends_with_the_same_bits(tmp_path, ema):
    images = torch.rand(8, 3, 8, 8)

    def train(model: VQVAE, fail_at: int = 99, checkpoint=None) -> VQVAE:
        calls = iter(range(100))

        def loss(model, batch):
            if next(calls) == fail_at:
                raise KeyboardInterrupt
            return model.loss(batch)

        fit(model, [images[:4], images[4:]], loss, steps=8, checkpoint=checkpoint, every=2)
        return model

    options = {"ema": ema, "restart": 0.8, "decay": 0.9}  # restarts draw random numbers
    whole = train(new(**options))
    with pytest.raises(KeyboardInterrupt):
        train(new(**options), fail_at=5, checkpoint=tmp_path / "state")
    resumed = train(new(**options), checkpoint=tmp_path / "state")
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), resumed.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_short_training_beats_the_blank_picture():
    images = torch.full((32, 3, 16, 16), 0.95)
    images[:, :, 4:12, 4:12] = torch.rand(32, 3, 1, 1)
    model, history = train_vqvae(images, 100, codes=32, widths=(8, 16), dim=4, kmeans_start=True)
    ids = model.encode_to_ids(images)
    assert len(history["loss"]) == 100 and not model.training
    blank = images.mean((0, 2, 3), keepdim=True).expand_as(images)
    assert vqvae.psnr(images, model.decode_ids(ids)) > vqvae.psnr(images, blank) + 1


def test_the_frozen_checkpoint_draws_held_out_scenes_well():
    folder = DATA / "checkpoints" / "vqvae"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    model = load_vqvae(folder)
    images = vqvae.to_unit([scene.image for scene in scenes.load("test")])
    ids = model.encode_to_ids(images)
    assert ids.shape == (250, 8, 8) and len(ids.unique()) > model.config.codes // 2
    assert vqvae.psnr(images, model.decode_ids(ids)) > 34
