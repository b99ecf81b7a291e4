"""Qwen's images against the reference processor, masks against gradients, RoPE by formula."""

import itertools
import math
import random

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize as their_smart_resize,
)

from minivlm.parts.masks import segments, windows
from minivlm.parts.rope import (
    axial_tables,
    inverse_frequencies,
    mrope_axes,
    mrope_tables,
    rotary_tables,
    rotate,
)
from minivlm.plotting import effective_mask
from minivlm.qwen2_vision import (
    Qwen2Vision,
    Qwen3Vision,
    Qwen25Vision,
    TowerConfig,
    patch_places,
    preprocess,
    preprocess_videos,
    smart_resize,
    to_patches,
)

TOWERS = [Qwen2Vision, Qwen25Vision, Qwen3Vision]


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture whose every pixel differs; with alpha, if the mode has it."""
    image = Image.frombytes(
        "RGBA", (width, height), random.Random(seed).randbytes(width * height * 4)
    )
    return image.convert(mode) if "A" in mode else image.convert("RGB").convert(mode)


# Sizes


@pytest.mark.parametrize(
    "size, expected",
    [
        ((224, 224), (224, 224)),
        ((1000, 700), (1008, 700)),
        ((3000, 2000), (1204, 812)),
        ((14, 14), (56, 56)),  # half a factor rounds to 0, then the picture is too small
        ((42, 42), (56, 56)),  # 1.5 rounds to 2
        ((70, 70), (56, 56)),  # 2.5 rounds to 2
        (
            (14, 2000),
            (28, 672),
        ),  # the published rule takes 0 rows for too small, and so shrinks the width
        ((1, 1), (56, 56)),
        ((1, 200), (28, 812)),
    ],
)
def test_sizes_follow_the_published_rule(size, expected):
    assert smart_resize(*size) == their_smart_resize(*size) == expected


def test_random_sizes_are_those_of_the_reference():
    rng = random.Random(0)
    for _ in range(3000):
        height, ratio = rng.randint(1, 3000), rng.uniform(1, 199)
        width = max(1, int(height / ratio)) if rng.random() < 0.5 else int(height * ratio)
        if max(height, width) > 200 * min(height, width):
            continue
        factor, small = rng.choice([8, 28, 32]), rng.choice([64, 3136, 65536])
        options = {"factor": factor, "min_pixels": small, "max_pixels": small * rng.randint(2, 200)}
        assert smart_resize(height, width, **options) == their_smart_resize(
            height, width, **options
        )


@pytest.mark.parametrize("height, width", [(1, 201), (402, 2), (0, 5)])
def test_extreme_shapes_are_refused_by_size(height, width):
    with pytest.raises(ValueError, match=f"{height} x {width}"):
        smart_resize(height, width)
    with pytest.raises(ValueError, match=f"{height} x {width}"):
        preprocess(Image.new("RGB", (width, height)))


def test_a_ratio_of_200_is_still_served():
    assert preprocess(noise(200, 1))[1].tolist() == [[1, 2, 58]]
    with pytest.raises(ValueError, match="200 and 100"):
        smart_resize(50, 50, min_pixels=200, max_pixels=100)


# Pixels


@pytest.mark.parametrize("patch, merge", [(14, 2), (16, 2), (4, 2), (4, 1), (4, 3)])
def test_patches_of_pictures_that_fit_are_those_of_the_reference(patch, merge):
    side = patch * merge
    images = [
        noise(3 * side, 2 * side),
        noise(side, 5 * side, seed=1),
        noise(4 * side, 4 * side, seed=2),
    ]
    limits = {"min_pixels": side**2, "max_pixels": 10**6}
    theirs = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=merge, **limits)(
        images, return_tensors="pt"
    )
    pixels, grid = preprocess(images, patch=patch, merge=merge, **limits)
    assert torch.equal(grid, theirs["image_grid_thw"])
    assert pixels.shape == theirs["pixel_values"].shape == (grid.prod(1).sum(), 3 * 2 * patch**2)
    assert (
        pixels - theirs["pixel_values"]
    ).abs().max() < 2e-6  # of 2.6: float rounding, no pixel differs


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(61, 97), (3, 2), (1, 90), (700, 30), (1500, 1200)])
def test_resized_pictures_of_every_mode_are_those_of_the_reference(mode, size):
    image = noise(*size, mode)
    theirs = Qwen2VLImageProcessorPil()(image, return_tensors="pt")
    pixels, grid = preprocess(image)
    assert torch.equal(grid, theirs["image_grid_thw"])
    assert (
        pixels - theirs["pixel_values"]
    ).abs().max() < 2e-6  # both resize with PIL: the same bytes


def test_normalisation_can_be_qwen3s():
    image, half = noise(64, 96), (0.5, 0.5, 0.5)
    theirs = Qwen2VLImageProcessorPil(patch_size=16, image_mean=half, image_std=half)(
        image, return_tensors="pt"
    )
    pixels, grid = preprocess(image, patch=16, mean=half, std=half)
    assert (
        torch.equal(grid, theirs["image_grid_thw"])
        and (pixels - theirs["pixel_values"]).abs().max() < 2e-6
    )


def test_a_transparent_picture_lies_on_white_and_a_palette_may_be_transparent():
    clear = Image.new("RGBA", (56, 56), (255, 0, 0, 0))
    white = preprocess(Image.new("RGB", (56, 56), "white"))[0]
    assert torch.equal(preprocess(clear)[0], white)
    palette = Image.new("P", (56, 56), 0)
    palette.info["transparency"] = 0
    assert torch.equal(preprocess(palette)[0], white)


def test_a_cameras_picture_is_turned_upright_before_it_is_measured():
    upright = noise(56, 112)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6  # the top of the picture is on its right
    pixels, grid = preprocess(lying)
    assert grid.tolist() == [[1, 8, 4]] and torch.equal(pixels, preprocess(upright)[0])


@pytest.mark.parametrize("given", [["cat.png"], [], [[]], [None], [torch.zeros(3, 56, 56)]])
def test_what_is_no_picture_is_refused(given):
    with pytest.raises(ValueError, match="image"):
        preprocess(given)
    with pytest.raises(ValueError, match="image"):
        preprocess_videos([given] if given else [])


def patches_by_hand(frames: torch.Tensor, patch: int, merge: int) -> list[torch.Tensor]:
    """Frames (F, C, H, W), F even -> the flattened patches, by loops in the order of the paper."""
    found = []
    count, _, height, width = frames.shape
    for pair in range(count // 2):
        for top, left in itertools.product(
            range(0, height, patch * merge), range(0, width, patch * merge)
        ):
            for row, column in itertools.product(range(merge), repeat=2):
                y, x = top + row * patch, left + column * patch
                cut = frames[
                    2 * pair : 2 * pair + 2, :, y : y + patch, x : x + patch
                ]  # (2, C, P, P)
                found.append(cut.transpose(0, 1).flatten())
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_patches_of_videos_are_those_of_a_loop(count):
    frames = torch.randn(count, 3, 8, 12)
    padded = torch.cat([frames, frames[-1:]]) if count % 2 else frames
    patches, grid = to_patches(frames, patch=2, merge=2)
    assert grid == ((count + 1) // 2, 4, 6)
    assert torch.equal(patches, torch.stack(patches_by_hand(padded, 2, 2)))


def test_videos_are_frames_of_one_size_and_a_picture_is_a_video_of_two_equal_frames():
    first, second = noise(84, 56), noise(84, 56, seed=1)
    pixels, grid = preprocess_videos([[first, second, first], [noise(56, 56)]], min_pixels=56 * 56)
    assert grid.tolist() == [[2, 4, 6], [1, 4, 4]]
    assert torch.equal(pixels[24:48], preprocess(first)[0])
    by_hand = torch.cat(
        [preprocess(image)[0].unflatten(1, (3, 2, 14, 14))[:, :, :1] for image in (first, second)],
        2,
    )
    assert torch.equal(pixels[:24].unflatten(1, (3, 2, 14, 14)), by_hand)
    assert preprocess_videos([[first]])[1].tolist() == [
        [1, 20, 28]
    ]  # the released limits of a frame, in pixels:
    assert smart_resize(56, 84, 28, 128 * 784, 768 * 784) == (280, 392)
    with pytest.raises(ValueError, match=r"\(56, 84\), \(84, 56\)"):
        preprocess_videos([[first, noise(56, 84)]])


# Towers


def tower(kind: type, **options) -> Qwen2Vision:
    """A small random tower in which every parameter counts."""
    defaults = {
        "width": 16,
        "layers": 1,
        "heads": 2,
        "hidden": 20,
        "out": 8,
        "patch": 2,
        "act": "silu",
    }
    model = kind(TowerConfig(**(defaults | {"window": 4, "table": 5} | options))).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return model


def places_by_hand(grids: list, merge: int = 2) -> list[tuple]:
    """(picture, frame, row, column) of every patch, in the order of the sequence."""
    return [
        (picture, frame, top + row, left + column)
        for picture, (t, h, w) in enumerate(grids)
        for frame in range(t)
        for top, left in itertools.product(range(0, h, merge), range(0, w, merge))
        for row, column in itertools.product(range(merge), repeat=2)
    ]


GRIDS = [[1, 4, 6], [2, 2, 4], [1, 6, 10]]


@pytest.mark.parametrize("merge", [1, 2])
def test_places_are_those_of_a_loop(merge):
    places, frames = patch_places(torch.tensor(GRIDS), merge)
    expected = places_by_hand(GRIDS, merge)
    assert list(zip(*places.tolist(), strict=True)) == [place[2:] for place in expected]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(place[:2] for place in expected))}
    assert frames.tolist() == [numbers[place[:2]] for place in expected]


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("full", [(), (0,)])
def test_the_declared_mask_of_a_block_is_the_one_it_obeys(kind, full):
    model, grid = tower(kind, full=full), torch.tensor(GRIDS)
    declared = model.mask(grid)
    x = torch.randn(len(declared), 16)
    assert torch.equal(effective_mask(lambda x: next(model.states(x, grid)), x), declared)
    spots = places_by_hand(GRIDS)
    windowed = kind is Qwen25Vision and not full
    keys = [(*spot[:2], spot[2] // 4, spot[3] // 4) if windowed else spot[:2] for spot in spots]
    assert torch.equal(declared, torch.tensor([[a == b for b in keys] for a in keys]))


def test_masks_of_windows_and_frames_are_declared_as_functions():
    places, frames = patch_places(torch.tensor([[2, 4, 6]]))
    assert windows(places, 4).float().mean() > 0.5 and not windows(places, 4).all()
    both = windows(places, 4) & segments(frames[None])[0, 0]
    model = tower(Qwen25Vision, layers=2, full=(1,))
    grid = torch.tensor([[2, 4, 6]])
    assert torch.equal(model.mask(grid, 0), both)
    assert torch.equal(model.mask(grid, 1), segments(frames[None])[0, 0])
    assert torch.equal(
        windows(torch.tensor([[0, 0, 4], [3, 4, 3]]), 4), torch.eye(3, dtype=torch.bool)
    )


@pytest.mark.parametrize("kind", TOWERS)
def test_a_picture_is_seen_alike_alone_and_packed_with_others(kind):
    model, grid = tower(kind, layers=3, full=(1,), deep=(0, 2)), torch.tensor(GRIDS)
    pixels = torch.randn(grid.prod(1).sum(), 24)
    every = lambda part, grid: [model(part, grid)[0], *model(part, grid)[1]]
    packed = every(pixels, grid)
    alone = [
        every(part, row[None])
        for part, row in zip(pixels.split(grid.prod(1).tolist()), grid, strict=True)
    ]
    assert len(packed) == (3 if kind is Qwen3Vision else 1) and packed[0].std() > 0.1
    for level, parts in zip(packed, zip(*alone, strict=True), strict=True):
        assert level.shape == (25, 8) and (level - torch.cat(parts)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "grid, patches, names",
    [
        ([[1, 3, 4]], 12, "multiples of 2"),
        ([[0, 4, 4]], 16, "multiples of 2"),
        ([1, 4, 4], 16, r"\(n, 3\)"),
        ([[1, 4, 4]], 17, r"\(17, 24\)"),
        ([[1, 4, 4]], 15, r"\(16, 24\)"),
    ],
)
def test_grids_and_patches_must_agree(grid, patches, names):
    with pytest.raises(ValueError, match=names):
        tower(Qwen2Vision)(torch.zeros(patches, 24), torch.tensor(grid))


def test_qwen3s_learned_positions_are_the_table_where_the_grid_is_as_large():
    model, grid = tower(Qwen3Vision, table=4), torch.tensor([[2, 4, 4], [1, 2, 8]])
    zero = torch.zeros(32 + 16, 24)
    seen = model.embed(zero, grid) - model.patch.bias
    table = model.positions.unflatten(0, (4, 4))
    by_hand = [table[row, column] for picture, _, row, column in places_by_hand([[2, 4, 4]])]
    assert (seen[:32] - torch.stack(by_hand)).abs().max() < 1e-5
    corners = {(0, 0): (0, 0), (0, 7): (0, 3), (1, 0): (3, 0), (1, 7): (3, 3)}  # align_corners
    for (row, column), corner in corners.items():
        place = places_by_hand([[1, 2, 8]]).index((0, 0, row, column))
        assert (seen[32 + place] - table[corner]).abs().max() < 1e-5
    third = places_by_hand([[1, 2, 8]]).index((0, 0, 0, 1))  # 1 of 7 steps over the 3 of the table
    assert (seen[32 + third] - (4 / 7 * table[0, 0] + 3 / 7 * table[0, 1])).abs().max() < 1e-5


# RoPE


def test_2d_rope_turns_half_the_pairs_by_the_row_and_half_by_the_column():
    places = torch.tensor([[0, 3, 5], [2, 0, 7]])
    cos, sin = axial_tables(places, 8, theta=100.0)
    for n, (row, column) in enumerate(places.T.tolist()):
        angles = [row, row / 10, column, column / 10] * 2  # theta^(-2i/4), i = 0, 1
        assert torch.allclose(cos[n], torch.tensor(angles).float().cos())
        assert torch.allclose(sin[n], torch.tensor(angles).float().sin())
    with pytest.raises(ValueError, match="6"):
        axial_tables(places, 6)


def test_2d_rope_depends_on_the_two_distances_alone():
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)

    def product(query: tuple, key: tuple) -> float:
        a, b = (
            rotate(x, *(t.double() for t in axial_tables(torch.tensor([[p[0]], [p[1]]]), 16)))
            for x, p in ((q, query), (k, key))
        )
        return (a * b).sum().item()

    assert product((2, 5), (4, 4)) == pytest.approx(product((9, 1), (11, 0)), abs=1e-5)
    assert abs(product((2, 5), (4, 4)) - product((2, 5), (4, 5))) > 1e-3
    assert abs(product((2, 5), (4, 4)) - product((2, 5), (3, 4))) > 1e-3


def test_mrope_sections_are_those_of_the_released_models():
    assert mrope_axes([16, 24, 24], 64) == [0] * 16 + [1] * 24 + [2] * 24
    assert mrope_axes([24, 20, 20], 64, interleaved=True) == [0, 1, 2] * 20 + [0] * 4
    assert mrope_axes([2, 1, 1], 4, interleaved=True) == [0, 1, 2, 0]
    for sections, count, interleaved in (
        ([16, 24], 40, False),
        ([16, 24, 24], 32, False),
        ([24, 20], 64, True),
    ):
        with pytest.raises(ValueError, match=f"{count} frequencies"):
            mrope_axes(sections, count, interleaved)


def test_mrope_with_three_equal_positions_is_rope_and_else_each_pair_reads_its_axis():
    positions = torch.tensor([[3, 1, 4, 1]])
    axes = mrope_axes([1, 2, 1], 4)
    for ours, plain in zip(
        mrope_tables(positions.expand(3, 1, 4), axes, 50.0),
        rotary_tables(positions, 8, 50.0),
        strict=True,
    ):
        assert torch.equal(ours, plain)
    cos, sin = mrope_tables(torch.tensor([[[7]], [[2]], [[5]]]), axes, 50.0)
    frequencies = inverse_frequencies(8, 50.0).tolist()
    angles = [at * frequency for at, frequency in zip((7, 2, 2, 5), frequencies, strict=True)] * 2
    assert cos[0, 0].tolist() == pytest.approx([math.cos(a) for a in angles], abs=1e-6)
    assert sin[0, 0].tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-6)
