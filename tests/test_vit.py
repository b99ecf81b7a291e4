"""Patches, positions and the Vision Transformer, against PyTorch's and transformers'."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTConfig as TheirConfig
from transformers import ViTForImageClassification, ViTModel

from minivlm import vit
from minivlm.parts import masks
from minivlm.plotting import effective_mask
from minivlm.pretrained import from_pretrained
from minivlm.qwen2_vision import preprocess

SMALL = vit.ViTConfig((16, 16), patch=4, width=12, layers=2, heads=3, hidden=20)


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)
)
@settings(deadline=None)
def test_unpatchify_undoes_patchify(batch, channels, rows, columns, patch):
    images = torch.randn(batch, channels, rows * patch, columns * patch)
    patches = vit.patchify(images, patch)
    assert patches.shape == (batch, rows * columns, channels * patch * patch)
    assert torch.equal(vit.unpatchify(patches, patch, rows), images)


def test_patches_times_a_matrix_are_a_strided_convolution():
    conv = torch.nn.Conv2d(3, 7, 4, stride=4)
    images = torch.randn(2, 3, 12, 20)
    linear = vit.patchify(images, 4) @ conv.weight.flatten(1).T + conv.bias
    assert torch.allclose(linear, conv(images).flatten(2).transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize(
    "shape",  # width, heads, layers, size, patch, bias, channels, act
    [
        (24, 3, 3, 24, 8, True, 3, "gelu"),
        (16, 1, 1, 20, 4, False, 1, "relu"),
        # 30 is no multiple of 7: the last pixels are never seen
        (32, 8, 2, 30, 7, True, 3, "gelu_new"),
    ],
)
def test_from_pretrained_gives_the_numbers_of_transformers_vit_at_any_size(tmp_path, shape):
    width, heads, layers, size, patch, bias, channels, act = shape
    config = TheirConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=2 * width + 1, image_size=size, patch_size=patch, qkv_bias=bias,
        num_channels=channels, hidden_act=act, layer_norm_eps=1e-5,
    )  # fmt: skip
    theirs = randomise(ViTModel(config), width)
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    for height, across in ((size, size), (3 * patch, 2 * patch), (size + 2 * patch, size)):
        x = torch.randn(2, channels, height, across)
        with torch.no_grad():
            expected = theirs(x, interpolate_pos_encoding=True)
            got = ours(x)
        assert (got - expected.last_hidden_state).abs().max() < 1e-5


@pytest.mark.parametrize("labels", [2, 5])
def test_a_published_classifier_gives_the_reference_logits(tmp_path, labels):
    config = TheirConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8, num_labels=labels,
    )  # fmt: skip
    theirs = randomise(ViTForImageClassification(config), labels)
    theirs.save_pretrained(tmp_path)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert (from_pretrained(tmp_path).classify(x) - theirs(x).logits).abs().max() < 1e-5


def test_the_encoder_obeys_the_bidirectional_mask():
    model = randomise(vit.ViT(SMALL), 0)
    x = torch.randn(1, 17, 12)

    def blocks(x):
        for block in model.blocks:
            x = block(x)
        return x

    assert torch.equal(effective_mask(blocks, x), masks.bidirectional(17))


def test_without_positions_the_order_of_the_patches_does_not_matter_and_with_them_it_does():
    model = randomise(vit.ViT(SMALL), 0).double()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = vit.unpatchify(vit.patchify(x, 4)[:, order], 4, rows=4)
    assert not torch.allclose(model(x)[:, 0], model(shuffled)[:, 0], atol=1e-3)
    assert not torch.allclose(model(x)[:, 1:][:, order], model(shuffled)[:, 1:], atol=1e-3)
    torch.nn.init.zeros_(model.positions)
    assert torch.allclose(model(x)[:, 0], model(shuffled)[:, 0], atol=1e-12)
    assert torch.allclose(model(x)[:, 1:][:, order], model(shuffled)[:, 1:], atol=1e-12)


def test_attention_maps_are_rows_of_probabilities_of_every_block():
    model = randomise(vit.ViT(SMALL), 1)
    maps = model.attention_maps(torch.randn(2, 3, 16, 24))
    assert maps.shape == (2, 2, 3, 25, 25)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 2, 3, 25))


def test_sincos_positions_are_distinct_and_shift_by_a_rotation():
    table = vit.sincos_2d(3, 5, 16)
    assert table.shape == (15, 16)
    assert torch.cdist(table, table).add(10 * torch.eye(15)).min() > 0.1
    one_row = table[0:5, :8]  # where the row half is the same
    assert torch.equal(one_row, table[0:1, :8].expand(5, -1))
    products = table @ table.T
    # one column apart anywhere
    assert products[0, 1] == pytest.approx(products[6, 7].item(), abs=1e-5)


def test_positions_resized_to_their_own_grid_stay_as_they_are():
    positions = torch.randn(1, 12, 6)
    assert vit.resize_positions(positions, (3, 4), (3, 4)) is positions
    assert vit.resize_positions(positions, (3, 4), (5, 2)).shape == (1, 10, 6)


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"]
)
def test_pictures_of_any_mode_become_three_channels(mode):
    picture = Image.new("RGB", (6, 4), (255, 255, 255))
    if mode in ("I;16", "I", "F"):
        top = {"I;16": 65535, "I": 65535, "F": 1.0}[mode]
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        picture = Image.fromarray(np.full((4, 6), top, dtype=dtype))
    elif mode == "LAB":
        picture = Image.new("LAB", (6, 4), (255, 128, 128))
    else:
        picture = picture.convert(mode)
    pixels = vit.to_pixels([picture])
    assert pixels.shape == (1, 3, 4, 6)
    assert pixels.min() > 0.95 and pixels.max() <= 1


def test_exif_turns_are_undone_and_transparency_lies_on_white(tmp_path):
    picture = Image.new("RGB", (6, 4), "black")
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as turned:
        assert vit.as_rgb(turned).size == (4, 6)
    assert vit.as_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_to_pixels_normalises_and_resizes():
    pixels = vit.to_pixels(
        [Image.new("RGB", (8, 8), (51, 102, 255))], (4, 6), mean=(0.2, 0.4, 0), std=(1, 1, 2)
    )
    assert pixels.shape == (1, 3, 4, 6)
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([0, 0, 0.5]), atol=1e-6)


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda: vit.patchify(torch.zeros(1, 3, 10, 8), 4), "10 x 8"),
        (lambda: vit.unpatchify(torch.zeros(1, 10, 48), 4, rows=3), r"\(1, 10, 48\)"),
        (lambda: vit.sincos_2d(2, 2, 6), "6"),
        (lambda: vit.ViT(SMALL)(torch.zeros(1, 1, 16, 16)), r"\(1, 1, 16, 16\)"),
        (lambda: vit.ViT(SMALL)(torch.zeros(3, 16, 16)), r"\(3, 16, 16\)"),
        (lambda: vit.ViT(SMALL)(torch.zeros(1, 3, 16, 2)), r"\(1, 3, 16, 2\)"),
        (lambda: vit.ViT(vit.ViTConfig((8, 8), 4, 10, 1, 3, 8)), "width 10"),
        (lambda: vit.ViT(vit.ViTConfig((8, 8), 4, 12, 1, 3, 8, act="swish")), "swish"),
        (lambda: vit.ViT(vit.ViTConfig((8, 8), 4, 12, 1, 3, 8, pool="max")), "max"),
        (lambda: vit.ViT(SMALL).classify(torch.zeros(1, 3, 16, 16)), "classes"),
        (lambda: vit.to_pixels([Image.new("L", (2, 3)), Image.new("L", (3, 2))]), r"\(2, 3\)"),
        (lambda: vit.to_pixels([]), "no image"),
    ],
)
def test_bad_input_is_refused_by_name(call, names):
    with pytest.raises(ValueError, match=names):
        call()


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]


@pytest.mark.parametrize("mode", MODES)
def test_pictures_are_converted_as_pillow_does_whatever_their_mode(mode):
    noise = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    if mode == "LAB":
        picture = Image.frombytes("LAB", (5, 7), noise.tobytes())
    elif mode == "PA":
        picture = picture.convert("P").convert("PA")
    else:
        picture = picture.convert(mode)
    assert vit.as_rgb(picture).tobytes() == picture.convert("RGB").tobytes()


@given(
    st.sampled_from([np.int32, np.float32, np.uint16]),
    st.lists(st.integers(0, 255), min_size=1, max_size=9).filter(lambda v: max(v) > 1),
    st.integers(0, 3),
)
@settings(deadline=None)
def test_integers_and_floats_up_to_255_are_the_bytes_they_were(dtype, values, beyond):
    """Pillow's conversion: what lies beyond the range is cut off, not made to shrink the rest."""
    outside = [] if dtype is np.uint16 else [-3, 300, 70_000][:beyond]
    picture = Image.fromarray(np.array([values + outside], dtype=dtype))
    got = np.asarray(vit.as_rgb(picture))
    assert got[0, : len(values), 0].tolist() == values
    assert got.tobytes() == picture.convert("RGB").tobytes()


