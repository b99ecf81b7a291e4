"""The drills before language: what can be known of their ids, and that a decoder learns it."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivlm.multimodal import IGNORE
from minivlm.parts.decoder import Decoder
from minivlm.toys import drills
from minivlm.toys.decoder import language_config

sizes = st.integers(1, 6), st.integers(1, 6), st.integers(12, 60)


@given(*sizes)
@settings(max_examples=30, deadline=None)
def test_a_repeated_sequence_can_be_known_from_its_second_id_on(rows: int, pairs: int, ids: int):
    drawn, labels = drills.repeat(rows, pairs, ids)
    first, second = drawn.chunk(2, dim=1)
    assert torch.equal(first, second) and drawn.max() < ids
    assert all(len(set(row.tolist())) == 2 * pairs for row in first)
    assert (labels == IGNORE).sum(dim=1).tolist() == [2 * pairs + 1] * rows
    assert torch.equal(labels[:, 2 * pairs + 1 :], second[:, 1:])


@given(*sizes)
@settings(max_examples=30, deadline=None)
def test_each_recalled_value_stood_before_its_key_in_the_list(rows: int, pairs: int, ids: int):
    drawn, labels = drills.recall(rows, pairs, ids)
    for row, label in zip(drawn.tolist(), labels.tolist(), strict=True):
        listed, asked = row[: 2 * pairs], row[2 * pairs :]
        value_of = dict(zip(listed[1::2], listed[::2], strict=True))
        assert sorted(asked[::2]) == sorted(value_of)
        assert asked[1::2] == [value_of[key] for key in asked[::2]]
        assert label == [IGNORE] * (2 * pairs) + [x for v in asked[1::2] for x in (IGNORE, v)]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 6), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_later_recall_has_fillers_and_marks_and_asks_for_every_value(rows, pairs, gap, seed):
    ids = 70
    drawn, labels = drills.recall_later(rows, pairs, ids, gap, Random(seed))
    for row, label in zip(drawn.tolist(), labels.tolist(), strict=True):
        listed, rest = row[: 2 * pairs], row[2 * pairs :]
        value_of = dict(zip(listed[1::2], listed[::2], strict=True))
        marks = [i for i, token in enumerate(rest) if token == ids - 1]
        assert len(marks) == 2 * pairs and max(listed) < ids - 1 - drills.FILLERS
        for before_key, before_value in zip(marks[::2], marks[1::2], strict=True):
            value = 2 * pairs + before_value + 1
            assert row[value] == value_of[rest[before_key + 1]] == label[value]
            assert before_value - before_key - 2 <= gap
        assert sum(token != IGNORE for token in label) == pairs


def test_more_pairs_than_there_are_ids_are_refused():
    with pytest.raises(ValueError, match="4 pairs of different ids cannot be drawn from 7"):
        drills.random_pairs(2, 4, 7)


def test_a_vocabulary_too_small_for_the_drills_is_refused():
    with pytest.raises(ValueError, match="a vocabulary of 20 is too small"):
        drills.drill(Decoder(language_config(20)), (1, 1, 1))


def test_the_first_drill_teaches_a_decoder_to_repeat():
    torch.manual_seed(0)
    model = Decoder(language_config(60))
    drills.drill(model, (300, 0, 0))
    torch.manual_seed(1)
    batch = drills.repeat(200, 2, 60)
    torch.manual_seed(0)
    untrained = Decoder(language_config(60))
    assert drills.recalled(untrained, batch) < 0.1 < 0.5 < drills.recalled(model, batch)


def test_the_drills_are_the_same_for_the_same_seed():
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Decoder(language_config(60)))
        drills.drill(models[-1], (2, 2, 2), seed=3)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
