"""A byte-level BPE in the files of other libraries: tokenizer.json, vocab.json + merges.txt,
tiktoken.

Belongs to bpe.py and notebook 01_bpe_tokenizer. `read_json` and `read_folder` return the arguments
of `BPETokenizer`, and refuse by name what it is not: other models, other pre-tokenizers, lossy
normalizers. What a post-processor puts around a sequence (`<|begin_of_text|>`) is left to the
caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import regex
import tiktoken

from minivlm.bpe import (
    CHAR_TO_BYTE,
    CL100K_SPLIT,
    GPT2_SPLIT,
    NO_SPLIT,
    QWEN2_SPLIT,
    from_visible,
    to_visible,
)

if TYPE_CHECKING:
    from minivlm.bpe import BPETokenizer

# \p{N}{1,3}+ takes at most three digits in regex and tiktoken, but any number in Oniguruma, which
# reads tokenizer.json: there it repeats the interval. So such an interval is written and read in
# other words.
POSSESSIVE = regex.compile(r"((?:\\p\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|[^\\\])}])\{\d*,?\d*\})\+")


def write_json(tokenizer: BPETokenizer, path: Path) -> None:
    """Write tokenizer.json; `read_json` gives the same tokenizer back."""
    late = tokenizer.late_tokens
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    added = [
        {
            "id": i,
            "content": token,
            **flags,
            "normalized": token in late,
            "special": token not in late,
        }
        for token, i in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    ]
    portable = POSSESSIVE.sub(r"(?>\1)", tokenizer.pattern)
    split = {
        "type": "Split",
        "pattern": {"Regex": portable},
        "behavior": "Isolated",
        "invert": False,
    }
    if portable != tokenizer.pattern:
        split["minivlm_pattern"] = tokenizer.pattern
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": tokenizer.normalization} if tokenizer.normalization else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "ignore_merges": tokenizer.ignore_merges,
            "vocab": {to_visible(token): i for token, i in tokenizer.ranks.items()},
            "merges": [[to_visible(left), to_visible(right)] for left, right in tokenizer.merges],
        },
    }
    path.write_text(json.dumps(data, ensure_ascii=False, indent=0), encoding="utf-8")


def read_json(path: Path) -> dict:
    """The arguments of `BPETokenizer` from a tokenizer.json."""
    data = _load(path)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise ValueError(f"{path}: the model is {kind!r}, not a byte-level BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise ValueError(
                f"{path}: not a byte-level BPE as this one: {option} is {model[option]!r}"
            )
    with _errors_name(path):
        added = [_added_token(token) for token in data.get("added_tokens") or []]
        special = {token["content"]: token["id"] for token in added}
        return _arguments(model["vocab"], model["merges"], special) | {
            "pattern": _pattern(data.get("pre_tokenizer")),
            "normalization": _normalization(data.get("normalizer")),
            "ignore_merges": bool(model.get("ignore_merges")),
            "late_tokens": [token["content"] for token in added if token.get("normalized")],
        }


def read_folder(folder: Path) -> dict:
    """The arguments of `BPETokenizer` from a folder with tokenizer.json, or else vocab.json and
    merges.txt.

    The older pair of files says neither pattern nor special tokens. The pattern is GPT-2's, unless
    tokenizer_config.json names a Qwen2 tokenizer. Special is what that file or added_tokens.json
    lists, and what no merge makes.
    """
    if (folder / "tokenizer.json").exists():
        return read_json(folder / "tokenizer.json")
    if not (folder / "vocab.json").exists() or not (folder / "merges.txt").exists():
        raise ValueError(f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt")
    vocab = _load(folder / "vocab.json")
    config = _load(folder / "tokenizer_config.json", {})
    special = _load(folder / "added_tokens.json", {})
    with _errors_name(folder):
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = [
            line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")
        ]
        listed = config.get("added_tokens_decoder", {}).items()
        special |= {_added_token(token)["content"]: int(i) for i, token in listed}
        pairs = [_pair(merge) for merge in merges]
        made = {left + right for left, right in pairs} | set(CHAR_TO_BYTE)
        for part in {part for pair in pairs for part in pair} - made:
            raise ValueError(f"not byte-level BPE: {part!r} is neither a byte nor made by a merge")
        special |= {token: i for token, i in vocab.items() if token not in made}
        arguments = _arguments(vocab, merges, special)
    if str(config.get("tokenizer_class", "")).startswith("Qwen2"):
        arguments |= {"pattern": QWEN2_SPLIT, "normalization": "NFC"}
    return arguments


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Whatever is wrong with the content of a file becomes a ValueError that names the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} lacks something that a tokenizer has: {error!r}") from None


def _load(path: Path, default: dict | None = None) -> dict:
    """The object in a JSON file; ValueError naming the file if it is none. (checkpoints.read_json
    needs torch.)
    """
    if default is not None and not path.exists():
        return dict(default)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON or broken UTF-8
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, not a JSON object")
    return data


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """Both forms of a merge: "a b" and ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if (
        not isinstance(parts, list)
        or len(parts) != 2
        or not all(isinstance(p, str) and p for p in parts)
    ):
        raise ValueError(f"merge {merge!r} is not a pair of tokens")
    return parts[0], parts[1]


