"""The small BLIP: it learns, it is saved, and the instruments that measure it measure what they
say.
"""

from random import Random

import pytest
import torch

from minivlm import scenes
from minivlm.scenes import grammar
from minivlm.scenes.files import DATA
from minivlm.scenes.pixels import pixels
from minivlm.toys import blip
from minivlm.toys.blip import ToyBlip, bootstrap, foils, judgements, retrieval, told_truly
from minivlm.toys.common import mates

SINGLE = [scene for scene in scenes.sample(600, seed=0) if len(scene.objects) == 1][:150]
IMAGES, CAPTIONS = pixels([scene.image for scene in SINGLE]), [scene.caption for scene in SINGLE]


@pytest.fixture(scope="module")
def trained() -> tuple[ToyBlip, dict[str, list[float]]]:
    toy = ToyBlip.new(CAPTIONS)
    return toy, toy.train(IMAGES, CAPTIONS, 60, batch=32)


def test_the_three_losses_fall(trained):
    _, history = trained
    for name, least in (("itc", 1.0), ("itm", 0.02), ("lm", 1.5)):
        assert len(history[name]) == 60
        assert sum(history[name][:5]) / 5 - sum(history[name][-5:]) / 5 > least, name


def test_a_saved_blip_says_the_same(trained, tmp_path):
    toy, _ = trained
    toy.save(tmp_path)
    again = ToyBlip.load(tmp_path)
    assert again.captions(IMAGES[:4]) == toy.captions(IMAGES[:4])
    assert torch.equal(
        again.matches(IMAGES[:4], CAPTIONS[:4]), toy.matches(IMAGES[:4], CAPTIONS[:4])
    )


def test_a_text_longer_than_the_positions_is_cut_and_still_ends():
    toy = ToyBlip.new(CAPTIONS)
    ids = toy.texts(["a small red circle " * 20, CAPTIONS[0]])
    assert ids.shape[1] == 32 and ids[0, -1] == toy.tokenizer.special_tokens["[SEP]"]
    assert toy.matches(IMAGES[:2], ["a small red circle " * 20, CAPTIONS[0]]).shape == (2,)


def test_rows_at_a_time_change_nothing(trained):
    toy, _ = trained
    assert toy.captions(IMAGES[:7], rows=3) == toy.captions(IMAGES[:7])
    at_once, in_parts = (toy.matches(IMAGES[:7], CAPTIONS[:7], rows=rows) for rows in (1000, 2))
    assert (at_once - in_parts).abs().max() < 1e-5


