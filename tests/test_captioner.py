"""The toy captioner and the command line around it."""

import sys

import pytest
import torch
from PIL import Image

from minivlm import __main__ as command
from minivlm import commands, scenes
from minivlm.scenes import drawing
from minivlm.scenes.pixels import (
    MEAN,
    STD,
    augment,
    dither,
    lose_channel,
    paper,
    pixels,
    vary_channels,
)
from minivlm.scenes.sampling import HELD_OUT, SEEN
from minivlm.toys.captioner import Captioner, train_captioner


@pytest.fixture(scope="module")
def trained() -> tuple[Captioner, dict]:
    return train_captioner(scene_count=600, steps=120)


def test_a_short_training_learns_to_speak_the_grammar(trained):
    captioner, history = trained
    held_out = scenes.load("test")[:40]
    images = [scene.image for scene in held_out]
    batch = captioner.sequences([scene.caption for scene in held_out]), pixels(images)
    with torch.no_grad():
        assert history["loss"][0] > 4 and captioner.loss(captioner.model, batch) < 1
    said = captioner.caption(images)
    from minivlm.scenes.grammar import parse

    assert sum(parse(text) is not None for text in said) >= 30


def test_the_loss_is_that_of_the_caption_and_its_end_alone(trained):
    captioner, _ = trained
    model, batch = captioner.model, scenes.sample(6, 9)
    ids, images = captioner.sequences([s.caption for s in batch]), pixels([s.image for s in batch])
    end, pad = (captioner.tokenizer.special_tokens[name] for name in ("<|end|>", "<|pad|>"))
    with torch.no_grad():
        log_p = model(ids, images).log_softmax(-1)
        terms = []
        for row, scene in enumerate(batch):
            text = [*captioner.tokenizer.encode(scene.caption), end]
            assert ids[row, 16 : 16 + len(text)].tolist() == text
            assert set(ids[row, 16 + len(text) :].tolist()) <= {pad}
            terms += [-log_p[row, 15 + i, token].item() for i, token in enumerate(text)]
        assert captioner.loss(model, (ids, images)).item() == pytest.approx(
            sum(terms) / len(terms), rel=1e-4
        )


def test_varied_channels_keep_the_paper_and_lose_one_colour_in_a_fifth_of_the_images():
    torch.manual_seed(0)
    images = torch.ones(3000, 3, 2, 2)
    images[:, :, 0] = 0  # background
    varied = vary_channels(images)
    contrast = varied[:, :, 1, 0]  # (3000, 3)
    assert not varied[:, :, 0].any() and torch.equal(varied[:, :, 1, 0], varied[:, :, 1, 1])
    lost = (contrast == 0).sum(dim=1)
    assert set(lost.tolist()) == {0, 1} and 0.17 < lost.float().mean() < 0.23
    kept = contrast[contrast > 0]
    assert 0.8 <= kept.min() < 0.81 and 1.19 < kept.max() <= 1.2


def test_no_channel_is_erased_when_none_shall_be():
    kept = vary_channels(torch.ones(500, 3, 2, 2), erased=0.0)[:, :, 0, 0]
    assert kept.min() >= 0.8 and kept.max() <= 1.2


