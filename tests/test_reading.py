"""Pictures read back into objects."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from minivlm import scenes
from minivlm.scenes import drawing
from minivlm.scenes.reading import read_objects
from minivlm.scenes.sampling import SPLITS


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("options", [{}, {"cell": 24}, {"rows": 3, "columns": 6}])
def test_every_rendered_scene_is_read_back_exactly(split, options):
    for scene in scenes.sample(40, 3, split, **options):
        assert set(read_objects(scene.image, scene.cell)) == set(scene.objects)


def test_a_little_blur_does_not_change_what_is_read():
    some = scenes.sample(60, 4)
    read = [read_objects(scene.image.filter(ImageFilter.GaussianBlur(0.7))) for scene in some]
    assert (
        sum(set(found or ()) == set(scene.objects) for found, scene in zip(read, some, strict=True))
        >= 58
    )


def test_noise_is_unreadable_and_paper_is_empty():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert read_objects(Image.fromarray(noise)) is None
    assert read_objects(Image.new("RGB", (64, 64), drawing.BACKGROUND)) == ()


def test_an_image_off_the_grid_is_refused():
    with pytest.raises(ValueError, match="60 x 64"):
        read_objects(Image.new("RGB", (60, 64)))


def test_a_transparent_image_is_read_on_its_paper():
    for scene in scenes.sample(10, 5):
        clear = np.asarray(scene.image.convert("RGBA")).copy()
        clear[(clear[..., :3] == drawing.BACKGROUND).all(axis=-1)] = 0
        assert set(read_objects(Image.fromarray(clear))) == set(scene.objects)
