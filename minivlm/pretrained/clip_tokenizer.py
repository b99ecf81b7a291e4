r"""CLIP's tokenizer (Radford et al. 2021, section 2.4): byte-level BPE that marks the end of words.

In: the content of a CLIP tokenizer.json. A text is normalized to NFC, runs of white space become
one space, letters small; the pattern keeps words and drops the space between them; the last symbol
of a word carries "</w>", so that "cat" and the "cat" of "cats" end in different symbols.

The merges are those of `minivlm.bpe`. There a token is bytes, so "</w>" is written as the byte
0xff, which UTF-8 never has: the word "cat" is b"cat\xff", and 256 merges in front of all others
join a last byte with it.
"""

import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import regex

from minivlm.bpe import NO_SPLIT, BPETokenizer, compile_split
from minivlm.formats.patterns import GPT2_SPLIT, from_oniguruma, pretokenize
from minivlm.formats.tokenizer_files import as_pair, from_visible
from minivlm.pretrained.added_tokens import AddedTokens
from minivlm.pretrained.tokenizer_parts import (
    check_model,
    expect,
    tokens_by_id,
    tokens_of,
    visible_bytes,
)

SUFFIX, END = "</w>", b"\xff"
SPACE = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
NORMALIZER = {"type": "Sequence", "normalizers": [{"type": "NFC"}, SPACE, {"type": "Lowercase"}]}
CLIP_SPLIT = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_WHITE = regex.compile(r"\s+")
_GPT2 = compile_split(GPT2_SPLIT)


def clip_words(pattern: str) -> dict[str, Any]:
    """The pre-tokenizer that keeps what the pattern finds, and drops the rest."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


class ClipTokenizer:
    """From the content of a tokenizer.json; ValueError where it is not a CLIP tokenizer's."""

    def __init__(self, data: dict[str, Any]) -> None:
        check_model(data["model"], end_of_word_suffix=SUFFIX)
        expect(data, "normalizer", NORMALIZER)
        expect(data, "decoder", {"type": "ByteLevel"})
        self.split = compile_split(from_oniguruma(_pattern(data)))
        self.added = AddedTokens(data.get("added_tokens") or [], clip_clean)
        self.special_tokens = self.added.ids
        vocab = data["model"]["vocab"]
        self._tokens = tokens_by_id(vocab, self.added)
        self.vocab_size = max(self._tokens) + 1  # the rows that an embedding table needs
        self._unk_token = data["model"].get("unk_token")
        self._unknown = vocab.get(self._unk_token)
        merges = [as_pair(merge) for merge in data["model"]["merges"]]
        made = {part for left, right in merges for part in (left, right, left + right)}
        only_special = self.special_tokens.keys() - made
        self._bpe = _with_end_byte(
            {token: i for token, i in vocab.items() if token not in only_special},
            merges,
            self.vocab_size,
        )
        self._ids = lru_cache(1 << 16)(self._word_ids)

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """Ids of text. A special token must be allowed ("all": each is), else ValueError."""
        ids: list[int] = []
        for piece in self.added.split(text, allowed_special):
            if isinstance(piece, int):
                ids.append(piece)
                continue
            for word in self.split.finditer(piece):
                ids += self._ids(word[0])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, small letters; a space after each word, none at either end."""
        tokens = tokens_of(ids, self._tokens)
        text = b"".join(map(visible_bytes, tokens)).decode("utf-8", errors="replace")
        return text.replace(SUFFIX, " ").strip()

    def _word_ids(self, word: str) -> list[int]:
        """A symbol that the vocabulary lacks has the unknown token's id, or none."""
        parts = pretokenize(_GPT2, word)  # only "<|endoftext|>" in a pattern is cut once more
        ids = [i for part in parts for i in self._bpe.merge(part.encode() + END)]
        if self._unk_token and self._unknown is None and max(ids) >= self.vocab_size:
            raise ValueError(
                f"{word!r} needs the unknown token {self._unk_token!r}: not in the vocab"
            )
        known = [i if i < self.vocab_size else self._unknown for i in ids]
        return [i for i in known if i is not None]


def clip_clean(text: str) -> str:
    """NFC, each run of white space as one space, small letters."""
    spaced = _WHITE.sub(" ", unicodedata.normalize("NFC", text))
    return "".join(map(str.lower, spaced))  # subtle: one by one, or a last sigma would become ς


def _pattern(data: dict[str, Any]) -> str:
    """What the pre-tokenizer keeps; ValueError unless it is built as CLIP's."""
    try:
        pattern = data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    except (KeyError, TypeError, IndexError):
        pattern = CLIP_SPLIT
    expect(data, "pre_tokenizer", clip_words(pattern))
    return pattern


def _with_end_byte(vocab: dict[str, int], merges: list[tuple[str, str]], size: int) -> BPETokenizer:
    """The merges over bytes. Symbols that the vocabulary lacks get ids from `size` on."""
    ranks = {_with_end(token): i for token, i in vocab.items()}
    symbols = [bytes([b]) + end for end in (b"", END) for b in range(256)]
    missing = [symbol for symbol in symbols if symbol not in ranks]
    ranks |= {symbol: i for i, symbol in enumerate(missing, start=size)}
    ends = [(bytes([b]), END) for b in range(256)]
    return BPETokenizer(
        ranks, [*ends, *((_with_end(a), _with_end(b)) for a, b in merges)], NO_SPLIT
    )


def _with_end(token: str) -> bytes:
    """A token of vocab.json in bytes: "cat</w>" -> b"cat\xff"."""
    stem = token.removesuffix(SUFFIX)
    return from_visible(stem) + (END if stem != token else b"")
