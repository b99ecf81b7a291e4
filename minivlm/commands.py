"""What the command line does with a checkpoint and picture files: caption, ask, search, compare.

Each gives a line for every picture and goes on after one that is none; in: paths and strings; out:
an exit status, 0 if all went well, 1 if something did not, 2 if there was no model.
"""

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minivlm.pretrained.preprocessing import Images
from minivlm.scenes.files import FORMATS, read_picture
from minivlm.speaking import Scorer, Speaker, open_checkpoint
from minivlm.toys.common import FROZEN

CAPTIONER, ASSISTANT, PAIRS = Path("runs/captioner"), FROZEN / "llava", FROZEN / "clip"
ENDINGS = {f".{name.lower()}" for name in FORMATS} | {".jpg", ".tif"}  # of names of pictures
SLOW = 2.0  # seconds of loading before a person is told


@dataclass(frozen=True)
class Wanted:
    """What the command line says of the model: its folder, its precision, how it speaks."""

    checkpoint: Path | None = None
    dtype: torch.dtype = torch.float32
    how: dict[str, Any] = field(default_factory=dict)


# What is printed


def complain(text: str) -> None:
    """One line on stderr."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """The text with escapes for what is no character to read: a terminal would obey some of it."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


@contextmanager
def told_if_slow(text: str) -> Iterator[None]:
    """A line on stderr that counts the seconds, if it is a terminal and they are many."""
    done, start = threading.Event(), time.perf_counter()

    def tell() -> None:
        if done.wait(SLOW):
            return
        while not done.wait(0.5):
            seconds = time.perf_counter() - start
            print(f"\r{printable(text)} ... {seconds:.0f} s", end="", file=sys.stderr, flush=True)
        print(f"\r{' ' * (len(printable(text)) + 12)}\r", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    if sys.stderr.isatty():
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.ident:
            thread.join()


# The model


def open_or_explain(wanted: Wanted, default: Path, remedy: str = "") -> Any:
    """The checkpoint, or a line on stderr that says why there is none. remedy: for the default."""
    folder = wanted.checkpoint or default
    try:
        with warnings.catch_warnings(record=True) as said, told_if_slow(f"loading {folder}"):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", module=r"minivlm\.")
            model = open_checkpoint(folder, wanted.dtype)
    except (ValueError, OSError) as error:
        complain(f"no model to use ({error}){'' if wanted.checkpoint else remedy}")
        return None
    for warning in said:
        complain(str(warning.message))
    return model


def open_speaker(wanted: Wanted, default: Path, remedy: str = "") -> Speaker | None:
    """The model, or a line why there is none that says anything of a picture."""
    model = open_or_explain(wanted, default, remedy)
    if isinstance(model, Scorer):
        where = wanted.checkpoint or default
        complain(f"no model to use ({where} compares pictures with texts and writes none)")
        return None
    return model


def open_scorer_of(wanted: Wanted) -> Scorer | None:
    """The model, or a line why there is none that compares pictures with texts."""
    model = open_or_explain(wanted, PAIRS)
    if model is None or isinstance(model, Scorer):
        return model
    complain(f"no model to use ({wanted.checkpoint} writes texts and compares none: no CLIP)")
    return None


# Picture files


def names_picture(argument: str) -> bool:
    """Whether an argument is the name of a picture, be it there or not."""
    path = Path(argument)
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than a name may be
        return False


def pictures_and_texts(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """IMAGE... TEXT...: the first argument names a picture, and those after it that look so."""
    count = 1
    while count < len(arguments) and names_picture(arguments[count]):
        count += 1
    return list(arguments[:count]), list(arguments[count:])


def picture_or_explain(path: str) -> Image.Image | None:
    """A picture file, or one line on stderr and nothing."""
    try:
        return read_picture(path)
    except ValueError as error:
        complain(str(error))
        return None


def attempt(path: str, speak: Callable[[Image.Image], str], label: str = "") -> bool:
    """Print what is said of a picture file, or one line on stderr; whether it went well."""
    image = picture_or_explain(path)
    said = say_or_explain(path, partial(speak, image)) if image else ""
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


# caption and ask


def caption_files(paths: Sequence[str], wanted: Wanted) -> int:
    """Caption files one by one; a file that is no picture gets one line on stderr, the others still
    run.
    """
    model = open_speaker(wanted, CAPTIONER, "; train one: python -m minivlm")
    if model is None:
        return 2
    speak = partial(model.caption, **wanted.how)
    return 1 if sum(not attempt(path, speak, f"{path}: ") for path in paths) else 0


def ask_about(arguments: Sequence[str], wanted: Wanted, together: bool = False) -> int:
    """IMAGE... [QUESTION]: answer a question about each picture file or, without one, answer those
    of the standard input. together: about all of them at once.
    """
    paths, texts = pictures_and_texts(arguments)
    if len(texts) > 1:
        complain(f"one question at a time, not {len(texts)}: {texts}")
        return 2
    if not texts and len(paths) > 1 and not together:
        complain("a conversation is about one picture, or about several with --together")
        return 2
    model = open_speaker(wanted, ASSISTANT)
    if model is None:
        return 2
    if not texts or together:
        return ask_together(model, paths, texts, wanted)
    label = "{}: " if len(paths) > 1 else ""
    speak = partial(model.ask, question=texts[0], **wanted.how)
    return 1 if sum(not attempt(path, speak, label.format(path)) for path in paths) else 0


def ask_together(model: Speaker, paths: Sequence[str], texts: Sequence[str], wanted: Wanted) -> int:
    """One question about all pictures, or the conversation of the standard input."""
    images = [image for image in map(picture_or_explain, paths) if image]
    if len(images) < len(paths):
        return 1
    shown: Images = images[0] if len(images) == 1 else images
    return converse(model, ", ".join(paths), shown, wanted, texts or typed_lines())


def converse(
    model: Speaker, path: str, image: Images, wanted: Wanted, questions: Sequence[str] | Iterator
) -> int:
    """Answer each question after all that was said before it.

    A question without an answer gets one line on stderr and leaves the conversation.
    """
    before: list[tuple[str, str]] = []
    asked = 0
    for question in questions:
        asked += 1
        ask = partial(model.ask, image, question, tuple(before), **wanted.how)
        said = say_or_explain(path, ask)
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


# search and compare


def search_files(text: str, paths: Sequence[str], wanted: Wanted) -> int:
    """Picture files by how well a text goes with them: the cosine and the name, the best first."""
    model = open_scorer_of(wanted)
    if model is None:
        return 2
    told = read_or_explain(model, [text])
    if told is None:
        return 1
    found: list[tuple[float, str]] = []
    for path in paths:
        image = picture_or_explain(path)
        try:
            if image:
                found.append(((model.encode_image(image) @ told.T).item(), path))
        except ValueError as error:
            complain(f"{path}: {error}")
    for cosine, path in sorted(found, key=lambda pair: -pair[0]):
        print(printable(f"{cosine:6.3f}  {path}"))
    return 0 if len(found) == len(paths) else 1


def read_or_explain(model: Scorer, texts: Sequence[str]) -> Tensor | None:
    """The vectors (B, D) of the texts, or one line on stderr that says which cannot be read."""
    try:
        return model.encode_text(texts)
    except ValueError as error:
        complain(str(error))
        return None


def compare_files(arguments: Sequence[str], wanted: Wanted) -> int:
    """IMAGE... TEXT...: for each picture, how probable each text is, the likeliest first."""
    paths, texts = pictures_and_texts(arguments)
    if not texts:
        complain("no text to compare with: compare IMAGE... TEXT...")
        return 2
    model = open_scorer_of(wanted)
    if model is None:
        return 2

    told = read_or_explain(model, texts)
    if told is None:
        return 1

    def ranked(image: Image.Image) -> str:
        likely = model.shares(model.logits(model.encode_image(image), told))[0].tolist()
        pairs = sorted(zip(likely, texts, strict=True), key=lambda pair: -pair[0])
        return ", ".join(f"{share:.1%} {text}" for share, text in pairs)

    return 1 if sum(not attempt(path, ranked, f"{path}: ") for path in paths) else 0
