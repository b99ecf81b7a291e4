"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: the reference's numbers, positions by hand, its mistakes."""

import json
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from minivlm.parts.decoder import visible
from minivlm.parts.generation import generate
from minivlm.parts.masks import causal
from minivlm.plotting import effective_mask
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.qwen2_vl import build_qwen, build_qwen2_vl, build_qwen3_vl, build_qwen25_vl
from minivlm.qwen2_vl import Qwen2VL, Qwen3VL, Qwen25VL, grid_positions, image_text, video_text

IMAGE, VIDEO = 58, 59
THEIRS = {
    "qwen2_vl": (Qwen2VLForConditionalGeneration, Qwen2VLConfig),
    "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig),
    "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen3VLConfig),
}
KINDS = list(THEIRS)


def reference(kind: str, seed: int) -> torch.nn.Module:
    """A random model of transformers, in every size at random, and with every weight random."""
    rng, (model_class, config_class) = Random(seed), THEIRS[kind]
    heads, groups = rng.choice([1, 2, 3]), rng.choice([1, 2])
    head_dim, sections = rng.choice([(8, [2, 1, 1]), (16, [3, 3, 2]), (24, [4, 4, 4])])
    text = {
        "hidden_size": heads * groups * head_dim,
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": heads * groups,
        "num_key_value_heads": heads,
        "intermediate_size": rng.choice([20, 33]),
        "vocab_size": 60,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": sections,
            "rope_theta": rng.choice([50.0, 1e4]),
        },
        "rms_norm_eps": rng.choice([1e-6, 1e-3]),
    }
    depth, vision_heads = rng.choice([1, 2, 3]), rng.choice([1, 2])
    width = vision_heads * rng.choice([8, 12])
    vision = {"depth": depth, "num_heads": vision_heads, "patch_size": rng.choice([2, 4])}
    if kind == "qwen2_vl":
        vision |= {
            "embed_dim": width,
            "hidden_size": text["hidden_size"],
            "mlp_ratio": rng.choice([2, 3]),
        }
    else:
        vision |= {
            "hidden_size": width,
            "out_hidden_size": text["hidden_size"],
            "intermediate_size": 22,
        }
    if kind == "qwen2_5_vl":
        vision |= {
            "window_size": vision["patch_size"] * rng.choice([2, 4, 6]),
            "fullatt_block_indexes": [1],
        }
        vision |= {"tokens_per_second": rng.choice([2, 3])}
    if kind == "qwen3_vl":
        text |= {
            "head_dim": head_dim + 8 * rng.choice([0, 1]),
            "attention_bias": rng.random() < 0.5,
        }
        vision |= {
            "num_position_embeddings": rng.choice([9, 25]),
            "deepstack_visual_indexes": [0, 2][:depth],
        }
    tied = rng.random() < 0.5
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    torch.manual_seed(seed)
    config = config_class(text_config=text, vision_config=vision, tie_word_embeddings=tied, **ids)
    model = model_class(config).eval()
    return randomised(model)


