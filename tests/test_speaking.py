"""One command for any checkpoint that speaks: published folders say what transformers says, others
say why not.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from minivlm import __main__ as command
from minivlm import scenes, speaking
from minivlm.parts.generation import generate
from minivlm.scenes import instructions
from minivlm.speaking import open_checkpoint
from minivlm.toys.blip import ToyBlip
from minivlm.toys.captioner import Captioner
from minivlm.toys.common import FROZEN, SPEAKER

WORDS = ["<s>", "</s>", "<image>", "[unk]", "USER", ":", "ASSISTANT", "Question", "Answer"]
WORDS += ["what", "is", "this", "?", "Describe", "the", "image", "."]
VOCABULARY = {word: i for i, word in enumerate([*WORDS, *(f"w{i}" for i in range(30))])}
BEGIN, END, PLACE = 0, 1, 2
PICTURE = scenes.load("test")[0].image.resize((40, 24))
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": len(VOCABULARY),
}
TEXT |= {
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": END,
    "max_position_embeddings": 128,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
}
VISION |= {"image_size": 16, "patch_size": 8}
QFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
}


def write_tokenizer(folder) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGIN)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def pixels(crop: bool) -> torch.Tensor:
    """As transformers makes them: the shorter side to 16 and then the middle, or both sides."""
    if crop:
        kind, size = CLIPImageProcessorPil, {"shortest_edge": 16}
        processor = kind(size=size, crop_size={"height": 16, "width": 16})
    else:
        processor = BlipImageProcessorPil(size={"height": 16, "width": 16})
    return processor(PICTURE, return_tensors="pt")["pixel_values"]


def said(tokenizer: Tokenizer, ids: torch.Tensor) -> str:
    return tokenizer.decode(ids[0].tolist()).strip()


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


def test_a_published_llava_is_asked_in_its_authors_template(tmp_path):
    vision, text = (
        VISION | {"model_type": "clip_vision_model"},
        TEXT | {"model_type": "llama", "intermediate_size": 20},
    )
    theirs = randomise(
        LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=PLACE)
        )
    )
    theirs.save_pretrained(tmp_path)
    tokenizer = write_tokenizer(tmp_path)
    speaker = open_checkpoint(tmp_path)
    for question in ("what is this ?", "Describe the image."):
        ids = tokenizer.encode(f"USER: <image>\n{question} ASSISTANT:").ids
        at = ids.index(PLACE)
        prompt = torch.tensor([ids[:at] + [PLACE] * 4 + ids[at + 1 :]])
        new = theirs.generate(
            input_ids=prompt, pixel_values=pixels(crop=True), max_new_tokens=40, do_sample=False
        )
        new = new[:, prompt.shape[1] :] if new.shape[1] > 40 else new
        assert speaker.ask(PICTURE, question) == said(tokenizer, new)
        given = speaker.inputs(PICTURE, question)
        assert torch.equal(given["input_ids"], prompt) and given["attention_mask"].all()
        with torch.no_grad():
            difference = speaker.model(**given) - theirs(**given).logits
        assert difference.abs().max() < 1e-5
    assert speaker.caption(PICTURE) == speaker.ask(PICTURE, "Describe the image.")
    with pytest.raises(ValueError, match="this one has 2"):
        speaker.ask(PICTURE, "what is <image> ?")
    before = [("what is this ?", "a star"), ("and", "small")]
    given = speaker.inputs(PICTURE, "where ?", before)["input_ids"][0].tolist()
    turns = "USER: <image>\nwhat is this ? ASSISTANT: a star</s>USER: and ASSISTANT: small</s>"
    whole = tokenizer.encode(f"{turns}USER: where ? ASSISTANT:").ids
    assert [i for i in given if i != PLACE] == [i for i in whole if i != PLACE]


def test_a_published_blip_2_is_asked_behind_its_queries(tmp_path):
    text = TEXT | {"model_type": "opt", "ffn_dim": 20, "word_embed_proj_dim": 16}
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=text,
        num_query_tokens=3,
        image_token_index=PLACE,
    )
    theirs = randomise(Blip2ForConditionalGeneration(config))
    theirs.save_pretrained(tmp_path)
    tokenizer = write_tokenizer(tmp_path)
    speaker = open_checkpoint(tmp_path)
    for prompt, got in (
        ("Question: what is this ? Answer:", speaker.ask(PICTURE, "what is this ?")),
        ("", speaker.caption(PICTURE)),
    ):
        ids = torch.tensor([[PLACE] * 3 + tokenizer.encode(prompt).ids])
        new = theirs.generate(
            pixel_values=pixels(crop=False), input_ids=ids, max_new_tokens=40, do_sample=False
        )
        new = new[:, ids.shape[1] :] if new.shape[1] > 40 else new
        assert got == said(tokenizer, new) and got
    given = speaker.inputs(PICTURE, "what is this ?")
    before = speaker.inputs(PICTURE, "and ?", [("what is this ?", "a star")])["input_ids"]
    turns = "Question: what is this ? Answer: a star. Question: and ? Answer:"
    assert before[0, 3:].tolist() == tokenizer.encode(turns).ids
    ids = tokenizer.encode("Question: what is this ? Answer:").ids
    assert given["input_ids"].tolist() == [[PLACE] * 3 + ids]
    with torch.no_grad():
        difference = speaker.model(**given) - theirs(**given).logits
    assert difference.abs().max() < 1e-5
    with pytest.raises(ValueError, match="special token '<image>'"):
        speaker.ask(PICTURE, "what is <image> ?")


def test_a_published_blip_captions_and_answers_nothing(tmp_path):
    text = TEXT | {"intermediate_size": 20, "sep_token_id": END, "projection_dim": 16}
    theirs = randomise(
        BlipForConditionalGeneration(BlipConfig(vision_config=VISION, text_config=text))
    )
    theirs.save_pretrained(tmp_path)
    tokenizer = write_tokenizer(tmp_path)
    speaker = open_checkpoint(tmp_path)
    ids = [BEGIN]
    with torch.no_grad():
        given = speaker.inputs(PICTURE, "what is this")
        assert given["input_ids"].tolist() == [[BEGIN, *tokenizer.encode("what is this").ids[1:]]]
        logits = theirs(given["pixel_values"], given["input_ids"]).logits
        assert (speaker.model.caption_logits(**given) - logits).abs().max() < 1e-5
        while len(ids) < 41 and (
            len(ids) == 1 or ids[-1] != END
        ):  # transformers' own loop adds a [SEP] of its own
            ids.append(
                theirs(pixels(crop=False), torch.tensor([ids])).logits[0, -1].argmax().item()
            )
    assert speaker.caption(PICTURE) == said(tokenizer, torch.tensor([ids[1:]]))
    with pytest.raises(ValueError, match="answers no question"):
        speaker.ask(PICTURE, "what is this ?")


def test_checkpoints_that_write_no_text_say_so(tmp_path):
    CLIPModel(
        CLIPConfig(vision_config=VISION, text_config=TEXT | {"intermediate_size": 20})
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'clip' writes no text"):
        open_checkpoint(tmp_path)
    retrieval = tmp_path / "retrieval"
    text = TEXT | {"intermediate_size": 20, "projection_dim": 16}
    BlipForImageTextRetrieval(BlipConfig(vision_config=VISION, text_config=text)).save_pretrained(
        retrieval
    )
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        open_checkpoint(retrieval)
    write_tokenizer(retrieval)
    with pytest.raises(ValueError, match="no text decoder"):
        open_checkpoint(retrieval).caption(PICTURE)
    (retrieval / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
        open_checkpoint(retrieval)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="'t5'"):
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


# The image settings of a published folder


def processor_of(folder, family: type) -> speaking.Published:
    """A speaker that prepares images by the folder's settings; it has no model."""
    made = object.__new__(family)
    made.settings, made.side, made.dtype = speaking.read_image_settings(folder), 16, torch.float32
    return made


