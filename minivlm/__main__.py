"""python -m minivlm: train a captioner for three minutes, then caption pictures that it never saw.

python -m minivlm caption IMAGE...: caption picture files with the captioner that was trained.
python -m minivlm ask IMAGE... "what colour is the star?": answer a question with a small LLaVA.
python -m minivlm ask IMAGE: a conversation; questions are read line by line, to the end of input.
python -m minivlm search "a red star" IMAGE...: rank picture files by a text, with a small CLIP.
python -m minivlm compare IMAGE... "a star" "a circle": which of the texts fits a picture.
All take --checkpoint FOLDER for another model, also a published one, and --dtype.
"""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C ends at once. An exception would be a traceback while torch is imported, and would be
    # swallowed where Python is clearing up. Nothing is lost: files are replaced whole or not.
    signal.signal(signal.SIGINT, lambda *_: os.write(2, b"stopped\n") and os._exit(130))

import argparse
import io
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError

from minivlm import commands, scenes
from minivlm.commands import (
    ASSISTANT,
    PAIRS,
    Wanted,
    ask_about,
    caption_files,
    compare_files,
    complain,
    printable,
    search_files,
)
from minivlm.parts.training import default_device
from minivlm.pretrained.config import Number
from minivlm.toys.captioner import Captioner, train_captioner

ROOM = 2**23  # bytes: more than the demo writes


def demo() -> int:
    """Train, judge on both held-out splits, show, save."""
    try:
        check_device()
        check_place(commands.CAPTIONER)
    except ValueError as error:
        complain(str(error))
        return 2
    # Sums depend on the number of threads: with one, a run repeats on the same machine.
    torch.set_num_threads(1)
    print("A vision-language model from scratch: image tower, projector, language model.")
    print("Drawing 24,000 training scenes, then training on one core for about three minutes ...")
    start = time.perf_counter()
    captioner, history = train_captioner()
    parameters = sum(p.numel() for p in captioner.model.parameters())
    seconds = time.perf_counter() - start
    print(f"{parameters:,} parameters, {len(history['loss'])} steps, {seconds:.0f} s\n")
    shown = judge(captioner, "test") + judge(captioner, "composition")
    try:
        captioner.save(commands.CAPTIONER)
        save_figure(shown, commands.CAPTIONER / "captions.png")
    except (OSError, SafetensorError) as error:
        complain(f"the captioner is not saved in {commands.CAPTIONER}: {error}")
        return 1
    print(f"Figure: {commands.CAPTIONER / 'captions.png'}    Checkpoint: {commands.CAPTIONER}")
    print("Your own picture of flat shapes: python -m minivlm caption IMAGE...")
    print("How it works, from the first token: jupyter lab notebooks/00_language_model.ipynb")
    return 0


def check_device() -> None:
    """ValueError where there is no such device as training will use."""
    try:
        torch.zeros(1, device=default_device()).item()  # "meta" makes tensors, without numbers
    except (RuntimeError, AssertionError) as error:  # torch raises either
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"the device of MINIVLM_DEVICE cannot be used: {reason}") from None


def check_place(folder: Path) -> None:
    """Make the folder; ValueError where what is trained could not be saved there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder.parent, folder):
            with tempfile.TemporaryFile(dir=place) as probe:
                probe.write(bytes(ROOM))
                probe.flush()
                os.fsync(probe.fileno())
    except OSError as error:
        raise ValueError(f"nothing can be saved in {folder}: {error}") from None


MEANING = {  # of a split
    "test": "like the training scenes",
    "composition": "colour-shape pairs never seen in training",
}


@dataclass
class Judged:
    """What the model says of a scene, and whether it is true."""

    split: str
    scene: scenes.Scene
    caption: str
    true: bool


def judge(captioner: Captioner, split: str, show: int = 4) -> list[Judged]:
    """Print the share of true captions on a split of data/scenes, beside a baseline; the examples
    that are shown.
    """
    held_out = scenes.load(split)
    said = captioner.caption([scene.image for scene in held_out])
    judged = [
        Judged(split, scene, text, scenes.is_true(text, scene))
        for text, scene in zip(said, held_out, strict=True)
    ]
    count, true = len(judged), sum(each.true for each in judged)
    others = held_out[1:] + held_out[:1]
    chance = sum(scenes.is_true(b.caption, a) for a, b in zip(held_out, others, strict=True))
    print(f"{split} ({MEANING[split]}): {true} of {count} captions true = {true / count:.1%}")
    print(f"  another scene's caption instead: {chance / count:.1%}")
    wrong = [each for each in judged if not each.true][:1]
    shown = [each for each in judged if each.true][: show - len(wrong)] + wrong
    for each in shown:
        print(f"  {'true ' if each.true else 'FALSE'}  {each.caption}")
    print()
    return shown


def save_figure(shown: Sequence[Judged], path: Path) -> None:
    """The images with what the model says and the verdict."""
    import matplotlib

    matplotlib.use("agg")
    from minivlm.plotting import show_images

    titles = [
        f"{each.split}: {'true' if each.true else 'FALSE'}\n{textwrap.fill(each.caption, 26)}"
        for each in shown
    ]
    figure = show_images([each.scene.image for each in shown], titles, columns=4, size=2)
    figure.savefig(path, dpi=120)


class Parser(argparse.ArgumentParser):
    """One that says what is wrong without repeating control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HOW = {  # of speaking: what it is, and which numbers it may be
    "max_tokens": ("the longest answer, in tokens", Number(1, 2**20)),
    "temperature": ("0, the default, is the likeliest word", Number(0, 1e3, whole=False)),
    "top_p": ("draw from the likeliest words of this share", Number(1e-6, 1, whole=False)),
    "seed": ("of a draw", Number(0, 2**63 - 1)),
}


