"""The dataset: rendering, splits, files on disk."""

import itertools
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minivlm import scenes
from minivlm.scenes import drawing, files, sampling
from minivlm.scenes.grammar import COLORS, SHAPES


@pytest.fixture(scope="module")
def train() -> list[scenes.Scene]:
    return scenes.sample(3000, 0)


def test_a_shorter_sample_is_the_head_of_a_longer_one_and_seeds_differ(train):
    head = scenes.sample(50, 0)
    assert head == train[:50]
    assert [s.image.tobytes() for s in head] == [s.image.tobytes() for s in train[:50]]
    assert scenes.sample(50, 1) != head


@pytest.mark.parametrize("split", sampling.SPLITS)
def test_the_files_are_the_head_of_each_stream_pixel_for_pixel(split):
    stored, drawn = scenes.load(split), scenes.sample(sampling.SPLITS[split], 0, split)
    assert stored == drawn
    for a, b in zip(stored, drawn, strict=True):
        assert a.image.size == (64, 64)
        assert a.image.tobytes() == b.image.tobytes()


def test_no_image_of_another_split_is_in_train():
    seen = {scene.image.tobytes() for scene in scenes.sample(8000, 0)}
    for split in ("val", "test", "composition"):
        held_out = scenes.sample(1000, 3, split)
        assert not any(scene.image.tobytes() in seen for scene in held_out), split


def test_train_shows_every_colour_and_shape_but_no_held_out_pair(train):
    pairs = {(thing.color, thing.shape) for scene in train for thing in scene.objects}
    assert pairs == set(sampling.SEEN)
    assert {color for color, _ in pairs} == set(COLORS)
    assert {shape for _, shape in pairs} == set(SHAPES)
    composition = {
        (t.color, t.shape) for s in scenes.sample(300, 0, "composition") for t in s.objects
    }
    assert composition == set(sampling.HELD_OUT)
    assert not composition & pairs


def test_close_pairs_share_a_colour_or_a_shape_and_one_has_a_pair_of_its_split():
    for split, own in (("test", sampling.SEEN), ("composition", sampling.HELD_OUT)):
        for scene in scenes.sample(300, 0, split, pairs="close"):
            (a, b) = ((thing.color, thing.shape) for thing in scene.objects)
            assert (a[0] == b[0]) != (a[1] == b[1])
            assert a in own or b in own
            assert split == "composition" or (a in own and b in own)


def test_all_pairs_are_drawn_together_only_where_that_is_asked_for():
    drawn = scenes.sample(2000, 0, pairs="all")
    assert {(t.color, t.shape) for s in drawn for t in s.objects} == {
        *sampling.SEEN,
        *sampling.HELD_OUT,
    }
    mixed = [s for s in drawn if len({(t.color, t.shape) in sampling.SEEN for t in s.objects}) == 2]
    assert len(mixed) > 200


@pytest.mark.parametrize("options", [{"pairs": "both"}, {"pairs": "close", "label": 1}])
def test_other_pairs_than_those_of_the_split_are_asked_for_by_name(options):
    with pytest.raises(ValueError, match="pairs"):
        scenes.sample(1, 0, **options)


def test_8000_scenes_are_drawn_in_seconds():
    start = time.process_time()
    scenes.sample(8000, 5)
    assert time.process_time() - start < 10  # 0.6 s where it was written


