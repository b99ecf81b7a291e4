"""What no function can use is a ValueError that names it, before anything is computed or lost."""

import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from torch import nn

from minivlm import __main__ as command
from minivlm import blip, clip, multimodal, scenes
from minivlm.blip import Blip, MedConfig
from minivlm.blip2 import Blip2, ClipFeatures, QFormerConfig, prompt_loss
from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, ClipVision, Siglip, TextConfig, VisionConfig
from minivlm.formats.tokenizer_files import load_json
from minivlm.llava import Llava, LlavaConfig
from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.parts.generation import generate
from minivlm.parts.layers import Attention
from minivlm.parts.training import fit
from minivlm.pretrained import from_pretrained
from minivlm.pretrained.checkpoints import read_json
from minivlm.qwen2_vision import Qwen2Vision, TowerConfig, preprocess, preprocess_videos
from minivlm.qwen2_vl import Qwen2VL, Qwen2VLConfig, video_text
from minivlm.qwen_vl import ImageTower
from minivlm.scenes import tasks
from minivlm.scenes.pixels import pixels
from minivlm.scenes.sampling import Options, object_side
from minivlm.speaking import open_checkpoint
from minivlm.toys import blip as toy_blip
from minivlm.toys.assistant import Assistant
from minivlm.toys.blip import ToyBlip
from minivlm.toys.common import FROZEN, pad_right
from minivlm.toys.qwen2_vl import AnySizeCaptioner
from minivlm.vit import ViT, ViTConfig, to_pixels
from minivlm.vqvae import VQVAE, VQVAEConfig, perplexity, psnr
from notebook_env import ROOT

VISION, TOWER = ViTConfig((8, 8), 4, 8, 1, 2, 8), VisionConfig(8, 4, 8, 1, 2, 8)
WORDS, SPEAKER = TextConfig(9, 5, 8, 1, 2, 8), DecoderConfig(30, 16, 2, 2, 1, 16)
MED = MedConfig(30, 12, 8, 2, 2, 8, memory=8)
QUERIES = QFormerConfig(30, 12, 8, 2, 2, 8, memory=8, queries=3)
IDS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
SCENES = scenes.sample(20, seed=0)
CAPTIONS = [scene.caption for scene in SCENES]


# Pixels

TOWERS = {
    "vit": lambda: ViT(VISION),
    "clip": lambda: Clip(TOWER, WORDS, 6).encode_image,
    "siglip": lambda: Siglip(TOWER, WORDS).encode_image,
    "blip": lambda: Blip(VISION, MED, 8).encode_image,
    "blip-2": lambda: Blip2(VISION, QUERIES, width=6).encode_image,
    "blip-2 with clip": lambda: Blip2(ClipFeatures(ClipVision(TOWER)), QUERIES, 6).encode_image,
    "llava": lambda: Llava(LlavaConfig(TOWER, SPEAKER, image_token_id=7)).encode_images,
    "qwen-vl": lambda: ImageTower(TOWER),
    "vq-vae": lambda: VQVAE(VQVAEConfig(widths=(4, 8))).encode,
}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_pixels_that_are_no_floats_are_refused_by_their_type(name, dtype):
    with pytest.raises(ValueError, match=str(dtype)):
        TOWERS[name]()(torch.ones(2, 3, 8, 8).to(dtype))


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_pixels_of_another_precision_are_read_in_that_of_the_weights(name, dtype):
    torch.manual_seed(0)
    tower, x = TOWERS[name](), torch.rand(2, 3, 8, 8).to(dtype)
    assert torch.equal(tower(x), tower(x.float()))


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (1, 2, 3, 8, 8), (2, 1, 8, 8), (2, 4, 8, 8), (2, 8, 8, 3), (2, 3, 0, 0)]
)
def test_pixels_of_another_rank_or_number_of_channels_are_refused_by_their_shape(name, shape):
    with pytest.raises(ValueError) as error:
        TOWERS[name]()(torch.rand(shape))
    sides = " x ".join(map(str, shape[2:]))
    assert str(shape) in str(error.value) or sides in str(error.value)


def test_images_that_are_no_numbers_have_no_codes():
    with pytest.raises(ValueError, match=r"floats in 0\.\.1, got torch.float32 in nan"):
        VQVAE(VQVAEConfig()).encode(torch.full((1, 3, 8, 8), math.nan))


