"""The toy CLIP and SigLIP, and their training started by torchrun."""

import os
import subprocess
import sys
from random import Random

import pytest
import torch

from minivlm import scenes
from minivlm.bpe import BPETokenizer
from minivlm.scenes import grammar
from minivlm.toys.clip import (
    END,
    PAD,
    hard_pair,
    hard_pair_in_order,
    sentence_pairs,
    sentences,
    toy,
)
from minivlm.vit import sincos_2d
from notebook_env import ROOT


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train(["a red circle"], vocab_size=260, special_tokens=(END, PAD))


def test_sentences_end_and_are_padded(tokenizer):
    end, pad = (tokenizer.special_tokens[name] for name in (END, PAD))
    short, long = tokenizer.encode("a"), tokenizer.encode("a red")
    rows = [[*short, end] + [pad] * (len(long) - len(short)), [*long, end]]
    assert sentences(["a", "a red"], tokenizer).tolist() == rows
    assert sentences(["a", "a red"], tokenizer, 9).tolist() == [
        row + [pad] * (9 - len(row)) for row in rows
    ]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_toy_starts_with_a_map_of_the_image(tokenizer, kind):
    model = toy(kind, tokenizer, 9)
    assert torch.equal(model.vision.positions[-16:, :16], 4 * sincos_2d(4, 4, 16, theta=10))
    assert model.encode_text(sentences(["a red"], tokenizer, 9)).shape == (1, 96)


def test_three_processes_train_and_say_so():
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "3",
    ]
    command += ["-m", "minivlm.toys.clip", "--kind", "siglip", "--steps", "2", "--batch", "6"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "last loss on this process" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "names"),
    [
        (["--batch", "0"], {}, "--batch must be 1 or more, got 0"),
        (["--steps", "-1"], {}, "--steps must be 1 or more, got -1"),
        ([], {"MINIVLM_DEVICE": "gpu"}, "gpu"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(arguments, environment, names):
    done = subprocess.run(
        [sys.executable, "-m", "minivlm.toys.clip", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert names in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("split", ["train", "composition"])
def test_of_two_sentences_the_first_is_true_and_the_second_false(split):
    found, kinds = scenes.sample(200, seed=3, split=split), set()
    for scene in found:
        pairs = sentence_pairs(scene)
        kinds |= pairs.keys()
        for kind, (true, false) in pairs.items():
            if kind != "negation":  # which no caption says, so the grammar does not know it
                assert scenes.is_true(true, scene) and not scenes.is_true(false, scene)
    assert len(kinds) == 6


def test_hard_pairs_name_the_objects_in_the_order_they_promise():
    rng, found = Random(0), scenes.sample(400, seed=3)
    for draw, low, high in ((hard_pair, 0.4, 0.6), (hard_pair_in_order, 0.7, 0.95)):
        told = [grammar.parse(draw(scene, rng)[0])[1] for scene in found]
        told = [relation for relation in told if relation]
        share = sum(relation in ("left of", "above") for relation in told) / len(told)
        assert low < share < high
