"""LLaVA, BLIP-2 and BLIP asked from picture files and strings: transformers' inputs, and its words
of random weights.
"""

import json
import shutil
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image, ImageOps
from published_folders import write_blip, write_blip2, write_llava, write_pictures
from test_published_tokenizers import any_text

from minivlm.scenes.files import read_picture
from minivlm.speaking import open_checkpoint

QUESTIONS = ["what is this?", "Où est le café 中文 🍓?", "don't  count\n1234 (of them)", ""]
PICTURE = Image.effect_noise((37, 26), 90)
WRITERS = [
    (write_llava, {}),
    (write_llava, {"side": 16, "full": True, "num_key_value_heads": 1}),
    (write_blip2, {}),
    (write_blip2, {"side": 16, "queries": 5}),
]


@pytest.fixture(scope="module", params=WRITERS, ids=lambda writer: f"{writer[0].__name__[6:]}")
def asked(request, tmp_path_factory):
    """A speaker that is asked, transformers' model and processor, and picture files."""
    folder = tmp_path_factory.mktemp("folder")
    write, options = request.param
    oracle = write(folder, **options)
    return open_checkpoint(folder), *oracle, write_pictures(folder)


def template(processor, question: str, before=(), images: int = 1) -> str:
    """The prompt of the family, by the folder's template if it has one."""
    if not processor.chat_template:
        turns = "".join(f"Question: {q} Answer: {a}. " for q, a in before)
        return f"{turns}Question: {question} Answer:"
    messages, texts = [], [text for turn in (*before, (question, None)) for text in turn][:-1]
    for i, text in enumerate(texts):
        content = [{"type": "image"}] * (images if not i else 0) + [{"type": "text", "text": text}]
        messages.append({"role": ("user", "assistant")[i % 2], "content": content})
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def upright(path):
    return ImageOps.exif_transpose(Image.open(path))


def words(processor, new: torch.Tensor, prompt: torch.Tensor) -> str:
    """What was said, after a prompt that `generate` may repeat."""
    length = prompt.shape[1]
    new = new[:, length:] if torch.equal(new[:, :length], prompt) else new
    return processor.batch_decode(new, skip_special_tokens=True)[0].strip()


def greedy(model, given, longest: int = 12) -> torch.Tensor:
    return model.generate(**given, max_new_tokens=longest, do_sample=False)


def test_every_kind_of_file_gets_the_inputs_and_the_words_of_transformers(asked):
    speaker, model, processor, paths = asked
    heard = set()
    for path, question in zip(paths, QUESTIONS * 3, strict=False):
        text = template(processor, question)
        theirs = processor(images=upright(path), text=text, return_tensors="pt")
        ours = speaker.inputs(read_picture(path), question)
        assert set(ours) == {"input_ids", "attention_mask", "pixel_values"}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        said = speaker.ask(read_picture(path), question, max_tokens=12)
        assert said == words(processor, greedy(model, theirs), theirs["input_ids"])
        heard.add(said)
    assert len(heard) > 2


def test_a_conversation_is_continued_as_transformers_does(asked):
    speaker, model, processor, paths = asked
    before = [("what is this?", "a star"), ("and its colour?", "it's 红色, I think")]
    for n in (1, 2):
        text = template(processor, "where?", before[:n])
        theirs = processor(images=upright(paths[0]), text=text, return_tensors="pt")
        ours = speaker.inputs(read_picture(paths[0]), "where?", before[:n])
        assert torch.equal(ours["input_ids"], theirs["input_ids"])
        said = speaker.ask(read_picture(paths[0]), "where?", before[:n], max_tokens=12)
        assert said == words(processor, greedy(model, theirs), theirs["input_ids"])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=any_text)
def test_any_text_has_the_ids_of_transformers(asked, text):
    speaker, _, processor, _ = asked
    try:
        ours = speaker.inputs(PICTURE, text)["input_ids"]
    except ValueError as error:
        assert "special token" in str(error)
        return
    theirs = processor(images=PICTURE, text=template(processor, text), return_tensors="pt")
    assert torch.equal(ours, theirs["input_ids"])


def test_logits_are_those_of_transformers(asked):
    speaker, model, _, _ = asked
    given = speaker.inputs(PICTURE, "what is this?")
    with torch.no_grad():
        difference = speaker.model(**given) - model(**given).logits
    assert difference.abs().max() < 1e-4


def test_special_tokens_in_a_text_are_refused_wherever_it_stands(asked):
    speaker, _, processor, _ = asked
    for said, before in (
        ("a <image> b", ()),
        ("a", [("<image>", "b")]),
        ("a", [("b", "c</s>")]),
    ):
        with pytest.raises(ValueError, match="special token '(<image>|</s>)'"):
            speaker.ask(PICTURE, said, before)


