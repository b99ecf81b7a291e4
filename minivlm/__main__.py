"""python -m minivlm: train a captioner for three minutes, then caption pictures that it never saw.

python -m minivlm caption IMAGE...: caption picture files with the captioner that was trained.
python -m minivlm ask IMAGE "what colour is the star?": answer a question with a small LLaVA.
python -m minivlm ask IMAGE: a conversation; questions are read line by line, to the end of input.
Both take --checkpoint FOLDER for another model.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from PIL import Image
from safetensors import SafetensorError

from minivlm import scenes
from minivlm.parts.training import default_device
from minivlm.scenes.files import read_picture
from minivlm.speaking import Speaker, open_checkpoint
from minivlm.toys.captioner import Captioner, train_captioner
from minivlm.toys.common import FROZEN

CAPTIONER, ASSISTANT = Path("runs/captioner"), FROZEN / "llava"
ROOM = 2**23  # bytes: more than the demo writes


def complain(text: str) -> None:
    """One line on stderr."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """The text with escapes for what is no character to read: a terminal would obey some of it."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def demo() -> int:
    """Train, judge on both held-out splits, show, save."""
    try:
        check_device()
        check_place(CAPTIONER)
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
        captioner.save(CAPTIONER)
        save_figure(shown, CAPTIONER / "captions.png")
    except (OSError, SafetensorError) as error:
        complain(f"the captioner is not saved in {CAPTIONER}: {error}")
        return 1
    print(f"Figure: {CAPTIONER / 'captions.png'}    Checkpoint: {CAPTIONER}")
    print("Your own picture of flat shapes: python -m minivlm caption IMAGE...")
    print("How it works, from the first byte: jupyter lab notebooks/01_bpe_tokenizer.ipynb")
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


def open_or_explain(folder: Path, remedy: str) -> Speaker | None:
    """The checkpoint, or a line on stderr that says why there is none."""
    try:
        return open_checkpoint(folder)
    except (ValueError, OSError) as error:
        complain(f"no model to use ({error}){remedy}")
        return None


def caption_files(paths: Sequence[str], folder: Path | None = None) -> int:
    """Caption files one by one; a file that is no picture gets one line on stderr, the others still
    run.
    """
    model = open_or_explain(folder or CAPTIONER, "" if folder else "; train one: python -m minivlm")
    if model is None:
        return 2
    return 1 if sum(not attempt(path, model.caption, f"{path}: ") for path in paths) else 0


def ask_about(path: str, question: str | None, folder: Path | None = None) -> int:
    """Answer a question about a picture file or, without one, those of the standard input."""
    model = open_or_explain(folder or ASSISTANT, "")
    if model is None:
        return 2
    if question is None:
        return converse(model, path)
    return 0 if attempt(path, lambda image: model.ask(image, question)) else 1


def converse(model: Speaker, path: str) -> int:
    """Answer each line of the standard input, after all that was said before it.

    A question without an answer gets one line on stderr and leaves the conversation.
    """
    try:
        image = read_picture(path)
    except ValueError as error:
        complain(str(error))
        return 1
    before: list[tuple[str, str]] = []
    asked = 0
    for question in typed_lines():
        asked += 1
        said = say_or_explain(path, partial(model.ask, image, question, tuple(before)))
        if said:
            before.append((question, said))
            print(printable(said), flush=True)
    return 0 if len(before) == asked else 1


def typed_lines() -> Iterator[str]:
    """The lines of the standard input that are not empty; a person is shown where to type."""
    cue = "> " if sys.stdin.isatty() else ""
    while True:
        print(cue, end="", flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            complain(f"a question is no text: {error}")
            continue
        if not line:
            return
        if line.strip():
            yield line.strip()


def attempt(path: str, speak: Callable[[Image.Image], str], label: str = "") -> bool:
    """Print what is said of a picture file, or one line on stderr; whether it went well."""
    try:
        image = read_picture(path)
    except ValueError as error:
        complain(str(error))
        return False
    said = say_or_explain(path, partial(speak, image))
    if said:
        print(printable(f"{label}{said}"))
    return bool(said)


def say_or_explain(path: str, speak: Callable[[], str]) -> str:
    """What is said of a picture file, or one line on stderr and nothing."""
    try:
        said = speak().strip()
        if not said:
            raise ValueError("the model's answer is empty")
    except ValueError as error:
        complain(f"{path}: {error}")
        return ""
    return said


class Parser(argparse.ArgumentParser):
    """One that says what is wrong without repeating control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def arguments_parser() -> argparse.ArgumentParser:
    about = __doc__.split("\n")[0].partition(": ")[2]
    parser = Parser(prog="python -m minivlm", description=about)
    commands = parser.add_subparsers(dest="command")
    caption = commands.add_parser(
        "caption", help="caption picture files with the captioner that was trained"
    )
    caption.add_argument("images", nargs="+", metavar="IMAGE")
    ask = commands.add_parser("ask", help="answer questions about a picture file")
    ask.add_argument("image", metavar="IMAGE")
    about = "without one, questions are read line by line and the conversation is kept"
    ask.add_argument("question", metavar="QUESTION", nargs="?", help=about)
    for command, default in (
        (caption, CAPTIONER),
        (ask, ASSISTANT.relative_to(ASSISTANT.parents[2])),
    ):
        about = f"folder of a checkpoint that from_pretrained reads (default: {default})"
        command.add_argument("--checkpoint", type=Path, metavar="FOLDER", help=about)
    return parser


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
    if chosen.command == "caption":
        return caption_files(chosen.images, chosen.checkpoint)
    if chosen.command == "ask":
        return ask_about(chosen.image, chosen.question, chosen.checkpoint)
    return demo()


if __name__ == "__main__":
    sys.exit(main())
