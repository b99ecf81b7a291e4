"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL folders in their published layout: from picture files and
questions to transformers' ids, pixels, grids and words. Placeholders are expanded by hand: the
whole processors of these families need torchvision.
"""

import json
import warnings
import weakref
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_published_tokenizers import CORPUS
from test_qwen2_vl import THEIRS, randomised
from transformers import AddedToken, AutoConfig, Qwen2TokenizerFast
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from minivlm.bpe import QWEN2_SPLIT, BPETokenizer, to_visible
from minivlm.pretrained import from_pretrained
from minivlm.pretrained.checkpoints import TensorFiles
from minivlm.pretrained.qwen_processor import PublishedQwen, qwen_chat
from minivlm.scenes.files import read_picture
from minivlm.speaking import open_checkpoint

KINDS = list(THEIRS)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]
SPECIAL += [
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
PLAIN = ["<tool_call>", "</tool_call>"]  # added, but no special tokens: they are read aloud
# The published templates for text and images alone, in words of our own.
TURN = """{% macro turn(m) %}<|im_start|>{{ m['role'] }}
{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] -%}
{{ c['text'] if 'text' in c else '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- endfor %}{% endif %}<|im_end|>
{% endmacro %}"""
SYSTEM = """{% if messages[0]['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}"""
EACH = """{% for m in messages %}{{ turn(m) }}{% endfor %}{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
TEMPLATES = dict.fromkeys(KINDS, TURN + SYSTEM + EACH) | {"qwen3_vl": TURN + EACH}


@cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """vocab.json and merges.txt of a small tokenizer of Qwen's kind."""
    made = BPETokenizer.train([CORPUS, "What is on the table? user assistant\n"], 400, QWEN2_SPLIT)
    merges = [(to_visible(left), to_visible(right)) for left, right in made.merges]
    return {to_visible(token): i for token, i in made.ranks.items()}, merges


def their_tokenizer() -> Qwen2TokenizerFast:
    vocab, merges = vocabulary()
    made = Qwen2TokenizerFast(vocab=vocab, merges=merges, extra_special_tokens=SPECIAL[1:])
    made.add_tokens([AddedToken(token, normalized=False) for token in PLAIN])
    return made


def published_config(kind: str, rng: Random) -> dict:
    """config.json of Qwen2-VL-2B, Qwen2.5-VL-3B or Qwen3-VL-4B, with smaller numbers."""
    ids = their_tokenizer().convert_tokens_to_ids
    groups, layers, depth = rng.choice([1, 2]), rng.choice([1, 2]), rng.choice([2, 3])
    head, sections = rng.choice([(16, [2, 3, 3]), (24, [4, 4, 4])])
    width = 2 * groups * head
    text = {
        "attention_dropout": 0.0, "bos_token_id": ids(SPECIAL[0]), "eos_token_id": ids(SPECIAL[2]),
        "hidden_act": "silu", "hidden_size": width, "initializer_range": 0.02,
        "intermediate_size": 40, "max_position_embeddings": 32768,
        "num_attention_heads": 2 * groups, "num_hidden_layers": layers, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "use_cache": True, "vocab_size": 416,
    }  # fmt: skip
    tower = {
        "depth": depth, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    tokens = {
        "vision_start_token_id": ids(SPECIAL[4]), "vision_end_token_id": ids(SPECIAL[5]),
        "image_token_id": ids(SPECIAL[7]), "video_token_id": ids(SPECIAL[8]),
        "model_type": kind, "architectures": [THEIRS[kind][0].__name__],
        "tie_word_embeddings": rng.random() < 0.5, "transformers_version": "4.41.2",
    }  # fmt: skip
    if kind == "qwen3_vl":
        rope = {"mrope_interleaved": True, "mrope_section": sections, "rope_type": "default"}
        text |= {
            "attention_bias": False, "dtype": "bfloat16", "head_dim": head, "rope_scaling": rope,
            "model_type": "qwen3_vl_text", "tie_word_embeddings": tokens["tie_word_embeddings"],
        }  # fmt: skip
        tower |= {
            "deepstack_visual_indexes": [0, 1][:layers], "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 24, "in_channels": 3, "intermediate_size": 28, "model_type": kind,
            "num_position_embeddings": 16, "out_hidden_size": width, "patch_size": 16,
        }  # fmt: skip
        return tokens | {"text_config": text, "vision_config": tower}
    tower |= {"in_chans": 3, "patch_size": 14, "spatial_patch_size": 14}
    if kind == "qwen2_vl":
        tower |= {"embed_dim": 24, "mlp_ratio": 2, "hidden_size": width}
    else:
        tower |= {
            "hidden_act": "silu", "hidden_size": 24, "intermediate_size": 30,
            "out_hidden_size": width, "window_size": 56, "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        }  # fmt: skip
    window = {"max_window_layers": 1, "sliding_window": 32768, "use_sliding_window": False}
    rope = {"type": "mrope", "mrope_section": sections}
    more = {"torch_dtype": "bfloat16", "rope_scaling": rope, "vision_config": tower}
    return tokens | text | window | more


def image_file(kind: str) -> dict:
    """preprocessor_config.json as published, with limits of 4 and 30 tokens."""
    if kind == "qwen3_vl":
        limits = {"size": {"longest_edge": 30 * 32**2, "shortest_edge": 4 * 32**2}}
        three = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
        names = {"processor_class": "Qwen3VLProcessor"}
        names |= {"image_processor_type": "Qwen2VLImageProcessorFast"}
    else:
        limits = {"min_pixels": 4 * 28**2, "max_pixels": 30 * 28**2}
        three = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "patch_size": 14}
        three |= {"image_std": [0.26862954, 0.26130258, 0.27577711]}
        names = {"image_processor_type": "Qwen2VLImageProcessor"}
    return limits | three | names | {"temporal_patch_size": 2, "merge_size": 2}


def write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_folder(folder: Path, kind: str, seed: int, **generation: object) -> Path:
    """A folder as published, with random weights and a small vocabulary."""
    config = published_config(kind, Random(seed))
    torch.manual_seed(seed)
    made = {key: value for key, value in config.items() if key != "model_type"}
    theirs = THEIRS[kind][0](AutoConfig.for_model(kind, **made))
    randomised(theirs).save_pretrained(folder)
    their_tokenizer().save_pretrained(folder)
    write(folder / "config.json", config)
    write(folder / "preprocessor_config.json", image_file(kind))
    ends = [config.get("text_config", config)["eos_token_id"], 0]
    write(folder / "generation_config.json", {"eos_token_id": ends} | generation)
    if seed % 2:
        write(folder / "chat_template.json", {"chat_template": TEMPLATES[kind]})
    else:
        (folder / "chat_template.jinja").write_text(TEMPLATES[kind], encoding="utf-8")
    return folder


class Reference:
    """What transformers makes of a folder; the placeholders are expanded here."""

    def __init__(self, folder: Path, kind: str):
        self.tokenizer = Qwen2TokenizerFast.from_pretrained(folder)
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.model = THEIRS[kind][0].from_pretrained(folder, dtype=torch.float32).eval()
        self.template = TEMPLATES[kind]

    def inputs(self, images: list, question: str, before: tuple = ()) -> dict:
        """As the processor gives them."""
        texts = [text for turn in before for text in turn] + [question]
        messages = [
            {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}]}
            for i, text in enumerate(texts)
        ]
        messages[0]["content"] = [{"type": "image"} for _ in images] + messages[0]["content"]
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        seen = self.images(images, return_tensors="pt")
        first, *rest = text.split("<|image_pad|>")
        counts = (seen["image_grid_thw"].prod(1) // 4).tolist()
        for count, part in zip(counts, rest, strict=True):
            first += "<|image_pad|>" * count + part
        return dict(self.tokenizer(first, return_tensors="pt")) | dict(seen)

    def words(self, given: dict, tokens: int, **how: object) -> str:
        """What it says greedily, with the settings of the folder's generation_config.json."""
        ids = given["input_ids"]
        kinds = (ids == self.model.config.image_token_id).int()
        said = self.model.generate(
            **given, mm_token_type_ids=kinds, max_new_tokens=tokens, do_sample=False, **how
        )
        new = said[:, ids.shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)[0].strip()


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> dict:
    """(kind, seed) -> ours and theirs of one folder."""
    made = {}
    for kind in KINDS:
        for seed in range(3):
            folder = write_folder(tmp_path_factory.mktemp(f"{kind}{seed}"), kind, seed)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # no template differs
                made[kind, seed] = open_checkpoint(folder), Reference(folder, kind)
    return made


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    data = Random(seed).randbytes(width * height * 4)
    return Image.frombytes("RGBA", (width, height), data).convert("RGBA").convert(mode)


def see_through() -> Image.Image:
    """A palette one of whose colours is transparent."""
    image = noise(70, 40, "RGB").convert("P")
    image.info["transparency"] = image.getpixel((3, 3))
    return image


FILES = {  # name of a picture file -> the picture
    "odd.png": noise(61, 97),
    "odd.jpg": noise(203, 35, seed=1),
    "small.png": noise(3, 2, seed=2),
    "large.jpg": noise(500, 333, seed=3),
    "narrow.png": noise(1, 190),
    "grey.png": noise(90, 50, "L"),
    "grey_alpha.png": noise(50, 90, "LA"),
    "transparent.png": noise(64, 64, "RGBA"),
    "palette.png": noise(33, 77, "RGB").convert("P"),
    "palette_hole.png": see_through(),
    "black_white.png": noise(40, 60, "1"),
    "cmyk.jpg": noise(80, 60, "CMYK"),
    "turned.jpg": noise(112, 56),
    "turned.png": noise(112, 56),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for name, image in FILES.items():
        options = {"exif": image.getexif()} if "turned" in name else {}
        if options:
            options["exif"][0x0112] = 6  # the top of the picture is on its right
        if "hole" in name:
            options["transparency"] = image.info["transparency"]
        image.save(folder / name, **options)
    return {name: folder / name for name in FILES}


def as_they_open(path: Path) -> Image.Image:
    """Their load_image turns a picture upright, but cuts transparency off before the processor
    lays it on white: that file is handed over as Pillow opens it.
    """
    return load_image(str(path)) if "turned" in path.name else Image.open(path)


def assert_alike(ours: dict, theirs: dict) -> None:
    assert set(ours) == {"input_ids", "attention_mask", "pixel_values", "image_grid_thw"}
    for name in ("input_ids", "attention_mask", "image_grid_thw"):
        assert torch.equal(ours[name], theirs[name]), name
    assert (ours["pixel_values"] - theirs["pixel_values"]).abs().max() < 2e-6  # float rounding


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_from_a_picture_file_are_those_of_transformers(opened, files, kind, name):
    ours, theirs = opened[kind, 0]
    question = "What is on the table?"
    given = ours.inputs(read_picture(files[name]), question)
    assert_alike(given, theirs.inputs([as_they_open(files[name])], question))
    turned = "turned" in name
    _, height, width = given["image_grid_thw"][0].tolist()
    assert not turned or height > width


CONVERSATION = (("What is on the table?", "A cup."), ("  which colour?\n", "红色, I think.\n\n"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_words_are_those_of_transformers(opened, files, kind, seed):
    """About one image, two and three, after no question, one and two."""
    ours, theirs = opened[kind, seed]
    said = []
    for names in (["odd.png"], ["odd.jpg", "small.png"], ["grey.png"] * 3):
        images = [read_picture(files[name]) for name in names]
        image = images[0] if len(images) == 1 else images
        for before in ((), CONVERSATION[:1], CONVERSATION):
            given = theirs.inputs([as_they_open(files[name]) for name in names], "Now?", before)
            assert_alike(ours.inputs(image, "Now?", before), given)
            said.append(ours.ask(image, "Now?", before, max_tokens=12))
            assert said[-1] == theirs.words(given, 12)
    assert sum(map(bool, said)) > 4 and len(set(said)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_is_the_answer_to_the_model_cards_question(opened, files, kind):
    ours, theirs = opened[kind, 1]
    image = read_picture(files["large.jpg"])
    expected = theirs.words(theirs.inputs([image], "Describe this image."), 9)
    assert ours.caption(image, max_tokens=9) == expected


TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("ab1 \n'é红|<>"))
)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2))
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_has_the_ids_of_transformers(opened, kind, texts):
    ours, theirs = opened[kind, 2]
    image = noise(56, 56)
    before = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    if any(token in text for token in SPECIAL + PLAIN for text in texts):
        return
    expected = theirs.inputs([image], texts[-1], before)
    assert torch.equal(ours.inputs(image, texts[-1], before)["input_ids"], expected["input_ids"])


@settings(deadline=None, max_examples=25)
@given(width=st.integers(1, 400), height=st.integers(1, 400), seed=st.integers(0, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_any_size_has_the_patches_of_transformers(opened, kind, width, height, seed):
    ours, theirs = opened[kind, 0]
    image = noise(width, height, seed=seed)
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ValueError, match=f"{height} x {width}"):
            ours.inputs(image, "?")
        return
    assert_alike(ours.inputs(image, "?"), theirs.inputs([image], "?"))


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<tool_call>"])
@pytest.mark.parametrize("place", range(3))
def test_a_special_token_in_any_text_is_refused_by_name(opened, token, place):
    """A model may read its own answer again: tokens that are read aloud are allowed there."""
    ours, theirs = opened["qwen2_vl", 0]
    texts = ["one", "two", "three"]
    texts[place] += f" {token} more"
    if (token, place) == (PLAIN[0], 1):
        given = theirs.inputs([noise(56, 56)], texts[2], (tuple(texts[:2]),))
        assert_alike(ours.inputs(noise(56, 56), texts[2], [tuple(texts[:2])]), given)
        return
    with pytest.raises(ValueError, match=token.replace("|", r"\|")):
        ours.inputs(noise(56, 56), texts[2], [tuple(texts[:2])])


# What the folder's other files say


def alone(tmp_path: Path, kind: str = "qwen2_vl", **generation: object) -> tuple[Path, Reference]:
    folder = write_folder(tmp_path, kind, 0, **generation)
    return folder, Reference(folder, kind)


def first_ids(ours: PublishedQwen, count: int) -> list[int]:
    """What the model says of a picture, token by token."""
    given = ours.inputs(noise(70, 60), "Where?")
    ids = []
    for _ in range(count):
        ids.append(ours.model.next_logits(**given).argmax().item())
        grown = torch.cat([given["input_ids"], torch.tensor([ids[-1:]])], dim=1)
        given |= {"input_ids": grown, "attention_mask": torch.ones_like(grown)}
    return ids


@torch.no_grad()
@pytest.mark.parametrize("where", ["several", "one", "config", "text_config"])
def test_an_answer_ends_with_the_folders_end_tokens(tmp_path, where):
    kind = "qwen3_vl" if where == "text_config" else "qwen2_vl"
    folder, _ = alone(tmp_path, kind)
    ids = first_ids(PublishedQwen(folder), 8)
    at = max(i for i, token in enumerate(ids) if ids.index(token) == i)
    end = ids[at]
    assert at > 1
    if where in ("several", "one"):
        write(
            folder / "generation_config.json", {"eos_token_id": end if where == "one" else [1, end]}
        )
    else:
        (folder / "generation_config.json").unlink()
        config = json.loads((folder / "config.json").read_text())
        (config["text_config"] if where == "text_config" else config)["eos_token_id"] = end
        write(folder / "config.json", config)
    ours, theirs = PublishedQwen(folder), Reference(folder, kind)
    words = ours.ask(noise(70, 60), "Where?", max_tokens=20)
    assert words == ours.words(ids[: at + 1])
    assert words == theirs.words(theirs.inputs([noise(70, 60)], "Where?"), 20)


def test_without_an_end_token_in_any_file_the_turn_ends_the_answer(tmp_path):
    folder, _ = alone(tmp_path)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"eos_token_id": None})
    ours = PublishedQwen(folder)
    assert ours.ends == [ours.tokenizer.special_tokens["<|im_end|>"]]


@pytest.mark.parametrize("penalty", [1.05, 1.8])
@pytest.mark.parametrize("kind", KINDS)
def test_repetition_is_penalised_as_generation_config_says(tmp_path, kind, penalty):
    folder, theirs = alone(tmp_path, kind, repetition_penalty=penalty)
    ours = PublishedQwen(folder)
    said = []
    for question in ("What?", "a cup, a cup, a cup", "1 2 3"):
        given = theirs.inputs([noise(70, 60)], question)
        said.append(ours.ask(noise(70, 60), question, max_tokens=20))
        assert said[-1] == theirs.words(given, 20)
    ours.penalty = 1
    assert penalty < 1.5 or ours.ask(noise(70, 60), "1 2 3", max_tokens=20) != said[-1]


def test_tokens_without_a_text_are_left_out_and_plain_ones_are_read_aloud(opened):
    ours, theirs = opened["qwen2_vl", 0]
    ids = [70, 71, 415, 2000, *ours.tokenizer.special_tokens.values(), 72, 230]
    expected = theirs.tokenizer.decode(ids, skip_special_tokens=True)
    assert ours.words(ids) == expected.strip() and "<tool_call>" in expected


def test_a_draw_is_repeated_by_its_seed_and_changed_by_another(opened):
    ours, _ = opened["qwen2_5_vl", 0]
    draw = lambda seed, **how: ours.ask(noise(70, 60), "?", max_tokens=12, seed=seed, **how)
    assert draw(1, temperature=1.0) == draw(1, temperature=1.0) != draw(2, temperature=1.0)
    assert draw(1, temperature=1.0, top_p=1e-6) == draw(2)


@pytest.mark.parametrize("layout", ["older", "newer"])
@pytest.mark.parametrize("kind", KINDS)
def test_older_and_newer_layouts_of_a_folder_are_read(tmp_path, opened, kind, layout):
    folder = write_folder(tmp_path, kind, 1)
    (folder / "chat_template.json").unlink()
    if layout == "older":  # vocab.json, merges.txt, the template in tokenizer_config.json
        vocab, merges = vocabulary()
        write(folder / "vocab.json", vocab)
        (folder / "merges.txt").write_text("\n".join(map(" ".join, merges)), encoding="utf-8")
        (folder / "tokenizer.json").unlink()
        tokens = their_tokenizer().added_tokens_decoder
        flags = {i: {"content": t.content, "special": t.special, "normalized": False}
                 for i, t in tokens.items()}  # fmt: skip
        named = [{"name": "default", "template": TEMPLATES[kind]}]
        said = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": flags}
        write(folder / "tokenizer_config.json", said | {"chat_template": named})
    else:  # one file for all kinds of input
        images = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").unlink()
        write(folder / "processor_config.json", {"image_processor": images})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = PublishedQwen(folder)
    assert_alike(ours.inputs(noise(61, 97), "é?"), opened[kind, 1][1].inputs([noise(61, 97)], "é?"))


def test_another_chat_template_is_said_to_differ_in_one_line(tmp_path):
    folder = write_folder(tmp_path, "qwen2_vl", 0)
    for other in (TEMPLATES["qwen3_vl"], "{{ messages[9].content }}{{ 1 / 0 }}", "{% broken"):
        (folder / "chat_template.jinja").write_text(other)
        with pytest.warns(UserWarning, match="its chat template") as caught:
            PublishedQwen(folder)
        assert [str(each.message).count("\n") for each in caught] == [0]
    (folder / "chat_template.jinja").unlink()  # a folder without one is taken at its word
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PublishedQwen(folder).kind == "qwen2_vl"


def test_the_templates_of_the_families():
    said = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
    said += "<|im_start|>assistant\nA star.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
    said += "<|im_start|>assistant\n"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    texts = ["What?", "A star.", "Where?"]
    assert qwen_chat("qwen3_vl", texts, 1) == said
    assert qwen_chat("qwen2_vl", texts, 1) == qwen_chat("qwen2_5_vl", texts, 1) == system + said


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_fewer_bits_is_asked_too(tmp_path, dtype):
    folder = write_folder(tmp_path, "qwen3_vl", 2)
    ours = open_checkpoint(folder, dtype)
    assert {p.dtype for p in ours.model.parameters()} == {dtype}
    assert ours.ask(noise(61, 97), "What?", max_tokens=5)


def test_a_model_goes_to_the_device_that_is_asked_for(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, "qwen2_vl", 0)
    assert {p.device.type for p in from_pretrained(folder, device="meta").parameters()} == {"meta"}
    monkeypatch.setenv("MINIVLM_DEVICE", "meta")
    assert {p.device.type for p in open_checkpoint(folder).model.parameters()} == {"meta"}


# Memory


def in_shards(folder: Path, kind: str) -> Path:
    """The weights of a folder as bfloat16, in several files."""
    theirs = THEIRS[kind][0].from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    theirs.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_read_one_by_one(tmp_path, monkeypatch, kind, dtype):
    """None is alive when the next one is asked for; of shapes alone there are all from the first.

    A fused matrix of queries, keys and values is a file's one tensor, and three of ours.
    """
    folder = in_shards(write_folder(tmp_path, kind, 0), kind)
    whole, alive, names = TensorFiles.read, [], []

    def read(files: TensorFiles, name: str) -> torch.Tensor:
        assert {shape.device.type for shape in files.shapes.values()} == {"meta"}
        assert [ref for ref in alive if ref() is not None] == []
        tensor = whole(files, name)
        alive.append(weakref.ref(tensor))
        names.append(name)
        return tensor

    monkeypatch.setattr(TensorFiles, "read", read)
    model = from_pretrained(folder, dtype)
    assert len(names) == len(set(names)) == len(list(model.parameters()))
    assert any(name.endswith("qkv.q.weight") for name in names)


def test_a_loaded_model_does_not_need_its_files(tmp_path):
    folder = write_folder(tmp_path, "qwen2_vl", 0)
    model = from_pretrained(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with open(folder / "model.safetensors", "r+b") as file:
        length = file.seek(0, 2)
        file.seek(0)
        file.write(bytes(length))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_does_not_fit_is_named_before_a_number_is_read(tmp_path, monkeypatch):
    folder = in_shards(write_folder(tmp_path, "qwen2_vl", 0), "qwen2_vl")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 41
    write(folder / "config.json", config)
    monkeypatch.setattr(TensorFiles, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=r"has shape .*40.*, needs .*41"):
        from_pretrained(folder)


# What is refused


@pytest.mark.parametrize(
    "file, change, named",
    [
        ("preprocessor_config.json", {"do_resize": False}, "do_resize = False"),
        ("preprocessor_config.json", {"resample": 2}, "resample = 2"),
        ("preprocessor_config.json", {"rescale_factor": 1}, "rescale_factor = 1"),
        ("preprocessor_config.json", {"patch_size": 16}, "patch_size = 16, not 14"),
        ("preprocessor_config.json", {"merge_size": "x"}, "merge_size = 'x', not 2"),
        ("preprocessor_config.json", {"temporal_patch_size": 1}, "temporal_patch_size = 1"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, r"image_mean = \[0.5\]"),
        ("preprocessor_config.json", {"image_std": "x"}, "image_std = 'x'"),
        ("preprocessor_config.json", {"min_pixels": -1}, "min_pixels = -1"),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id = 'x'"),
        ("generation_config.json", {"eos_token_id": [0, -1]}, r"eos_token_id = \[0, -1\]"),
        ("generation_config.json", {"repetition_penalty": "x"}, "repetition_penalty = 'x'"),
        ("generation_config.json", {"repetition_penalty": -2}, "repetition_penalty = -2"),
        ("config.json", {"image_token_id": 3}, "image_token_id = 3, but"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_before_the_weights_are_read(
    tmp_path, monkeypatch, file, change, named
):
    folder = write_folder(tmp_path, "qwen2_vl", 0)
    (folder / "model.safetensors").write_bytes(b"broken")
    write(folder / file, json.loads((folder / file).read_text()) | change)
    with pytest.raises(ValueError, match=named) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_the_templates_tokens_is_refused(tmp_path):
    folder = write_folder(tmp_path, "qwen2_vl", 0)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    changed = text.replace("<|vision_start|>", "<|start|>")
    (folder / "tokenizer.json").write_text(changed, encoding="utf-8")
    config = (folder / "tokenizer_config.json").read_text().replace("<|vision_start|>", "<|start|>")
    (folder / "tokenizer_config.json").write_text(config)
    with pytest.raises(ValueError, match=r"no special token '<\|vision_start\|>'"):
        open_checkpoint(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_is_longer_than_the_model_reads_is_refused(tmp_path, kind):
    folder = write_folder(tmp_path, kind, 0)
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config)["max_position_embeddings"] = 60
    write(folder / "config.json", config)
    ours = open_checkpoint(folder)
    length = ours.inputs(noise(56, 56), "?")["input_ids"].shape[1]
    assert length <= 60
    with pytest.raises(ValueError, match="but the model reads 60"):
        ours.ask(noise(56, 56), "one two three " * 20)


@pytest.mark.parametrize("image", [[], None, "cat.png", [Path("cat.png")]])
def test_what_is_no_image_is_refused(opened, image):
    ours, _ = opened["qwen2_vl", 0]
    with pytest.raises((ValueError, TypeError), match="image|iterable"):
        ours.ask(image, "What?")
