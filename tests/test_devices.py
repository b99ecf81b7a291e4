"""Trainings that run on another device than the one their data and masks are made on."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import minivlm
from minivlm.parts.training import fit
from minivlm.toys import decoder


class Traveller(nn.Linear):
    """Says where it was moved to."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.moves: list[str] = []

    def to(self, device: torch.device) -> "Traveller":
        self.moves.append(str(device))
        return self


def test_a_model_comes_back_to_its_device_after_training():
    model = Traveller()
    fit(model, [torch.ones(3, 2)], lambda m, batch: m(batch).mean(), 2, device="cpu:0")
    assert model.moves == ["cpu:0", "cpu"] and not model.training


def test_a_model_without_parameters_is_still_refused_by_what_it_lacks():
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        fit(nn.Module(), [torch.ones(3, 2)], lambda m, batch: batch.mean(), 2)


def logits_alone(logits: Tensor, labels: Tensor) -> Tensor:
    """In the place of the loss: meta tensors have no numbers that it could look at."""
    return logits


def test_packed_rows_have_their_mask_on_their_own_device(monkeypatch):
    monkeypatch.setattr(decoder, "answer_loss", logits_alone)
    batch = tuple(torch.zeros(2, 6, dtype=torch.long, device="meta") for _ in range(4))
    mask = decoder.packed_loss(lambda ids, mask, positions: mask, batch)
    assert mask.device.type == "meta" and mask.shape == (2, 1, 6, 6)


def test_a_mask_that_is_joined_with_another_goes_to_the_same_device():
    joined = re.compile(r"& causal\((?!.*\.to\()")
    found = {
        path.name: line.strip()
        for path in sorted(Path(minivlm.__file__).parent.rglob("*.py"))
        if path.parent.name != "exercises"  # what a reader writes is checked on the CPU
        for line in path.read_text(encoding="utf-8").splitlines()
        if joined.search(line) and "``" not in line
    }
    assert not found
    assert joined.search("mask = segments(rows) & causal(length)")
