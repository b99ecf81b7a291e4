"""Chat templates as published: Jinja programs that write a conversation as one text.

The templates of the families are code here. What a folder brings is rendered only to be compared:
fine-tuned models may have been trained on another one.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from minivlm.pretrained.checkpoints import read_json

# Tags of transformers' own around what an assistant learns to say: they write nothing.
MARKS_OF_TRAINING = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
Message = dict[str, object]  # of "role" and "content", a text or a list of parts


def published_template(folder: Path) -> str | None:
    """The chat template of a folder, from the file that transformers' processors prefer.

    ValueError for a file that is broken.
    """
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        said = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(said, list):  # several, each with a name
            named = [each for each in said if isinstance(each, dict)]
            said = next(
                (each.get("template") for each in named if each.get("name") == "default"), 0
            )
        if isinstance(said, dict):
            said = said.get("default")
        if isinstance(said, str):
            return said
    return None


def warn_of_template(folder: Path, messages: Sequence[Message], ours: str) -> None:
    """Warn, in one line, if the template of a folder does not write ``messages`` as we do.

    ours: how we write them, with the beginning of the assistant's turn. A folder without a template
    is taken at its config.json's word.
    """
    template = published_template(folder)
    if template is None:
        return
    theirs = render_template(template, messages)
    if theirs != ours:
        warnings.warn(
            f"{folder}: its chat template is not that of its family, in which the model is asked",
            stacklevel=2,
        )


def render_template(template: str, messages: Sequence[Message]) -> str | None:
    """What a template writes, with the beginning of the assistant's turn; None where it fails.

    It is run in Jinja's sandbox, with the settings of transformers.
    """
    from jinja2 import TemplateError  # torch brings it
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    template = MARKS_OF_TRAINING.sub("", template)
    try:
        return sandbox.from_string(template).render(messages=messages, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError):
        return None
