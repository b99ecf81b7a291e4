"""Between two frozen models: what is trained, what is not, and how answers are counted."""

from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from minivlm import scenes
from minivlm.blip2 import second_stage
from minivlm.llava import train_llava_stage
from minivlm.multimodal import IMAGE, Processor, answer_loss
from minivlm.pretrained import from_pretrained
from minivlm.qwen_vl import packed_logits
from minivlm.scenes import instructions
from minivlm.scenes.pixels import pixels
from minivlm.toys.assistant import Assistant, load_stage_one, load_stage_two, measure, own_captions
from minivlm.toys.common import FROZEN, load_toy, look_up_images
from minivlm.toys.decoder import LanguageModel

SOME = scenes.load("composition")[:24]
IMAGES = pixels([scene.image for scene in SOME])


def same(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def stage_two(kind: str) -> Assistant:
    if kind == "llava":
        made = Assistant.llava()
        train_llava_stage(made.model, 1)
    else:
        made, _ = load_stage_one()
        second_stage(made.model)
    return made


@pytest.mark.parametrize("kind", ["llava", "blip2"])
def test_a_training_moves_the_bridge_and_leaves_the_frozen_models_as_they_are(kind):
    made = stage_two(kind)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    history = made.train(instructions.illustrated(SOME, 0, captions=True), IMAGES, 3, batch=8)
    assert len(history["loss"]) == 3
    moved = {
        name.split(".")[0]
        for name, p in made.model.named_parameters()
        if not torch.equal(p, before[name])
    }
    assert moved == {"llava": {"projector"}, "blip2": {"vision", "qformer", "projection"}}[kind]
    tower = made.model.vision if kind == "llava" else made.model.vision.tower
    assert same(tower, from_pretrained(FROZEN / "clip").vision)
    assert same(made.model.decoder, from_pretrained(FROZEN / "decoder"))


def test_each_batch_holds_the_images_that_its_conversations_are_about():
    made = Assistant.llava()
    told = instructions.illustrated(SOME, 0)
    rows = [made.processor.prepare(messages, numbers=[number]) for number, messages in told]
    batch = look_up_images(made.processor.collate([rows[i] for i in (7, 3, 40)]), IMAGES)
    assert torch.equal(batch["pixel_values"], IMAGES[[told[i][0] for i in (7, 3, 40)]])
    assert (batch["input_ids"] == made.model.image_token_id).sum(dim=1).tolist() == [16] * 3


@pytest.mark.parametrize("two_way", [False, True])
def test_packed_conversations_have_the_loss_of_padded_ones(two_way):
    made = Assistant.llava()
    made.model.config = replace(made.model.config, two_way=two_way)
    told = instructions.illustrated(SOME, 0)
    rows = [made.processor.prepare(messages, numbers=[number]) for number, messages in told]
    padded = look_up_images(made.processor.collate(rows, "right"), IMAGES)
    packed = look_up_images(made.processor.pack(rows, 240), IMAGES)
    shape = padded["input_ids"].shape
    assert packed["input_ids"].numel() < 0.8 * shape.numel()
    logits = made.model(padded["input_ids"], padded["pixel_values"], padded["attention_mask"])
    alone, together = (
        answer_loss(logits, padded["labels"]),
        answer_loss(packed_logits(made.model, packed), packed["labels"]),
    )
    assert together.item() == pytest.approx(alone.item(), abs=1e-5)


@pytest.mark.parametrize("captions", [True, False])
def test_illustrated_conversations_are_about_their_scene(captions):
    told = instructions.illustrated(SOME, 4, captions)
    assert told == instructions.illustrated(SOME, 4, captions)
    numbers = [number for number, _ in told]
    assert numbers == sorted(numbers) and {*numbers} == {*range(len(SOME))}
    assert {numbers.count(number) for number in numbers} == ({1} if captions else {3, 4})
    for number, messages in told:
        content = messages[0]["content"]
        assert content[0] == IMAGE and len(content) == (1 if captions else 2)
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        if captions:
            assert scenes.is_true(messages[1]["content"], SOME[number])


def test_a_saved_assistant_answers_the_same(tmp_path):
    made = stage_two("llava")
    made.train(instructions.illustrated(SOME, 0, captions=True), IMAGES, 3, batch=8)
    made.save(tmp_path)
    assert Assistant.load(tmp_path).describe(IMAGES) == made.describe(IMAGES)


class Knowing:
    """Answers every question rightly, or none, and keeps what it was asked."""

    def __init__(self, right: bool):
        self.right, self.asked = right, []

    def answer(self, conversations, images):
        said = []
        for messages, image in zip(conversations, images, strict=True):
            self.asked.append(
                [m["content"] if isinstance(m["content"], str) else "" for m in messages]
            )
            number = next(i for i, other in enumerate(IMAGES) if torch.equal(other, image))
            said.append(self.find(number, messages) if self.right else "I do not know")
        return said

    def find(self, number: int, messages: list[dict]) -> str:
        content = messages[-1]["content"]
        text = content if isinstance(content, str) else content[1]["text"]
        rng, turns = Random("measure 0"), {}
        for i, scene in enumerate(SOME):
            for make in instructions.MAKERS:
                turns.setdefault(i, []).extend(make(scene, rng, self.held_out))
        return next(turn.answer for turn in turns[number] if turn.text == text)


@pytest.mark.parametrize("held_out", [False, True])
def test_who_knows_everything_is_always_right_and_is_asked_behind_its_own_answers(held_out):
    knowing = Knowing(right=True)
    knowing.held_out = held_out
    found = measure(knowing, SOME, IMAGES, held_out=held_out)
    assert set(found.values()) == {1.0} and {"caption", "all", "later turns"} <= found.keys()
    assert (
        max(len(asked) for asked in knowing.asked) == 7
    )  # four turns, of which three are answered


def test_who_knows_nothing_is_never_right():
    assert set(measure(Knowing(right=False), SOME, IMAGES).values()) == {0.0}


@pytest.mark.parametrize("name", sorted(folder.name for folder in FROZEN.iterdir()))
def test_a_frozen_model_takes_less_than_two_megabytes(name):
    assert 0 < sum(file.stat().st_size for file in (FROZEN / name).iterdir()) < 2e6


def test_the_frozen_language_model_describes_scenes_that_it_reads_about():
    found, request = scenes.load("composition"), {"type": "text", "text": "describe the picture."}
    words = [IMAGE | {"text": instructions.listing(scene)} for scene in found]
    said = Assistant.llava().answer(
        [[{"role": "user", "content": [listed, request]}] for listed in words]
    )
    assert sum(map(scenes.is_true, said, found)) >= 240


def test_the_frozen_language_model_looks_up_in_words_what_an_object_looks_like():
    decoder, tokenizer = load_toy(FROZEN / "decoder")
    reader = LanguageModel(decoder, Processor(tokenizer, 0, pixels))
    right = reader.measure(scenes.sample(100, seed=8, split="composition"))
    looks = ("colour", "shape", "size", "count", "same", "which")
    assert min(right[kind] for kind in looks) >= 0.95


@pytest.mark.parametrize(("split", "least"), [("test", 240), ("composition", 185)])
def test_the_frozen_q_former_describes_pictures_by_itself(split, least):
    made, tokenizer = load_stage_one()
    found = scenes.load(split)
    said = own_captions(made.model, tokenizer, pixels([scene.image for scene in found]))
    assert sum(map(scenes.is_true, said, found)) >= least


@pytest.mark.parametrize(("split", "least"), [("test", 240), ("composition", 228)])
def test_the_frozen_language_model_describes_pictures_through_eight_vectors(split, least):
    found = scenes.load(split)
    said = load_stage_two().describe(pixels([scene.image for scene in found]))
    assert sum(map(scenes.is_true, said, found)) >= least
    assert load_stage_two().processor.image_tokens == 8


def test_a_checkpoint_of_stage_two_that_lacks_a_weight_is_refused(tmp_path):
    tensors = load_file(FROZEN / "blip2" / "model.safetensors")
    del tensors["projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((FROZEN / "blip2" / "config.json").read_bytes())
    with pytest.raises(ValueError, match="missing tensor projection.weight"):
        load_stage_two(tmp_path)
