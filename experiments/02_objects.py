"""Colour and shape of one object, told by a small ViT: how it is read, and by patch size.

The same scenes and steps; only the named thing differs. Measured on the streams of test and
composition, whose colour-shape pairs no training shows. Some ten seconds a row on one core.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm import scenes
from minivlm.exercises.vit_lesson import single_objects, small_vit
from minivlm.parts.training import fit, minibatches
from minivlm.scenes.grammar import COLORS, SHAPES
from minivlm.vit import ViT, sincos_2d
from runner import Experiment, Measure, Settings, main

ROWS: dict[str, dict[str, Any]] = {
    "class token": {},
    "mean of patches": {"pool": "mean"},
    "no positions": {},
    "patches of 8": {"patch": 8},
    "patches of 32": {"patch": 32},
}
SPLITS = ("test", "composition")
KINDS = ("colour", "shape", "both")


def by_kind(model: ViT, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of the colours and of the shapes."""
    color, shape = model.classify(x).split([len(COLORS), len(SHAPES)], dim=1)
    return color, shape


def loss(model: ViT, batch: tuple[Tensor, Tensor]) -> Tensor:
    color, shape = by_kind(model, batch[0])
    return F.cross_entropy(color, batch[1][:, 0]) + F.cross_entropy(shape, batch[1][:, 1])


def prepare(settings: Settings) -> Measure:
    train = single_objects(scenes.sample(settings.train_scenes, seed=0))
    asked = {s: single_objects(scenes.sample(settings.test_scenes, 5, s)) for s in SPLITS}

    def measure(row: str, seed: int) -> dict[str, float]:
        changes = ROWS[row]
        side = 64 // changes.get("patch", 16)
        start = None if row == "no positions" else sincos_2d(side, side, 96, theta=10)
        outputs = len(COLORS) + len(SHAPES)
        model = small_vit(start, classes=outputs, seed=seed, **changes)
        batches = minibatches(*train, batch_size=min(64, len(train[0])), seed=seed)
        fit(model, batches, loss, settings.steps, muon_lr=0.01, seed=seed)
        figures = {}
        for split, (images, answers) in asked.items():
            with torch.no_grad():
                said = torch.stack([kind.argmax(dim=1) for kind in by_kind(model, images)], dim=1)
            right = said == answers
            shares = [*right.float().mean(dim=0).tolist(), right.all(dim=1).float().mean().item()]
            for kind, share in zip(KINDS, shares, strict=True):
                figures[f"{kind}, {split}"] = 100 * share
        return figures

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What does a small ViT read of one object, and does the way of reading it matter?",
    rows=[*ROWS],
    columns={f"{kind}, {split}": "% of right answers" for split in SPLITS for kind in KINDS},
    settings=Settings(steps=150, train_scenes=16_000, test_scenes=2500),
    prepare=prepare,
    notes="64 scenes a step. Of the scenes, those with one object.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
