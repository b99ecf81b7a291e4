"""Faults of trainings and files: what resumes, what is refused, what a stop leaves."""

import json
import os
import random
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minivlm import scenes
from minivlm.clip import Clip, TextConfig, VisionConfig
from minivlm.multimodal import IGNORE, answer_loss
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained import checkpoints, from_pretrained, save_pretrained
from minivlm.pretrained.clip import publish_clip
from minivlm.qwen2_vl import Qwen2VL
from minivlm.scenes.pixels import augment, pixels
from minivlm.toys.assistant import load_stage_one, load_stage_two
from minivlm.toys.blip import ToyBlip
from minivlm.toys.common import FROZEN, load_toy, save_toy
from minivlm.toys.qwen2_vl import AnySizeCaptioner
from minivlm.toys.qwen_vl import Pointer
from minivlm.toys.vqvae import load_vqvae
from notebook_env import ROOT

DATA = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))


class Counting(nn.Module):
    """Drops out, and counts its steps as a plain number that its output depends on."""

    def __init__(self, seed: int = 0, dropout: float = 0.3):
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.drop, self.count = nn.Linear(5, 5), nn.Dropout(dropout), 0

    def forward(self, x):
        self.count += 1
        return self.drop(self.body(x)) * self.count


def squares(model, batch):
    (x,) = batch
    return {"square": model(x).pow(2).mean(), "noise": model.body.bias.sum() * random.random()}