@torch.no_grad()
def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight is random, those of the norms about 1."""
    for name, parameter in model.named_parameters():
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.copy_(torch.randn(parameter.shape) * scale + is_norm)
    return model


def pixels(ours: Qwen2VL, grids: list) -> torch.Tensor:
    """Random patches for the grids."""
    c = ours.config.vision
    count = sum(t * h * w for t, h, w in grids)
    return torch.randn(
        count, c.channels * c.depth * c.patch**2, generator=torch.Generator().manual_seed(1)
    )


def run(token: int, grid: list[int]) -> list[int]:
    return [token] * (grid[0] * grid[1] * grid[2] // 4)


def padded(rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    gaps = [[0] * (longest - len(row)) for row in rows]
    ids = [gap + row if side == "left" else row + gap for gap, row in zip(gaps, rows, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [gap + one if side == "left" else one + gap for gap, one in zip(gaps, ones, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def kinds_of(ids: torch.Tensor) -> torch.Tensor:
    """The reference wants the modality of every token: 1 image, 2 video."""
    return (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


GRIDS = [[1, 4, 6], [1, 2, 2], [1, 10, 4]]


def prompts(ours: Qwen2VL, side: str) -> dict[str, torch.Tensor]:
    """Three rows with two images, one and none, of different sizes, padded on a side."""
    first, second, third = (run(IMAGE, grid) for grid in GRIDS)
    rows = [[1, *first, 3, 4, *second, 5], [7, 8, *third, 9], [2, 6, 4]]
    return padded(rows, side) | {
        "pixel_values": pixels(ours, GRIDS),
        "image_grid_thw": torch.tensor(GRIDS),
    }


def moving(ours: Qwen2VL, side: str) -> dict[str, torch.Tensor]:
    """Images and videos in one batch; so short that text goes on after their rows and columns."""
    image, videos = [1, 2, 4], [[2, 4, 4], [2, 2, 6]]
    runs = [run(VIDEO, videos[0]), run(VIDEO, videos[1])]
    if isinstance(ours, Qwen3VL):  # each pair of frames is a run of its own
        runs = [[*row[: len(row) // 2], 11, *row[len(row) // 2 :]] for row in runs]
    rows = [[1, 2, *runs[0], 3], [4, *run(IMAGE, image), 5, *runs[1], 6, 7]]
    given = {"pixel_values": pixels(ours, [image]), "image_grid_thw": torch.tensor([image])}
    given |= {"pixel_values_videos": pixels(ours, videos), "video_grid_thw": torch.tensor(videos)}
    if isinstance(ours, Qwen25VL):
        given |= {"second_per_grid_ts": torch.tensor([0.4, 0.9])}
    return padded(rows, side) | given


def load(theirs: torch.nn.Module, folder) -> Qwen2VL:
    theirs.save_pretrained(folder)
    return from_pretrained(folder)


@torch.no_grad()
def difference(ours: Qwen2VL, theirs: torch.nn.Module, given: dict, **more) -> float:
    """The largest difference of the logits at real tokens, where logits are of order 1."""
    expected = theirs(**given, mm_token_type_ids=kinds_of(given["input_ids"]), **more).logits
    assert (size := expected.std().item()) > 0.3
    wrong = (ours(**given) - expected) * given["attention_mask"][..., None]
    return wrong.abs().max().item() / max(1, size)


# Against the reference


@pytest.mark.parametrize("batch", [prompts, moving])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_positions_are_those_of_transformers(tmp_path, kind, seed, batch):
    theirs = reference(kind, seed)
    ours = load(theirs, tmp_path)
    for side in ("left", "right"):
        given = batch(ours, side)
        assert difference(ours, theirs, given) < 1e-5
        where = {key: value for key, value in given.items() if not key.startswith("pixel")}
        expected = theirs.model.get_rope_index(
            **where, mm_token_type_ids=kinds_of(given["input_ids"])
        )[0]
        assert torch.equal(ours.position_ids(**where), expected)


@pytest.mark.parametrize("batch", [prompts, moving])
@pytest.mark.parametrize("seed", [0, 5, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_ids_are_those_of_transformers_with_and_without_a_cache(tmp_path, kind, seed, batch):
    theirs = reference(kind, seed)
    ours = load(theirs, tmp_path)
    given = batch(ours, "left")
    length = given["input_ids"].shape[1]
    expected = theirs.generate(
        **given, mm_token_type_ids=kinds_of(given["input_ids"]), max_new_tokens=7, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )[:, length:]  # fmt: skip
    assert len(expected.unique()) > 2
    for side in ("left", "right"):
        given = batch(ours, side)
        assert torch.equal(generate(ours, max_new_tokens=7, **given), expected)
        if not {IMAGE, VIDEO} & set(expected.flatten().tolist()):
            assert torch.equal(generate(ours, max_new_tokens=7, use_cache=False, **given), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_text_alone_is_read_as_by_transformers(tmp_path, kind):
    theirs = reference(kind, 0)
    ours = load(theirs, tmp_path)
    for side in ("left", "right"):
        assert difference(ours, theirs, padded([[1, 2, 3, 4, 5], [6, 7]], side)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_write_transformers_reads(tmp_path, kind):
    theirs = reference(kind, 1)
    ours = load(theirs, tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    save_pretrained(ours, config, tmp_path / "ours")
    again, report = THEIRS[kind][0].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert difference(ours, again.eval(), prompts(ours, "left")) < 1e-5


# Positions


def positions_by_hand(tokens: list, interval: float = 1) -> list[tuple]:
    """Tokens: "text", or a grid (t, h, w) of them -> (time, row, column), by the paper's words."""
    found = []
    for token in tokens:
        start = max((max(place) for place in found), default=-1) + 1
        if token == "text":
            found.append((start,) * 3)
        else:
            t, h, w = token
            found += [
                (start + int(i * interval), start + j, start + k)
                for i in range(t)
                for j in range(h)
                for k in range(w)
            ]
    return found


