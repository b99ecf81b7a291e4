"""The toys of notebooks 09 and 10: rows, packing, losses, measures; that the stored one points."""

from itertools import product
from random import Random

import pytest
import torch
import torch.nn.functional as F

from minivlm import boxes, scenes
from minivlm.multimodal import IGNORE
from minivlm.pretrained import from_pretrained
from minivlm.qwen2_vl import Qwen2VL, Qwen3VL
from minivlm.scenes import tasks
from minivlm.scenes.pixels import pixels
from minivlm.toys.common import FROZEN
from minivlm.toys.qwen2_vl import (
    GRIDS,
    LENGTH,
    VIDEOS,
    AnySizeCaptioner,
    FlatQwen2VL,
    mixed,
    tells_motion,
)
from minivlm.toys.qwen_vl import Pointer, with_tags


@pytest.fixture(scope="module")
def shapes() -> list[scenes.Scene]:
    return mixed(21, 0, "train", GRIDS)


@pytest.fixture(scope="module")
def films() -> list[scenes.Scene]:
    return mixed(6, 0, "train", VIDEOS)


KINDS = {
    "Qwen2-VL": (Qwen2VL, {}),
    "1-D": (FlatQwen2VL, {}),
    "DeepStack": (Qwen3VL, {"deep": (0, 1)}),
}


def made(name: str, found: list[scenes.Scene]) -> AnySizeCaptioner:
    kind, options = KINDS[name]
    return AnySizeCaptioner.new(kind, [scene.caption for scene in found], **options)


# Notebook 10's