@pytest.mark.parametrize("mean, std", [((0,) * 3, (1, 0, 1)), ((0,) * 3, (1, math.nan, 1))])
def test_an_unknown_normalisation_is_refused(mean, std):
    for prepare in (to_pixels, preprocess):
        with pytest.raises(ValueError, match="no normalisation of three channels.*std"):
            prepare([SCENES[0].image], mean=mean, std=std)
        with pytest.raises(ValueError, match="no normalisation of three channels: mean"):
            prepare([SCENES[0].image], mean=(0.5,))


def test_a_picture_without_pixels_is_refused():
    for prepare in (to_pixels, pixels, preprocess):
        with pytest.raises(ValueError, match="5 x 0 pixels"):
            prepare([Image.new("RGB", (0, 5))])


def test_grids_that_are_none_are_refused_by_the_tower_and_by_the_positions():
    text = DecoderConfig(30, 16, 2, 2, 1, 16, attention_bias=True, out_bias=False)
    tower = TowerConfig(8, 1, 2, hidden=32, out=16, patch=4)
    model, ids = Qwen2VL(Qwen2VLConfig(tower, text, (2, 1, 1), 7, 8)), torch.tensor([[7] * 4])
    for wrong in ([[1, 3, 4]], [[1.0, 4.0, 4.0]], [1, 4, 4], [[1, 0, 4]], []):
        grid = torch.tensor(wrong)
        with pytest.raises(ValueError, match="grid_thw must be integers"):
            Qwen2Vision(tower)(torch.randn(16, 96), grid)
        with pytest.raises(ValueError, match="grid_thw must be integers"):
            model.position_ids(ids, grid)
    with pytest.raises(ValueError, match="must not be 0"):
        preprocess_videos([[SCENES[0].image]], patch=0)


def test_every_frame_of_a_video_has_its_time():
    with pytest.raises(ValueError, match="1 pairs of frames need 2 times or one less, got 5"):
        video_text((1, 2, 2), [0, 1, 2, 3, 4])


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_too_many_frames_are_refused_and_one_less_is_always_drawn(turns):
    """An object moves a pixel a frame or more; on the way it turns, at best to and fro."""
    room = 64 - object_side("large", 16)
    share = (turns // 2 + 1) / (turns + 1)  # of its way, what may all lead in one direction
    most = max(n for n in range(300) if fits(n, turns))
    assert 0 <= room / share - (most - 1) <= turns + 1
    for seed in range(9):
        scenes.sample(4, seed=seed, frames=most, turns=turns)
    for frames in (most + 1, 10**12):
        with pytest.raises(ValueError, match=f"too many frames: in {frames}"):
            scenes.sample(1, seed=0, frames=frames, turns=turns)


def fits(frames: int, turns: int) -> bool:
    try:
        return bool(Options(frames=frames, turns=turns))
    except ValueError:
        return False


# States, ids, vectors


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 5, 8), (2, 8), (2, 1, 5, 8)])
def test_a_memory_of_another_width_or_rank_is_refused_by_its_shape(shape):
    attention, x, memory = Attention(8, 2), torch.randn(2, 4, 8), torch.randn(shape)
    for read in (attention, attention.weights):
        with pytest.raises(ValueError, match=r"memory must be \(2, S, 8\), got"):
            read(x, memory=memory)
    with pytest.raises(ValueError, match="must be|images for"):
        Blip(VISION, MED, 8).match_states(memory, IDS)
    if shape[0] == 2:
        with pytest.raises(ValueError, match="must be"):
            Blip2(VISION, QUERIES, width=6).qformer.attention_maps(memory[..., :7])


@pytest.mark.parametrize(
    "model",
    [Clip(TOWER, WORDS, 6), Siglip(TOWER, WORDS), Blip(VISION, MED, 8), Blip2(VISION, QUERIES, 6)],
    ids=["clip", "siglip", "blip", "blip-2"],
)
def test_ids_of_one_dimension_are_refused_by_every_reader_of_texts(model):
    with pytest.raises(ValueError, match=r"int64 \(4,\)"):
        model.encode_text(IDS[0])


def test_no_code_of_an_image_is_outside_the_codebook():
    vocabulary = multimodal.ImageVocabulary(300, 16, (2, 2), 298, 299)
    with pytest.raises(ValueError, match=r"outside \[-1, 16\]"):
        vocabulary.to_ids(torch.tensor([[[0, -1], [16, 3]]]))
    assert vocabulary.to_ids(torch.zeros(0, 2, 2, dtype=torch.long)).shape == (0, 6)
    with pytest.raises(ValueError, match=r"4 tokens of shape \(4,\)"):
        vocabulary.to_codes(torch.full((4,), 300))


# Losses of nothing, and of too little