def arguments_parser() -> argparse.ArgumentParser:
    about = __doc__.split("\n")[0].partition(": ")[2]
    parser = Parser(prog="python -m minivlm", description=about)
    kinds = parser.add_subparsers(dest="command")
    caption = kinds.add_parser("caption", help="caption picture files")
    caption.add_argument("images", nargs="+", metavar="IMAGE")
    ask = kinds.add_parser("ask", help="answer questions about picture files")
    about = "pictures, then a question; without one, questions are read line by line"
    ask.add_argument("arguments", nargs="+", metavar="IMAGE... QUESTION", help=about)
    ask.add_argument("--together", action="store_true", help="ask about all pictures at once")
    search = kinds.add_parser("search", help="rank picture files by a text")
    search.add_argument("text", metavar="TEXT")
    search.add_argument("images", nargs="+", metavar="IMAGE")
    compare = kinds.add_parser("compare", help="say which of some texts fits a picture")
    compare.add_argument("arguments", nargs="+", metavar="IMAGE... TEXT...")
    for command, default in ((caption, commands.CAPTIONER), (ask, ASSISTANT)):
        add_model(command, default)
        add_how(command)
    for command in (search, compare):
        add_model(command, PAIRS)
    return parser


def add_model(command: argparse.ArgumentParser, default: Path) -> None:
    """The options that say which checkpoint; default: of its folder."""
    shown = default.relative_to(default.parents[2]) if default.is_absolute() else default
    about = f"folder of a checkpoint, ours or published (default: {shown})"
    command.add_argument("--checkpoint", type=Path, metavar="FOLDER", help=about)
    command.add_argument("--dtype", choices=DTYPES, default="float32", help="of its weights")


def add_how(command: argparse.ArgumentParser) -> None:
    """The options that say how a model speaks."""
    for name, (about, allowed) in HOW.items():
        option = f"--{name.replace('_', '-')}"
        command.add_argument(option, type=reader(allowed), metavar="N", help=about)


def reader(allowed: Number) -> Callable[[str], Any]:
    """What reads a number of the command line, and refuses others by name."""

    def read(text: str) -> Any:
        try:
            value = int(text) if allowed.whole else float(text)
        except ValueError:
            value = None
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
        return value

    return read


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd files, which are read all the same
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a character, as for 红色
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        status = run(arguments)
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:  # it is not the output that cannot be written
            raise
        # What is still in the buffer would raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # who read it has read enough: ``| head -1``
            return 141
        complain(f"the output cannot be written: {error}")
        return 1
    return status


def run(arguments: Sequence[str] | None = None) -> int:
    chosen = arguments_parser().parse_args(arguments)
    if chosen.command is None:
        return demo()
    said = vars(chosen)
    how = {name: said[name] for name in HOW if said.get(name) is not None}
    wanted = Wanted(chosen.checkpoint, DTYPES[chosen.dtype], how)
    if chosen.command == "caption":
        return caption_files(chosen.images, wanted)
    if chosen.command == "ask":
        return ask_about(chosen.arguments, wanted, chosen.together)
    if chosen.command == "search":
        return search_files(chosen.text, chosen.images, wanted)
    return compare_files(chosen.arguments, wanted)


if __name__ == "__main__":
    sys.exit(main())