class Jittered(torch.utils.data.Dataset):
    """Random augmentation by each of the three generators."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, i):
        return (DATA[i] + torch.rand(5) + random.random() + np.random.rand(),)


class Walk:
    """An iterable that draws, whose every batch depends on what it drew before."""

    def __iter__(self):
        at = torch.zeros(4, 5)
        for _ in range(3):
            at = at + torch.randn(4, 5) * np.random.rand()
            yield (at,)


def endless():
    while True:
        for rows in torch.randperm(12).split(4):
            yield (DATA[rows],)


SOURCES = {
    "a shuffling loader": lambda: DataLoader(TensorDataset(DATA), batch_size=4, shuffle=True),
    "an unshuffled loader": lambda: DataLoader(TensorDataset(DATA), batch_size=4),
    "random augmentation": lambda: DataLoader(Jittered(), batch_size=4, shuffle=True),
    "an iterable that draws": Walk,
    "an endless generator that draws": endless,
    "minibatches": lambda: minibatches(DATA, batch_size=4),
}


def disturb() -> None:
    """Another process: other random states."""
    random.seed()
    np.random.seed()
    torch.seed()


def interrupted(make, stop: int, file: Path, **options) -> tuple[Counting, dict]:
    calls = iter(range(100))

    def stopping(model, batch):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return squares(model, batch)

    with pytest.raises(KeyboardInterrupt):
        fit(Counting(), make(), stopping, 9, checkpoint=file, every=2, **options)
    disturb()
    resumed = Counting(seed=1)
    return resumed, fit(resumed, make(), squares, 9, checkpoint=file, every=2, **options)


@pytest.mark.parametrize("source", SOURCES)
def test_a_training_resumes_to_the_same_bits_whatever_draws(source, tmp_path_factory):
    make = SOURCES[source]
    disturb()
    whole = Counting()
    expected = fit(whole, make(), squares, 9)

    @settings(deadline=None, max_examples=6)
    @given(st.integers(2, 8))
    def check(stop):
        resumed, history = interrupted(make, stop, tmp_path_factory.mktemp("state") / "file")
        assert history == expected and len(history["square"]) == 9
        assert torch.equal(resumed.body.weight, whole.body.weight)
        assert resumed.count == whole.count == 9

    check()


CHANGES = {
    "seed": {"seed": 1},
    "muon_lr": {"muon_lr": 0.5},
    "adamw_lr": {"adamw_lr": 0.5},
    "weight_decay": {"weight_decay": 0.5},
    "clip": {"clip": 0.5},
}


@pytest.mark.parametrize("change", [*CHANGES, "data", "dropout", "stage"])
@pytest.mark.parametrize("steps", [4, 6], ids=["finished", "unfinished"])
def test_the_checkpoint_of_another_training_is_refused_by_what_differs(change, steps, tmp_path):
    file, data = tmp_path / "state", [(DATA[:4],), (DATA[4:8],)]
    fit(Counting(), data, squares, steps, checkpoint=file, every=4)
    model, name = Counting(dropout=0.1 if change == "dropout" else 0.3), change
    if change == "data":
        data, name = [(DATA[:4],), (DATA[5:9],)], "batches"
    if change == "stage":
        model.body.weight.requires_grad_(False)
        name = "model.body.weight"
    if change == "dropout":
        name = "model.drop.p"
    before = model.body.weight.clone()
    with pytest.raises(ValueError, match=f"another training: another .*{name}"):
        fit(model, data, squares, steps, checkpoint=file, **CHANGES.get(change, {}))
    assert change == "data" or torch.equal(model.body.weight, before)


def test_a_checkpoint_without_one_of_its_parts_is_refused(tmp_path):
    file = tmp_path / "state"
    fit(Counting(), [(DATA,)], squares, 2, checkpoint=file, every=2)
    tensors = load_file(file)
    for name in ("history.loss", "optimizer.0.0.momentum_buffer", "model.body.bias"):
        save_file({n: t for n, t in tensors.items() if n != name}, file)
        with pytest.raises(ValueError, match="state is not the whole checkpoint"):
            fit(Counting(), [(DATA,)], squares, 2, checkpoint=file)


def test_a_killed_write_leaves_one_file_that_the_next_write_replaces(tmp_path, monkeypatch):
    file = tmp_path / "state"
    fit(Counting(), [(DATA,)], squares, 2, checkpoint=file, every=1)
    whole = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(Counting(), [(DATA,)], squares, 2, checkpoint=tmp_path / "other", every=1)
    assert {path.name for path in tmp_path.iterdir()} == {"state", "other.part"}
    fit(Counting(), [(DATA,)], squares, 2, checkpoint=tmp_path / "other", every=1)
    assert {path.name for path in tmp_path.iterdir()} == {"state", "other"}
    assert file.read_bytes() == whole
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_batch_that_is_not_finite_is_refused_before_it_reaches_the_weights():
    for bad in (torch.nan, torch.inf):
        model, wrong = Counting(), DATA.clone()
        wrong[3, 2] = bad
        short = Counting()
        fit(short, [(DATA,)], squares, 1)
        with pytest.raises(ValueError, match=r"step 1: (loss|square|grad_norm) is (nan|inf)"):
            fit(model, [(DATA,), (wrong,)], squares, 5)
        assert model.body.weight.isfinite().all() and model.body.bias.isfinite().all()


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is_finite():
    model = Counting()
    with pytest.raises(ValueError, match="step 0: grad_norm is"):
        fit(model, [(DATA,)], lambda m, b: (m(b[0]) * 0).pow(2).sum().sqrt(), 3)
    assert model.body.weight.isfinite().all()


def test_the_answer_loss_of_nothing_is_refused():
    logits = torch.randn(2, 4, 7)
    labels = torch.full((2, 4), IGNORE)
    labels[:, 0] = 3  # which no token foretells
    with pytest.raises(ValueError, match="nothing to learn.*-100"):
        answer_loss(logits, labels)


def test_minibatches_leave_out_what_fills_no_batch_and_repeat_no_row_within_an_epoch():
    stream, seen = minibatches(torch.arange(10), batch_size=4), []
    for _ in range(40):
        epoch = torch.cat([*next(stream), *next(stream)]).tolist()
        assert len({*epoch}) == 8
        seen += epoch
    assert {*seen} == {*range(10)}


# Toys

FOUND = scenes.sample(60, seed=0)
SINGLE = [scene for scene in FOUND if len(scene.objects) == 1][:16]


def test_a_blip_resumes_to_the_same_weights_and_keeps_all_its_histories(tmp_path):
    images, captions = pixels([s.image for s in SINGLE]), [s.caption for s in SINGLE]
    whole, file = ToyBlip.new(captions), tmp_path / "state"
    expected = whole.train(images, captions, 4, batch=8)
    stopped = ToyBlip.new(captions)
    steps = iter(range(9))

    def stopping(*args):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return augment(*args)

    with pytest.raises(KeyboardInterrupt):
        stopped.train(images, captions, 4, batch=8, vary=stopping, checkpoint=file, every=2)
    resumed = ToyBlip.new(captions, seed=3)
    assert resumed.train(images, captions, 4, batch=8, checkpoint=file, every=2) == expected
    assert {len(values) for values in expected.values()} == {4}
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("size", [0, -1, 17])
def test_fewer_scenes_than_a_batch_are_refused(size):
    made = AnySizeCaptioner.new(Qwen2VL, [scene.caption for scene in SINGLE])
    with pytest.raises(ValueError, match=f"batches of {size} from {len(SINGLE)} scenes"):
        made.train(SINGLE, 1, batch=size)


def changed(name: str, folder: Path, **change) -> Path:
    for path in (FROZEN / name).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("value", [50_000_000, 10**12, -1, 0, "x", None, 7.5, True])
@pytest.mark.parametrize(
    "name, key, load",
    [
        ("vqvae", "codes", load_vqvae),
        ("vqvae", "blocks", load_vqvae),
        ("vqvae", "hidden", load_vqvae),
        ("qwen_vl", "side", Pointer.load),
        ("qwen_vl", "image_size", Pointer.load),
        ("qwen_vl", "patch", Pointer.load),
        ("qformer", "queries", lambda folder: load_stage_one(folder=folder)),
        ("blip2", "queries", load_stage_two),
    ],
)
def test_a_size_that_the_weights_do_not_have_is_refused_before_memory_is_taken(
    name, key, load, value, tmp_path
):
    with pytest.raises(ValueError, match=f"{key} is {value!r}|extra tensor"):
        load(changed(name, tmp_path, **{key: value}))


# Files


def small(width: int = 8, seed: int = 0, act: str = "quick_gelu") -> Clip:
    torch.manual_seed(seed)
    vision = VisionConfig(8, patch=4, width=width, layers=1, heads=2, hidden=8, act=act)
    text = TextConfig(9, 5, width, layers=1, heads=2, hidden=8, act=act, eos_id=2)
    return Clip(vision, text, 6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    model = small()
    save_pretrained(model, publish_clip(model), tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    tensors = load_file(file)
    name = "visual_projection.weight"
    tensors[name][1, 2] = value
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite"):
        from_pretrained(tmp_path / "clip")
    tensors[name][1, 2] = 1e9  # too large for half precision alone
    save_file(tensors, file)
    assert from_pretrained(tmp_path / "clip").image_projection.weight.max() == 1e9
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite numbers as torch.float16"):
        from_pretrained(tmp_path / "clip", torch.float16)
    with torch.no_grad():
        model.image_projection.weight[0, 0] = value
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinite"):
        save_pretrained(model, publish_clip(model), tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_a_config_of_another_model_is_refused(tmp_path):
    model = small()
    with pytest.raises(ValueError, match="Linear is not what this config.json describes"):
        save_pretrained(nn.Linear(2, 3), publish_clip(model), tmp_path / "x")
    with pytest.raises(ValueError, match="Linear"):
        save_pretrained(nn.Linear(2, 3), {"model_type": "clip"}, tmp_path / "x")
    with pytest.raises(ValueError, match="has shape"):
        save_pretrained(small(16), publish_clip(model), tmp_path / "x")
    with pytest.raises(ValueError, match="describes vision as .*quick_gelu.*, not .*silu"):
        save_pretrained(small(act="silu"), publish_clip(model), tmp_path / "x")
    assert not [*tmp_path.iterdir()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Stop(BaseException):
    """Ends a function wherever it is, as a signal does."""


def stopped(call, turn: int, late: bool):
    """The call, but the process ends before or after it the time of this number."""
    count = iter(range(99))

    def call_or_stop(*args, **options):
        number = next(count)
        if number == turn and not late:
            raise Stop
        call(*args, **options)
        if number == turn:
            raise Stop

    return call_or_stop


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    """Stopped before and after every call that changes the disk."""
    _, tokenizer = load_toy(FROZEN / "clip")
    old, new = small(), small(seed=1)
    save_toy(new, publish_clip(new), tmp_path / "whole", tokenizer)
    expected, folder = contents(tmp_path / "whole"), tmp_path / "runs" / "clip"
    calls = [
        (checkpoints.os, "rename"),
        (checkpoints, "save_file"),
        (checkpoints.shutil, "copymode"),
        (checkpoints.shutil, "rmtree"),
        (Path, "write_text"),
        (Path, "mkdir"),
    ]
    outcomes = set()
    for place, name in calls:
        for late in (False, True):
            for turn in range(2):
                save_toy(old, publish_clip(old), folder, tokenizer)
                (folder / "notes.txt").write_text("mine")
                before = contents(folder)

                with monkeypatch.context() as patch, suppress(Stop):
                    patch.setattr(place, name, stopped(getattr(place, name), turn, late))
                    save_toy(new, publish_clip(new), folder, tokenizer)
                if not folder.exists():  # the clearing up was stopped too: the next one does it
                    with pytest.raises(ValueError, match="no checkpoint folder"):
                        from_pretrained(folder)
                else:
                    found = contents(folder)
                    found.pop("notes.txt", None)
                    before.pop("notes.txt")
                    assert found in (before, expected)
                    outcomes.add(found == expected)
                save_toy(new, publish_clip(new), folder, tokenizer)
                assert contents(folder) == expected | {"notes.txt": b"mine"}
                assert [path.name for path in folder.parent.iterdir()] == ["clip"]
    assert outcomes == {False, True}


def test_files_of_a_checkpoint_are_read_by_whom_the_folder_is(tmp_path):
    model = small()
    save_pretrained(model, publish_clip(model), tmp_path / "clip")
    plain = tmp_path / "plain"
    plain.write_text("")
    for path in (tmp_path / "clip").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_neither_a_file_nor_the_working_directory_is_replaced(tmp_path, monkeypatch):
    model, file = small(), tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="file is a file"):
        save_pretrained(model, publish_clip(model), file)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="working directory"):
        save_pretrained(model, publish_clip(model), ".")
    assert file.read_text() == "mine"


SAVING = """
import sys
from pathlib import Path
from minivlm.pretrained.checkpoints import replacing
for turn in range(40):
    with replacing(Path(sys.argv[1])) as new:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (new / name).write_text(sys.argv[2])
"""


def test_two_processes_that_save_at_once_leave_the_folder_of_one(tmp_path):
    arguments = [sys.executable, "-c", SAVING, str(tmp_path / "one")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([*arguments, who], env=environment) for who in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert {*contents(tmp_path / "one").values()} in ({b"a"}, {b"b"})
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_link_to_a_folder_stays_and_one_to_itself_is_refused(tmp_path):
    model = small()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to("folder")
    save_pretrained(model, publish_clip(model), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and from_pretrained(tmp_path / "folder")
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="loop is a link that leads to itself"):
        save_pretrained(model, publish_clip(model), tmp_path / "loop")


def test_a_config_that_is_no_json_is_refused_and_the_older_folder_stays(tmp_path):
    model, folder = small(), tmp_path / "clip"
    save_pretrained(model, publish_clip(model), folder)
    before = contents(folder)
    with pytest.raises(ValueError, match="JSON"):
        save_pretrained(small(seed=1), publish_clip(model) | {"x": float("nan")}, folder)
    assert contents(folder) == before and [*tmp_path.iterdir()] == [folder]
