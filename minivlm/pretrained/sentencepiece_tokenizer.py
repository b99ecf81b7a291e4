"""SentencePiece's BPE with byte fallback (Llama 2, Vicuna) and Unigram (SigLIP), as published.

In: the content of a tokenizer.json. The course builds neither (Unigram's idea is in
`minivlm.subwords`), so the `tokenizers` library runs the file as it stands, whatever its normalizer
and its pre-tokenizer are. Refusing special tokens in a text is our own.
"""

import json
from collections.abc import Iterable
from typing import Any

from minivlm.pretrained.added_tokens import FLAGS, AddedTokens
from minivlm.pretrained.tokenizer_parts import tokens_by_id, tokens_of


class SentencePieceTokenizer:
    """From the content of a tokenizer.json; ValueError where the library cannot read it."""

    def __init__(self, data: dict[str, Any]) -> None:
        plain = dict.fromkeys(FLAGS, False) | {"normalized": False, "special": True}
        fields = ("id", "content", *plain)
        added = [
            {name: token.get(name, plain.get(name)) for name in fields}
            for token in sorted(data["added_tokens"], key=lambda token: token["id"])
        ]
        unused = dict.fromkeys(("truncation", "padding", "post_processor"))
        self._library = read_library_tokenizer(json.dumps(data | unused | {"added_tokens": added}))
        if data["model"].get("type") == "Unigram" and data["model"].get("unk_id") is None:
            raise ValueError("a Unigram model without unk_id cannot write every text")
        normalizer = self._library.normalizer
        bare = [token | dict.fromkeys(FLAGS, False) for token in added]
        self._literal = AddedTokens([token | {"normalized": False} for token in bare])
        self._normalized = AddedTokens(bare, normalizer.normalize_str if normalizer else str)
        self.special_tokens = self._literal.ids
        self._tokens = tokens_by_id(self._library.get_vocab(), self._literal)
        self.vocab_size = max(self._tokens) + 1  # the rows that an embedding table needs

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """Ids of text. A special token must be allowed ("all": each is), else ValueError."""
        for tokens in (self._literal, self._normalized):  # subtle: "<s>" is "▁<s>" in the second
            tokens.check(text, allowed_special)
        return self._library.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not valid UTF-8 become U+FFFD."""
        ids = [int(i) for i in ids]
        tokens_of(ids, self._tokens)
        return self._library.decode(ids, skip_special_tokens=False)


def read_library_tokenizer(content: str) -> Any:
    """The content of a tokenizer.json -> tokenizers.Tokenizer; ValueError if there is no way."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError(
            "a SentencePiece tokenizer is read with the tokenizers library: pip install tokenizers"
        ) from None
    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"the tokenizers library cannot read it: {error}") from None
