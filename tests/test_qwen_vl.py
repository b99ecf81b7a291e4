"""Qwen-VL: resampler and image tower against torch's own layers, stages, packing, labels."""

from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minivlm import boxes, scenes
from minivlm.bpe import QWEN2_SPLIT, BPETokenizer
from minivlm.clip import VisionConfig
from minivlm.multimodal import IGNORE, answer_loss
from minivlm.parts import masks
from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.parts.generation import generate
from minivlm.plotting import effective_mask
from minivlm.qwen_vl import (
    BIGG,
    QWEN_VL_MARKS,
    ImageTower,
    QwenProcessor,
    QwenVL,
    Resampler,
    number_images,
    packed_logits,
    train_qwen_vl_stage,
)
from minivlm.scenes import tasks
from minivlm.scenes.questions import Question
from minivlm.vit import to_pixels


def scatter(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter drawn anew, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


# The resampler


def sincos_1d(width: int, index: np.ndarray) -> np.ndarray:
    angles = index.reshape(-1, 1) / 10_000 ** (np.arange(width // 2) / (width / 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def released_table(width: int, side: int) -> Tensor:
    """Half of the features from the column, then half from the row, as visual.py has it."""
    column, row = np.meshgrid(np.arange(side), np.arange(side))
    return torch.tensor(
        np.concatenate([sincos_1d(width // 2, column), sincos_1d(width // 2, row)], axis=1)
    ).float()


def reference(
    resampler: Resampler, image: Tensor, table: Tensor, key_table: Tensor
) -> tuple[Tensor, Tensor]:
    """Output and attention (B, h, Q, N) by nn.MultiheadAttention."""
    width, attention = resampler.queries.shape[1], resampler.attention
    theirs = nn.MultiheadAttention(width, attention.heads)
    parts = attention.q, attention.k, attention.v
    theirs.in_proj_weight = nn.Parameter(torch.cat([part.weight for part in parts]))
    theirs.in_proj_bias = nn.Parameter(torch.cat([part.bias for part in parts]))
    theirs.out_proj.load_state_dict(attention.out.state_dict())
    x = image if isinstance(resampler.kv_proj, nn.Identity) else image @ resampler.kv_proj.weight.T
    norm = lambda x, ln: F.layer_norm(x, (width,), ln.weight, ln.bias, 1e-6)
    x = norm(x, resampler.ln_kv).transpose(0, 1)  # (N, B, D)
    q = norm(resampler.queries, resampler.ln_q)[:, None].repeat(1, len(image), 1)
    out, maps = theirs(q + table[:, None], x + key_table[:, None], x, average_attn_weights=False)
    return out.transpose(0, 1), maps


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_the_resampler_is_the_released_one_computed_by_torch(seed):
    rng = Random(seed)
    heads, side, grid = rng.choice([1, 2, 3, 4]), rng.randint(1, 5), rng.randint(1, 8)
    width, batch = heads * 4 * rng.randint(1, 4), rng.randint(1, 3)
    memory = width if seed % 4 == 0 else rng.randint(3, 20)
    resampler = scatter(Resampler(memory, width, heads, side), seed)
    assert isinstance(resampler.kv_proj, nn.Identity) == (memory == width)  # as in visual.py
    table = released_table(width, side)
    square = table.T.reshape(1, width, side, side)
    keys = (
        F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)[0]
        .flatten(1)
        .T
    )
    image = torch.randn(batch, grid**2, memory)
    out, maps = reference(resampler, image, table, table if grid == side else keys)
    assert out.shape == (batch, side**2, width) and (resampler(image) - out).abs().max() < 1e-5
    assert (resampler.attention_maps(image) - maps).abs().max() < 1e-5
    assert maps.shape == (batch, heads, side**2, grid**2)


def test_keys_have_the_table_of_the_queries_resized_and_not_one_of_their_own():
    resampler = Resampler(8, 8, 2, side=4)
    assert torch.equal(resampler.key_positions(16), resampler.positions)
    own = released_table(8, 8)
    assert (resampler.key_positions(64) - own).abs().max() > 0.5
    assert (resampler.positions - released_table(8, 4)).abs().max() < 1e-6


def test_positions_in_one_dimension_tell_the_number_in_reading_order():
    resampler = Resampler(8, 12, 2, side=3, positions="1d")
    assert (
        resampler.positions - torch.tensor(sincos_1d(12, np.arange(9))).float()
    ).abs().max() < 1e-6
    keys = resampler.key_positions(36)
    assert keys.shape == (36, 12) and torch.equal(resampler.key_positions(9), resampler.positions)
    # the fastest pair: one radian a query, four keys a query
    angle = torch.atan2(keys[:, 0], keys[:, 6])[:12]
    assert (angle.diff() > 0).all() and (angle.diff().mean() - 0.25).abs() < 0.05


@pytest.mark.parametrize(("kind", "same"), [("2d", False), ("1d", False), ("none", True)])
@torch.no_grad()
def test_only_without_positions_the_order_of_the_patches_does_not_matter(kind, same):
    resampler, image = scatter(Resampler(6, 8, 2, side=2, positions=kind), 0), torch.randn(1, 9, 6)
    assert (
        torch.allclose(resampler(image), resampler(image[:, torch.randperm(9)]), atol=1e-5) == same
    )


@torch.no_grad()
def test_values_carry_no_positions():
    """With queries that ask for nothing, every output is the mean of the values anywhere."""
    resampler, image = scatter(Resampler(6, 8, 2, side=2), 0), torch.randn(1, 9, 6)
    resampler.attention.q.weight.zero_(), resampler.attention.q.bias.zero_()
    values = resampler.attention.v(resampler.ln_kv(resampler.kv_proj(image))).mean(
        dim=1, keepdim=True
    )
    assert torch.allclose(
        resampler(image), resampler.attention.out(values).expand(1, 4, 8), atol=1e-6
    )
    assert torch.allclose(resampler.attention_maps(image), torch.tensor(1 / 9))


def test_every_query_sees_every_patch():
    resampler = scatter(Resampler(6, 8, 2, side=2), 1)
    assert torch.equal(effective_mask(resampler, torch.randn(1, 9, 6)), torch.ones(4, 9).bool())
    maps = resampler.attention_maps(torch.randn(2, 9, 6))
    assert maps.shape == (2, 2, 4, 9) and torch.allclose(maps.sum(-1), torch.ones(2, 2, 4))


def test_what_the_resampler_cannot_read_is_refused():
    with pytest.raises(ValueError, match="8 patches"):
        Resampler(6, 8, 2, side=2)(torch.zeros(1, 8, 6))
    with pytest.raises(ValueError, match="'3d'"):
        Resampler(6, 8, 2, positions="3d")


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_full_size_has_the_published_parameters():
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig(8, width=4096, layers=0, heads=32, kv_heads=32, hidden=8))
        model = QwenVL(ImageTower(BIGG), decoder, token=9, heads=4096 // 128)
        assert count(model.resampler) == 75_005_952  # 0.08B in table 1
        assert count(model.resampler, model.norm, model.projection) == 91_791_360
        assert count(model.vision) == 1_842_770_688  # table 1 says 1.9B
        assert model.image_tokens == 256
        image = torch.empty(1, 1024, 1664)  # 448 x 448 pixels
        assert model.resampler(image).shape == (1, 256, 4096)


# The image tower


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_the_image_tower_is_the_released_one_computed_by_torch(seed):
    heads, layers, grid = [(1, 1, 4), (2, 2, 3), (4, 3, 6), (2, 1, 2)][seed]
    config = VisionConfig(
        16, patch=4, width=heads * 4, layers=layers, heads=heads, hidden=20, eps=1e-6, act="gelu"
    )
    tower, width = scatter(ImageTower(config), seed), heads * 4
    pixels = torch.randn(2, 3, 4 * grid, 4 * grid)
    x = F.conv2d(pixels, tower.patch.weight, stride=4)
    places = tower.positions.T.reshape(1, width, 4, 4)
    if grid != 4:
        places = F.interpolate(places, size=(grid, grid), mode="bicubic", align_corners=False)
    x = F.layer_norm(
        (x + places).flatten(2).transpose(1, 2),
        (width,),
        tower.pre_norm.weight,
        tower.pre_norm.bias,
        1e-6,
    )
    for block in tower.blocks:
        layer = nn.TransformerEncoderLayer(
            width, heads, 20, 0, "gelu", 1e-6, batch_first=True, norm_first=True
        ).eval()
        qkv = block.attention.q, block.attention.k, block.attention.v
        state = {
            "self_attn.in_proj_weight": torch.cat([part.weight for part in qkv]),
            "self_attn.in_proj_bias": torch.cat([part.bias for part in qkv]),
        }
        named = {
            "self_attn.out_proj": block.attention.out,
            "linear1": block.mlp.up,
            "linear2": block.mlp.down,
        }
        named |= {"norm1": block.norm1, "norm2": block.norm2}
        state |= {
            f"{name}.{key}": value
            for name, part in named.items()
            for key, value in part.state_dict().items()
        }
        layer.load_state_dict(state)
        x = layer(x)
    assert tower(pixels).shape == (2, grid**2, width) and (tower(pixels) - x).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 3, 8, 12), (1, 3, 10, 10)])
def test_images_that_are_no_squares_of_patches_are_refused(shape):
    tower = ImageTower(VisionConfig(16, patch=4, width=8, layers=1, heads=2, hidden=8))
    with pytest.raises(ValueError, match=f"{shape[2]} x {shape[3]}"):
        tower(torch.zeros(shape))


# The model

TOKENIZER = BPETokenizer.train(
    ["what is this? a red star. the blue star\nuser\nassistant\nsystem\n0123456789"],
    300,
    QWEN2_SPLIT,
    QWEN_VL_MARKS,
)
ID = TOKENIZER.special_tokens
TOWER = VisionConfig(8, patch=4, width=12, layers=1, heads=2, hidden=16, eps=1e-6, act="gelu")
WORDS = DecoderConfig(TOKENIZER.vocab_size, width=16, layers=2, heads=2, kv_heads=1, hidden=20)


def toy(vision: nn.Module | None = None, **options) -> QwenVL:
    torch.manual_seed(0)
    options = {"token": ID["<imgpad>"], "heads": 2, "side": 2} | options
    return scatter(QwenVL(vision or ImageTower(TOWER), Decoder(WORDS), **options), 0)


@torch.no_grad()
def test_resampled_images_are_at_their_places_after_norm_and_projection():
    vision = ImageTower(TOWER)
    model, pixels = toy(vision), torch.randn(3, 3, 8, 8)
    states = vision(pixels)
    assert states.shape == (3, 4, 12)
    norm = F.layer_norm(model.resampler(states), (16,), model.norm.weight, model.norm.bias, 1e-6)
    images = norm @ model.projection.weight.T
    run = [model.image_token_id] * 4
    ids = torch.tensor([[1, *run, 2, *run], [*run, 3, 4, 5, 6, 7, 8]])
    embeds = model.embed(ids, pixels)
    assert torch.allclose(embeds[0, 1:5], images[0], atol=1e-6)
    assert torch.allclose(embeds[0, 6:], images[1], atol=1e-6) and torch.allclose(
        embeds[1, :4], images[2], atol=1e-6
    )
    assert model(ids, pixels).shape == (2, 10, WORDS.vocab_size)
    assert torch.allclose(model(ids, pixels), model.decoder(embeds=embeds))
    assert model.attention_maps(pixels).shape == (3, 2, 4, 4)


def test_the_language_model_reads_causally():
    model, run = toy(), [ID["<imgpad>"]] * 4
    ids = torch.tensor([[1, *run, 2, 3]])
    x = model.embed(ids, torch.randn(1, 3, 8, 8)).detach()
    assert torch.equal(effective_mask(lambda x: model.decoder(embeds=x), x), masks.causal(7))


def test_generation_is_the_same_with_and_without_cache_and_padding():
    model, run, pixels = toy(), [ID["<imgpad>"]] * 4, torch.randn(3, 3, 8, 8)
    rows = [[1, *run, 2, *run, 3], [*run, 5]]
    ids = torch.tensor([row + [0] * (11 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (11 - len(row)) for row in rows])
    new = generate(model, ids, 6, attention_mask=mask, pixel_values=pixels)
    assert new.shape == (2, 6)
    assert torch.equal(
        new, generate(model, ids, 6, attention_mask=mask, pixel_values=pixels, use_cache=False)
    )
    alone = generate(model, torch.tensor([rows[1]]), 6, pixel_values=pixels[2:])
    assert torch.equal(new[1:], alone)
    with pytest.raises(ValueError, match="2 images take 8 placeholders"):
        model(torch.tensor([run]), pixels[:2])


def test_each_stage_trains_what_the_paper_trains():
    adapter = {"resampler", "norm", "projection"}
    trained = {
        1: {"vision"} | adapter,
        2: {"vision", "decoder"} | adapter,
        3: {"resampler", "decoder"},
    }
    model = toy()
    for stage in (3, 1, 2, 3, 2):
        train_qwen_vl_stage(model, stage)
        assert all(
            p.requires_grad == (n.split(".")[0] in trained[stage])
            for n, p in model.named_parameters()
        )
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        model(torch.tensor([[1, *[ID["<imgpad>"]] * 4, 2]]), torch.randn(1, 3, 8, 8)).pow(
            2
        ).mean().backward()
        optimizer.step()
        moved = {
            name.split(".")[0]
            for name, p in model.named_parameters()
            if not torch.equal(p, before[name])
        }
        assert moved == trained[stage]
        model.zero_grad()
    for stage in (0, 4):
        with pytest.raises(ValueError, match=str(stage)):
            train_qwen_vl_stage(model, stage)


# Messages and tasks

PICTURE = Image.new("RGB", (8, 8), "red")
IMAGE = {"type": "image"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def processor(**options) -> QwenProcessor:
    return QwenProcessor(TOKENIZER, 4, to_pixels, **options)


CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": [IMAGE, IMAGE, text("In Picture 2: <ref>the blue star</ref>")]},
    {"role": "assistant", "content": "<box>(12,34),(567,890)</box>"},
    {"role": "user", "content": [text("and here?\n"), IMAGE]},
    {"role": "assistant", "content": "a red star"},
]


def finetune(chat: list[dict], encode) -> tuple[list[int], list[int]]:
    """ids and labels by finetune.py: of a system or user turn, the marks alone are trained on."""
    ids, labels = [], []
    start, end, newline = ID["<|im_start|>"], ID["<|im_end|>"], TOKENIZER.encode("\n")
    for message in chat:
        role, content = TOKENIZER.encode(message["role"]), encode(message["content"])
        turn = [start] + role + newline + content + [end] + newline
        hidden = content if message["role"] == "assistant" else [IGNORE] * len(content)
        ids += turn
        labels += (
            [start] + [IGNORE] * len(role) + [IGNORE] * len(newline) + hidden + [end] + newline
        )
    return ids, labels


def encode(content: str | list[dict]) -> list[int]:
    """All marks are tokens; an image is its four places between <img> and </img>."""
    parts = [text(content)] if isinstance(content, str) else content
    image = "<img>" + "<imgpad>" * 4 + "</img>"
    return [
        i
        for part in parts
        for i in TOKENIZER.encode(image if part == IMAGE else part["text"], "all")
    ]


@pytest.mark.parametrize(
    "chat",
    [CHAT, number_images(CHAT), CHAT[1:], CHAT[:1]],
    ids=["plain", "numbered", "user", "system"],
)
def test_the_labels_are_those_of_the_released_finetune(chat):
    images = sum(
        part == IMAGE for m in chat if not isinstance(m["content"], str) for part in m["content"]
    )
    row = processor().prepare(chat, [PICTURE] * images)
    ids, labels = finetune(chat, encode)
    assert row["input_ids"][0].tolist() == ids and row["labels"][0].tolist() == labels
    trained = TOKENIZER.decode([i for i in labels if i != IGNORE])
    marks = {"system": "", "user": "", "assistant": "{}"}
    told = [marks[m["role"]].format(m["content"]) for m in chat]
    assert trained == "".join(f"<|im_start|>{said}<|im_end|>\n" for said in told)


def test_a_conversation_reads_as_the_released_one():
    row = processor().prepare(number_images(CHAT), [PICTURE] * 3)
    run = "<img><imgpad><imgpad><imgpad><imgpad></img>"
    assert TOKENIZER.decode(row["input_ids"][0].tolist()) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\nPicture 1: {run}\nPicture 2: {run}\n"
        "In Picture 2: <ref>the blue star</ref><|im_end|>\n"
        "<|im_start|>assistant\n<box>(12,34),(567,890)</box><|im_end|>\n"
        f"<|im_start|>user\nand here?\nPicture 3: {run}\n<|im_end|>\n"
        "<|im_start|>assistant\na red star<|im_end|>\n"
    )
    assert row["pixel_values"].shape == (3, 3, 8, 8)
    # nothing is changed in place
    assert CHAT[1]["content"][0] == IMAGE and number_images(CHAT)[0] is not CHAT[0]
    reply = processor().prepare(number_images(CHAT[:2]), [PICTURE] * 2, reply=True)
    assert TOKENIZER.decode(reply["input_ids"][0].tolist()).endswith(
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor().messages(row["input_ids"][0].tolist())[2] == CHAT[2]


def test_the_tags_of_boxes_are_tokens_and_other_marks_in_a_text_are_refused():
    chat = [{"role": "user", "content": "<ref>a</ref><box>(1,2),(3,4)</box>"}]
    ids = processor().prepare(chat)["input_ids"][0]
    assert {ID[tag] for tag in boxes.TAGS} <= set(ids.tolist())
    digits = TOKENIZER.encode("(123,4)")
    assert [TOKENIZER.decode([i]) for i in digits] == ["(", "1", "2", "3", ",", "4", ")"]
    for mark in ("<img>", "<imgpad>", "<|im_end|>", "<|endoftext|>"):
        chat = [{"role": "user", "content": f"say {mark}"}]
        with pytest.raises(ValueError, match=mark.replace("|", r"\|")):
            processor().prepare(chat)
        assert processor(refuse=False).prepare(chat)["input_ids"].shape[1] > 8


@pytest.mark.parametrize(
    ("asked", "prompt", "trained"),
    [
        (
            Question("what is this?", ("a star", "a red star"), "which"),
            "what is this? Answer:",
            " a star",
        ),
        (Question("Generate the caption in English:", ("a star",), "caption"), None, " a star"),
        (
            Question("<ref>the star</ref>", ("<box>(1,2),(3,4)</box>",), "grounding"),
            None,
            "<box>(1,2),(3,4)</box>",
        ),
        (
            Question("<ref>This</ref><box>(1,2),(3,4)</box> is", ("a star",), "referring"),
            None,
            " a star",
        ),
    ],
)
def test_a_task_is_an_image_a_prompt_and_an_answer_of_which_the_answer_and_the_end_are_trained_on(
    asked, prompt, trained
):
    row = processor().task(asked.text, asked.answer, PICTURE)
    open_row = processor().task(asked.text, asked.answer, PICTURE, reply=True)
    image = "<img><imgpad><imgpad><imgpad><imgpad></img>"
    ids, labels = row["input_ids"][0], row["labels"][0]
    assert TOKENIZER.decode(ids.tolist()) == f"{image}{prompt or asked.text}{trained}<|endoftext|>"
    assert TOKENIZER.decode(labels[labels != IGNORE].tolist()) == f"{trained}<|endoftext|>"
    assert torch.equal(labels[labels != IGNORE], ids[labels != IGNORE]) and row[
        "pixel_values"
    ].shape == (1, 3, 8, 8)
    assert torch.equal(open_row["input_ids"][0], ids[labels == IGNORE])


@torch.no_grad()
def test_packed_examples_of_every_kind_give_the_logits_that_each_gives_alone():
    p, model, rng = processor(), toy(), Random(0)
    found = scenes.sample(3, 0, label=2)
    rows = [
        p.task(asked.text, asked.answer, PICTURE) for s in found for asked in tasks.tasks(s, rng)
    ]
    chat = tasks.album(found, rng)[1]
    rows.append(p.prepare(number_images(chat), [PICTURE] * 3))
    for row in rows:
        row["pixel_values"].normal_()
    batch = p.pack(rows, max(row["input_ids"].shape[1] for row in rows) + 20)
    assert len(batch["input_ids"]) < len(rows) / 2 and len(batch["pixel_values"]) == len(rows) + 2
    logits, segment = packed_logits(model, batch), batch["segment_ids"]
    loss, trained = 0.0, 0
    for number, row in enumerate(rows):
        alone = model(row["input_ids"], row["pixel_values"])
        assert torch.allclose(logits[segment == number], alone[0], atol=1e-4)
        targets = (row["labels"][:, 1:] != IGNORE).sum()
        loss, trained = loss + answer_loss(alone, row["labels"]) * targets, trained + targets
    assert torch.allclose(answer_loss(logits, batch["labels"]), loss / trained, atol=1e-4)


def test_packed_examples_are_blocks_of_a_causal_mask():
    p, model = processor(), toy()
    rows = [p.task("what is this?", "a star", PICTURE) for _ in range(2)]
    one = rows[0]["input_ids"].shape[1]
    batch = p.pack(rows, 2 * one + 3)
    declared = (masks.segments(batch["segment_ids"])[0, 0]) & masks.causal(2 * one + 3)
    x = model.embed(batch["input_ids"], batch["pixel_values"]).detach()

    def read(y: Tensor) -> Tensor:
        model.embed = lambda ids, pixels: y
        return packed_logits(model, batch)

    assert torch.equal(effective_mask(read, x), declared) and not declared[one, :one].any()