def test_a_loss_of_no_token_is_refused():
    logits, nothing = torch.randn(2, 4, 30), torch.zeros(2, 4, dtype=torch.long)
    for ids, seen in ((IDS, nothing), (IDS[:, :1], nothing[:, :1] + 1), (IDS[:0], nothing[:0])):
        with pytest.raises(ValueError, match="nothing to learn"):
            blip.caption_loss(logits[: len(ids), : ids.shape[1]], ids, seen, 0.1)
    model = Blip2(VISION, QUERIES, decoder=Decoder(SPEAKER), token=29)
    for ids, seen in ((IDS, nothing), (IDS[:, :0], None)):
        with pytest.raises(ValueError, match="nothing to learn"):
            prompt_loss(model, torch.rand(2, 3, 8, 8), ids, seen)


def test_a_contrastive_loss_needs_two_pairs_and_as_many_texts_as_images():
    one, scale = torch.randn(1, 4), torch.tensor(1.0)
    with pytest.raises(ValueError, match="2 or more"):
        clip.contrastive_loss(one, one, scale)
    for image, text in ((3, 1), (3, 2), (0, 0)):
        vectors = torch.randn(image, 4), torch.randn(text, 4)
        for loss in (
            clip.contrastive_loss,
            lambda *given: clip.sigmoid_loss(*given, torch.tensor(0.0)),
        ):
            with pytest.raises(ValueError, match=rf"\({image}, 4\) and \({text}, 4\)"):
                loss(*vectors, scale)


def test_the_losses_of_blip_want_a_text_for_each_image_and_a_loss_to_compute():
    module = blip.Pretraining(Blip(VISION, MED, 8), blip.Marks(1, 2, 3, 0), queue=4)
    images = torch.rand(3, 3, 8, 8)
    with pytest.raises(ValueError, match="3 images for 2 texts"):
        module(images, IDS, ("itc",))
    with pytest.raises(ValueError, match=r"unknown loss \(\)"):
        module(images[:2], IDS, ())
    with pytest.raises(ValueError, match="1 in the batch"):
        module(images[:1], IDS[:1])


def test_a_temperature_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="temperature >= 0.*got nan"):
        generate(Decoder(SPEAKER), IDS, 2, temperature=math.nan)


@pytest.mark.parametrize(
    "name, value",
    [("steps", -1), ("every", 0), ("clip", math.nan), ("muon_lr", -0.1), ("adamw_lr", math.inf)],
)
def test_an_option_of_a_training_that_is_no_number_is_refused_before_the_weights_change(
    name, value
):
    model = nn.Linear(2, 2)
    before, options = model.weight.clone(), {"steps": 2} | {name: value}
    with pytest.raises(ValueError, match=name):
        fit(model, [torch.ones(1, 2)], lambda m, batch: m(batch).sum(), **options)
    assert torch.equal(model.weight, before)


def weighed(model, batch, weight, ways=(), extra=None):
    return weight * model(batch).pow(2).mean()


@pytest.mark.parametrize("steps", [2, 4], ids=["finished", "unfinished"])
def test_the_checkpoint_of_a_training_with_other_options_of_its_loss_is_refused(steps, tmp_path):
    file, data = tmp_path / "state", [torch.ones(4, 2)]
    loss = partial(weighed, weight=1.0, ways=("a", 1), extra=nn.Linear(2, 2))
    whole = fit(nn.Linear(2, 2), data, loss, steps, checkpoint=file, every=2)
    for change in ({"weight": 2.0}, {"ways": ("a", 2)}, {"extra": None}):
        with pytest.raises(ValueError, match=f"another {[*change][0]} of the loss"):
            fit(nn.Linear(2, 2), data, partial(loss, **change), steps, checkpoint=file)
    again = partial(weighed, weight=1.0, ways=("a", 1), extra=nn.Linear(2, 2))  # another object
    assert (
        fit(nn.Linear(2, 2), data, again, steps, checkpoint=file)["loss"][:2] == whole["loss"][:2]
    )


@pytest.mark.parametrize(
    "change", [{"losses": ("itm",)}, {"erased": 0.9}, {"random_negatives": True}]
)
def test_a_blip_does_not_go_on_from_the_checkpoint_of_other_losses(change, tmp_path):
    images = pixels([scene.image for scene in SCENES])
    train = partial(
        ToyBlip.train, images=images, captions=CAPTIONS, steps=1, batch=4, every=1,
        checkpoint=tmp_path / "state",
    )  # fmt: skip
    train(ToyBlip.new(CAPTIONS))
    name = [*change][0]
    with pytest.raises(ValueError, match=f"another training: another {name} of the loss"):
        train(ToyBlip.new(CAPTIONS), **change)


