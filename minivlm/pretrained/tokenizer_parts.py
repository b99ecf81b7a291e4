"""What the readers of published tokenizers share: refusing what is not built as they are, tokens by
id, and what a post-processor puts around a text.
"""

import operator
from collections.abc import Iterable
from typing import Any

from minivlm.formats.tokenizer_files import from_visible
from minivlm.pretrained.added_tokens import AddedTokens

DEFAULTS: dict[str, Any] = {  # of a model of tokenizer.json: what a reader here can assume
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
NEITHER_HERE_NOR_THERE = ("trim_offsets",)  # options that change no id


def check_model(model: dict[str, Any], **options: Any) -> None:
    """ValueError for an option that is neither as given nor at its default."""
    for option, default in (DEFAULTS | options).items():
        found = model.get(option) or None
        if found != (options.get(option) or default or None):
            raise ValueError(f"a model with {option} {found!r} is not supported")


def expect(data: dict[str, Any], part: str, *known: dict[str, Any] | None) -> None:
    """ValueError unless a part of a tokenizer.json is as one of those that are implemented.

    An option that the known part does not name may have any value.
    """
    if not any(_matches(data.get(part), other) for other in known):
        raise ValueError(f"the {part} {data.get(part)!r:.200} is not supported, only {known[0]!r}")


def _matches(found: Any, known: Any) -> bool:
    if isinstance(found, dict) and isinstance(known, dict):
        return all(_matches(found.get(key), value) for key, value in known.items())
    if isinstance(found, list) and isinstance(known, list):
        return len(found) == len(known) and all(map(_matches, found, known))
    return found == known


def tokens_by_id(vocab: dict[str, int], added: AddedTokens) -> dict[int, str]:
    """{id: token as it is decoded}; ValueError for two different tokens with one id.

    The library decodes an added token that is looked for after normalization in its normal form.
    """
    tokens: dict[int, str] = {}
    for token, i in [*vocab.items(), *added.ids.items()]:
        if not isinstance(i, int) or i < 0 or tokens.setdefault(i, token) != token:
            raise ValueError(f"token {token!r} has the id {i!r}, which is none or another token's")
    return tokens | {added.ids[token]: form for form, token in added.late.items()}


def tokens_of(ids: Iterable[int], tokens: dict[int, str]) -> list[str]:
    """The tokens of ids; ValueError for an id that is none."""
    try:
        return [tokens[operator.index(i)] for i in ids]
    except KeyError as error:
        raise ValueError(f"unknown token id {error}, the largest is {max(tokens)}") from None


def visible_bytes(token: str) -> bytes:
    """The bytes that a token shows, or its own where a character shows none."""
    try:
        return from_visible(token)
    except ValueError:
        return token.encode()


def ids_around(post_processor: dict[str, Any] | None) -> tuple[list[int], list[int]]:
    """The ids that a post-processor puts before and after a single text."""
    match post_processor:
        case None | {"type": "ByteLevel"}:
            return [], []
        case {"type": "RobertaProcessing" | "BertProcessing", "cls": [_, cls], "sep": [_, sep]}:
            return [cls], [sep]
        case {"type": "Sequence", "processors": [*steps]}:
            inside: list[int] = []
            outside: list[int] = []
            for before, after in map(ids_around, steps):
                inside, outside = before + inside, outside + after
            return inside, outside
        case {"type": "TemplateProcessing", "single": [*template], "special_tokens": special}:
            return _around_template(template, special)
    raise ValueError(f"the post-processor {post_processor!r:.200} is not supported")


def _around_template(template: list[Any], special: dict[str, Any]) -> tuple[list[int], list[int]]:
    parts: list[list[int]] = [[]]
    for step in template:
        if step.get("Sequence", {}).get("id") == "A":
            parts.append([])
        else:
            parts[-1] += special[step["SpecialToken"]["id"]]["ids"]
    if len(parts) != 2:
        raise ValueError(f"a template with the text {len(parts) - 1} times is not supported")
    return parts[0], parts[1]