def test_draws_depend_on_the_seed_alone_and_greed_on_nothing(asked):
    speaker, _, _, _ = asked
    drawn = [
        speaker.ask(PICTURE, "what?", temperature=1.0, top_p=0.9, seed=seed, max_tokens=9)
        for seed in (0, 0, 1, 2)
    ]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    assert speaker.ask(PICTURE, "what?", seed=1) == speaker.ask(PICTURE, "what?", seed=2)
    for how in ({"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="need temperature"):
            speaker.ask(PICTURE, "what?", **how)


def test_fewer_tokens_are_the_beginning_of_more(asked):
    speaker, model, processor, _ = asked
    theirs = processor(images=PICTURE, text=template(processor, "what?"), return_tensors="pt")
    for longest in (1, 3, 50):
        said = speaker.ask(PICTURE, "what?", max_tokens=longest)
        assert said == words(processor, greedy(model, theirs, longest), theirs["input_ids"])


# LLaVA


def test_two_images_stand_in_the_first_turn(tmp_path):
    model, processor = write_llava(tmp_path)
    speaker, paths = open_checkpoint(tmp_path), write_pictures(tmp_path)
    for pair in (paths[:2], paths[3:6]):
        text = template(processor, "what differs?", [("a", "b")], images=len(pair))
        theirs = processor(images=[upright(p) for p in pair], text=text, return_tensors="pt")
        images = [read_picture(path) for path in pair]
        ours = speaker.inputs(images, "what differs?", [("a", "b")])
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        said = speaker.ask(images, "what differs?", [("a", "b")], max_tokens=12)
        assert said == words(processor, greedy(model, theirs), theirs["input_ids"])
    assert speaker.caption(PICTURE) == speaker.ask(PICTURE, "Describe the image.")


def test_another_template_is_said_to_be_one_and_the_published_one_is_not(tmp_path):
    write_llava(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_checkpoint(tmp_path)
    other = "{% for m in messages %}[INST] {{ m['content'][-1]['text'] }} [/INST]{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(other)
    with pytest.warns(UserWarning, match="chat template") as found:
        open_checkpoint(tmp_path)
    assert len(found) == 1 and "\n" not in str(found[0].message)
    assert str(tmp_path) in str(found[0].message)


def test_a_long_conversation_is_refused_by_its_length(tmp_path):
    write_llava(tmp_path)
    with pytest.raises(ValueError, match=r"a prompt of \d+ tokens, but the model reads 512"):
        open_checkpoint(tmp_path).ask(PICTURE, "what " * 300)


def test_an_image_token_that_the_tokenizer_has_not_is_named(tmp_path):
    write_llava(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["image_token_index"] = config["image_token_id"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no <image> of id 7"):
        open_checkpoint(tmp_path)


# Where an answer ends


def endings(model, folder, said) -> None:
    """Write a generation_config.json with the end tokens `said`."""
    model.generation_config.eos_token_id = said
    model.generation_config.save_pretrained(folder)


def test_the_ends_of_a_llava_are_those_of_generation_config_json(tmp_path):
    model, processor = write_llava(tmp_path)
    theirs = processor(images=PICTURE, text=template(processor, "what?"), return_tensors="pt")
    first = greedy(model, theirs, 8)[0, -8:].tolist()
    for ends in (first[3], [first[5], first[4]], [first[2], 900]):
        endings(model, tmp_path, ends)
        reopened = type(model).from_pretrained(tmp_path)
        said = open_checkpoint(tmp_path).ask(PICTURE, "what?")
        assert said == words(processor, greedy(reopened, theirs, 40), theirs["input_ids"])
    for broken in ("x", [1.5], -1, {}):
        path = tmp_path / "generation_config.json"
        path.write_text(json.dumps({"eos_token_id": broken}))
        with pytest.raises(ValueError, match="generation_config.json: eos_token_id = "):
            open_checkpoint(tmp_path).ask(PICTURE, "what?")


def test_the_end_of_a_blip_2_is_that_of_its_language_model_as_in_transformers(tmp_path):
    model, processor = write_blip2(tmp_path)
    theirs = processor(images=PICTURE, text=template(processor, "what?"), return_tensors="pt")
    said = greedy(model, theirs, 8)[0].tolist()
    endings(model, tmp_path, said[-3])
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = said[-5]
    (tmp_path / "config.json").write_text(json.dumps(config))
    reopened = type(model).from_pretrained(tmp_path)
    ours = open_checkpoint(tmp_path).ask(PICTURE, "what?")
    assert ours == words(processor, greedy(reopened, theirs, 40), theirs["input_ids"])


# BLIP-2 and BLIP


def test_a_blip_2_captions_after_an_empty_prompt(tmp_path):
    model, processor = write_blip2(tmp_path)
    speaker, heard = open_checkpoint(tmp_path), set()
    for path in write_pictures(tmp_path):
        theirs = processor(images=upright(path), return_tensors="pt")
        new = greedy(model, theirs)
        heard.add(speaker.caption(read_picture(path), max_tokens=12))
        assert words(processor, new, new[:, :0]) in heard
    assert len(heard) > 2
    with pytest.raises(ValueError, match="one picture at a time, not 2"):
        speaker.ask([PICTURE, PICTURE], "what?")
    for picture, said in ((None, "not a PIL image: None"), ([], "no image"), ("a.png", "a.png")):
        with pytest.raises(ValueError, match=said):
            speaker.ask(picture, "what?")


@pytest.mark.parametrize("options", [{}, {"side": 16, "num_attention_heads": 4}])
def test_a_blip_captions_every_kind_of_file_as_transformers_does(tmp_path, options):
    model, processor = write_blip(tmp_path, **options)
    speaker, heard = open_checkpoint(tmp_path), set()
    for path in write_pictures(tmp_path):
        theirs = processor(images=upright(path), return_tensors="pt")
        ours = speaker.inputs(read_picture(path), "")
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
        said = speaker.caption(read_picture(path), max_tokens=12)
        new = model.generate(**theirs, max_new_tokens=12, do_sample=False)
        assert said == processor.batch_decode(new, skip_special_tokens=True)[0].strip()
        heard.add(said)
    assert len(heard) > 2
    for refused in (
        lambda: speaker.ask(PICTURE, "what?"),
        lambda: speaker.inputs(PICTURE, "a", [("b", "c")]),
    ):
        with pytest.raises(ValueError, match="answers no question"):
            refused()


def test_the_beginning_of_a_blips_caption_is_what_generate_makes_of_the_processors(tmp_path):
    model, processor = write_blip(tmp_path)
    speaker = open_checkpoint(tmp_path)
    for text in ("a picture of", "café 中文", "x"):
        theirs = processor(images=PICTURE, text=text, return_tensors="pt")["input_ids"][0].tolist()
        ours = speaker.inputs(PICTURE, text)
        start = model.config.text_config.bos_token_id
        assert ours["input_ids"][0].tolist() == [start, *theirs[1:-1]]
        assert ours["attention_mask"].all()
        with torch.no_grad():
            logits = model(ours["pixel_values"], ours["input_ids"]).logits
            assert (speaker.model.caption_logits(**ours) - logits).abs().max() < 1e-4


@pytest.mark.parametrize("tidy", [True, False])
def test_words_are_joined_as_the_folder_says(tmp_path, tidy):
    model, processor = write_blip(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    said = json.loads(path.read_text()) | {"clean_up_tokenization_spaces": tidy}
    path.write_text(json.dumps(said))
    speaker, tokenizer = (
        open_checkpoint(tmp_path),
        type(processor.tokenizer).from_pretrained(tmp_path),
    )
    for text in ("it ' s a star , isn ' t it ?", "don ' t .", "a ! b ' ve"):
        ids = tokenizer(text)["input_ids"]
        theirs = tokenizer.decode(ids, skip_special_tokens=True)
        assert speaker.processor.words(ids) == theirs


# Folders that are not whole


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("write", [write_llava, write_blip2, write_blip])
def test_a_missing_file_is_named(tmp_path, write, name):
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=name.partition(".")[0]):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": '])
def test_a_broken_json_is_named(tmp_path, text):
    write_llava(tmp_path)
    for name in ("generation_config.json", "processor_config.json", "tokenizer.json"):
        whole = shutil.copy(tmp_path / name, tmp_path / "whole")
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            open_checkpoint(tmp_path).ask(PICTURE, "what?")
        shutil.copy(whole, tmp_path / name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("write", [write_llava, write_blip2, write_blip])
def test_the_weights_and_the_images_have_the_precision_that_is_asked_for(tmp_path, write, dtype):
    write(tmp_path)
    speaker = open_checkpoint(tmp_path, dtype)
    assert {parameter.dtype for parameter in speaker.model.parameters()} == {dtype}
    assert speaker.inputs(PICTURE, "a")["pixel_values"].dtype == dtype
    assert isinstance(speaker.caption(PICTURE, max_tokens=3), str)