# Nothing given, or too little


def test_lists_without_an_entry_are_refused_by_name():
    tokenizer = BPETokenizer.train("hello", 300, special_tokens=multimodal.CONTROL)
    processor = multimodal.Processor(tokenizer, 4, to_pixels)
    for call, name in (
        (lambda: processor.pack([], 10), "nothing to pack"),
        (lambda: processor.collate([]), "nothing to collate"),
        (lambda: AnySizeCaptioner.load().pack([]), "nothing to pack"),
        (lambda: pad_right([], 0), "cannot pad 0 rows"),
        (lambda: ToyBlip.new(CAPTIONS).texts([]), "cannot pad 0 rows"),
        (lambda: tasks.album([], Random(0)), "no scene given"),
        (lambda: to_pixels([]), "no image given"),
        (lambda: preprocess([]), "no image given"),
        (lambda: perplexity(torch.zeros(0, dtype=torch.long), 4), r"ids of 4 codes, got \[\]"),
    ):
        with pytest.raises(ValueError, match=name):
            call()
    with pytest.raises(ValueError, match="rows of up to 3 ids to 2"):
        pad_right([[1, 2, 3]], 0, 2)


def test_fewer_scenes_than_retrieval_ranks_are_refused():
    toy, images = ToyBlip.new(CAPTIONS), pixels([scene.image for scene in SCENES])
    with pytest.raises(ValueError, match="among 16 .*: 5 scenes and 5 images"):
        toy_blip.retrieval(toy, SCENES[:5], images[:5])
    with pytest.raises(ValueError, match="20 scenes and 19 images"):
        toy_blip.retrieval(toy, SCENES, images[:19])
    with pytest.raises(ValueError, match="2 images for 3 scenes"):
        toy_blip.told_truly(toy, SCENES[:3], images[:2])


def test_images_of_another_number_are_compared_with_none():
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 2\) are compared with \(2, 3, 2, 2\)"):
        psnr(torch.zeros(1, 3, 2, 2), torch.zeros(2, 3, 2, 2))
    assistant, turns = Assistant.load(FROZEN / "llava"), [{"role": "user", "content": "what?"}]
    for images in (1, 3):
        with pytest.raises(ValueError, match=f"{images} images for 2 conversations"):
            assistant.answer([turns] * 2, torch.zeros(images, 3, 64, 64))


def test_a_tokenizer_without_control_tokens_is_refused_by_the_missing_one():
    processor = multimodal.Processor(BPETokenizer.train("hello", 260), 4, to_pixels)
    for call in (
        lambda: processor.prepare([{"role": "user", "content": "hello"}]),
        lambda: processor.kinds([1]),
        lambda: processor.messages([1]),
    ):
        with pytest.raises(ValueError, match=r"no control token '<\|"):
            call()


def test_an_unknown_normal_form_is_refused_when_the_tokenizer_is_made():
    with pytest.raises(ValueError, match="unknown normalization 'nfc'"):
        BPETokenizer({b"a": 0}, [], normalization="nfc")


# Files of a checkpoint

DEEP = ["[" * 100_000, '{"a":' * 100_000, '{"model_type": ' + "[" * 50_000 + "]" * 50_000 + "}"]