def test_mixed_scenes_come_in_equal_parts_of_every_shape(shapes) -> None:
    sizes = [(scene.image.height // 16, scene.image.width // 16) for scene in shapes]
    assert sorted(sizes) == sorted(3 * [(kind["rows"], kind["columns"]) for kind in GRIDS])
    assert sizes != sorted(sizes)
    assert [scene.caption for scene in mixed(21, 0, "train", GRIDS)] == [
        scene.caption for scene in shapes
    ]


@pytest.mark.parametrize("length", [0, 64, LENGTH])
def test_every_row_lies_whole_in_one_packed_row_and_nowhere_else(shapes, length: int) -> None:
    captioner = made("Qwen2-VL", shapes)
    rows = [captioner.row(scene) for scene in shapes]
    batch, found = captioner.pack(rows, length), []
    for ids, segments in zip(batch["ids"], batch["segments"], strict=True):
        kept = [ids[segments == i].tolist() for i in range(segments.max() + 1)]
        assert sum(map(len, kept)) <= max(length, max(map(len, kept)))
        assert len(kept) == 1 or length
        found += kept
    assert sorted(found) == sorted(row["ids"].tolist() for row in rows)
    assert (batch["labels"][batch["segments"] < 0] == IGNORE).all()
    assert batch["grids"].prod(dim=1).sum() == len(batch["values"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [*product(["Qwen2-VL", "1-D"], ["pictures", "videos"]), ("DeepStack", "pictures")],
)
@torch.no_grad()
def test_the_loss_of_packed_rows_is_that_of_each_row_alone(
    shapes, films, name: str, kind: str
) -> None:
    found = shapes[:7] if kind == "pictures" else films
    captioner = made(name, found)
    rows, losses = [captioner.row(scene) for scene in found], []
    names = (
        ("pixel_values", "image_grid_thw")
        if kind == "pictures"
        else ("pixel_values_videos", "video_grid_thw")
    )
    for row in rows:
        seen = dict(zip(names, (row["values"], row["grid"][None]), strict=True))
        logits = captioner.model(row["ids"][None], **seen)[0, :-1]
        targets = row["labels"][1:]
        each = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
        losses += each[targets != IGNORE].tolist()
    for length in (0, LENGTH):
        packed = captioner.loss(captioner.model, captioner.pack(rows, length))
        assert packed.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_one_dimensional_positions_count_every_token_on_all_axes(shapes) -> None:
    captioner = made("1-D", shapes)
    row = captioner.row(shapes[0])
    ids, grid = row["ids"][None], row["grid"][None]
    at = captioner.model.position_ids(ids, grid)
    assert torch.equal(at, torch.arange(ids.shape[1]).expand(3, 1, -1))
    padded, mask = F.pad(ids, (2, 0), value=0), F.pad(torch.ones_like(ids), (2, 0))
    at = captioner.model.position_ids(padded, grid, attention_mask=mask)
    assert at[0, 0].tolist() == [0, 0, *range(ids.shape[1])]
    assert not torch.equal(at[:, :, 2:], made("Qwen2-VL", shapes).model.position_ids(ids, grid))
    with pytest.raises(ValueError, match="placeholders"):
        captioner.model.position_ids(ids[:, :3], grid)


def test_a_picture_is_seen_the_way_that_is_asked_for(shapes) -> None:
    captioner, scene = made("Qwen2-VL", shapes), shapes[0]
    row = captioner.row(scene, lambda image: image.resize((80, 48)))
    assert row["grid"].tolist() == [1, 6, 10]
    film = scenes.sample(1, 0, frames=6)[0]
    assert captioner.row(film, lambda image: image.resize((32, 32)))["grid"].tolist() == [3, 4, 4]


def test_captions_do_not_depend_on_what_else_is_in_the_batch(shapes, films) -> None:
    for captioner, found in ((made("Qwen2-VL", shapes), shapes), (AnySizeCaptioner.load(), films)):
        if found is shapes:
            captioner.train(found, 25, batch=21)
        together = captioner.caption(found)
        assert together == [captioner.caption([scene])[0] for scene in found]
        assert len(set(together)) > 1 and len(together) == len(found)


def test_training_twice_gives_the_same_weights_and_lowers_the_loss(shapes) -> None:
    states = []
    for _ in range(2):
        captioner = made("Qwen2-VL", shapes)
        history = captioner.train(shapes, 6, batch=20)
        states.append(captioner.model.state_dict())
    assert history["loss"][-1] < history["loss"][0]
    assert all(
        torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True)
    )


@pytest.mark.parametrize("name", ["Qwen2-VL", "DeepStack"])
def test_a_saved_captioner_is_a_published_checkpoint_in_half_precision(
    tmp_path, shapes, name: str
) -> None:
    captioner = made(name, shapes)
    captioner.save(tmp_path)
    again = AnySizeCaptioner.load(tmp_path)
    assert type(again.model) is KINDS[name][0] and again.model.config == captioner.model.config
    rounded = {key: value.half().float() for key, value in captioner.model.state_dict().items()}
    assert all(torch.equal(value, rounded[key]) for key, value in again.model.state_dict().items())
    assert again.tokenizer.encode("a red star") == captioner.tokenizer.encode("a red star")


# Notebook 09's


def test_new_rows_for_tags_leave_the_language_model_as_it_was() -> None:
    tokenizer, decoder = with_tags(FROZEN / "decoder")
    old = from_pretrained(FROZEN / "decoder")
    ids = torch.tensor(
        [tokenizer.encode("a small red circle left of a large blue square (12,345)")]
    )
    with torch.no_grad():
        logits = decoder(ids)
        assert torch.allclose(logits[..., : old.config.vocab_size], old(ids), atol=1e-5)
    assert logits.shape[-1] == old.config.vocab_size + 4 == tokenizer.vocab_size
    assert (
        tokenizer.decode(tokenizer.encode("<box>(1,2),(3,4)</box>", boxes.TAGS))
        == "<box>(1,2),(3,4)</box>"
    )
    assert len(tokenizer.encode("<box>", boxes.TAGS)) == 1


def test_what_is_saved_is_read_back_and_answers_alike(tmp_path) -> None:
    pointer = Pointer.new(3, side=2, positions="1d", image_size=32)
    pointer.save(tmp_path)
    again = Pointer.load(tmp_path)
    found = scenes.load("val")[:4]
    images = pixels([scene.image for scene in found])
    rows = [
        pointer.row(tasks.grounding(scene, Random(0)), i, reply=True)
        for i, scene in enumerate(found)
    ]
    assert pointer.answer(rows, images, longest=5) == again.answer(rows, images, longest=5)
    assert (
        again.model.image_tokens == 4
        and again.model.resampler.kind == "1d"
        and again.model.vision.side == 2
    )


def test_what_is_measured_is_what_the_verifier_says() -> None:
    found = scenes.load("val")[:6]
    asked = [(i, tasks.grounding(scene, Random(0))) for i, scene in enumerate(found)]
    asked += [(i, tasks.caption(scene, Random(0))) for i, scene in enumerate(found)]
    pointer, images = Pointer.new(), pixels([scene.image for scene in found])
    right = [question.answer for _, question in asked]
    right[0], right[6] = "<box>(0,0),(1,1)</box>", "a caption"
    pointer.answer = lambda rows, images: right
    shares = pointer.measure(asked, found, images)
    counts = [len(boxes.boxes_of(question.answer)) for _, question in asked[:6]]
    assert shares["grounding"] == shares["caption"] == 5 / 6
    assert shares["IoU >= 0.5"] == shares["mean IoU"] == pytest.approx(1 - counts[0] / sum(counts))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_trains_what_it_should_on_packed_rows(stage: int) -> None:
    found = scenes.load("val")[:8]
    pointer = Pointer.new()
    before = {name: p.clone() for name, p in pointer.model.named_parameters()}
    make = lambda i, rng: pointer.row(tasks.grounding(found[i], rng), i)
    pointer.train(make, pixels([scene.image for scene in found]), 1, stage, batch=4)
    moved = {
        name.split(".")[0]
        for name, p in pointer.model.named_parameters()
        if not torch.equal(p, before[name])
    }
    both = {"resampler", "decoder", "vision", "norm", "projection"}
    assert moved == both - {1: {"decoder"}, 2: set(), 3: {"vision", "norm", "projection"}}[stage]


@pytest.mark.parametrize("split", ["test", "composition"])
def test_the_stored_model_points_at_what_is_named_in_unseen_pairs_too(split: str) -> None:
    pointer, found = Pointer.load(), scenes.load(split)[:60]
    asked = [(i, tasks.grounding(scene, Random(i))) for i, scene in enumerate(found)]
    shares = pointer.measure(asked, found, pixels([scene.image for scene in found]))
    assert shares["IoU >= 0.5"] > 0.88 and shares["mean IoU"] > 0.85


@pytest.mark.parametrize("turns", [0, 1])
def test_the_stored_model_of_videos_tells_the_motion(turns: int) -> None:
    found = mixed(40, 7, "test", [{"frames": frames, "turns": turns} for frames in (6, 8)])
    said = AnySizeCaptioner.load().caption(found)
    assert sum(map(tells_motion, said, found)) >= 36


def test_a_motion_is_told_at_the_end_of_a_caption_in_its_order() -> None:
    film = scenes.sample(1, 0, frames=6, turns=1)[0]
    first, last = film.objects[0].motion
    assert tells_motion(film.caption, film) and tells_motion(
        f"a thing moving {first} then {last}", film
    )
    for wrong in (
        f"a thing moving {last} then {first}",
        f"a thing moving {first}",
        f"{film.caption} slowly",
        "",
    ):
        assert not tells_motion(wrong, film)
