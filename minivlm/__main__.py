"""python -m minivlm: train a captioner for a minute, then caption pictures that it never saw.

python -m minivlm caption IMAGE...: caption picture files with the captioner that was trained.
"""

import argparse
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from minivlm import scenes
from minivlm.captioner import Captioner, train_captioner

FOLDER = Path("runs/captioner")


def demo() -> None:
    """Train, judge on both held-out splits, show, save."""
    torch.set_num_threads(1)  # sums depend on the number of threads: with one, a run repeats on the same machine
    print("A vision-language model from scratch: image tower, projector, language model.")
    print("Drawing 8,000 training scenes, then training on one core for about a minute ...")
    start = time.perf_counter()
    captioner, history = train_captioner()
    parameters = sum(p.numel() for p in captioner.model.parameters())
    print(f"{parameters:,} parameters, {len(history['loss'])} steps, {time.perf_counter() - start:.0f} s\n")
    shown = [report(captioner, split) for split in ("test", "composition")]
    captioner.save(FOLDER)
    save_figure([row for rows in shown for row in rows], FOLDER / "captions.png")
    print(f"Figure: {FOLDER / 'captions.png'}    Checkpoint: {FOLDER}")
    print("Your own picture of flat shapes: python -m minivlm caption IMAGE...")
    print("How it works, from the first byte: jupyter lab notebooks/01_bpe_tokenizer.ipynb")


def report(captioner: Captioner, split: str, show: int = 4) -> list[tuple[str, scenes.Scene, str, bool]]:
    """Print the share of true captions on a split of data/scenes, beside a baseline, with a few examples."""
    held_out = scenes.load(split)
    said = captioner.caption([scene.image for scene in held_out])
    true = [scenes.is_true(text, scene) for text, scene in zip(said, held_out, strict=True)]
    others = held_out[1:] + held_out[:1]
    chance = sum(scenes.is_true(b.caption, a) for a, b in zip(held_out, others, strict=True))
    meaning = {"test": "like the training scenes", "composition": "colour-shape pairs never seen in training"}
    print(f"{split} ({meaning[split]}): {sum(true)} of {len(true)} captions true = {sum(true) / len(true):.1%}")
    print(f"  another scene's caption instead: {chance / len(true):.1%}")
    rows = [(split, *row) for row in zip(held_out, said, true, strict=True)]
    wrong = [row for row in rows if not row[3]][:1]
    shown = [row for row in rows if row[3]][: show - len(wrong)] + wrong
    for _, _, text, verdict in shown:
        print(f"  {'true ' if verdict else 'FALSE'}  {text}")
    print()
    return shown


def save_figure(rows: Sequence[tuple[str, scenes.Scene, str, bool]], path: Path) -> None:
    """The pictures with what the model says and the verdict."""
    import matplotlib

    matplotlib.use("agg")
    from minivlm.plotting import show_images

    titles = [f"{split}: {'true' if ok else 'FALSE'}\n{textwrap.fill(text, 26)}" for split, _, text, ok in rows]
    show_images([scene.image for _, scene, _, _ in rows], titles, columns=4, size=2).savefig(path, dpi=120)


def caption_files(paths: Sequence[str]) -> int:
    """Caption files one by one; a file that is no picture gets one line on stderr, the others still run."""
    try:
        captioner = Captioner.load(FOLDER)
    except ValueError as error:
        print(f"no captioner to use ({error}); train one: python -m minivlm", file=sys.stderr)
        return 2
    failed = 0
    for path in paths:
        try:
            with Image.open(path) as image:
                print(f"{path}: {captioner.caption([image])[0]}")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            failed += 1
            print(f"{path}: not a picture that can be read ({error})", file=sys.stderr)
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minivlm", description=__doc__.split("\n")[0].partition(": ")[2])
    commands = parser.add_subparsers(dest="command")
    caption = commands.add_parser("caption", help="caption picture files with the captioner that was trained")
    caption.add_argument("images", nargs="+", metavar="IMAGE")
    chosen = parser.parse_args(arguments)
    if chosen.command == "caption":
        return caption_files(chosen.images)
    demo()
    return 0


if __name__ == "__main__":
    sys.exit(main())