def test_nucleus_captions_repeat_by_seed_and_differ_from_each_other(trained):
    toy, _ = trained
    draws = [
        toy.captions(IMAGES[:20], top_p=0.9, generator=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("split", ["train", "composition"])
def test_a_foil_differs_in_one_word_and_is_false(split):
    rng, kinds = Random(0), set()
    for scene in scenes.sample(150, seed=3, split=split):
        found = foils(scene, rng)
        kinds |= found.keys()
        for kind, (true, false) in found.items():
            assert scenes.is_true(true, scene) and not scenes.is_true(false, scene)
            assert grammar.parse(false) is not None
            assert kind in ("count", "relation") or len(true.split()) == len(false.split())
            if kind not in ("count", "relation"):
                assert sum(a != b for a, b in zip(true.split(), false.split(), strict=True)) == 1
    assert kinds == {"color", "shape", "size", "relation", "count"}


class Oracle(ToyBlip):
    """A judge that knows the truth, and vectors that say nothing."""

    def matches(self, images, captions, rows=1000):
        order = {
            image.numpy().tobytes(): scene for image, scene in zip(IMAGES, SINGLE, strict=True)
        }
        truth = [
            scenes.is_true(c, order[i.numpy().tobytes()])
            for i, c in zip(images, captions, strict=True)
        ]
        return torch.tensor(truth).float()


def test_a_perfect_judge_gets_every_foil_and_repairs_the_ranking(trained):
    toy, _ = trained
    oracle = Oracle(toy.model, toy.tokenizer)
    assert set(judgements(oracle, SINGLE, IMAGES).values()) == {1.0}
    found = retrieval(oracle, SINGLE, IMAGES, among=len(SINGLE))
    assert found["image to text, re-ranked"] == found["text to image, re-ranked"] == 1.0
    assert found == retrieval(oracle, SINGLE, IMAGES, among=len(SINGLE))


def test_untrained_blip_is_at_chance():
    toy = ToyBlip.new(CAPTIONS)
    assert 0.45 <= judgements(toy, SINGLE, IMAGES)["all"] <= 0.55
    assert retrieval(toy, SINGLE, IMAGES)["image to text"] < 0.2
    assert told_truly(toy, SINGLE, IMAGES) < 0.1


def test_the_sets_of_capfilt_are_what_a_filter_lets_through_of_the_web_and_of_the_captioner(
    trained,
):
    toy, _ = trained
    oracle = Oracle(toy.model, toy.tokenizer)
    web = CAPTIONS[1:41] + CAPTIONS[:1] + CAPTIONS[41:]  # the first 41 are each other's
    sets = bootstrap(oracle, IMAGES, web, (IMAGES[:64], CAPTIONS[:64]), steps=2)
    written = sets["C"][len(web) :]

    def true(pairs):
        return [(i, text) for i, text in pairs if scenes.is_true(text, SINGLE[i])]

    assert sets["web"] == sets["C"][: len(web)] == list(enumerate(web))
    assert [i for i, _ in written] == [*range(len(web))]
    assert sets["F"] == true(sets["web"]) and sets["C+F"] == true(sets["web"]) + true(written)
    assert len(web) - 41 <= len(sets["F"]) < len(web)


def test_mates_name_the_same_objects_and_contradict_each_other():
    captions = [
        "a small red circle left of a large blue square",
        "a large blue square right of a small red circle",  # says the same
        "a small red circle above a large blue square",  # may be true as well
        "a large blue square left of a small red circle",
        "two green stars",
        "there are three green stars",
        "a large green star",
    ]
    assert {frozenset(pair) for pair in mates(captions).tolist()} in (
        {frozenset(p) for p in ((k, 3), (4, 5))} for k in (0, 1)
    )


def test_mates_are_false_of_each_others_scenes():
    found = scenes.sample(1500, seed=2)
    pairs = mates([scene.caption for scene in found]).tolist()
    assert len(pairs) > 300
    for a, b in pairs:
        assert not scenes.is_true(found[a].caption, found[b]) and not scenes.is_true(
            found[b].caption, found[a]
        )


def test_every_second_batch_is_made_of_mates(monkeypatch):
    found = scenes.sample(400, seed=1)
    captions, seen = [scene.caption for scene in found], []

    def watch(model, stream, loss, steps, **options):
        seen.extend(next(stream)[1] for _ in range(4))
        return dict.fromkeys(blip.LOSSES, [])

    monkeypatch.setattr(blip, "fit", watch)
    toy = ToyBlip.new(captions)
    toy.train(pixels([scene.image for scene in found]), captions, 4, batch=8, alike=True)
    first_words = [toy.tokenizer.decode(row.tolist()) for row in seen[1]]
    assert len(seen) == 4 and seen[0].shape == seen[1].shape == (8, seen[0].shape[1])

    def colours(text):
        return sorted(word for word in text.replace("[", " ").split() if word in grammar.COLORS)

    assert all(
        colours(a) == colours(b) for a, b in zip(first_words[::2], first_words[1::2], strict=True)
    )


@pytest.mark.parametrize("split, captions", [("val", 0.9), ("composition", 0.7)])
def test_the_frozen_blip_judges_ranks_and_captions_well(split, captions):
    folder = DATA / "checkpoints" / "blip"
    assert (folder / "model.safetensors").stat().st_size < 2_000_000
    toy, found = ToyBlip.load(folder), scenes.load(split)[:120]
    asked = pixels([scene.image for scene in found])
    assert told_truly(toy, found, asked) > captions
    assert judgements(toy, found, asked)["all"] > 0.9
    ranked = retrieval(toy, found, asked)
    assert min(ranked["image to text, re-ranked"], ranked["text to image, re-ranked"]) > 0.95
