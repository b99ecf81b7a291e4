"""What a small ViT needs to tell left from right: positions, and how large they start.

Two objects of two colours: is the one whose colour comes first left or right of the other? The same
scenes and steps; the rows differ in where the table of positions starts, the last one in the size
of the patches. Measured on the streams of test and composition. Some ten seconds a row on one core.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minivlm import scenes
from minivlm.exercises.vit_lesson import EMPTY, left_or_right, small_vit
from minivlm.parts.training import fit, minibatches
from minivlm.vit import ViT, sincos_2d
from runner import Experiment, Measure, Settings, main

ROWS = {  # name -> root mean square of the table at the start, sine and cosine, patch size
    "none": (0.0, False, 16),
    "random, 0.02": (0.02, False, 16),
    "sin-cos, 0.07": (0.07, True, 16),
    "random, 0.7": (0.7, False, 16),
    "sin-cos, 0.7": (0.7, True, 16),
    "sin-cos, 0.7, patches of 32": (0.7, True, 32),
}
SPLITS = ("test", "composition")


def start(row: str, seed: int) -> Tensor | None:
    """The table (N, 96) at the start; nothing for the row without positions."""
    size, wave, patch = ROWS[row]
    side = 64 // patch
    if wave:
        table = sincos_2d(side, side, 96, theta=10)
        return table * (size / 0.7)
    noise = torch.randn(side * side, 96, generator=torch.Generator().manual_seed(seed))
    return size * noise if size else None


def in_both_halves(images: Tensor) -> Tensor:
    """Which images (B, 3, H, W) have something in each half, left and right: (B,)."""
    columns = (images.abs().amax(dim=(1, 2)) > EMPTY).unflatten(1, (2, -1))
    return columns.any(dim=2).all(dim=1)


def loss(model: ViT, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model.classify(batch[0]), batch[1])


def prepare(settings: Settings) -> Measure:
    train = left_or_right(scenes.sample(settings.train_scenes, seed=0))
    asked = {s: left_or_right(scenes.sample(settings.test_scenes, 5, s)) for s in SPLITS}

    def measure(row: str, seed: int) -> dict[str, float]:
        model = small_vit(start(row, seed), classes=2, patch=ROWS[row][2], seed=seed)
        batches = minibatches(*train, batch_size=min(64, len(train[0])), seed=seed)
        losses = fit(model, batches, loss, settings.steps, muon_lr=0.01, seed=seed)["loss"]
        figures = {"mean loss": sum(losses) / len(losses)}
        with torch.no_grad():
            for split, (images, answers) in asked.items():
                right = (model.classify(images).argmax(dim=1) == answers).float()
                apart = in_both_halves(images)
                figures[split] = 100 * right.mean().item()
                figures[f"{split}, objects in one half"] = 100 * right[~apart].mean().item()
                figures[f"{split}, objects in both"] = 100 * right[apart].mean().item()
        return figures

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="Which positions let a small ViT tell left from right?",
    rows=[*ROWS],
    columns={
        f"{split}{part}": "% of right answers; a coin has 50"
        for split in SPLITS
        for part in ("", ", objects in one half", ", objects in both")
    }
    | {"mean loss": "over all steps of the training"},
    settings=Settings(steps=200, train_scenes=16_000, test_scenes=2500),
    prepare=prepare,
    notes="64 scenes a step. Of the scenes, those with two objects of two colours in two columns.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
