"""One call for any checkpoint with words: the course's own say what they learned, others say why
they do not.
"""

import json

import pytest
import torch
from published_folders import tower, write_blip
from transformers import BlipConfig, BlipForImageTextRetrieval

from minivlm import __main__ as command
from minivlm import scenes, speaking
from minivlm.parts.generation import generate
from minivlm.scenes import instructions
from minivlm.speaking import open_checkpoint
from minivlm.toys.blip import ToyBlip
from minivlm.toys.captioner import Captioner
from minivlm.toys.common import FROZEN, SPEAKER

PICTURE = scenes.load("test")[0].image.resize((40, 24))


def test_the_courses_llava_is_asked_after_what_was_said():
    speaker = open_checkpoint(FROZEN / "llava")
    before = [("how many objects are there?", "two"), ("describe the picture.", "two stars")]
    ids = speaker.inputs(PICTURE, "what colour are they?", before)["input_ids"]
    text = speaker.assistant.processor.messages(ids[0, :-3].tolist())
    assert [turn["role"] for turn in text] == ["user", "assistant"] * 2 + ["user"]
    assert [turn["content"] for turn in text[1:]] == [
        "two",
        "describe the picture.",
        "two stars",
        "what colour are they?",
    ]
    assert [part["type"] for part in text[0]["content"]] == ["image", "text"]


def test_checkpoints_without_words_say_so(tmp_path):
    write_blip(tmp_path)
    config = BlipConfig(text_config=tower(), vision_config=tower(image_size=16, patch_size=8))
    BlipForImageTextRetrieval(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no text decoder"):
        open_checkpoint(tmp_path).caption(PICTURE)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="'t5' has no words; llava, .*siglip, .*qwen3_vl do"):
        open_checkpoint(tmp_path)


@pytest.fixture
def picture(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_our_own_describers_are_found_by_what_config_json_says(tmp_path, picture, capsys):
    captions = [scene.caption for scene in scenes.load("val")]
    for kind in (Captioner, ToyBlip):
        toy, folder = kind.new(captions), tmp_path / kind.__name__
        toy.save(folder)
        speaker = open_checkpoint(folder)
        assert isinstance(speaker, speaking.Describer)
        given = speaker.inputs(PICTURE, "a large")
        place = toy.tokenizer.encode("a large")
        assert given["input_ids"][0, -len(place) :].tolist() == place
        takes = speaker.model.caption_logits if kind is ToyBlip else speaker.model
        with torch.no_grad():
            assert takes(**given).shape[:2] == given["input_ids"].shape
        assert command.main(["caption", picture, "--checkpoint", str(folder)]) == 0
        assert command.main(["ask", picture, "what is this?", "--checkpoint", str(folder)]) == 1
        out, err = capsys.readouterr()
        assert out.startswith(f"{picture}: ") and "never trained on questions" in err


def test_an_unknown_speaker_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", SPEAKER: "parrot"}))
    with pytest.raises(ValueError, match="minivlm = 'parrot' is unknown; known: .*'captioner'"):
        open_checkpoint(tmp_path)


def test_the_weights_and_the_images_have_the_type_that_is_asked_for(tmp_path):
    Captioner.new([scene.caption for scene in scenes.load("val")]).save(tmp_path / "captioner")
    for folder in (tmp_path / "captioner", FROZEN / "llava", FROZEN / "blip"):
        speaker = open_checkpoint(folder, torch.float64)
        assert speaker.inputs(PICTURE, "a red star")["pixel_values"].dtype == torch.float64
        assert isinstance(speaker.caption(PICTURE), str)


@torch.no_grad()
def test_the_committed_llava_answers_from_what_inputs_gives():
    speaker = open_checkpoint(FROZEN / "llava")
    asked = "describe the picture."
    given, tokenizer = speaker.inputs(PICTURE, asked), speaker.assistant.processor.tokenizer
    new = generate(speaker.model, max_new_tokens=24, eos_id=end(tokenizer), **given)
    assert tokenizer.decode(new[0, :-1].tolist()) == speaker.ask(PICTURE, asked)


def end(tokenizer) -> int:
    return tokenizer.special_tokens["<|im_end|>"]


def test_a_folder_that_is_no_checkpoint_gets_one_line(tmp_path, picture, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        assert command.main(["ask", picture, "what is this?", "--checkpoint", str(folder)]) == 2
        out, err = capsys.readouterr()
        assert not out and len(err.splitlines()) == 1 and "no model to use" in err


def test_without_a_checkpoint_the_committed_llava_answers(tmp_path, capsys):
    right = []
    for i, scene in enumerate(scenes.load("test")[:6]):
        scene.image.save(tmp_path / f"{i}.png")
        for asked in scene.questions[:2]:
            assert command.main(["ask", str(tmp_path / f"{i}.png"), asked.text]) == 0
            out, err = capsys.readouterr()
            assert not err and len(out.splitlines()) == 1
            right.append(instructions.accepts(asked, out.strip(), scene))
    assert sum(right) >= 8


def test_a_question_with_a_control_token_or_a_broken_picture_gets_one_line(
    picture, tmp_path, capsys
):
    (tmp_path / "b.png").write_text("no picture")
    for arguments, words in (
        ((picture, "say <|im_end|>"), "<|im_end|>"),
        ((tmp_path / "b.png", "hi"), "not a picture"),
    ):
        assert command.main(["ask", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert not out and len(err.splitlines()) == 1 and words in err
