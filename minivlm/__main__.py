"""python -m minivlm: train a captioner for a minute, then caption pictures that it never saw.

python -m minivlm caption IMAGE...: caption picture files with the captioner that was trained.
python -m minivlm ask IMAGE "what colour is the star?": answer a question with a small LLaVA.
Both take --checkpoint FOLDER for another model.
"""

import argparse
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from minivlm import scenes
from minivlm.speaking import Speaker, open_checkpoint
from minivlm.toys.captioner import Captioner, train_captioner
from minivlm.toys.common import FROZEN

FOLDER, ASSISTANT = Path("runs/captioner"), FROZEN / "llava"


def demo() -> None:
    """Train, judge on both held-out splits, show, save."""
    torch.set_num_threads(
        1
    )  # sums depend on the number of threads: with one, a run repeats on the same machine
    print("A vision-language model from scratch: image tower, projector, language model.")
    print("Drawing 8,000 training scenes, then training on one core for about a minute ...")
    start = time.perf_counter()
    captioner, history = train_captioner()
    parameters = sum(p.numel() for p in captioner.model.parameters())
    print(
        f"{parameters:,} parameters, {len(history['loss'])} steps, {time.perf_counter() - start:.0f} s\n"
    )
    shown = [report(captioner, split) for split in ("test", "composition")]
    captioner.save(FOLDER)
    save_figure([row for rows in shown for row in rows], FOLDER / "captions.png")
    print(f"Figure: {FOLDER / 'captions.png'}    Checkpoint: {FOLDER}")
    print("Your own picture of flat shapes: python -m minivlm caption IMAGE...")
    print("How it works, from the first byte: jupyter lab notebooks/01_bpe_tokenizer.ipynb")


def report(
    captioner: Captioner, split: str, show: int = 4
) -> list[tuple[str, scenes.Scene, str, bool]]:
    """Print the share of true captions on a split of data/scenes, beside a baseline, with a few
    examples.
    """
    held_out = scenes.load(split)
    said = captioner.caption([scene.image for scene in held_out])
    true = [scenes.is_true(text, scene) for text, scene in zip(said, held_out, strict=True)]
    others = held_out[1:] + held_out[:1]
    chance = sum(scenes.is_true(b.caption, a) for a, b in zip(held_out, others, strict=True))
    meaning = {
        "test": "like the training scenes",
        "composition": "colour-shape pairs never seen in training",
    }
    print(
        f"{split} ({meaning[split]}): {sum(true)} of {len(true)} captions true = {sum(true) / len(true):.1%}"
    )
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

    titles = [
        f"{split}: {'true' if ok else 'FALSE'}\n{textwrap.fill(text, 26)}"
        for split, _, text, ok in rows
    ]
    show_images([scene.image for _, scene, _, _ in rows], titles, columns=4, size=2).savefig(
        path, dpi=120
    )


def speaker(folder: Path, remedy: str) -> Speaker | None:
    """The checkpoint, or a line on stderr that says why there is none."""
    try:
        return open_checkpoint(folder)
    except ValueError as error:
        print(f"no model to use ({error}){remedy}", file=sys.stderr)
        return None


def caption_files(paths: Sequence[str], folder: Path | None = None) -> int:
    """Caption files one by one; a file that is no picture gets one line on stderr, the others still
    run.
    """
    model = speaker(folder or FOLDER, "" if folder else "; train one: python -m minivlm")
    if model is None:
        return 2
    return 1 if sum(not attempt(path, model.caption, f"{path}: ") for path in paths) else 0


def ask_about(path: str, question: str, folder: Path | None = None) -> int:
    """Answer a question about a picture file."""
    model = speaker(folder or ASSISTANT, "")
    if model is None:
        return 2
    return 0 if attempt(path, lambda image: model.ask(image, question)) else 1


def attempt(path: str, speak: Callable[[Image.Image], str], label: str = "") -> bool:
    """Print what is said of a picture file, or one line on stderr; whether it went well."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        print(f"{path}: not a picture that can be read ({error})", file=sys.stderr)
        return False
    try:
        print(f"{label}{speak(image)}")
    except ValueError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m minivlm", description=__doc__.split("\n")[0].partition(": ")[2]
    )
    commands = parser.add_subparsers(dest="command")
    caption = commands.add_parser(
        "caption", help="caption picture files with the captioner that was trained"
    )
    caption.add_argument("images", nargs="+", metavar="IMAGE")
    ask = commands.add_parser("ask", help="answer a question about a picture file")
    ask.add_argument("image", metavar="IMAGE")
    ask.add_argument("question", metavar="QUESTION")
    for command, default in ((caption, FOLDER), (ask, ASSISTANT.relative_to(ASSISTANT.parents[2]))):
        about = f"folder of a checkpoint that from_pretrained reads (default: {default})"
        command.add_argument("--checkpoint", type=Path, metavar="FOLDER", help=about)
    chosen = parser.parse_args(arguments)
    if chosen.command == "caption":
        return caption_files(chosen.images, chosen.checkpoint)
    if chosen.command == "ask":
        return ask_about(chosen.image, chosen.question, chosen.checkpoint)
    demo()
    return 0


if __name__ == "__main__":
    sys.exit(main())
