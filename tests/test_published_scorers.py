"""CLIP and SigLIP from picture files and strings: transformers' ids, vectors and logits of random
weights.
"""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from published_folders import write_clip, write_pictures, write_siglip
from test_published_tokenizers import any_text

from minivlm import scenes
from minivlm.pretrained.speakers import Scorer
from minivlm.scenes.files import read_picture
from minivlm.speaking import open_checkpoint
from minivlm.toys.common import FROZEN

TEXTS = ["a photo of a star", "Two CIRCLES, side by side!", "中文 🍓", "x", "don't ..."]
PICTURE = Image.effect_noise((37, 26), 90)
WRITERS = [(write_clip, {}), (write_clip, {"side": 16, "legacy": True}), (write_siglip, {})]


@pytest.fixture(scope="module", params=WRITERS, ids=["clip", "older clip", "siglip"])
def scored(request, tmp_path_factory):
    """A scorer, transformers' model, its processors of images and texts, and picture files."""
    folder = tmp_path_factory.mktemp("folder")
    write, options = request.param
    model, processor = write(folder, **options)
    if write is write_clip:
        processor = processor.image_processor, processor.tokenizer
    return open_checkpoint(folder), model, *processor, write_pictures(folder)


def told(model, tokenizer, texts) -> dict:
    """The texts as their model cards say: CLIP's padded to the longest, SigLIP's to all."""
    if model.config.model_type == "clip":
        return dict(tokenizer(texts, padding=True, return_tensors="pt"))
    ids = tokenizer(texts, padding="max_length", max_length=32, return_tensors="pt")
    return {"input_ids": ids["input_ids"]}


@torch.no_grad()
def test_every_kind_of_file_has_the_logits_of_transformers(scored):
    scorer, model, images, tokenizer, paths = scored
    upright = [ImageOps.exif_transpose(Image.open(path)) for path in paths]
    pixels = images(upright, return_tensors="pt")["pixel_values"]
    words = told(model, tokenizer, TEXTS)
    theirs = model(pixel_values=pixels, **words)
    shown = [read_picture(path) for path in paths]
    ours = scorer.processor.texts(TEXTS)
    assert set(ours) == set(words)
    assert all(torch.equal(ours[name], words[name]) for name in words)
    assert torch.equal(scorer.processor.images(shown), pixels)
    assert (scorer.encode_image(shown) - theirs.image_embeds).abs().max() < 1e-5
    assert (scorer.encode_text(TEXTS) - theirs.text_embeds).abs().max() < 1e-5
    logits = scorer.similarity(shown, TEXTS)
    assert logits.shape == (len(paths), len(TEXTS))
    largest = theirs.logits_per_image.abs().max().clamp(min=1)
    assert (logits - theirs.logits_per_image).abs().max() < 1e-5 * largest
    whole = model.config.model_type == "clip"
    expected = theirs.logits_per_image.softmax(dim=1) if whole else logits.sigmoid()
    assert (scorer.probabilities(shown, TEXTS) - expected).abs().max() < 1e-4


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(any_text, min_size=1, max_size=3))
def test_any_texts_have_the_ids_of_transformers(scored, texts):
    scorer, model, _, tokenizer, _ = scored
    try:
        ours = scorer.processor.texts(texts)
    except ValueError as error:
        assert "special token" in str(error) or "the model reads" in str(error)
        return
    theirs = told(model, tokenizer, texts)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_picture_and_one_text_are_batches_of_one(scored):
    scorer, _, _, _, paths = scored
    shown = [read_picture(path) for path in paths[:3]]
    whole = scorer.similarity(shown, TEXTS)
    for i, image in enumerate(shown):
        for j, text in enumerate(TEXTS):
            alone = scorer.similarity(image, text)
            assert alone.shape == (1, 1)
            assert (alone - whole[i, j]).abs() < 1e-4 * whole.abs().max().clamp(min=1)


def test_what_cannot_be_read_is_named(scored):
    scorer, model, _, _, _ = scored
    longest = model.config.text_config.max_position_embeddings
    with pytest.raises(ValueError, match=f"tokens, but the model reads {longest}: 'star star"):
        scorer.encode_text(["x", "star " * 100])
    mark = "<|endoftext|>" if model.config.model_type == "clip" else "</s>"
    with pytest.raises(ValueError, match="special token"):
        scorer.encode_text(f"a {mark}")
    for nothing in (lambda: scorer.encode_text([]), lambda: scorer.encode_image([])):
        with pytest.raises(ValueError, match="no (text|image) given"):
            nothing()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_scores_are_computed_in_the_precision_that_is_asked_for(tmp_path, write, dtype):
    write(tmp_path)
    scorer = open_checkpoint(tmp_path, dtype)
    assert scorer.encode_image(PICTURE).dtype == scorer.encode_text("x").dtype == dtype
    assert scorer.similarity(PICTURE, TEXTS).dtype == dtype


def test_one_text_is_no_choice_for_a_clip_but_a_question_for_a_siglip(tmp_path):
    for name, write in (("clip", write_clip), ("siglip", write_siglip)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    with pytest.raises(ValueError, match="one alone is always right"):
        open_checkpoint(tmp_path / "clip").probabilities(PICTURE, "x")
    likely = open_checkpoint(tmp_path / "siglip").probabilities(PICTURE, "x")
    assert likely.shape == (1, 1) and 0 <= likely.item() <= 1


def test_the_padding_is_the_token_that_the_folder_names(tmp_path):
    _, processor = write_clip(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    said = json.loads(path.read_text())
    for pad in ("<|startoftext|>", {"content": "<|startoftext|>"}):
        path.write_text(json.dumps(said | {"pad_token": pad}))
        ids = open_checkpoint(tmp_path).processor.texts(["x", TEXTS[0]])["input_ids"]
        assert ids[0, -1].item() == processor.tokenizer.bos_token_id


def test_the_courses_own_clip_finds_the_captions_of_scenes():
    scorer = open_checkpoint(FROZEN / "clip")
    assert isinstance(scorer, Scorer)
    shown = scenes.load("test")[:40]
    images, captions = [scene.image for scene in shown], [scene.caption for scene in shown]
    best = scorer.similarity(images, captions).argmax(dim=1).tolist()
    right = [scenes.is_true(captions[j], scene) for j, scene in zip(best, shown, strict=True)]
    assert sum(right) >= 36
    with pytest.raises(ValueError, match="tokens, but the model reads 13: 'a star and"):
        scorer.encode_text(["x", "a star and " * 9])
    with pytest.raises(ValueError, match="special token"):
        scorer.encode_text("a star <|end|>")