def test_boxes_hold_their_objects_and_nothing_else_is_drawn(train):
    for scene in train[:300]:
        pixels = np.asarray(scene.image).astype(int)
        rest = pixels.copy()
        for thing in scene.objects:
            x1, y1, x2, y2 = thing.box
            inside = pixels[y1:y2, x1:x2]
            filled = (inside == drawing.PALETTE[thing.color]).all(axis=-1)
            assert filled.mean() > 0.1  # a small star fills least
            middle = pixels[(y1 + y2) // 2, (x1 + x2) // 2]
            assert tuple(middle) == drawing.PALETTE[thing.color]
            rest[y1:y2, x1:x2] = drawing.BACKGROUND
        assert (rest == drawing.BACKGROUND).all()


def test_every_shape_touches_all_four_sides_of_its_box():
    for shape, side in itertools.product(SHAPES, (9, 15, 30)):
        coverage = np.asarray(drawing.stencil(shape, side))
        left, top, right, bottom = coverage[:, 0], coverage[0], coverage[:, -1], coverage[-1]
        assert all(edge.max() > 60 for edge in (left, top, right, bottom)), (shape, side)


def test_no_two_shapes_look_alike():
    for a, b in itertools.combinations(SHAPES, 2):
        for side in (9, 15):
            one, two = (
                np.asarray(drawing.stencil(shape, side)).astype(float) / 255 for shape in (a, b)
            )
            assert np.abs(one - two).mean() > 0.1, (a, b, side)


def lab(linear: np.ndarray) -> np.ndarray:
    """Linear sRGB -> CIELAB (D65)."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ linear.clip(0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


DICHROMACY = {  # Machado et al. 2009, severity 1
    "none": np.eye(3),
    "protan": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ]
    ),
    "tritan": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.3039],
        ]
    ),
}


@pytest.mark.parametrize("vision", DICHROMACY)
def test_colour_blind_readers_can_tell_all_colours_and_the_background_apart(vision):
    colors = {
        name: np.array(value) / 255
        for name, value in (drawing.PALETTE | {"paper": drawing.BACKGROUND}).items()
    }
    linear = {
        n: np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        for n, c in colors.items()
    }
    seen = {name: lab(DICHROMACY[vision] @ value) for name, value in linear.items()}
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 20, (a, b)  # 2.3 is a just noticeable difference


def test_other_canvases_have_their_size_and_their_captions_hold():
    drawn = scenes.sample(100, 0, rows=3, columns=8, cell=24)
    assert all(
        scene.image.size == (192, 72) and scenes.is_true(scene.caption, scene) for scene in drawn
    )
    assert max(thing.box[2] for scene in drawn for thing in scene.objects) > 96


def test_labels_are_written_on_the_objects_and_into_the_caption():
    for scene in scenes.sample(60, 0, label=2, cell=32):
        assert all(len(thing.text) == 2 and thing.text in scene.caption for thing in scene.objects)
        assert scenes.is_true(scene.caption, scene) and scenes.is_true(scene.caption_zh, scene)
        wrong = scene.caption.replace(scene.objects[0].text, "00")
        assert not scenes.is_true(wrong, scene)
        plain = drawing.render(
            [replace(thing, text="") for thing in scene.objects], scene.image.size
        )
        assert plain.tobytes() != scene.image.tobytes()


def test_labels_are_drawn_from_the_characters_that_are_asked_for():
    drawn = {
        c
        for scene in scenes.sample(60, 0, label=2, characters="37A")
        for thing in scene.objects
        for c in thing.text
    }
    assert drawn == {*"37A"}
    for characters in ("", "O", "37a"):
        with pytest.raises(ValueError, match=f"not of '{characters}'"):
            scenes.sample(1, 0, label=1, characters=characters)


@pytest.mark.parametrize("turns", [0, 1])
def test_a_video_moves_its_object_in_the_directions_that_the_caption_says(turns):
    unit = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    for scene in scenes.sample(80, 0, frames=5, turns=turns):
        assert len(scene.frames) == 5 and scene.image is scene.frames[0]
        centers = []
        for frame in scene.frames:
            ys, xs = np.nonzero((np.asarray(frame) != drawing.BACKGROUND).any(axis=-1))
            centers.append((xs.mean(), ys.mean()))
            assert len(xs) > 20  # never outside the image
        steps = [
            tuple(int(v) for v in np.sign(np.round(np.subtract(b, a))))
            for a, b in itertools.pairwise(centers)
        ]
        assert tuple(key for key, _ in itertools.groupby(steps)) == tuple(
            unit[d] for d in scene.objects[0].motion
        )
        assert scenes.is_true(scene.caption, scene) and scenes.is_true(scene.caption_zh, scene)
        assert not scenes.is_true(
            scene.caption.replace("moving ", "moving up then down then "), scene
        )


def test_noise_makes_the_given_share_of_captions_false_and_leaves_the_images(train):
    noisy = scenes.sample(3000, 0, noise=0.4)
    assert [s.image.tobytes() for s in noisy] == [s.image.tobytes() for s in train]
    wrong = [not scenes.is_true(scene.caption, scene) for scene in noisy]
    assert abs(np.mean(wrong) - 0.4) < 0.03
    assert all(
        not scenes.is_true(s.caption_zh, s) for s, false in zip(noisy, wrong, strict=True) if false
    )


def test_save_and_load_give_the_same_scenes(tmp_path):
    drawn = scenes.sample(5, 7, "val")
    files.save(drawn, tmp_path / "val")
    assert scenes.load("val", tmp_path) == drawn
    with Image.open(tmp_path / "val" / "00000.png") as image:
        assert image.mode == "RGB"


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda: scenes.sample(1, 0, "trian"), "trian"),
        (lambda: scenes.sample(-1, 0), "-1"),
        (lambda: scenes.sample(1, 0, rows=1), "rows=1"),
        (lambda: scenes.sample(1, 0, noise=1.5), "1.5"),
        (lambda: scenes.sample(1, 0, frames=2, turns=4), "turns=4"),
        (lambda: scenes.load("nowhere"), "nowhere"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, names):
    with pytest.raises(ValueError, match=names):
        call()


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda: scenes.sample(float("inf"), 0), "inf"),
        (lambda: scenes.sample(2.5, 0), r"2\.5"),
        (lambda: scenes.sample(1, 0, frames=float("inf"), turns=float("inf")), "frames .* inf"),
        (lambda: scenes.sample(1, 0, rows=4.0), r"rows .* 4\.0"),
    ],
)
def test_only_whole_numbers_are_counts(call, names):
    with pytest.raises(ValueError, match=names):
        call()


GOOD = {
    "file_name": "a.png", "caption": "a small red circle", "caption_zh": "一个", "cell": 16,
    "objects": [{"shape": "circle", "color": "red", "size": "small", "box": [1, 2, 10, 11]}],
}  # fmt: skip


def stored(folder, lines) -> None:
    split = folder / "val"
    split.mkdir()
    Image.new("RGB", (64, 64)).save(split / "a.png")
    (folder / "outside.png").write_bytes((split / "a.png").read_bytes())
    (split / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_caption_may_hold_any_character(tmp_path):
    captions = ["a\u2028b", "a\x85b", "a\x1cb"]
    rows = [json.dumps(GOOD | {"caption": text}, ensure_ascii=False) for text in captions]
    stored(tmp_path, [*rows, ""])
    assert [scene.caption for scene in scenes.load("val", tmp_path)] == captions


def with_object(**changes) -> str:
    return json.dumps(GOOD | {"objects": [GOOD["objects"][0] | changes]})


@pytest.mark.parametrize(
    "line, names",
    [
        ("{", "line 2"),
        ("[1]", r"line 2: no JSON object: \[1\]"),
        ("[" * 100_000, "line 2"),
        ("{}", "line 2: no 'file_name'"),
        (json.dumps(GOOD | {"caption": 7}), "line 2: caption = 7"),
        (json.dumps(GOOD | {"cell": 0}), "line 2: cell = 0"),
        (json.dumps(GOOD | {"objects": []}), r"line 2: objects = \[\]"),
        (json.dumps(GOOD | {"objects": ["star"]}), "line 2: .*'star'"),
        (with_object(color="pink"), "line 2: color = 'pink'"),
        (with_object(shape=[]), r"line 2: shape = \[\]"),
        (with_object(box=[1, 2, 3, 4, 5]), r"line 2: box = \[1, 2, 3, 4, 5\]"),
        (with_object(box=[1, 2, 1, 4]), r"line 2: box = \[1, 2, 1, 4\]"),
        (with_object(motion="up"), "line 2: motion = 'up'"),
        (with_object(weight=3), "line 2: .*weight"),
        (json.dumps(GOOD | {"file_name": "none.png"}), "line 2: .*none.png"),
        (json.dumps(GOOD | {"file_name": "metadata.jsonl"}), "line 2: .*not a picture"),
        (json.dumps(GOOD | {"file_name": "../outside.png"}), r"line 2: .*'\.\./outside\.png'"),
        (json.dumps(GOOD | {"file_name": "a/../../outside.png"}), "leads out of the folder"),
        (json.dumps(GOOD | {"file_name": "/etc/hostname"}), "'/etc/hostname' leads out"),
        (json.dumps(GOOD | {"file_name": "..\\\\outside.png"}), "leads out"),
        (json.dumps(GOOD | {"file_name": "C:\\\\a.png"}), "leads out"),
    ],
)
def test_a_broken_line_of_metadata_is_named(tmp_path, line, names):
    stored(tmp_path, [json.dumps(GOOD), line])
    with pytest.raises(ValueError, match=names):
        scenes.load("val", tmp_path)
