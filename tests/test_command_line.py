"""The command line: one line for what is wrong, whatever it is; the other pictures still run."""

import errno
import io
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from minivlm import __main__ as command
from minivlm import commands, scenes
from minivlm.pretrained.processing import Said
from minivlm.scenes import drawing, files
from minivlm.scenes.pixels import pixels
from minivlm.toys.common import FROZEN
from notebook_env import ROOT

SCENE = scenes.load("test")[0]
LLAVA = ["--checkpoint", str(FROZEN / "llava")]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def picture(tmp_path) -> str:
    SCENE.image.save(tmp_path / "good.png")
    return str(tmp_path / "good.png")


class Parrot:
    """A speaker that says one thing of every image."""

    def __init__(self, said: str):
        self.said = said

    def caption(self, image: Image.Image, **how) -> str:
        pixels([image])
        return self.said

    def ask(self, image: Image.Image, question: str, before: Said = (), **how) -> str:
        if question == "?":
            raise ValueError("this is no question")
        return self.caption(image) + f", {len(before)} before" * bool(before)


@pytest.fixture
def parrot(monkeypatch) -> Parrot:
    bird = Parrot("a red star")
    monkeypatch.setattr(commands, "open_checkpoint", lambda folder, dtype: bird)
    return bird


def broken_files(folder: Path) -> list[Path]:
    """Pictures that are none, each in another way."""
    kinds = {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "dds": b"DDS " + struct.pack("<I", 124) + bytes(120),
        "blp": b"BLP2" + bytes(200),
        "empty.png": b"",
        "head.png": b"\x89PNG\r\n\x1a\n" + bytes(40),
        "cut.jpg": None,
        "cut.tiff": None,
        "cut.webp": None,
    }
    paths = []
    for name, content in kinds.items():
        if content is None:
            whole = io.BytesIO()
            SCENE.image.save(whole, {"jpg": "JPEG"}.get(name[4:], name[4:].upper()))
            content = whole.getvalue()[: len(whole.getvalue()) // 2]
        paths.append(folder / f"broken.{name}")
        paths[-1].write_bytes(content)
    return paths


def test_each_broken_file_has_its_line_and_the_others_run(parrot, picture, tmp_path, capsys):
    broken = broken_files(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it: to open it would wait for ever
    broken += [tmp_path / "pipe.png", tmp_path / "none.png", tmp_path, Path("x" * 300)]
    arguments = [argument for path in broken for argument in (str(path), picture)]
    assert command.main(["caption", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{picture}: a red star"] * len(broken)
    for path, line in zip(broken, err.splitlines(), strict=True):
        assert line.startswith(f"{path}: not a picture that can be read (")


def test_no_picture_runs_another_program(parrot, tmp_path, monkeypatch, capsys):
    def run(*arguments, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", run)
    monkeypatch.setattr(subprocess, "check_call", run)
    path = tmp_path / "a.eps"
    SCENE.image.save(path)
    assert command.main(["caption", str(path)]) == 1
    assert "none of BMP, GIF, JPEG, PNG, TIFF, WEBP" in capsys.readouterr().err


RAISED = (SyntaxError, struct.error, NotImplementedError, RuntimeError, AttributeError, EOFError)


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("where", ["open", "load", "turn"])
def test_whatever_pillow_raises_costs_one_line(parrot, picture, monkeypatch, capsys, kind, where):
    owner, name = {
        "open": (Image, "open"),
        "load": (Image.Image, "load"),
        "turn": (ImageOps, "exif_transpose"),
    }[where]
    true, calls = getattr(owner, name), []

    def first_fails(*arguments, **options):
        calls.append(name)
        if len(calls) == 1:
            raise kind("cut\nshort")
        return true(*arguments, **options)

    monkeypatch.setattr(owner, name, first_fails)
    assert command.main(["caption", picture, picture]) == 1
    out, err = capsys.readouterr()
    assert out == f"{picture}: a red star\n"
    assert len(err.splitlines()) == 1 and err.startswith(picture) and "cut" in err


def test_a_picture_with_broken_exif_does_not_end_the_run(parrot, picture, tmp_path, capsys):
    paths = []
    for i, exif in enumerate([b"Exif\0\0junk", b"Exif\0\0MM\0*"]):
        paths.append(str(tmp_path / f"{i}.png"))
        SCENE.image.save(paths[-1], exif=exif)
    assert command.main(["caption", *paths, picture]) == 1
    out, err = capsys.readouterr()
    assert out == f"{picture}: a red star\n"
    for path, line in zip(paths, err.splitlines(), strict=True):
        assert line.startswith(f"{path}: ") and "EXIF" in line


def test_pillow_warns_nobody_of_an_odd_file(tmp_path):
    path = tmp_path / "odd.jpg"
    SCENE.image.save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    done = subprocess.run(
        [sys.executable, "-m", "minivlm", "caption", str(path), *LLAVA],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(f"{path}: ") and not done.stderr


def test_no_control_character_of_a_name_or_an_answer_reaches_the_terminal(parrot, tmp_path, capsys):
    good, bad = tmp_path / "a\x1b[31m\n\u202e红.png", tmp_path / "b\x1b]0;x\x07.png"
    SCENE.image.save(good)
    bad.write_text("no picture")
    parrot.said = "a red\x1b[2J\nstar 红色"
    assert command.main(["caption", str(good), str(bad)]) == 1
    assert command.main(["caption", str(good), "--checkpoint", "\x1b[31m"]) == 0
    with pytest.raises(SystemExit):
        command.main(["\x1b[31m"])
    out, err = capsys.readouterr()
    assert r"a\x1b[31m\n\u202e红.png: a red\x1b[2J\nstar 红色" in out
    assert not {c for c in out + err if not c.isprintable()} - {"\n"}
    assert len(out.splitlines()) == 2


def test_an_empty_answer_is_said_to_be_empty(parrot, picture, capsys):
    parrot.said = " \n"
    assert command.main(["caption", picture]) == 1
    assert command.main(["ask", picture, "what is this?"]) == 1
    out, err = capsys.readouterr()
    assert not out and err.splitlines() == [f"{picture}: the model's answer is empty"] * 2


# Which model, and how it speaks


class Echo(Parrot):
    """A speaker that says how it was asked."""

    def caption(self, image, **how) -> str:
        return f"{how}"

    def ask(self, image, question: str, before: Said = (), **how) -> str:
        return f"{question} {len(image) if isinstance(image, list) else 1} {how}"


@pytest.fixture
def echo(monkeypatch) -> list:
    """What was asked for, of each model that was opened."""
    opened = []

    def open_echo(folder, dtype):
        opened.append((folder, dtype))
        return Echo("")

    monkeypatch.setattr(commands, "open_checkpoint", open_echo)
    return opened


def test_options_reach_the_model(echo, picture, capsys):
    how = ["--max-tokens", "7", "--temperature", "0.5", "--top-p", "0.9", "--seed", "3"]
    said = "{'max_tokens': 7, 'temperature': 0.5, 'top_p': 0.9, 'seed': 3}"
    model = ["--checkpoint", "there", "--dtype", "bfloat16"]
    assert command.main(["caption", picture, *how, *model]) == 0
    assert command.main(["ask", picture, "what?", *how]) == 0
    assert command.main(["ask", picture, "what?"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [f"{picture}: {said}", f"what? 1 {said}", "what? 1 {}"]
    assert echo[0] == (Path("there"), torch.bfloat16)
    assert echo[1] == (FROZEN / "llava", torch.float32)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-tokens", "0"),
        ("--max-tokens", "1.5"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--top-p", "0"),
        ("--top-p", "1.1"),
        ("--seed", "x"),
        ("--seed", "-1"),
        ("--dtype", "int8"),
    ],
)
def test_an_option_that_cannot_be_is_named(echo, picture, capsys, option, value):
    with pytest.raises(SystemExit) as ended:
        command.main(["caption", picture, f"{option}={value}"])
    assert ended.value.code == 2 and not echo
    last = capsys.readouterr().err.splitlines()[-1]
    assert option in last and f"'{value}'" in last


def test_a_question_is_asked_about_each_picture(echo, picture, tmp_path, capsys):
    bad = str(tmp_path / "none.png")
    assert command.main(["ask", picture, bad, picture, "what?"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{picture}: what? 1 {{}}"] * 2
    assert err.startswith(f"{bad}: ") and len(err.splitlines()) == 1


def test_pictures_are_asked_about_together(echo, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("and?\n"))
    assert command.main(["ask", picture, picture, "what?", "--together"]) == 0
    assert command.main(["ask", picture, picture, "--together"]) == 0
    assert capsys.readouterr().out.splitlines() == ["what? 2 {}", "and? 2 {}"]
    assert command.main(["ask", picture, str(tmp_path / "none.png"), "what?", "--together"]) == 1
    out, err = capsys.readouterr()
    assert not out and "none.png" in err


def test_two_questions_and_a_conversation_about_two_pictures_are_refused(echo, picture, capsys):
    assert command.main(["ask", picture, "what?", "where?"]) == 2
    assert command.main(["ask", picture, picture]) == 2
    out, err = capsys.readouterr()
    assert not out and not echo
    first, second = err.splitlines()
    assert "one question at a time" in first and "--together" in second


def test_a_warning_about_a_folder_is_one_line(monkeypatch, picture, capsys):
    def open_with_a_word(folder, dtype):
        warnings.warn_explicit(
            "another template", UserWarning, "llava.py", 1, module="minivlm.pretrained.llava"
        )
        return Parrot("a star")

    monkeypatch.setattr(commands, "open_checkpoint", open_with_a_word)
    assert command.main(["caption", picture]) == 0
    assert capsys.readouterr() == (f"{picture}: a star\n", "another template\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_slow_loading_is_told_to_a_person_alone(monkeypatch, picture):
    monkeypatch.setattr(commands, "SLOW", 0.01)

    def open_slowly(folder, dtype):
        time.sleep(0.8)
        return Parrot("a star")

    monkeypatch.setattr(commands, "open_checkpoint", open_slowly)
    for stream, words in ((Terminal(), "loading data\\x1b"), (io.StringIO(), "")):
        monkeypatch.setattr("sys.stderr", stream)
        assert command.main(["caption", picture, "--checkpoint", "data\x1b"]) == 0
        told = stream.getvalue()
        assert words in told and bool(told) == bool(words) and "\n" not in told
    quick = Terminal()
    monkeypatch.setattr(commands, "SLOW", 60)
    monkeypatch.setattr("sys.stderr", quick)
    assert command.main(["caption", picture]) == 0 and not quick.getvalue()


# search and compare


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    """Files of scenes with unlike captions."""
    shown = scenes.load("test")[:5]
    for i, scene in enumerate(shown):
        scene.image.save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(len(shown))]


def test_search_ranks_pictures_and_goes_on_after_a_bad_one(pictures, tmp_path, capsys):
    bad = str(tmp_path / "none.png")
    assert (
        command.main(["search", SCENE.caption, pictures[1], bad, *pictures[2:], pictures[0]]) == 1
    )
    out, err = capsys.readouterr()
    found = [line.split(maxsplit=1) for line in out.splitlines()]
    assert found[0][1] == pictures[0] and {path for _, path in found} == set(pictures)
    cosines = [float(cosine) for cosine, _ in found]
    assert cosines == sorted(cosines, reverse=True) and -1 <= cosines[-1] < cosines[0] <= 1
    assert err.startswith(f"{bad}: ") and len(err.splitlines()) == 1
    assert command.main(["search", SCENE.caption, *pictures]) == 0


def test_compare_says_how_probable_each_text_is(pictures, tmp_path, capsys):
    texts = [scene.caption for scene in scenes.load("test")[:2]]
    bad = str(tmp_path / "none.png")
    assert command.main(["compare", pictures[0], bad, pictures[1], *texts]) == 1
    out, err = capsys.readouterr()
    for path, text, line in zip(pictures, texts, out.splitlines(), strict=False):
        assert line.startswith(f"{path}: ")
        shares = [float(part) for part in re.findall(r"([\d.]+)%", line)]
        assert line.index(text) < line.index(texts[texts[0] == text])
        assert abs(sum(shares) - 100) < 0.3 and shares == sorted(shares, reverse=True)
    assert len(out.splitlines()) == 2 and err.startswith(f"{bad}: ")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["search", "a star <|end|>"], 1, "special token '<|end|>'"),
        (["search", "star " * 50], 1, "but the model reads 13"),
        (["compare"], 2, "no text to compare"),
        (["compare", "a star", "b " * 50], 1, "but the model reads 13"),
        (["compare", "a star"], 1, "one alone is always right"),
        (["search", "a star", *LLAVA], 2, "writes texts and compares none"),
        (["caption", "--checkpoint", str(FROZEN / "clip")], 2, "compares pictures with texts"),
        (["search", "a star", "--checkpoint", "none"], 2, "no checkpoint folder 'none'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(picture, capsys, arguments, status, words):
    place = 1 if arguments[0] in ("compare", "caption") else 2
    assert command.main([*arguments[:place], picture, *arguments[place:]]) == status
    out, err = capsys.readouterr()
    assert not out and words in err and len(err.splitlines()) == 1


# A conversation


def test_without_a_question_each_line_is_answered_after_those_before_it(
    parrot, picture, capsys, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\n\n  and where?\nlarge?"))
    assert command.main(["ask", picture]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["a red star", "a red star, 1 before", "a red star, 2 before"]
    assert not err


def test_a_line_without_an_answer_is_reported_and_leaves_the_conversation(
    parrot, picture, capsys, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\n?\nlarge?\n"))
    assert command.main(["ask", picture]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == ["a red star", "a red star, 1 before"]
    assert err.splitlines() == [f"{picture}: this is no question"]


def test_a_conversation_about_no_picture_does_not_begin(parrot, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it?\n"))
    assert command.main(["ask", str(tmp_path / "none.png")]) == 1
    out, err = capsys.readouterr()
    assert not out and "none.png" in err and len(err.splitlines()) == 1


def test_no_question_at_all_is_no_error(parrot, picture, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert command.main(["ask", picture]) == 0
    assert capsys.readouterr().out == ""


# How a picture is stored


def clear_paper(image: Image.Image) -> Image.Image:
    """The same picture, with nothing where its paper was."""
    clear = np.asarray(image.convert("RGBA")).copy()
    clear[(clear[..., :3] == drawing.BACKGROUND).all(axis=-1)] = 0
    return Image.fromarray(clear)


STORED = {
    "transparent.png": clear_paper,
    "transparent.webp": clear_paper,
    "palette.png": lambda image: image.quantize(256),
    "bmp.bmp": lambda image: image,
    "gif.gif": lambda image: image.quantize(256),
    "lossless.webp": lambda image: image,
    "tiff.tiff": lambda image: image,
}


@pytest.mark.parametrize("name", STORED)
def test_a_picture_has_the_same_pixels_however_it_is_stored(tmp_path, name):
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    STORED[name](SCENE.image).save(tmp_path / name, **options)
    read = files.read_picture(tmp_path / name)
    assert (pixels([read]) - pixels([SCENE.image])).abs().max() < 1e-6


GREY = {
    "int32.tiff": lambda grey: grey.astype(np.int32),
    "float32.tiff": lambda grey: grey.astype(np.float32),
    "unit.tiff": lambda grey: grey.astype(np.float32) / 255,
    "uint16.png": lambda grey: grey.astype(np.uint16) * 257,
    "uint16.tiff": lambda grey: grey.astype(np.uint16),
}


@pytest.mark.parametrize("name", GREY)
def test_a_grey_picture_has_the_same_pixels_however_it_is_stored(tmp_path, name):
    grey = SCENE.image.convert("L")
    Image.fromarray(GREY[name](np.asarray(grey))).save(tmp_path / name)
    assert (pixels([files.read_picture(tmp_path / name)]) - pixels([grey])).abs().max() < 1e-6


def test_a_transparent_picture_gets_the_caption_of_the_opaque_one(picture, tmp_path, capsys):
    path = str(tmp_path / "clear.png")
    clear_paper(SCENE.image).save(path)
    assert command.main(["caption", picture, path, *LLAVA]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.removeprefix(picture) == second.removeprefix(path) != ": "


def test_what_lies_beyond_a_transparent_edge_is_paper_in_the_square_too():
    clear = Image.new("RGBA", (300, 40), (0, 0, 0, 0))
    assert pixels([clear]).abs().max() < 1e-6


# The demo keeps its minute


def refuse_to_train(*arguments, **options):
    raise AssertionError("it trained, and could not have saved")


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(command, "train_captioner", refuse_to_train)


def one_line(capsys, status: int) -> str:
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and status == 2
    return err


def test_a_file_in_the_way_is_found_before_training(untrained, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").write_text("a file")
    for place in (tmp_path / "runs", tmp_path / "runs" / "captioner"):
        monkeypatch.setattr(commands, "CAPTIONER", place)
        assert str(place) in one_line(capsys, command.main([]))


def test_a_folder_that_cannot_be_written_is_found_before_training(
    untrained, tmp_path, monkeypatch, capsys
):
    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(commands, "CAPTIONER", tmp_path / "runs" / "captioner")
    assert "Permission denied" in one_line(capsys, command.main([]))


def test_a_full_disk_is_found_before_training(untrained, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(commands, "CAPTIONER", tmp_path / "captioner")
    assert "No space left" in one_line(capsys, command.main([]))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_unknown_device_is_found_before_training(untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "CAPTIONER", tmp_path / "captioner")
    monkeypatch.setenv("MINIVLM_DEVICE", "gpu")
    assert "MINIVLM_DEVICE" in (line := one_line(capsys, command.main([]))) and "gpu" in line


# Ended from outside


def test_ctrl_c_ends_in_one_line(tmp_path):
    start = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "runpy.run_module('minivlm', run_name='__main__')"
    arguments = [sys.executable, "-c", start]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen(
        arguments, cwd=tmp_path, env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}, **pipes
    )
    assert run.stdout.readline().startswith("A vision-language model")
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(1)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and err == "stopped\n"


def test_who_reads_one_line_of_the_output_gets_no_traceback(picture):
    arguments = ["-m", "minivlm", "caption", *[picture] * 3, *LLAVA]
    run = subprocess.Popen(
        [sys.executable, *arguments],
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.readline().startswith(picture)
    run.stdout.close()
    assert run.stderr.read() == "" and run.wait(60) == 141


def test_a_name_that_the_terminal_cannot_write_is_escaped(tmp_path):
    path = tmp_path / "红.png"
    SCENE.image.save(path)
    done = subprocess.run(
        [sys.executable, "-m", "minivlm", "caption", str(path), *LLAVA],
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and r"\u7ea2.png: a" in done.stdout and not done.stderr