def test_floats_within_0_and_1_and_16_bits_of_grey_keep_every_byte():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for stored in (grey.astype(np.float32) / 255, grey.astype(np.uint16) * 257):
        picture = vit.as_rgb(Image.fromarray(stored))
        assert np.array_equal(np.asarray(picture)[..., 0], grey)


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_transparency_is_laid_on_the_paper_that_is_named(mode):
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    picture = Image.new(mode, (2, 2), (0, 0)) if mode in ("La", "PA") else clear.convert(mode)
    assert vit.as_rgb(picture, (242, 241, 240)).getpixel((0, 0))[0] == 242
    assert vit.as_rgb(picture).getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("exif", "raised"), [(b"Exif\0\0junk", "SyntaxError"), (b"Exif\0\0MM\0*", "unpack requires")]
)
def test_broken_exif_is_a_value_error_here_and_in_preprocess(exif, raised):
    for read in (vit.as_rgb, preprocess, lambda image: vit.to_pixels([image])):
        picture = Image.new("RGB", (56, 56))
        picture.info["exif"] = exif
        with pytest.raises(ValueError, match=f"EXIF data cannot be read: .*{raised}"):
            read(picture)


def test_whatever_pillow_raises_while_it_turns_a_picture_is_named(monkeypatch):
    kinds = (SyntaxError, struct.error, NotImplementedError, RuntimeError, AttributeError, OSError)
    for kind in kinds:

        def fail(image, kind=kind):
            raise kind("cut short")

        monkeypatch.setattr(vit.ImageOps, "exif_transpose", fail)
        for read in (vit.as_rgb, preprocess):
            with pytest.raises(ValueError, match="EXIF data cannot be read: .*cut short"):
                read(Image.new("RGB", (56, 56)))