def as_light(pixel_values: torch.Tensor) -> torch.Tensor:
    """pixel_values -> bytes, as floats."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    return 255 * (pixel_values * std + mean)


def test_dither_leaves_few_levels_and_the_mean():
    torch.manual_seed(0)
    flat = torch.full((4000, 3, 8, 8), -2.3)
    light = as_light(dither(flat))
    assert light.mean().item() == pytest.approx(as_light(flat[:1]).mean().item(), abs=0.5)
    coarse = [image for image in light[:400] if image.max() - image.min() > 40]
    assert 30 < len(coarse) < 90  # 15 % have steps of 51
    assert all(torch.allclose(image / 51, (image / 51).round(), atol=1e-3) for image in coarse)


def test_papers_are_light_and_nearly_grey_and_a_quarter_is_the_courses():
    torch.manual_seed(0)
    added = paper(4000, torch.device("cpu"))
    own = (added == 0).all(dim=1).flatten()
    assert 0.22 < own.float().mean() < 0.28
    light = as_light(added[~own])[..., 0, 0]
    assert light.min() > 165 and light.max() <= 255.01
    assert light.mean(dim=1).std() > 14 and light.std(dim=1).mean() < 6


def test_a_fifth_of_the_images_without_black_loses_a_channel():
    torch.manual_seed(0)
    images = torch.ones(3000, 3, 4, 4)
    kept = lose_channel(images, 0.2)
    assert 0.17 < (kept == 0).flatten(1).sum(dim=1).float().mean() < 0.23
    images[:, :, 0, 0] = -6  # one black pixel
    assert lose_channel(images, 0.2).all()
    assert not lose_channel(images, 1.0, spare_black=False).all()


def test_a_scene_drawn_otherwise_keeps_its_colours_in_place():
    torch.manual_seed(0)
    found = [s for s in scenes.sample(300, 3) if len(s.objects) == 1]
    varied = as_light(augment(pixels([s.image for s in found]), erased=0.0))
    for scene, light in zip(found, varied, strict=True):
        x1, y1, x2, y2 = scene.objects[0].box
        x, y = (x1 + x2) // 2, (y1 + y2) // 2
        inside = light[:, y - 1 : y + 2, x - 1 : x + 2].mean(dim=(1, 2))
        drawn = torch.tensor(drawing.PALETTE[scene.objects[0].color]).float()
        assert (inside - drawn).abs().max() < 75  # 20 % of contrast, and dither
        corners = light[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.mean() > 150


def test_without_the_red_channel_black_looks_red():
    """Why images with black keep their channels."""
    black = torch.tensor(drawing.PALETTE["black"])
    without = torch.tensor([drawing.BACKGROUND[0], *black[1:]])
    distance = {
        color: (torch.tensor(rgb) - without).abs().sum().item()
        for color, rgb in drawing.PALETTE.items()
    }
    assert min(distance, key=distance.get) == "red" and distance["red"] < distance["black"]


def test_the_colours_shown_as_circle_and_as_square_stand_out_in_green_and_yellow_does_not():
    both = {
        color for color in drawing.PALETTE if {(color, "circle"), (color, "square")} <= set(SEEN)
    }
    green = {color: drawing.BACKGROUND[1] - rgb[1] for color, rgb in drawing.PALETTE.items()}
    assert both == {"red", "blue", "purple"} and {
        min(green[c] for c in both),
        max(green[c] for c in both),
    } == {
        118,
        226,
    }
    assert green["yellow"] == 64 and ("yellow", "square") in HELD_OUT


def test_a_saved_captioner_says_the_same(trained, tmp_path):
    captioner, _ = trained
    captioner.save(tmp_path)
    images = [scene.image for scene in scenes.load("val")[:20]]
    assert Captioner.load(tmp_path).caption(images) == captioner.caption(images)


def test_the_same_seed_trains_the_same_captioner():
    states = [train_captioner(scene_count=200, steps=3)[0].model.state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_pictures_of_any_shape_are_padded_to_a_square_and_an_empty_one_is_zero():
    blank = Image.new("RGB", (300, 40), drawing.BACKGROUND)
    assert pixels([blank, blank.resize((64, 64)), blank.convert("RGBA")]).shape == (3, 3, 64, 64)
    assert pixels([blank]).abs().max() < 1e-6


def test_caption_reads_good_files_and_names_broken_ones_in_one_line(
    trained, tmp_path, monkeypatch, capsys
):
    trained[0].save(tmp_path / "captioner")
    monkeypatch.setattr(commands, "CAPTIONER", tmp_path / "captioner")
    picture = scenes.load("test")[0].image
    good = [tmp_path / name for name in ("a.png", "b.jpg", "c d.gif", "e.tiff")]
    for path, mode in zip(good, ("RGBA", "L", "P", "RGB"), strict=True):
        picture.convert(mode).resize((90, 50)).save(path)
    broken = tmp_path / "broken.png"
    broken.write_bytes(good[0].read_bytes()[:60])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    paths = [good[0], broken, good[1], tmp_path / "missing.png", text, tmp_path, *good[2:]]
    assert command.main(["caption", *map(str, paths)]) == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == [str(path) for path in good]
    assert len(err.splitlines()) == 4
    for path, line in zip(
        [broken, tmp_path / "missing.png", text, tmp_path], err.splitlines(), strict=True
    ):
        assert line.startswith(str(path)) and "not a picture" in line


def test_caption_without_a_captioner_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "CAPTIONER", tmp_path / "none")
    assert command.main(["caption", "a.png"]) == 2
    assert "train one: python -m minivlm" in capsys.readouterr().err


def test_the_demo_reports_both_splits_and_leaves_checkpoint_and_figure(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(commands, "CAPTIONER", tmp_path / "captioner")
    monkeypatch.setattr(command, "train_captioner", lambda: trained)
    assert command.main([]) == 0
    out = capsys.readouterr().out
    for words in (
        "test (",
        "composition (",
        "of 250 captions true",
        "another scene's caption",
        "notebooks/00_language_model",
    ):
        assert words in out
    with Image.open(tmp_path / "captioner" / "captions.png") as figure:
        assert figure.width > 600
    assert Captioner.load(tmp_path / "captioner").model.config == trained[0].model.config


def test_help_names_the_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["minivlm"])
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "caption" in capsys.readouterr().out
