"""What the files of published byte-level tokenizers have in common.

Data: tokens are the strings that a file holds, all else is lists and dicts; the form is that of
tokenizer.json, and `vocab_and_merges` gives the older pair of files the same form.
`read_byte_level` and `read_folder` turn it into the arguments of a byte-level BPE (bpe.py), with
tokens in bytes, and refuse by name what is none: other models, other pre-tokenizers, lossy
normalizers. What a post-processor puts around a sequence (`<|begin_of_text|>`) is left to the
caller.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import regex

from minivlm.formats.patterns import (
    GPT2_SPLIT,
    NO_SPLIT,
    QWEN2_SPLIT,
    from_oniguruma,
    to_portable,
)

# GPT-2 writes a byte as one visible character: 188 bytes as themselves, the other 68 as U+0100,
# U+0101, ... The ids 0-255 follow that order, so '!' is 0 and the space, written U+0120, is 220.
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
ID_TO_BYTE = bytes(_VISIBLE + [b for b in range(256) if b not in _VISIBLE])
BYTE_TO_ID = bytes(ID_TO_BYTE.index(b) for b in range(256))  # a table for bytes.translate
BYTE_TO_CHAR = {b: chr(b if i < 188 else 256 + i - 188) for i, b in enumerate(ID_TO_BYTE)}
CHAR_TO_BYTE = {char: b for b, char in BYTE_TO_CHAR.items()}

Made = TypeVar("Made")
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}  # of an added token
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def to_visible(token: bytes) -> str:
    """Bytes as vocab.json and merges.txt write them: b' a' -> 'Ġa'."""
    return token.decode("latin-1").translate(BYTE_TO_CHAR)


def from_visible(text: str) -> bytes:
    """The inverse of `to_visible`; ValueError for a character that stands for no byte."""
    try:
        return bytes(CHAR_TO_BYTE[char] for char in text)
    except KeyError as error:
        raise ValueError(f"not byte-level: {error} in token {text!r} stands for no byte") from None


def write_byte_level(path: Path, arguments: dict[str, Any]) -> None:
    """Write tokenizer.json. `arguments` are named as `read_byte_level` returns them."""
    late, plain = arguments["late_tokens"], arguments["plain_tokens"]
    special = sorted(arguments["special_tokens"].items(), key=lambda item: item[1])
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, i, token in late, token in plain) for token, i in special],
        "normalizer": {"type": arguments["normalization"]} if arguments["normalization"] else None,
        "pre_tokenizer": _split_then_bytes(arguments["pattern"]),
        "post_processor": None,
        "decoder": BYTE_LEVEL | {"use_regex": False},
        "model": {
            "type": "BPE",
            "ignore_merges": arguments["ignore_merges"],
            "vocab": {to_visible(token): i for token, i in arguments["ranks"].items()},
            "merges": [
                [to_visible(left), to_visible(right)] for left, right in arguments["merges"]
            ],
        },
    }
    path.write_text(json.dumps(data, ensure_ascii=False, indent=0), encoding="utf-8")


def _added(token: str, i: int, late: bool, plain: bool) -> dict[str, Any]:
    return {"id": i, "content": token} | FLAGS | {"normalized": late, "special": not plain}


def read_byte_level(path: Path, make: Callable[..., Made]) -> Made:
    """What `make` makes of the arguments in a tokenizer.json: a byte-level BPE."""
    data = load_json(path)
    with errors_name(path):
        return byte_level(data, make)


def read_folder(folder: Path, make: Callable[..., Made]) -> Made:
    """The same from a folder that holds tokenizer.json, or else vocab.json and merges.txt."""
    if (folder / "tokenizer.json").exists():
        return read_byte_level(folder / "tokenizer.json", make)
    if not (folder / "vocab.json").exists() or not (folder / "merges.txt").exists():
        raise ValueError(f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt")
    data = vocab_and_merges(folder, set(CHAR_TO_BYTE))
    with errors_name(folder):
        return byte_level(data, make)


def byte_level(data: dict[str, Any], make: Callable[..., Made]) -> Made:
    """The same from the content of a tokenizer.json."""
    return make(**_arguments(data))


def load_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file, {} if an optional one is missing; ValueError if it holds none."""
    if optional and not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # broken, broken UTF-8, nested too deeply
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a JSON object")
    return data