@pytest.mark.parametrize("text", DEEP, ids=["lists", "objects", "a value"])
def test_a_file_that_is_nested_too_deeply_is_named(text, tmp_path):
    folder = copied("llava", tmp_path)
    for name in ("config.json", "tokenizer.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text(text)
        for read in (read_json, load_json, lambda file: open_checkpoint(file.parent)):
            with pytest.raises(ValueError, match=f"{name} is not valid JSON.*recursion"):
                read(folder / name)
        (folder / name).write_text(whole)


@pytest.mark.parametrize("value", [[], {}, ["llava"], [[]], None, 5, "x" * 10_000])
def test_whatever_stands_for_the_model_type_is_named(value, tmp_path):
    folder = copied("llava", tmp_path, model_type=value)
    for read in (from_pretrained, open_checkpoint):
        with pytest.raises(ValueError, match="model_type") as error:
            read(folder)
        assert len(str(error.value)) < 300


def copied(name: str, folder: Path, **change) -> Path:
    """A copy of a checkpoint of the course with another config.json."""
    new = folder / name
    shutil.copytree(FROZEN / name, new, dirs_exist_ok=True)
    config = json.loads((new / "config.json").read_text()) | change
    (new / "config.json").write_text(json.dumps(config))
    return new


@pytest.mark.parametrize("name, other", [("llava", "clip"), ("llava", "blip"), ("blip", "llava")])
def test_the_tokenizer_of_another_family_is_refused_when_the_folder_is_opened(
    name, other, tmp_path
):
    folder = copied(name, tmp_path)
    shutil.copy(FROZEN / other / "tokenizer.json", folder)
    with pytest.raises(ValueError, match="is not that of the model"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name, said, found",
    [
        ("llava", "blip", "holds a Llava, not a Blip"),
        ("blip", "assistant", "holds a Blip, not a Llava"),
        ("blip", "captioner", "holds a Blip, not a Llava"),
        ("llava", "captioner", "tokenizer .* is not that of the model"),
    ],
)
def test_a_folder_that_says_it_is_another_toy_is_refused(name, said, found, tmp_path):
    with pytest.raises(ValueError, match=found):
        open_checkpoint(copied(name, tmp_path, minivlm=said))


def test_a_question_longer_than_the_model_reads_is_refused_at_once(tmp_path):
    for folder, longest in (
        (FROZEN / "llava", 2048),
        (with_text(copied("llava", tmp_path), max_position_embeddings=100), 100),
    ):
        speaker = open_checkpoint(folder)
        assert speaker.ask(SCENES[0].image, "what colour is it?")
        with pytest.raises(ValueError, match=f"prompt of .* tokens, but the model reads {longest}"):
            speaker.ask(SCENES[0].image, "what " * 5000)


def with_text(folder: Path, **change) -> Path:
    """The folder with other settings of its language model."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def published(folder: Path) -> Path:
    """A toy BLIP as if it were a published one."""
    return copied("blip", folder, minivlm=None)


@pytest.mark.parametrize("key", ["bos_token_id", "sep_token_id"])
@pytest.mark.parametrize("value", ["x", 1.5, -1, {}, 10**30, True, ["x"]])
def test_a_mark_that_is_no_id_is_named(key, value, tmp_path):
    folder = with_text(published(tmp_path), **{key: value})
    with pytest.raises(ValueError, match=f"text_config.{key} = "):
        open_checkpoint(folder).caption(SCENES[0].image)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"rescale_factor": 0}, "rescale_factor = 0"),
        ({"rescale_factor": "x"}, "rescale_factor = 'x'"),
        ({"image_std": [0, 0, 0]}, r"image_std = \[0, 0, 0\]"),
        ({"image_mean": [math.inf, 0, 0]}, "inf"),
        ({"size": 10**7}, "10000000 x 10000000 pixels, too many"),
        ({"do_center_crop": True, "crop_size": 10**7}, "10000000 x 10000000 pixels, too many"),
        ({"size": {"shortest_edge": 10**6}}, "1000000 x 1000000 pixels, too many"),
        ({"size": "x"}, "size = 'x'"),
    ],
)
def test_a_setting_of_the_images_that_cannot_be_is_named(settings, named, tmp_path):
    folder = published(tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=named):
        open_checkpoint(folder).caption(SCENES[0].image)


def test_a_side_of_two_numbers_is_height_and_width(tmp_path):
    folder, image = published(tmp_path), SCENES[0].image
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = [64, 64]
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(folder).inputs(image, "")["pixel_values"].shape == (1, 3, 64, 64)


# Stopped while torch is imported

STOPPED_IN_AN_IMPORT = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(9)
except BaseException:
    raise SystemExit("swallowed")
"""


@pytest.mark.parametrize("module", ["minivlm", "minivlm.toys.clip"])
def test_ctrl_c_while_torch_is_imported_ends_in_one_line(module, tmp_path):
    (tmp_path / "torch.py").write_text(STOPPED_IN_AN_IMPORT)
    start = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", start],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.parametrize("batch, named", [("0", "1 or more"), ("1", "no wrong pair")])
def test_a_clip_is_trained_on_two_pairs_or_more(batch, named):
    done = subprocess.run(
        [sys.executable, "-m", "minivlm.toys.clip", "--batch", batch],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_output_that_cannot_be_written_is_one_line(tmp_path):
    SCENES[0].image.save(tmp_path / "good.png")
    arguments = ["caption", str(tmp_path / "good.png"), "--checkpoint", str(FROZEN / "llava")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "minivlm", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    line = "the output cannot be written: [Errno 28] No space left on device\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_a_device_without_numbers_is_no_device_and_an_empty_name_is_none(monkeypatch):
    monkeypatch.setenv("MINIVLM_DEVICE", "meta")
    with pytest.raises(ValueError, match="MINIVLM_DEVICE cannot be used"):
        command.check_device()
    monkeypatch.setenv("MINIVLM_DEVICE", "")
    command.check_device()
