"""Notebook 04's module: chat template, placeholders and labels, image codes, three ways to fuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minivlm.bpe import BPETokenizer
from minivlm.multimodal import (
    CONTROL,
    IGNORE,
    CrossFusion,
    EarlyFusion,
    GatedCrossAttention,
    ImageVocabulary,
    LateFusion,
    Processor,
    answer_loss,
    splice,
)
from minivlm.parts import masks
from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.plotting import effective_mask
from minivlm.vit import ViTConfig, to_pixels

TOKENIZER = BPETokenizer.train(
    "what is this? a red star. a blue star.", 290, special_tokens=CONTROL
)
ID, NEWLINE, USER = TOKENIZER.special_tokens, TOKENIZER.encode("\n"), TOKENIZER.encode("user\n")
PICTURE = Image.new("RGB", (8, 8), "red")
IMAGE = {"type": "image"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def processor(image_tokens: int = 3, **options) -> Processor:
    return Processor(TOKENIZER, image_tokens, to_pixels, **options)


# The chat template

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.sampled_from(CONTROL)
)
contents = st.one_of(
    texts,
    st.lists(st.booleans(), min_size=1, max_size=4).flatmap(
        lambda kinds: st.tuples(
            *(st.just(IMAGE) if image else texts.filter(bool).map(text) for image in kinds)
        )
    ),
)
chats = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), contents), min_size=1, max_size=4
)


def canonical(content) -> str | list[dict]:
    """Neighbouring texts joined; a content of one text is that text."""
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if parts and part != IMAGE and parts[-1] != IMAGE:
            parts[-1] = text(parts[-1]["text"] + part["text"])
        else:
            parts.append(part)
    return parts[0]["text"] if len(parts) == 1 and parts[0] != IMAGE else parts


@settings(max_examples=150, deadline=None)
@given(chats, st.integers(0, 4), st.integers(0, 3))
def test_a_conversation_survives_the_template_and_padding(chat, image_tokens, extra):
    messages = [{"role": role, "content": content} for role, content in chat]
    images = [PICTURE] * sum(part == IMAGE for _, c in chat if not isinstance(c, str) for part in c)
    lenient = processor(image_tokens, refuse=False)  # so that a text may also spell a control token
    row = lenient.prepare(messages, images)
    back = lenient.messages([ID["<|pad|>"]] * extra + row["input_ids"][0].tolist())
    assert back == [{"role": role, "content": canonical(content)} for role, content in chat]
    assert (row["input_ids"] == ID["<|image|>"]).sum() == image_tokens * len(images)


def test_the_template_is_chatml():
    messages = [
        {"role": "user", "content": [IMAGE, text("what?")]},
        {"role": "assistant", "content": "a star"},
    ]
    row = processor(2).prepare(messages, [PICTURE])
    assert TOKENIZER.decode(row["input_ids"][0].tolist()) == (
        "<|im_start|>user\n<|image_start|><|image|><|image|><|image_end|>what?<|im_end|>\n"
        "<|im_start|>assistant\na star<|im_end|>\n"
    )
    assert row["pixel_values"].shape == (1, 3, 8, 8)


def test_only_what_the_assistant_says_is_trained_on():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [text("compare "), IMAGE, IMAGE]},
        {"role": "assistant", "content": "a red star"},
        {"role": "user", "content": "and now?"},
        {"role": "assistant", "content": "a star"},
    ]
    row = processor().prepare(messages, [PICTURE] * 2)
    trained = row["labels"][0][row["labels"][0] != IGNORE].tolist()
    assert TOKENIZER.decode(trained) == "a red star<|im_end|>a star<|im_end|>"
    kept = row["labels"] != IGNORE
    assert torch.equal(row["labels"][kept], row["input_ids"][kept])


def test_words_may_stand_in_the_place_of_an_image():
    told, shown = IMAGE | {"text": "a red star"}, [IMAGE, text("what?")]
    messages = [
        {"role": "user", "content": [told, text("what?")]},
        {"role": "user", "content": shown},
    ]
    row = processor(2).prepare(messages, [PICTURE])
    assert TOKENIZER.decode(row["input_ids"][0].tolist()) == (
        "<|im_start|>user\n<|image_start|>a red star<|image_end|>what?<|im_end|>\n"
        "<|im_start|>user\n<|image_start|><|image|><|image|><|image_end|>what?<|im_end|>\n"
    )
    assert processor(2).messages(row["input_ids"][0].tolist()) == messages
    with pytest.raises(ValueError, match="places for 1 images, but 2"):
        processor(2).prepare(messages, [PICTURE] * 2)
    for wrong in (3, None):
        with pytest.raises(ValueError, match="unknown part"):
            processor().prepare([{"role": "user", "content": [IMAGE | {"text": wrong}]}])
    with pytest.raises(ValueError, match="image_end"):
        processor().prepare([{"role": "user", "content": [IMAGE | {"text": "<|image_end|>"}]}])


def test_a_reply_begins_where_generation_goes_on():
    row = processor().prepare([{"role": "user", "content": "what?"}], reply=True)
    assert TOKENIZER.decode(row["input_ids"][0].tolist()).endswith(
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (row["labels"] == IGNORE).all()


@pytest.mark.parametrize("control", CONTROL)
def test_a_control_token_in_user_text_never_becomes_one(control):
    messages = [{"role": "user", "content": f"say {control}, please"}]
    with pytest.raises(ValueError, match=control.replace("|", r"\|")):
        processor().prepare(messages)
    lenient = processor(refuse=False)
    ids = lenient.prepare(messages)["input_ids"][0].tolist()
    assert sum(i in ID.values() for i in ids) == 2  # <|im_start|> and <|im_end|> of the turn itself
    assert lenient.messages(ids) == messages


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_padded_on_the_side_asked_for(side):
    p = processor()
    short = p.prepare([{"role": "user", "content": "a"}], reply=True)
    long = p.prepare(
        [{"role": "user", "content": [IMAGE, text("what is this?")]}], [PICTURE], reply=True
    )
    batch = p.collate([short, long], side)
    length, kept = short["input_ids"].shape[1], batch["attention_mask"][0].bool()
    assert (
        batch["input_ids"][0][kept].tolist() == short["input_ids"][0].tolist()
        and kept.sum() == length
    )
    assert kept[-1].item() == (side == "left") and kept[0].item() == (side == "right")
    assert (batch["labels"][0][~kept] == IGNORE).all() and len(batch["pixel_values"]) == 1
    kinds = p.kinds(batch["input_ids"][0].tolist())
    assert [kind == "padding" for kind in kinds] == (~kept).tolist()
    assert p.kinds(long["input_ids"][0].tolist()).count("image") == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 8))
def test_packed_conversations_give_the_logits_of_each_alone(lengths, room):
    p = processor()
    chats = [[{"role": "assistant", "content": "a" * n}] for n in lengths]
    rows = [p.prepare(chat) for chat in chats]
    length = max(row["input_ids"].shape[1] for row in rows) + room
    batch = p.pack(rows, length)
    ids, label, segment, place = (
        batch[name] for name in ("input_ids", "labels", "segment_ids", "position_ids")
    )
    kept = segment[segment >= 0]  # all, in their order
    assert kept.unique_consecutive().tolist() == list(range(len(rows)))
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(TOKENIZER.vocab_size, 16, 2, 2, 2, 16)).eval()
    mask = masks.segments(segment) & masks.causal(length)
    with torch.no_grad():
        packed = decoder.head(decoder.states(ids, mask=mask, positions=place))
        for number, row in enumerate(rows):
            here = segment == number
            assert torch.equal(ids[here], row["input_ids"][0])
            assert torch.allclose(packed[here], decoder(row["input_ids"])[0], atol=1e-4)
        alone = [answer_loss(decoder(row["input_ids"]), row["labels"]) for row in rows]
        trained = torch.tensor([(row["labels"] != IGNORE).sum().item() for row in rows])
        together = (torch.stack(alone) * trained).sum() / trained.sum()
        assert torch.allclose(answer_loss(packed, label), together, atol=1e-4)
    assert (ids[segment < 0] == ID["<|pad|>"]).all() and (label[segment < 0] == IGNORE).all()


def test_a_packed_row_is_as_full_as_the_order_allows_and_a_text_too_long_is_refused():
    p = processor(2)
    chat = [{"role": "user", "content": [IMAGE]}, {"role": "assistant", "content": "a star"}]
    rows = [p.prepare(chat, [PICTURE]) for _ in range(5)]
    one = rows[0]["input_ids"].shape[1]
    batch = p.pack(rows, 2 * one + 1)
    assert batch["input_ids"].shape == (3, 2 * one + 1) and batch["pixel_values"].shape == (
        5,
        3,
        8,
        8,
    )
    with pytest.raises(ValueError, match=f"row 0 has {one} tokens, but only {one - 1} fit"):
        p.pack(rows, one - 1)


@pytest.mark.parametrize(
    "messages, images, names",
    [
        ([{"role": "user", "content": [IMAGE]}], 2, "places for 1 images, but 2 images"),
        ([{"role": "user", "content": [IMAGE, IMAGE]}], 1, "places for 2 images, but 1 images"),
        ([{"role": "user", "content": "hi"}], 1, "places for 0 images, but 1 images"),
        ([{"role": "robot", "content": "hi"}], 0, "robot"),
        ([{"role": "user"}], 0, "None"),
        ([{"role": "user", "content": [{"type": "video"}]}], 0, "video"),
        ([{"role": "user", "content": [{"type": "text"}]}], 0, "text"),
        ([{"role": "user", "content": ["hi"]}], 0, "hi"),
        ([], 0, "nothing to prepare"),
    ],
)
def test_bad_conversations_are_refused_by_name(messages, images, names):
    with pytest.raises(ValueError, match=names):
        processor().prepare(messages, [PICTURE] * images)


@pytest.mark.parametrize(
    "ids, names",
    [
        ([0], "turn 0"),
        ([ID["<|im_start|>"], *TOKENIZER.encode("user\nhi")], "turn 0"),
        ([ID["<|im_start|>"], *TOKENIZER.encode("robot\nhi"), ID["<|im_end|>"], *NEWLINE], "robot"),
        ([ID["<|im_start|>"], ID["<|im_end|>"], *NEWLINE], "role ''"),
        ([ID["<|im_start|>"], *TOKENIZER.encode("user\nhi"), ID["<|im_end|>"]], "newline"),
        (
            [
                ID["<|im_start|>"],
                *TOKENIZER.encode("user\n"),
                ID["<|image_start|>"],
                ID["<|im_end|>"],
                *NEWLINE,
            ],
            "never ends",
        ),
    ],
)
def test_ids_that_are_no_conversation_are_refused(ids, names):
    with pytest.raises(ValueError, match=names):
        processor().messages(ids)


def test_an_unknown_padding_side_is_refused():
    with pytest.raises(ValueError, match="top"):
        processor().collate([processor().prepare([], reply=True)], "top")


# Continuous route


def test_vectors_stand_at_their_places_and_nothing_else_changes():
    embeds, vectors = torch.randn(2, 6, 4), torch.randn(3, 2, 4)
    places = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0]]).bool()
    out = splice(embeds, places, vectors)
    assert torch.equal(out[places], vectors.flatten(0, 1)) and torch.equal(
        out[~places], embeds[~places]
    )


@pytest.mark.parametrize(
    "places", [[[1, 1, 0], [0, 0, 0]], [[1, 1, 1], [1, 0, 0]], [[1, 1, 1], [1, 1, 1]]]
)
def test_a_wrong_number_of_places_is_refused(places):
    with pytest.raises(ValueError, match="2 images take 4 placeholders"):
        splice(torch.zeros(2, 3, 5), torch.tensor(places).bool(), torch.zeros(2, 2, 5))


def test_the_loss_of_an_answer_is_that_of_its_tokens_alone():
    torch.manual_seed(1)
    logits, labels = torch.randn(1, 4, 7), torch.tensor([[IGNORE, IGNORE, 3, 5]])
    by_hand = -(logits[0, 1].log_softmax(-1)[3] + logits[0, 2].log_softmax(-1)[5]) / 2
    assert torch.allclose(answer_loss(logits, labels), by_hand)


# Discrete route

VOCABULARY = ImageVocabulary(text_size=300, codes=16, grid=(2, 3), start=7, end=8)


@given(st.lists(st.integers(0, 15), min_size=6, max_size=6))
def test_codes_become_tokens_and_come_back(codes):
    codes = torch.tensor(codes).view(1, 2, 3)
    ids = VOCABULARY.to_ids(codes)
    assert (
        ids[0, 0] == 7
        and ids[0, -1] == 8
        and ids[0, 1:-1].min() >= 300
        and ids.max() < VOCABULARY.size
    )
    assert torch.equal(VOCABULARY.to_codes(ids[:, 1:-1]), codes)


@pytest.mark.parametrize(
    "ids, names", [([[300] * 5 + [299]], "299"), ([[316] * 6], "316"), ([[300] * 5], "5 tokens")]
)
def test_tokens_that_are_no_image_are_refused(ids, names):
    with pytest.raises(ValueError, match=names):
        VOCABULARY.to_codes(torch.tensor(ids))


@pytest.mark.parametrize(
    "codes", [torch.full((1, 2, 3), 16), torch.full((1, 2, 3), -1), torch.zeros(1, 3, 2).long()]
)
def test_codes_outside_the_book_are_refused(codes):
    with pytest.raises(ValueError, match="need codes"):
        VOCABULARY.to_ids(codes)


# Packing and cross-attention


@pytest.mark.parametrize("seed", range(4))
def test_packed_sequences_give_the_logits_that_each_gives_alone(seed):
    torch.manual_seed(seed)
    decoder = Decoder(
        DecoderConfig(vocab_size=20, width=16, layers=2, heads=4, kv_heads=2, hidden=24)
    )
    lengths = torch.randint(1, 6, (4,)).tolist()
    parts = [torch.randint(20, (1, n)) for n in lengths]
    numbers = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    mask = masks.segments(numbers) & masks.causal(sum(lengths))
    packed = decoder(torch.cat(parts, dim=1), mask=mask)
    alone = torch.cat([decoder(part) for part in parts], dim=1)
    assert torch.allclose(packed, alone, atol=1e-5)


def test_a_token_attends_to_its_latest_image_and_before_any_image_to_none():
    torch.manual_seed(0)
    block = GatedCrossAttention(8, 2, 16, memory_width=6)
    with torch.no_grad():
        block.gate1.fill_(0.5), block.gate2.fill_(0.5)
    marks = torch.tensor([0, 1, 0, 1, 0])  # a token that stands for an image
    declared = masks.cross(marks.cumsum(0), torch.tensor([1, 1, 2, 2, 2]))
    x, memory = torch.randn(1, 5, 8), torch.randn(1, 5, 6)
    assert torch.equal(effective_mask(lambda m: block(x, m, declared), memory), declared)
    assert not block.attention(block.norm1(x), declared, memory)[0, 0].any()


def test_gates_at_zero_change_nothing_and_still_learn():
    block = GatedCrossAttention(8, 2, 16, memory_width=6)
    x = torch.randn(2, 3, 8)
    out = block(x, torch.randn(2, 4, 6))
    assert torch.equal(out, x)
    out.sum().backward()
    assert block.gate1.grad.abs() > 0 and block.gate2.grad.abs() > 0


# Fusion

VISION = ViTConfig(image_size=(8, 8), patch=4, width=16, layers=1, heads=2, hidden=32)
TEXT = DecoderConfig(vocab_size=20, width=16, layers=2, heads=2, kv_heads=2, hidden=24)
FUSIONS = {
    "early": lambda: EarlyFusion(VISION, TEXT),
    "late": lambda: LateFusion(VISION, TEXT, 24),
    "cross": lambda: CrossFusion(VISION, TEXT, 24),
}


@pytest.mark.parametrize("name", FUSIONS)
def test_an_answer_does_not_depend_on_the_padding_of_its_question(name):
    torch.manual_seed(0)
    model, pixels = FUSIONS[name](), torch.randn(1, 3, 8, 8)
    question = torch.randint(20, (1, 4))
    padded = torch.cat([torch.full((1, 3), 9), question], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 4])
    alone = model(question, torch.ones(1, 4).long(), pixels)
    assert alone.shape == (1, 20)
    assert torch.allclose(alone, model(padded, mask, pixels), atol=1e-5)


@pytest.mark.parametrize("name", ["early", "late"])
def test_image_and_question_reach_the_answer_from_the_start(name):
    model, pixels = FUSIONS[name](), torch.randn(1, 3, 8, 8, requires_grad=True)
    question = torch.randint(20, (1, 4))
    (gradient,) = torch.autograd.grad(
        model(question, torch.ones_like(question), pixels).sum(), pixels
    )
    assert gradient.abs().sum() > 0


def test_cross_fusion_starts_as_its_language_model_alone():
    model = FUSIONS["cross"]()
    question = torch.randint(20, (2, 4))
    with_image = model(question, torch.ones_like(question), torch.randn(2, 3, 8, 8))
    assert torch.allclose(
        with_image, model.decoder(question, torch.ones_like(question))[:, -1], atol=1e-6
    )
