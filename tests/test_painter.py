"""Notebook 04's toys: the decoder that draws and describes, and the questions of the fusions."""

import pytest
import torch

from minivlm import scenes
from minivlm.multimodal import IGNORE
from minivlm.toys import fusion
from minivlm.toys.painter import (
    SMALL,
    Guided,
    Painter,
    faults,
    fits,
    placed,
    read_back,
    same_place,
    singles,
    tokenizer_of,
)
from minivlm.toys.vqvae import load_vqvae

SCENES = singles(200, 3)


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter.new(tokenizer_of(SCENES), load_vqvae())


def test_every_caption_fits_its_own_scene_and_its_reading() -> None:
    for scene in SCENES[:20]:
        assert fits(placed(scene), scene)
    texts = [placed(scene) for scene in SCENES]
    assert not faults(texts, SCENES)
    moved = texts[1:] + texts[:1]
    false = sum(not fits(text, scene) for text, scene in zip(moved, SCENES, strict=True))
    assert sum(faults(moved, SCENES).values()) == false > 150


def test_most_drawings_from_true_codes_are_read_as_they_were(painter: Painter) -> None:
    again = read_back(painter.vqvae.decode_ids(painter.codes(SCENES)))
    assert sum(fits(placed(s), seen) for s, seen in zip(SCENES, again, strict=True)) > 190


def test_misread_rows_are_of_the_same_kind_and_of_an_object_in_the_same_box(
    painter: Painter,
) -> None:
    ids, _ = painter.rows([placed(scene) for scene in SCENES], painter.codes(SCENES))
    torch.manual_seed(0)
    numbers = torch.arange(len(ids))
    other = same_place(SCENES, ids)(ids, numbers)
    for number in range(len(ids)):
        match = (ids == other[number]).all(dim=1).nonzero()[:, 0].tolist()
        boxes = {SCENES[k // 2].objects[0].box for k in match if k % 2 == number % 2}
        assert SCENES[number // 2].objects[0].box in boxes
    assert not torch.equal(other, ids)


def test_what_comes_second_is_learned(painter: Painter) -> None:
    ids, labels = painter.rows([placed(SCENES[0])], painter.codes(SCENES[:1]))
    drawing, describing = (labels != IGNORE).sum(dim=1).tolist()
    assert drawing == 17  # 16 codes and the mark after them
    assert describing == len(painter.tokenizer.encode(placed(SCENES[0]))) + 1
    assert torch.equal(ids[labels != IGNORE], labels[labels != IGNORE])


def test_guidance_of_one_draws_as_without_and_guidance_of_two_is_a_line(painter: Painter) -> None:
    texts = [placed(scene) for scene in SCENES[:3]]
    assert torch.equal(painter.draw(texts), painter.draw(texts, guidance=1.0))
    ids = torch.randint(painter.vocabulary.size, (4, 5))
    told, untold = painter.model.next_logits(ids).chunk(2)
    guided = Guided(painter.model, 2).next_logits(ids)
    assert torch.allclose(guided, (2 * told - untold).repeat(2, 1), atol=1e-5)
    assert painter.draw(texts, guidance=1.5).shape == (3, 4, 4)


def test_a_painter_is_trained_and_keeps_one_of_eight(painter: Painter) -> None:
    made = Painter.new(painter.tokenizer, painter.vqvae)
    losses = made.train(SCENES, 30, untold=0.1)["loss"]
    assert sum(losses[-5:]) < sum(losses[:5])
    shares = made.keep_one([placed(scene) for scene in SCENES[:4]])
    assert shares["any of the 8"] >= max(shares.values())


def test_answers_are_true_and_one_token_each() -> None:
    drawn = scenes.sample(200, 4, **SMALL)
    tokenizer = fusion.question_tokenizer(scenes.sample(1000, 0, **SMALL))
    asked = fusion.ask_all(drawn, 0, fusion.KINDS)
    ids, mask, images, answers = fusion.exam_tensors(asked, tokenizer)
    assert len(ids) == len(mask) == len(images) == len(answers)
    assert [tokenizer.decode([i]) for i in answers.tolist()] == [f" {q.answer}" for q in asked]
    for question in asked:
        if question.kind == "relation":
            boxes = {thing.shape: thing.center for thing in question.scene.objects}
            _, _, first, *said, _, second = question.text.removesuffix("?").split()
            (x, y), (other_x, other_y) = boxes[first], boxes[second]
            holds = {
                "left of": x < other_x,
                "right of": x > other_x,
                "above": y < other_y,
                "below": y > other_y,
            }
            assert holds[" ".join(said)] == (question.answer == "yes")
        if question.kind == "content":
            assert question.answer in {thing.shape for thing in question.scene.objects}
    assert {question.kind for question in asked} == {*fusion.KINDS}
