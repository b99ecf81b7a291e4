"""Rebuild data/scenes, pixel for pixel, and the contact sheet of its data card.

python tools/build_data.py
"""

import shutil
import textwrap
from pathlib import Path

import matplotlib

from minivlm import scenes
from minivlm.plotting import show_images
from minivlm.scenes.files import DATA, save
from minivlm.scenes.sampling import SPLITS

SEED = 0
SHEET = DATA / "contact_sheet.png"


def build(folder: Path) -> None:
    """Write the head of each split's stream into folder/<split>."""
    for split, count in SPLITS.items():
        shutil.rmtree(folder / split, ignore_errors=True)
        save(scenes.sample(count, SEED, split), folder / split)


def contact_sheet(path: Path, each: int = 6) -> None:
    """A row of scenes from each split with their captions."""
    shown = [(split, scene) for split in SPLITS for scene in scenes.load(split)[:each]]
    titles = [f"{split}\n{textwrap.fill(scene.caption, 24)}" for split, scene in shown]
    figure = show_images([scene.image for _, scene in shown], titles, columns=each, size=1.7)
    figure.savefig(path, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    matplotlib.use("agg")
    build(DATA / "scenes")
    contact_sheet(SHEET)
    print(f"wrote {sum(SPLITS.values())} scenes to {DATA.name}/scenes, and {SHEET.name}")