def toy(model_class=Qwen2VL, **vision) -> Qwen2VL:
    """A random small model, from a config as it was published: flat, or nested in Qwen3-VL."""
    text = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 20, "vocab_size": 60, "rope_theta": 1e4,
        "head_dim": 8, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    tower = {"depth": 2, "num_heads": 2, "patch_size": 2, "spatial_patch_size": 2, "in_chans": 3}
    tower |= {
        "hidden_size": 16,
        "out_hidden_size": 16,
        "embed_dim": 16,
        "intermediate_size": 20,
        "window_size": 8,
    }
    tower |= {
        "num_position_embeddings": 9,
        "deepstack_visual_indexes": [0],
        "tokens_per_second": 2,
    } | vision
    config = {"vision_config": tower, "image_token_id": IMAGE, "video_token_id": VIDEO}
    torch.manual_seed(0)
    model = build_qwen(
        model_class, config | ({"text_config": text} if model_class is Qwen3VL else text)
    ).eval()
    return randomised(model)


def test_positions_of_text_image_text_video_text_are_those_of_the_paper():
    model = toy()
    ids = [1, 2, *run(IMAGE, [1, 4, 6]), 3, *run(VIDEO, [3, 4, 4]), 4, 5]
    got = model.position_ids(
        torch.tensor([ids]), torch.tensor([[1, 4, 6]]), video_grid_thw=torch.tensor([[3, 4, 4]])
    )  # fmt: skip
    assert got.shape == (3, 1, len(ids))
    expected = positions_by_hand(["text", "text", (1, 2, 3), "text", (3, 2, 2), "text", "text"])
    assert [tuple(column) for column in got[:, 0].T.tolist()] == expected
    assert expected[2] == (2, 2, 2) and expected[7] == (2, 3, 4) and expected[8] == (5, 5, 5)
    assert expected[9] == (6, 6, 6) and expected[20] == (8, 7, 7) and expected[21] == (9, 9, 9)