def _arguments(vocab: dict[str, int], merges: list, special: dict[str, int]) -> dict:
    """Ranks and merges in bytes. An entry of the vocabulary that is only a special token is no
    rank.
    """
    pairs = [_pair(merge) for merge in merges]
    used = {part for pair in pairs for part in (*pair, "".join(pair))} | set(CHAR_TO_BYTE)
    ordinary = {token: i for token, i in vocab.items() if token not in special or token in used}
    ranks = {from_visible(token): i for token, i in ordinary.items()}
    return {
        "ranks": ranks,
        "merges": [(from_visible(left), from_visible(right)) for left, right in pairs],
        "special_tokens": special,
    }


def _added_token(token: dict) -> dict:
    """The entry as it is; ValueError for the options of which ids would depend on the text around
    it.
    """
    for flag in ("lstrip", "rstrip", "single_word"):
        if token.get(flag):
            raise ValueError(f"added token {token['content']!r} with {flag} is not supported")
    return token


def _pattern(pre_tokenizer: dict | None) -> str:
    """The split pattern of a ByteLevel pre-tokenizer, alone or after one Split."""
    steps = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {"type": None}]
    kinds = [step["type"] for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise ValueError(f"not byte-level BPE: the pre-tokenizer is {'+'.join(map(str, kinds))}")
    if steps[-1].get("add_prefix_space"):
        raise ValueError("ByteLevel with add_prefix_space is not supported")
    own_regex = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return GPT2_SPLIT if own_regex else NO_SPLIT
    if own_regex or steps[0].get("behavior") != "Isolated":
        raise ValueError(
            f"Split {steps[0].get('behavior')} with use_regex={own_regex} is not supported"
        )
    if "minivlm_pattern" in steps[0]:
        return steps[0]["minivlm_pattern"]
    pattern = steps[0]["pattern"]
    if "String" in pattern:
        return regex.escape(pattern["String"])
    return POSSESSIVE.sub(r"(?:\1)+", pattern["Regex"])


def _normalization(normalizer: dict | None) -> str | None:
    """Unicode's four forms; anything else (lower-casing, replacing) is refused by name."""
    steps = [normalizer] if normalizer else []
    if steps and steps[0]["type"] == "Sequence":
        steps = steps[0]["normalizers"]
    kinds = [step["type"] for step in steps]
    if kinds and kinds not in (["NFC"], ["NFD"], ["NFKC"], ["NFKD"]):
        raise ValueError(f"the normalizer {'+'.join(kinds)} is not supported")
    return kinds[0] if kinds else None


def to_tiktoken(tokenizer: BPETokenizer) -> tiktoken.Encoding:
    """The same tokenizer as a `tiktoken.Encoding`, or ValueError with the reason why its ids would
    differ.
    """
    for reason in (_special_conflict(tokenizer), _rank_conflict(tokenizer)):
        if reason:
            raise ValueError(f"not representable in tiktoken: {reason}")
    pattern = tokenizer.pattern
    if pattern not in (GPT2_SPLIT, CL100K_SPLIT, QWEN2_SPLIT, NO_SPLIT):
        pattern = (
            rf"(?:{pattern})|(?:(?!{pattern})[\s\S])+"  # tiktoken drops what a pattern leaves out
        )
    return tiktoken.Encoding(
        "minivlm",
        pat_str=pattern,
        mergeable_ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_tokens,
    )


def _special_conflict(tokenizer: BPETokenizer) -> str | None:
    """tiktoken knows no normalization, and no order among special tokens that overlap."""
    if tokenizer.normalization:
        return (
            f"it has no {tokenizer.normalization}; normalize before, and set normalization = None"
        )
    late = tokenizer.late_tokens
    for a in tokenizer.special_tokens:
        for b in tokenizer.special_tokens:
            clash = a != b and (a.startswith(b) or ((a in late) != (b in late) and _overlap(a, b)))
            if clash:
                return f"the special tokens {a!r} and {b!r} overlap"
    return None


def _overlap(a: str, b: str) -> bool:
    return b in a or any(a.endswith(b[:n]) for n in range(1, len(b)))


def _rank_conflict(tokenizer: BPETokenizer) -> str | None:
    """Why tiktoken's rule gives other ids: join the neighbours whose joined bytes have the smallest
    id.

    It gives the same if (1) merges make tokens in the order of their ids, from parts with smaller
    ids, and (2) every token, cut into bytes, merges back into itself. Proof: after all merges below
    some rank, what a string between two token boundaries has become depends on that string alone.
    At the first difference tiktoken joins neighbours x, y that are no merge; then xy alone stays
    [x, y] for good, against (2). Merges from parts with larger ids (Llama 3 lists every way to cut
    a token) may be left out: when such a part is made, the string xy is one token already. With
    `ignore_merges`, a token that ends in three or more
    pieces is harmless: it never stands there as two neighbours.
    """
    ranks = tokenizer.ranks
    for b in range(256):
        if bytes([b]) not in ranks:
            return f"no token for the byte 0x{b:02x}"
    proper = [
        (left, right)
        for left, right in tokenizer.merges
        if all(len(part) == 1 or ranks[part] < ranks[left + right] for part in (left, right))
    ]
    made = [ranks[left + right] for left, right in proper]
    for before, after in pairwise(made):
        if after < before:
            return f"id {after} comes after id {before} in the order of merges"
    staged = type(tokenizer)(ranks, proper)
    for token, i in ranks.items():
        pieces = len(staged.merge(token))
        if pieces == 2 or (pieces > 1 and not tokenizer.ignore_merges):
            return f"id {i}, {token!r}, is not what its own bytes merge into"
    return None
