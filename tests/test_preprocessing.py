"""Images of published folders: every step as transformers' processors do it with Pillow, bit for
bit.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from published_folders import write_pictures
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from minivlm.pretrained.preprocessing import ImageProcessor, read_image_settings
from minivlm.scenes.files import read_picture

SQUARE = {"height": 16, "width": 16}
KINDS = {
    "CLIP": CLIPImageProcessorPil,
    "Llava": LlavaImageProcessorPil,
    "Blip": BlipImageProcessorPil,
    "Siglip": SiglipImageProcessorPil,
}
SETTINGS = [
    ("CLIP", {"size": {"shortest_edge": 16}}),
    ("CLIP", {"size": {"shortest_edge": 21}}),
    ("CLIP", {"size": 19, "crop_size": 16}),
    ("CLIP", {"size": {"shortest_edge": 11}}),
    ("CLIP", {"size": SQUARE, "do_center_crop": False}),
    ("CLIP", {"do_resize": False}),
    ("CLIP", {"size": 16, "crop_size": {"height": 12, "width": 20}}),
    ("Llava", {"size": 16, "do_pad": True}),
    ("Llava", {"size": 16, "do_pad": True, "image_mean": [0.1, 0.5, 0.9]}),
    ("Llava", {"size": 16, "resample": 2}),
    ("Blip", {"size": SQUARE}),
    ("Blip", {"size": {"height": 16, "width": 12}}),
    ("Blip", {"size": SQUARE, "do_normalize": False}),
    ("Blip", {"size": 16, "rescale_factor": 1 / 127.5}),
    ("Blip", {"size": 16, "image_mean": [0.5, 0.4, 0.3]}),
    ("Blip", {"size": 16, "do_rescale": False}),
    ("Blip", {"size": SQUARE, "do_pad": True}),
    ("Siglip", {"size": SQUARE}),
    ("Siglip", {"size": SQUARE, "resample": 0}),
    ("Siglip", {"size": 13}),
]


def options_of(kind: str, options: dict) -> dict:
    return {"crop_size": SQUARE} | options if kind in ("CLIP", "Llava") else options


def write_settings(folder: Path, said: dict, nested: bool = True) -> None:
    if nested:  # as transformers 5 writes it
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": said}))
        (folder / "preprocessor_config.json").write_text('{"size": 3}')  # which has no say then
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(said))
        (folder / "processor_config.json").write_text('{"processor_class": "LlavaProcessor"}')


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("kind", "options"), SETTINGS)
def test_images_are_prepared_as_by_transformers(tmp_path, kind, options, nested):
    theirs = KINDS[kind](**options_of(kind, options))
    write_settings(tmp_path, json.loads(theirs.to_json_string()), nested)
    ours = ImageProcessor(tmp_path, "Blip" if kind == "CLIP" else "CLIP", (16, 16))
    noise = np.random.default_rng(0)
    for height, width in ((16, 16), (24, 40), (41, 23), (9, 30), (12, 13), (64, 17)):
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        assert torch.equal(ours(image), expected.float())


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind_have_the_pixels_of_transformers(tmp_path, kind):
    size = {"shortest_edge": 16} if kind in ("CLIP", "Llava") else SQUARE
    theirs = KINDS[kind](**options_of(kind, {"size": size}))
    write_settings(tmp_path, json.loads(theirs.to_json_string()))
    ours = ImageProcessor(tmp_path, kind, (16, 16))
    paths = write_pictures(tmp_path)
    upright = [ImageOps.exif_transpose(Image.open(path)) for path in paths]
    expected = theirs(upright, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours([read_picture(path) for path in paths]), expected)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from(["L", "RGB", "RGBA", "LA"]),
)
def test_any_size_of_picture_has_the_pixels_of_transformers(
    tmp_path_factory, kind, height, width, side, pad, mode
):
    cropped = kind in ("CLIP", "Llava")
    size = {"shortest_edge": side} if cropped else {"height": side, "width": side}
    options = {"size": size, "do_pad": pad and kind == "Llava"}
    theirs, folder = KINDS[kind](**options_of(kind, options)), tmp_path_factory.mktemp("folder")
    write_settings(folder, json.loads(theirs.to_json_string()))
    noise = np.random.default_rng(height)
    data = noise.integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    image = Image.fromarray(data.squeeze(-1) if mode == "L" else data, mode)
    expected = theirs(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ImageProcessor(folder, kind, (16, 16))(image), expected)


OLDER = [
    ("CLIP", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 18, "crop_size": 16}),
    ("CLIP", {"image_processor_type": "CLIPImageProcessorFast", "size": 18, "crop_size": 16}),
    ("Blip", {"image_processor_type": "BlipImageProcessor", "size": 18}),
    ("Siglip", {"image_processor_type": "SiglipImageProcessor", "size": SQUARE}),
]


@pytest.mark.parametrize(("kind", "said"), OLDER)
def test_older_spellings_leave_the_rest_to_the_kind(tmp_path, kind, said):
    write_settings(tmp_path, said | {"image_mean": None}, nested=False)
    options = {key: value for key, value in said.items() if "type" not in key}
    image = Image.effect_noise((31, 22), 80)
    expected = KINDS[kind](**options)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ImageProcessor(tmp_path, "Llava", (16, 16))(image), expected)


def test_a_folder_that_says_nothing_has_the_size_of_its_model(tmp_path):
    image = Image.effect_noise((31, 22), 80)
    for kind, cls in KINDS.items():
        ours = ImageProcessor(tmp_path, kind, (16, 16))(image)
        size = {"shortest_edge": 16} if kind in ("CLIP", "Llava") else SQUARE
        theirs = cls(**options_of(kind, {"size": size}))(image, return_tensors="pt")
        assert torch.equal(ours, theirs["pixel_values"])
    assert ImageProcessor(tmp_path, "Blip", (8, 16))(image).shape == (1, 3, 8, 16)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"size": "large"}, "size = 'large'"),
        ({"size": {"height": 4}}, "size = {'height': 4}"),
        ({"size": {"shortest_edge": 0}}, "size = 0"),
        ({"size": {"shortest_edge": 4, "longest_edge": 9}}, "longest_edge"),
        ({"crop_size": [3, 4]}, r"crop_size = \[3, 4\]"),
        ({"image_mean": [0.5]}, r"image_mean: .*\[0\.5\]"),
        ({"image_std": [0.5, 0, 0.5]}, r"image_std = \[0\.5, 0, 0\.5\]"),
        ({"image_std": "x"}, "image_std: .*'x'"),
        ({"resample": "bicubic"}, "resample = 'bicubic'"),
        ({"resample": 9}, "resample = 9"),
        ({"do_resize": "yes"}, "do_resize = 'yes'"),
        ({"do_normalize": 1}, "do_normalize = 1"),
        ({"rescale_factor": 0}, "rescale_factor = 0"),
        ({"image_processor_type": "ViTImageProcessor"}, "'ViTImageProcessor' is unknown"),
        ({"image_processor_type": 3}, "3 is unknown"),
        ({"image_processor_type": "BlipImageProcessor", "do_pad": True, "pad_size": 9}, "pad_size"),
    ],
)
def test_settings_that_mean_nothing_are_named(tmp_path, settings, names):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    with pytest.raises(ValueError, match=names):
        ImageProcessor(tmp_path, "Llava", (16, 16))(Image.new("RGB", (20, 30)))
    (tmp_path / "processor_config.json").write_text('{"image_processor": 3}')
    with pytest.raises(ValueError, match="image_processor must be an object, not 3"):
        read_image_settings(tmp_path)


def test_images_of_several_sizes_are_no_batch_and_none_is_nothing(tmp_path):
    write_settings(tmp_path, {"do_resize": False, "do_center_crop": False})
    ours = ImageProcessor(tmp_path, "CLIP", (16, 16))
    with pytest.raises(ValueError, match=r"one size .*\(3, 4\), \(5, 6\)"):
        ours([Image.new("RGB", (4, 3)), Image.new("RGB", (6, 5))])
    with pytest.raises(ValueError, match="no image"):
        ours([])