@pytest.mark.parametrize("seed", range(20))
def test_random_sequences_have_the_positions_of_a_loop_also_where_pictures_touch(seed):
    rng, model = Random(seed), toy(Qwen25VL)
    rows, tokens, images, videos, seconds = [], [], [], [], rng.choice([0.3, 1.0, 2.5])
    for _ in range(2):
        row, words = [], []
        for _ in range(rng.randint(1, 6)):
            t, h, w = rng.randint(1, 5), 2 * rng.randint(1, 4), 2 * rng.randint(1, 4)
            choice = rng.choice(["text", "image", "video"])
            if choice == "text":
                row, words = [*row, 1, 2], [*words, "text", "text"]
            else:
                grid = [1, h, w] if choice == "image" else [t, h, w]
                (images if choice == "image" else videos).append(grid)
                row += run(IMAGE if choice == "image" else VIDEO, grid)
                words.append((grid[0], h // 2, w // 2))
        rows.append(row)
        tokens.append(words)
    given = padded(rows, rng.choice(["left", "right"]))
    grids = [torch.tensor(grids) if grids else None for grids in (images, videos)]
    times = [seconds] * len(videos) if videos else None
    got = model.position_ids(
        given["input_ids"],
        grids[0],
        given["attention_mask"],
        video_grid_thw=grids[1],
        second_per_grid_ts=times,
    )
    for i, words in enumerate(tokens):
        kept = got[:, i, given["attention_mask"][i].bool()]
        assert [tuple(place) for place in kept.T.tolist()] == positions_by_hand(words, 2 * seconds)
        assert (got[:, i, ~given["attention_mask"][i].bool()] == 0).all()


def long_video(ours: Qwen2VL) -> dict[str, torch.Tensor]:
    """One row padded, one with a video whose time goes further than its rows and columns."""
    given = {
        "pixel_values_videos": pixels(ours, [[6, 4, 4]]),
        "video_grid_thw": torch.tensor([[6, 4, 4]]),
    }
    return padded([[1, 2, 3, *run(VIDEO, [6, 4, 4]), 4, 5], [7, 8, 9]], "left") | given


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_text_after_a_long_video_does_not_reuse_positions_as_it_does_in_transformers_5(
    tmp_path, kind
):
    """Paper (section 2.1), authors' code: what follows starts at the largest position plus 1.

    transformers 5.23.0 goes on after max(rows, columns), as if the video were one frame (4.57 did
    not); its text then has the positions of later frames. Given the right positions, its logits are
    ours.
    """
    theirs = reference(kind, 5)
    ours = load(theirs, tmp_path)
    given = long_video(ours)
    where = {key: value for key, value in given.items() if not key.startswith("pixel")}
    # one second from pair to pair
    steps = ours.config.vision.tokens_per_second if kind == "qwen2_5_vl" else 1
    expected = positions_by_hand(["text"] * 3 + [(6, 2, 2)] + ["text"] * 2, steps)
    got = ours.position_ids(**where)
    assert [tuple(place) for place in got[:, 0].T.tolist()] == expected
    assert expected[-2] == (3 + 5 * steps + 1,) * 3 and expected[-3][0] == 3 + 5 * steps
    wrong = theirs.model.get_rope_index(**where, mm_token_type_ids=kinds_of(given["input_ids"]))[0]
    assert wrong[:, 0, -2].tolist() == [5, 5, 5]
    assert torch.equal(wrong[:, 0, :-2], got[:, 0, :-2])
    assert difference(ours, theirs, given) > 1e-3
    assert difference(ours, theirs, given, position_ids=got) < 1e-5
    new = generate(ours, max_new_tokens=5, **given)
    assert len(new.unique()) > 2
    ids, mask = given["input_ids"], given["attention_mask"]
    for step in range(5):  # the reference, made to read everything again at our positions
        more = {"input_ids": ids, "attention_mask": mask}
        places = ours.position_ids(**where | more)
        read = theirs(**given | more, position_ids=places, mm_token_type_ids=kinds_of(ids))
        expected = read.logits[:, -1].argmax(1)
        assert torch.equal(new[:, step], expected)
        ids = torch.cat([ids, expected[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)


def test_qwen25s_time_counts_seconds():
    model = toy(Qwen25VL)
    ids, grid = torch.tensor([run(VIDEO, [4, 2, 2])]), torch.tensor([[4, 2, 2]])
    for seconds, times in (
        (1.0, [0, 2, 4, 6]),
        (0.5, [0, 1, 2, 3]),
        (0.7, [0, 1, 2, 4]),
        (None, [0, 2, 4, 6]),
    ):
        given = None if seconds is None else torch.tensor([seconds])
        got = model.position_ids(ids, video_grid_thw=grid, second_per_grid_ts=given)
        assert got[0, 0].tolist() == times and got[1:].sum() == 0
    with pytest.raises(ValueError, match="1 videos"):
        model.position_ids(ids, video_grid_thw=grid, second_per_grid_ts=[1.0, 2.0])
    with pytest.raises(ValueError, match="second_per_grid_ts"):
        toy().position_ids(ids, video_grid_thw=grid, second_per_grid_ts=[1.0])
    assert grid_positions((2, 1, 2), 1.5).tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_qwen3s_video_is_a_picture_for_each_pair_of_frames_and_its_time_is_text():
    text = video_text((3, 4, 4), [0.0, 0.5, 1.0, 1.5, 2.0])
    frame = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    assert text == f"<0.2 seconds>{frame}<1.2 seconds>{frame}<2.0 seconds>{frame}"
    assert image_text((1, 4, 6)) == "<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>"
    with pytest.raises(ValueError, match="3 pairs"):
        video_text((3, 4, 4), [0.0, 1.0, 2.0, 3.0])
    frames = 9
    stamps = Qwen3VLProcessor._calculate_timestamps(None, [3 * i for i in range(frames)], 7.0)
    ours = video_text((5, 2, 2), [3 * i / 7 for i in range(frames)])
    assert ours == "".join(
        f"<{stamp:.1f} seconds>{image_text((1, 2, 2), '<|video_pad|>')}" for stamp in stamps
    )
    model = toy(Qwen3VL)
    ids = torch.tensor([[1, *[VIDEO] * 4, 2, *[VIDEO] * 4, 3]])
    got = model.position_ids(ids, video_grid_thw=torch.tensor([[2, 4, 4]]))
    expected = positions_by_hand(["text", (1, 2, 2), "text", (1, 2, 2), "text"])
    assert [tuple(place) for place in got[:, 0].T.tolist()] == expected


@pytest.mark.parametrize("model_class", [Qwen2VL, Qwen25VL, Qwen3VL])
def test_a_chat_goes_on_in_the_cache_with_new_pictures(model_class):
    model, grids = toy(model_class), [[1, 4, 6], [1, 2, 8]]
    first, second = ([1, *run(IMAGE, grid), 2] for grid in grids)
    patches = pixels(model, grids)
    whole = model(torch.tensor([first + second]), patches, torch.tensor(grids))
    cache = model.new_cache()
    model(torch.tensor([first]), patches[:24], torch.tensor(grids[:1]), cache=cache)
    later = model(torch.tensor([second]), patches[24:], torch.tensor(grids[1:]), cache=cache)
    assert (later - whole[:, len(first) :]).abs().max() < 1e-5


def test_deepstack_adds_to_the_tokens_of_pictures_alone_and_matters():
    model, grid = toy(Qwen3VL, deepstack_visual_indexes=[0, 1]), torch.tensor([[1, 4, 6]])
    ids, patches = torch.tensor([[1, *run(IMAGE, [1, 4, 6]), 2, 3]]), pixels(model, [[1, 4, 6]])
    x, deep = model.embed(ids, {IMAGE: (patches, grid)})
    tokens, levels = model.vision(patches, grid)
    places = ids == IMAGE
    assert len(deep) == 2 and torch.equal(x[places], tokens) and not (deep[0][~places]).any()
    assert all(torch.equal(level[places], new) for level, new in zip(deep, levels, strict=True))
    states = {}
    for i, block in enumerate(model.decoder.blocks):
        block.register_forward_hook(lambda _, given, got, i=i: states.update({i: (given[0], got)}))
    model(ids, patches, grid)
    assert torch.equal(states[1][0], states[0][1] + deep[0])
    assert torch.equal(
        model.decoder.norm(states[1][1] + deep[1]) @ model.decoder.head.weight.T,
        model(ids, patches, grid),
    )


def test_the_language_model_is_causal_over_pictures_too():
    model, grid = toy(), torch.tensor([[1, 4, 6]])
    ids = torch.tensor([[1, *run(IMAGE, [1, 4, 6]), 2, 3]])
    x, _ = model.embed(ids, {IMAGE: (pixels(model, [[1, 4, 6]]), grid)})
    positions, mask = model.position_ids(ids, grid), visible(x)
    read = lambda x: model.run(x, [], positions, mask)
    assert torch.equal(effective_mask(read, x.detach()), causal(9))


# What does not fit


@pytest.mark.parametrize(
    "ids, grids, names",
    [
        ([[1, *[IMAGE] * 5]], [[1, 4, 6]], "5 placeholders .* takes 6"),
        ([[1, *[IMAGE] * 7]], [[1, 4, 6]], "1 placeholders .* no picture"),
        ([[*[IMAGE] * 3, 1, *[IMAGE] * 3]], [[1, 4, 6]], "3 placeholders"),
        ([[1, 2]], [[1, 4, 6]], "without placeholders"),
        ([[IMAGE]], [], "1 placeholders"),
        ([[VIDEO, *[IMAGE] * 6]], [[1, 4, 6]], f"id {VIDEO}"),
        ([[1, 60, *[IMAGE] * 6]], [[1, 4, 6]], "60"),
    ],
)
def test_pictures_and_placeholders_must_agree(ids, grids, names):
    model = toy()
    patches, grid = (pixels(model, grids), torch.tensor(grids)) if grids else (None, None)
    with pytest.raises(ValueError, match=names):
        model(torch.tensor(ids), patches, grid)


def test_patches_come_with_their_grids_and_masks_with_their_shapes():
    model, ids, grid = toy(), torch.tensor([[1, IMAGE]]), torch.tensor([[1, 2, 2]])
    for given in ({"pixel_values": torch.zeros(4, 24)}, {"image_grid_thw": grid}):
        with pytest.raises(ValueError, match="image_grid_thw"):
            model(ids, **given)
    for mask in (torch.ones(1, 3), torch.tensor([[1, 2]])):
        with pytest.raises(ValueError, match="attention_mask"):
            model(ids, torch.zeros(4, 24), grid, mask)


HUB = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 20, "vocab_size": 60, "rope_theta": 500.0, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "use_sliding_window": False, "sliding_window": 32768,
    "max_window_layers": 2, "tie_word_embeddings": True,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, "attention_dropout": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_as_published_on_the_hub_is_the_one_that_transformers_writes(tmp_path, kind):
    tower = {"depth": 2, "num_heads": 2, "patch_size": 4, "in_chans": 3, "spatial_patch_size": 4}
    if kind == "qwen2_vl":
        tower |= {
            "embed_dim": 16,
            "hidden_size": 16,
            "mlp_ratio": 2,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }
    else:
        tower |= {"hidden_size": 16, "out_hidden_size": 16, "intermediate_size": 20}
    if kind == "qwen2_5_vl":
        tower |= {
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "hidden_act": "silu",
        }
    flat = {
        "model_type": kind,
        "vision_config": tower,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
    } | HUB
    if kind == "qwen3_vl":
        tower |= {
            "num_position_embeddings": 9,
            "deepstack_visual_indexes": [0],
            "model_type": "qwen3_vl",
        }
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
        text = HUB | {"head_dim": 8, "rope_scaling": rope, "model_type": "qwen3_vl_text"}
        flat = {
            key: flat[key]
            for key in ("model_type", "vision_config", "image_token_id", "video_token_id")
        }
        flat |= {"text_config": text, "tie_word_embeddings": True}
    model_class, config_class = THEIRS[kind]
    torch.manual_seed(0)
    theirs = model_class(config_class.from_dict(json.loads(json.dumps(flat)))).eval()
    randomised(theirs).save_pretrained(tmp_path)
    nested = json.loads((tmp_path / "config.json").read_text())
    assert "text_config" in nested and "rope_parameters" in nested["text_config"]
    from_nested = from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(flat))
    ours = from_pretrained(tmp_path)
    assert (
        ours.config == from_nested.config
        and ours.decoder.head.weight is ours.decoder.embedding.weight
    )
    assert difference(ours, theirs, prompts(ours, "left")) < 1e-5
    names = load_file(tmp_path / "model.safetensors")
    if kind != "qwen3_vl":  # as published; transformers names them so in memory
        assert {name.split(".")[0] for name in names} == {"model", "visual"}
        new = {
            name.replace("model.", "model.language_model.").replace(
                "visual.", "model.visual."
            ): t.clone()
            for name, t in names.items()
        }
        save_file(new, tmp_path / "model.safetensors")
        assert torch.equal(
            from_pretrained(tmp_path)(torch.tensor([[1, 2]])), ours(torch.tensor([[1, 2]]))
        )
    new = names | {"visual.extra": torch.zeros(1)}
    save_file(new, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="visual.extra"):
        from_pretrained(tmp_path)
    gone = next(name for name in names if name.endswith("blocks.1.attn.qkv.bias"))
    save_file(
        {name: t for name, t in names.items() if name != gone}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match="missing tensor.*blocks.1.attn.qkv"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change, names",
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [2, 1, 1]}}, "yarn"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "dynamic"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, r"\[16, 24, 24\]"),
        (
            {
                "rope_scaling": {
                    "type": "mrope",
                    "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                }
            },
            "interleaved",
        ),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"hidden_act": "maxout"}, "maxout"),
        ({"hidden_size": 24, "head_dim": 8, "num_attention_heads": 3}, "16 wide.* 24"),
        ({"vision_config": {"patch_size": [14, 14]}}, "patch_size"),
        ({"vision_config": {"hidden_act": "maxout", "hidden_size": 16, "embed_dim": 16}}, "maxout"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "clip_vision_model"),
        ({"vision_config": {"in_chans": 1}}, "in_chans"),
        ({"vision_config": {"rope_parameters": {"rope_type": "linear"}}}, "linear"),
    ],
)
def test_unsupported_settings_are_refused_by_name(change, names):
    config = (
        HUB
        | {"vision_config": {"depth": 1, "hidden_size": 16, "embed_dim": 16, "num_heads": 2}}
        | change
    )
    with torch.device("meta"), pytest.raises(ValueError, match=names):
        build_qwen2_vl(config)


