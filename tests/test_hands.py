"""Scenes drawn by other hands: what stays as it was, and what differs."""

import colorsys
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivlm import scenes
from minivlm.scenes.drawing import BACKGROUND, PALETTE, render
from minivlm.scenes.grammar import COLORS
from minivlm.scenes.hands import HOLLOW, OUTLINED, SHADES, SHIFT, by_hand, redrawn, shade

SOME = scenes.sample(60, seed=3)
OTHERS = redrawn(SOME, seed=1)


def inked(image) -> np.ndarray:
    """Where an image is no paper: (H, W)."""
    return (np.asarray(image) != BACKGROUND).any(axis=-1)


def test_only_the_image_differs():
    assert [s.objects for s in OTHERS] == [s.objects for s in SOME]
    assert [s.caption for s in OTHERS] == [s.caption for s in SOME]
    pairs = zip(OTHERS, SOME, strict=True)
    assert all(new.image.tobytes() != old.image.tobytes() for new, old in pairs)
    assert {s.image.size for s in OTHERS} == {(64, 64)}


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    again, other = redrawn(SOME, seed=1), redrawn(SOME, seed=2)
    assert [s.image.tobytes() for s in again] == [s.image.tobytes() for s in OTHERS]
    assert [s.image.tobytes() for s in other] != [s.image.tobytes() for s in OTHERS]


def test_every_nth_scene_is_redrawn_and_the_others_stay():
    drawn = redrawn(SOME, seed=0, every=3)
    same = [new.image is old.image for new, old in zip(drawn, SOME, strict=True)]
    assert same == [number % 3 != 0 for number in range(len(SOME))]


def test_every_object_is_drawn_near_its_box_and_nothing_else_is():
    near = SHIFT + 2
    for scene in OTHERS:
        allowed = np.zeros((64, 64), dtype=bool)
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            part = np.s_[max(0, top - near) : bottom + near, max(0, left - near) : right + near]
            allowed[part] = True
            assert inked(scene.image)[part].sum() > 10  # a small star's outline is the least
        assert not (inked(scene.image) & ~allowed).any()


def test_an_object_is_nearest_to_its_own_cell():
    alone = [scene for scene in scenes.sample(400, seed=4) if len(scene.objects) == 1]
    for scene in redrawn(alone, seed=0):
        rows, columns = np.nonzero(inked(scene.image))
        left, top, right, bottom = scene.objects[0].box
        assert columns.mean() // 16 == (left + right) // 2 // 16
        assert abs(rows.mean() - (top + bottom) / 2) < 8


def test_objects_lie_anywhere_on_the_grid_of_patches():
    alone = [scene for scene in scenes.sample(1500, seed=4) if len(scene.objects) == 1]
    starts = [np.nonzero(inked(s.image).any(axis=0))[0][0] % 16 for s in redrawn(alone, seed=0)]
    assert {*starts} == {*range(16)}


def test_shapes_are_about_as_large_as_the_course_draws_them():
    shares = []
    for scene in redrawn(scenes.sample(200, seed=4), seed=0):
        drawn = inked(render(scene.objects, (64, 64)))
        shares.append(inked(scene.image).sum() / drawn.sum())
    assert 0.9 < np.median(shares) < 1.2
    assert min(shares) > 0.2  # hollow


@pytest.mark.parametrize("color", COLORS)
@given(seed=st.integers(0, 2**32))
def test_shades_bear_the_name_of_their_color(color, seed):
    hue, saturation, value = colorsys.rgb_to_hsv(*(x / 255 for x in shade(color, Random(seed))))
    hues, saturations, values = SHADES[color]
    middle = sum(hues) / 2
    away = abs((hue * 360 - middle + 180) % 360 - 180)
    assert color == "black" or away <= (hues[1] - hues[0]) / 2 + 2  # rounding
    assert color == "black" or saturations[0] - 0.02 <= saturation
    assert values[0] - 0.01 <= value <= values[1] + 0.01


def test_the_colors_of_paint_programs_and_of_the_course_are_among_the_shades():
    paints = {"red": (237, 28, 36), "yellow": (255, 242, 0), "green": (34, 177, 76)}
    paints |= {"blue": (63, 72, 204), "purple": (163, 73, 164), "black": (0, 0, 0)}
    for named in (PALETTE, paints):
        for color, rgb in named.items():
            hue, *rest = colorsys.rgb_to_hsv(*(x / 255 for x in rgb))
            (low, high), *limits = SHADES[color]
            assert low <= (hue * 360 - low) % 360 + low <= high
            for number, (least, most) in zip(rest, limits, strict=True):
                assert least - 0.01 <= number <= most + 0.01


def test_no_two_colors_share_a_shade():
    hues = {color: set(range(*map(round, SHADES[color][0]))) for color in COLORS}
    del hues["black"]
    circle = [{hue % 360 for hue in some} for some in hues.values()]
    assert len(set.union(*circle)) == sum(map(len, circle))
    assert all(SHADES[color][2][0] > SHADES["black"][2][1] for color in hues)


def test_outlines_are_as_frequent_as_said():
    thing = next(t for s in SOME for t in s.objects if (t.shape, t.size) == ("square", "large"))
    thing = replace(thing, color="yellow")
    rng, images = Random(0), 400
    hollow = outlined = 0
    for _ in range(images):
        image = by_hand([thing], (64, 64), rng)
        rows, columns = np.nonzero(inked(image))
        image = np.asarray(image)
        middle = round(rows.mean()), round(columns.mean())
        hollow += (image[middle] == BACKGROUND).all()
        outlined += (image.max(axis=-1) < 60).sum() > 20
    assert abs(hollow / images - HOLLOW) < 0.06
    assert abs(outlined / images - OUTLINED * (1 - HOLLOW)) < 0.06