SQUARE = {"height": 16, "width": 16}
SETTINGS = [
    (speaking.PublishedLlava, CLIPImageProcessorPil, {"size": {"shortest_edge": 16}}),
    (speaking.PublishedLlava, CLIPImageProcessorPil, {"size": {"shortest_edge": 21}}),
    (speaking.PublishedLlava, CLIPImageProcessorPil, {"size": 19, "crop_size": 16}),
    (speaking.PublishedLlava, CLIPImageProcessorPil, {"size": {"shortest_edge": 11}}),
    (speaking.PublishedLlava, CLIPImageProcessorPil, {"size": SQUARE, "do_center_crop": False}),
    (speaking.PublishedLlava, CLIPImageProcessorPil, {"do_resize": False}),
    (speaking.PublishedLlava, LlavaImageProcessorPil, {"size": 16, "do_pad": True}),
    (speaking.PublishedLlava, LlavaImageProcessorPil, {"size": 16, "resample": 2}),
    (speaking.PublishedBlip2, BlipImageProcessorPil, {"size": SQUARE}),
    (speaking.PublishedBlip2, BlipImageProcessorPil, {"size": {"height": 16, "width": 12}}),
    (speaking.PublishedBlip, BlipImageProcessorPil, {"size": SQUARE, "do_normalize": False}),
    (speaking.PublishedBlip, BlipImageProcessorPil, {"size": 16, "rescale_factor": 1 / 127.5}),
    (speaking.PublishedBlip, BlipImageProcessorPil, {"size": 16, "image_mean": [0.5, 0.4, 0.3]}),
    (speaking.PublishedBlip, BlipImageProcessorPil, {"size": 16, "do_rescale": False}),
]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("family", "kind", "options"), SETTINGS)
def test_images_are_prepared_as_by_transformers(tmp_path, family, kind, options, nested):
    theirs = kind(**{"crop_size": SQUARE} | options if family.crop else options)
    said = json.loads(theirs.to_json_string())
    if nested:  # as transformers 5 writes it
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said}))
        (tmp_path / "preprocessor_config.json").write_text('{"size": 3}')  # which has no say then
    else:
        theirs.save_pretrained(tmp_path)
        (tmp_path / "processor_config.json").write_text('{"processor_class": "LlavaProcessor"}')
    ours = processor_of(tmp_path, family)
    noise = np.random.default_rng(0)
    for height, width in ((16, 16), (24, 40), (41, 23), (9, 30), (12, 13), (64, 17)):
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        got = ours.pixel_values(image)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"size": "large"}, "size = 'large'"),
        ({"size": {"height": 4}}, "size = {'height': 4}"),
        ({"size": {"shortest_edge": 0}}, "size = 0"),
        ({"crop_size": [3, 4]}, r"crop_size = \[3, 4\]"),
        ({"image_mean": [0.5]}, r"\[0\.5\]"),
    ],
)
def test_image_settings_that_mean_nothing_are_named(tmp_path, settings, names):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    with pytest.raises(ValueError, match=names):
        processor_of(tmp_path, speaking.PublishedLlava).pixel_values(PICTURE)
    (tmp_path / "processor_config.json").write_text('{"image_processor": 3}')
    with pytest.raises(ValueError, match="image_processor must be an object, not 3"):
        speaking.read_image_settings(tmp_path)