def vocab_and_merges(folder: Path, alphabet: set[str]) -> dict[str, Any]:
    """vocab.json and merges.txt, as the tokenizer.json that says the same.

    The pair says neither pattern nor special tokens. The pattern is GPT-2's, unless
    tokenizer_config.json names a Qwen2 tokenizer. Special is what that file or added_tokens.json
    lists, and what no merge makes from the alphabet.
    """
    vocab = load_json(folder / "vocab.json")
    config = load_json(folder / "tokenizer_config.json", optional=True)
    special = load_json(folder / "added_tokens.json", optional=True)
    with errors_name(folder):
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        lines = [line for line in lines if line.strip() and not line.startswith("#version")]
        merges = [as_pair(line.rstrip("\r")) for line in lines]
        made = {left + right for left, right in merges} | alphabet
        for part in chain.from_iterable(merges):
            if part not in made:
                raise ValueError(f"not byte-level: {part!r} is neither a byte nor made by a merge")
        flags = config.get("added_tokens_decoder", {})
        special |= {_content(token): int(i) for i, token in flags.items()}
        flags = {token["content"]: token for token in flags.values()}
        special |= {token: i for token, i in vocab.items() if token not in made}
    qwen2 = str(config.get("tokenizer_class", "")).startswith("Qwen2")
    return {
        "added_tokens": [
            flags.get(token, {}) | {"id": i, "content": token} for token, i in special.items()
        ],
        "normalizer": {"type": "NFC"} if qwen2 else None,
        "pre_tokenizer": _split_then_bytes(QWEN2_SPLIT if qwen2 else GPT2_SPLIT),
        "model": {"vocab": vocab, "merges": merges},
    }


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Whatever is wrong with the content of a file becomes a ValueError that names the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} lacks something that a tokenizer has: {error!r}") from None


def as_pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """Both forms of a merge: "a b" and ["a", "b"]."""
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)] if left and right:
            return left, right
    raise ValueError(f"merge {merge!r} is not a pair of tokens")


def _arguments(data: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json as the arguments of a byte-level BPE.

    An entry of the vocabulary that is only a special token is no rank.
    """
    model = _bpe_model(data)
    merges = [as_pair(merge) for merge in model["merges"]]
    added = data.get("added_tokens") or []
    special = {_content(token): token["id"] for token in added}
    used = {part for left, right in merges for part in (left, right, left + right)}
    only_special = special.keys() - used - CHAR_TO_BYTE.keys()
    vocab = {token: i for token, i in model["vocab"].items() if token not in only_special}
    return {
        "ranks": {from_visible(token): i for token, i in vocab.items()},
        "merges": [(from_visible(left), from_visible(right)) for left, right in merges],
        "pattern": _pattern(data.get("pre_tokenizer")),
        "special_tokens": special,
        "normalization": _normalization(data.get("normalizer")),
        "ignore_merges": bool(model.get("ignore_merges")),
        "late_tokens": [token["content"] for token in added if token.get("normalized")],
        "plain_tokens": [token["content"] for token in added if not token.get("special", True)],
    }


def _bpe_model(data: dict[str, Any]) -> dict[str, Any]:
    """The model of a tokenizer.json; ValueError unless it is a plain BPE."""
    model: Any = data.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else model
    if kind != "BPE":
        raise ValueError(f"the model is {kind!r}, not a byte-level BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise ValueError(f"not a byte-level BPE as this one: {option} is {model[option]!r}")
    return model


def _content(token: dict[str, Any]) -> str:
    """The text of an added token; ValueError for flags that make ids depend on the text around."""
    if not isinstance(token["content"], str):
        raise ValueError(f"added token {token['content']!r} is no text")
    for flag in FLAGS:
        if token.get(flag):
            raise ValueError(f"added token {token['content']!r} with {flag} is not supported")
    return token["content"]


def _split_then_bytes(pattern: str) -> dict[str, Any]:
    """The pre-tokenizer that cuts by a pattern and makes bytes visible; `_pattern` reads it."""
    portable = to_portable(pattern)
    cut = {"type": "Split", "pattern": {"Regex": portable}, "behavior": "Isolated", "invert": False}
    if portable != pattern:
        cut["minivlm_pattern"] = pattern
    return {"type": "Sequence", "pretokenizers": [cut, BYTE_LEVEL | {"use_regex": False}]}


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    """The split pattern of a ByteLevel pre-tokenizer, alone or after one Split."""
    steps = _steps(pre_tokenizer, "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        found = "+".join(map(str, kinds)) or None
        raise ValueError(f"not byte-level BPE: the pre-tokenizer is {found}")
    split, byte_level = steps[0], steps[-1]
    if byte_level.get("add_prefix_space"):
        raise ValueError("ByteLevel with add_prefix_space is not supported")
    own = byte_level.get("use_regex", True)
    if len(steps) == 1:
        return GPT2_SPLIT if own else NO_SPLIT
    if own or split.get("behavior") != "Isolated":
        raise ValueError(f"Split {split.get('behavior')} with use_regex={own} is not supported")
    ours = split.get("minivlm_pattern", NO_SPLIT)
    if "String" in split["pattern"]:
        return regex.escape(split["pattern"]["String"], literal_spaces=True)
    written = split["pattern"]["Regex"]
    return ours if to_portable(ours) == written else from_oniguruma(written)


def _normalization(normalizer: dict[str, Any] | None) -> str | None:
    """Unicode's four forms; anything else (lower-casing, replacing) is refused by name."""
    kinds = [step["type"] for step in _steps(normalizer, "normalizers")]
    if kinds and kinds not in (["NFC"], ["NFD"], ["NFKC"], ["NFKD"]):
        raise ValueError(f"the normalizer {'+'.join(map(str, kinds))} is not supported")
    return kinds[0] if kinds else None


def _steps(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a Sequence, or the one step, or none."""
    return step.get(inner, [step]) if step else []