def test_unsupported_settings_of_the_later_towers_are_refused_by_name():
    with torch.device("meta"), pytest.raises(ValueError, match="window"):
        build_qwen25_vl(
            HUB | {"vision_config": {"depth": 1, "out_hidden_size": 16, "window_size": 14}}
        )
    with torch.device("meta"), pytest.raises(ValueError, match="num_position_embeddings = 10 "):
        build_qwen3_vl({"text_config": HUB, "vision_config": {"num_position_embeddings": 10}})


# The published sizes


def full_size(model_class: type, text: dict, vision: dict) -> Qwen2VL:
    with torch.device("meta"):
        return build_qwen(model_class, {"vision_config": vision, **text})


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def language(*sizes: int, **more) -> dict:
    """Width, layers, heads, key-value heads, hidden width, vocabulary."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    names += ("intermediate_size", "vocab_size")
    rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    return dict(zip(names, sizes, strict=True)) | {"rope_theta": 1e6, "rope_scaling": rope} | more


def test_full_size_models_have_the_published_number_of_parameters():
    tower = {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "patch_size": 14,
    }
    text = language(1536, 28, 12, 2, 8960, 151936, tie_word_embeddings=True)
    small = full_size(Qwen2VL, text, tower | {"hidden_size": 1536})
    assert (count(small), count(small.vision), count(small.vision.merger)) == (
        2_208_985_600,
        665_271_296,
        34_087_936,
    )
    large = full_size(
        Qwen2VL, language(3584, 28, 28, 4, 18944, 152064), tower | {"hidden_size": 3584}
    )
    assert (count(large), count(large.vision)) == (8_291_375_616, 675_759_104)

    tower = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
    }
    text = language(2048, 36, 16, 2, 11008, 151936, tie_word_embeddings=True)
    qwen25 = full_size(
        Qwen25VL, text, tower | {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
    )
    assert (count(qwen25), count(qwen25.vision)) == (3_754_622_976, 668_684_288)
    assert qwen25.config.vision.window == 8 and qwen25.config.sections == (16, 24, 24)

    tower = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
    }
    tower |= {
        "deepstack_visual_indexes": [5, 11, 17],
        "num_position_embeddings": 2304,
        "patch_size": 16,
    }
    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    text = language(2560, 36, 32, 8, 9728, 151936, head_dim=128, rope_theta=5e6, rope_scaling=rope)
    qwen3 = full_size(Qwen3VL, {"text_config": text, "tie_word_embeddings": True}, tower)
    assert (count(qwen3), count(qwen3.vision.deep)) == (4_437_815_808, 81_833_472)
