"""BERT's tokenizer (Devlin et al. 2018): words by characters' classes, then WordPiece.

In: the content of a BERT tokenizer.json. A text is cleaned (no control characters, white space is
" "), each Chinese character becomes a word, accents and capital letters go where the file says so;
white space and punctuation end words; `minivlm.subwords` cuts a word into pieces.

The `tokenizers` library sorts characters as Unicode 8 (2015) did, so that is done here too: accents
and punctuation that are younger are letters. Left apart are small letters and combining marks that
are newer than Python's or the library's tables.
"""

import unicodedata
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any

import regex

from minivlm.pretrained.added_tokens import AddedTokens
from minivlm.pretrained.tokenizer_parts import check_model, expect, tokens_by_id, tokens_of
from minivlm.subwords import MAX_WORD, UNKNOWN, WordPiece

MARK = "##"  # of a piece that does not begin a word
# No accent and no punctuation in Unicode 8, but in later ones; what else lies between is neither.
_YOUNG = (
    r"[\u05c8-\u05c9\u061d\u07fd\u0897-\u08e1\u09fd-\u09fe\u0a76\u0afa-\u0aff\u0b53-\u0b55"
    r"\u0c04-\u0c3c\u0c77\u0c84\u0d00\u0d3b-\u0d3c\u0d81\u0eba\u0ece\u180f-\u1886\u1abf-\u1af0"
    r"\u1b4e-\u1b4f\u1b7d-\u1b7f\u1df6-\u1dfb\u2e43-\u2e63\ua82c\ua8c5\ua8ff\ua9bd"
    r"\U00010d24-\U00010f89\U00011070-\U00011074\U000110c2\U000111c9\U000111cf"
    r"\U0001123e-\U00011241\U0001133b\U000113bb-\U0001145e\U00011660-\U0001166c\U000116b9"
    r"\U0001182f-\U00011fff\U00012ff1-\U0001612f\U00016d6d-\U00016f4f\U00016fe2-\U00016fe4"
    r"\U0001cf00-\U0001d128\U0001d25b-\U0001d25c\U0001e000-\U0001e6f5\U0001e944-\U0001e95f]"
)
_PUNCTUATION = rf"(?:(?!{_YOUNG})[\p{{P}}!-/:-@\[-`{{-~]|[\u166d\U000111c9])"
BERT_WORDS = regex.compile(rf"{_PUNCTUATION}|(?:(?!{_PUNCTUATION})\S)+")
_KEPT = r"\t\n\r\u0890\u0891\u08e2\U000110cd\U00013430-\U0001343f"  # the last five are young, too
_DROPPED = regex.compile(rf"[\0\ufffd]|(?![{_KEPT}])[\p{{Cc}}\p{{Cf}}\p{{Co}}]")
_WHITE = regex.compile(r"\s")
_CHINESE = regex.compile(
    r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f"
    r"\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]"
)
_ACCENT = regex.compile(rf"(?!{_YOUNG})\p{{Mn}}|[\u1734\U0001171e]")
CLEAN_UP = [  # a decoder's: (what a piece holds with its space, what is written)
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
]


class BertTokenizer:
    """From the content of a tokenizer.json; ValueError where it is not a BERT tokenizer's."""

    def __init__(self, data: dict[str, Any]) -> None:
        model = data["model"]
        self.vocab = model["vocab"]
        check_model(model, continuing_subword_prefix=MARK)
        for option, only in (("unk_token", UNKNOWN), ("max_input_chars_per_word", MAX_WORD)):
            if model.get(option, only) != only:
                raise ValueError(f"WordPiece with {option} {model[option]!r} is not supported")
        expect(data, "normalizer", {"type": "BertNormalizer"})
        expect(data, "pre_tokenizer", {"type": "BertPreTokenizer"})
        expect(data, "decoder", {"type": "WordPiece", "prefix": MARK})
        self.clean_up = data["decoder"].get("cleanup", True)
        self.added = AddedTokens(
            data.get("added_tokens") or [], partial(bert_clean, options=data["normalizer"])
        )
        self.special_tokens = self.added.ids
        self._tokens = tokens_by_id(self.vocab, self.added)
        self.vocab_size = max(self._tokens) + 1  # the rows that an embedding table needs
        self._pieces = lru_cache(1 << 16)(WordPiece(self.vocab).tokenize_word)

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """Ids of text. A special token must be allowed ("all": each is), else ValueError."""
        ids: list[int] = []
        for part in self.added.split(text, allowed_special):
            if isinstance(part, int):
                ids.append(part)
                continue
            for word in BERT_WORDS.findall(part):
                ids += [self.vocab[piece] for piece in self._pieces(word)]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: a space before each word, but, as a rule, not before punctuation."""
        tokens = tokens_of(ids, self._tokens)
        spaced = [t.removeprefix(MARK) if t.startswith(MARK) else f" {t}" for t in tokens[1:]]
        return "".join(map(self._cleaned_up, tokens[:1] + spaced))

    def _cleaned_up(self, piece: str) -> str:
        for written, read in CLEAN_UP if self.clean_up else ():
            piece = piece.replace(written, read)
        return piece


def bert_clean(text: str, options: dict[str, Any]) -> str:
    """What BertNormalizer does with these options. Accents go with capitals, if nothing is said."""
    if options.get("clean_text", True):
        text = _WHITE.sub(" ", _DROPPED.sub("", text))
    if options.get("handle_chinese_chars", True):
        text = _CHINESE.sub(r" \g<0> ", text)
    lowercase, strip = options.get("lowercase", True), options.get("strip_accents")
    if lowercase if strip is None else strip:
        text = _ACCENT.sub("", unicodedata.normalize("NFD", text))
    return "".join(map(str.lower, text)) if lowercase else text
