"""Tokens that a published tokenizer looks for before it cuts a text into words.

In: the "added_tokens" of a tokenizer.json. A token that is "normalized" is looked for in the text
after normalization, in its own normal form; the others in the text as it stands, before.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from minivlm.bpe import any_of, check_text, refuse_tokens

FLAGS = ("single_word", "lstrip", "rstrip")  # they make ids depend on the text around a token


class AddedTokens:
    """ids: {token: id}. `normalize` is what the tokenizer does to a text first."""

    def __init__(
        self, added: Iterable[dict[str, Any]], normalize: Callable[[str], str] = str
    ) -> None:
        self.ids: dict[str, int] = {}
        self.early: set[str] = set()
        self.late: dict[str, str] = {}  # normal form -> token
        self.normalize = normalize
        for token in added:
            text = token["content"]
            if not normalize(text):
                raise ValueError(f"added token {text!r} is empty, or becomes so when normalized")
            for flag in FLAGS:
                if token.get(flag):
                    raise ValueError(f"added token {text!r} with {flag} is not supported")
            self.ids[text] = token["id"]
            if token.get("normalized"):
                self.late[normalize(text)] = text
            else:
                self.early.add(text)

    def split(self, text: str, allowed_special: Iterable[str]) -> Iterator[str | int]:
        """Normalized pieces of text, and between them the ids of tokens that are allowed.

        allowed_special: tokens, or "all". ValueError for a token in the text that is not allowed.
        """
        check_text(text)
        allowed = allowed_tokens(self.ids, allowed_special)
        for part in _cut(text, self.early, allowed):
            if part in self.early:
                yield self.ids[part]
                continue
            forms = {form for form, token in self.late.items() if token in allowed}
            for piece in _cut(self.normalize(part), self.late, forms):
                yield self.ids[self.late[piece]] if piece in self.late else piece

    def check(self, text: str, allowed_special: Iterable[str]) -> None:
        """ValueError for a token in the text that is not allowed, or for one that is none."""
        for _ in self.split(text, allowed_special):
            pass


def allowed_tokens(special: Iterable[str], given: Iterable[str]) -> set[str]:
    """The tokens that a text may hold; ValueError for one that is none. given: tokens, or "all"."""
    known = set(special)
    if isinstance(given, str) and given != "all":
        raise ValueError(f'allowed_special is "all" or a collection of tokens, not {given!r}')
    allowed = known if given == "all" else set(given)
    for token in sorted(allowed - known):
        raise ValueError(f"allowed_special names {token!r}, which is no special token here")
    return allowed


def _cut(text: str, tokens: Iterable[str], allowed: set[str]) -> list[str]:
    """Text cut at those tokens that are allowed; the tokens are pieces too."""
    refuse_tokens(frozenset(tokens) - allowed, text)
    return any_of(frozenset(tokens) & allowed).split(text)
