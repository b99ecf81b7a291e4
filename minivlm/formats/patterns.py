"""Split patterns: three dialects of regular expressions, and what each makes of the others.

A tokenizer.json holds a pattern of Oniguruma, `regex` runs it here, and tiktoken has one of Rust.
They read `^`, `$`, `\\h`, `&&` and sets in sets differently. What can be said exactly in another
dialect is translated, the rest is refused by name.
"""

import math
import time
from itertools import chain, pairwise

import regex

# The patterns that cut a text into pieces. Some files only imply theirs: the pre-tokenizer
# ByteLevel has GPT-2's, unless it has none; a Qwen2 tokenizer without tokenizer.json has Qwen2's.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K_SPLIT = (  # GPT-4: at most three digits in a piece
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
QWEN2_SPLIT = (  # one digit in a piece
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NO_SPLIT = r"[\s\S]+"
_ALIKE = (GPT2_SPLIT, QWEN2_SPLIT, NO_SPLIT)  # to all readers

# A pattern has three readers: Oniguruma (tokenizer.json), `regex` (here) and Rust (tiktoken).
# _TOKEN is what all of them read alike, and what the tables below have a counterpart for; letters
# newer than Python's own Unicode apart. _ITEM opens a group, which the sets close.
_CHAR = r"\\(?:[nrtfv!-&(-/:;=?@\[-^{-~]|x[0-7][\da-fA-F]|u[\da-cefA-CEF][\da-fA-F]{3})"
_SCRIPTS = "Arabic|Cyrillic|Devanagari|Greek|Han|Hangul|Hebrew|Hiragana|Katakana|Latin|Thai"
_CLASS = rf"\\[sSdDwWhH]|\\[pP]\{{(?:[LMNPSZ][a-z]?|C[cf]|{_SCRIPTS})\}}"
_ONE = rf"(?:{_CHAR}|(?!&&|\|\||~~)[^\\\[\]\-])"  # a character of a set
_ITEM = rf"(?:{_CLASS}|{_ONE}(?:-{_ONE})?+"
_FLAT = rf"\[\^?+-?{_ITEM})++-?\]"
_DEEP = rf"(?<deep>\[\^?+-?{_ITEM}|(?!\[:)(?&deep))++(?:&&{_ITEM}|(?!\[:)(?&deep))++)*-?\])"
_TIMES = r"(?:(?<times>\{\d+\}(?=[+?])|\{\d+,\d*\}(?=\+))(?<more>[+?])(?![*+?{]))?"
_ATOM = rf"(?<atom>{_FLAT}|{_DEEP}|{_CLASS}|{_CHAR}|[^\\^$|?*+()\[{{}}]){_TIMES}"
_FOLD = r"\(\?i:(?<fold>(?:(?!ss|ff|fi|fl|st)[a-z' |]|\[[a-z]+\])*)\)"  # in Oniguruma ß is ss, too
_GROUP = rf"{_FOLD}|\((?!\?)|\(\?(?:[:>]|<?[=!])|[|)]"
_REPEAT = r"(?:[*+?][+?]?|\{\d+\}|\{\d+,\d*\}\??)(?![*+?{])"
_TOKEN = regex.compile(rf"{_ATOM}|\\[AzZ]|[\^$]|{_GROUP}|{_REPEAT}")
# subtle: one (?i: makes regex 2026.11 forget case in every \P{Lu} and [^A]; and it takes İ for i
_ODD = regex.compile(r"\(\?i:[^)]*i|\\P\{L|\[\^(?!(?:\\[srntd]|\\p\{[LMNPSZ]\}|[^\\\p{L}[\]-])+\])")
_LETTER = regex.compile(r"\[[a-z]+\]|[a-z]")
_ESCAPE = regex.compile(r"\\.", regex.DOTALL)
_LETTERS = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}"  # Oniguruma's \w in a set,
_WORD = _LETTERS + "²³¹¼½¾"  # and outside; the others have their own
FROM_ONIGURUMA = {  # there ^ and $ are of a line, and \h is a hexadecimal digit
    "^": r"(?:\A|(?<=\n)(?!\Z))",
    "$": r"(?=\n|\Z)",
    r"\A": r"\A",
    r"\Z": r"(?=\n?\Z)",
    r"\z": r"\Z",
    r"\w": f"[{_WORD}]",
    r"\W": f"[^{_WORD}]",
    r"\h": "[0-9a-fA-F]",
    r"\H": "[^0-9a-fA-F]",
    r"[\w": f"[{_LETTERS}]",
    r"[\W": f"[^{_LETTERS}]",
    r"[\h": "[0-9a-fA-F]",
    r"[\H": "[^0-9a-fA-F]",
    "{}+": "(?:{}{})+",
    "{}?": "(?:{}{})?",
}
FROM_REGEX = {  # there {1,3}+ is possessive, and ? after {3} changes nothing
    "^": r"\A",
    "$": r"(?=\n?\z)",
    r"\A": r"\A",
    r"\Z": r"\z",
    "{}+": "(?>{}{})",
    "{}?": "{}{}",
}
_EMPTY = {  # what always holds, for a test whether a pattern may match nothing
    r"\A": "(?:)",
    r"\z": "(?:)",
    "(?=": "(?:|",
    "(?!": "(?:|",
    "(?<=": "(?:|",
    "(?<!": "(?:|",
}

MOST_REPEATS = 100_000  # intervals in intervals multiplied; compiling writes them out
LIMIT = 10.0  # seconds that a split pattern may take, once more for every 100,000 characters


def from_oniguruma(pattern: str) -> str:
    """A pattern of tokenizer.json as `regex` reads it; ValueError for what it cannot say."""
    if pattern in _ALIKE:
        return pattern
    text, deep = _rewrite(pattern, FROM_ONIGURUMA)
    return f"(?V1){text}" if deep else text


def to_portable(pattern: str) -> str:
    """A pattern of `regex` as Oniguruma and Rust both read it; ValueError for what they cannot."""
    if pattern in _ALIKE:
        return pattern
    text, deep = _rewrite(pattern.removeprefix("(?V1)"), FROM_REGEX)
    if (deep and not pattern.startswith("(?V1)")) or ("(?i:" in pattern and _ODD.search(pattern)):
        raise ValueError(f"split pattern {pattern!r}: '[' in a set or (?i: would mean other things")
    return text


def for_tiktoken(pattern: str) -> str:
    """The pattern with what it would leave out as pieces; ValueError if tiktoken cannot have it.

    tiktoken panics at an empty piece. Lookarounds are taken to hold.
    """
    if pattern in (*_ALIKE, CL100K_SPLIT):
        return pattern
    rust = to_portable(pattern)
    if regex.fullmatch("(?V1)" + _rewrite(rust, _EMPTY)[0], ""):
        raise ValueError(f"not representable in tiktoken: {pattern!r} may match an empty string")
    return rf"(?:{rust})|(?:(?!{rust})[\s\S])+"


def _rewrite(pattern: str, meaning: dict[str, str]) -> tuple[str, bool]:
    """The pattern in another dialect, and whether it has sets in sets; ValueError for the rest."""
    parts, deep, at = [], False, 0
    if math.prod(max(1, int(n)) for n in regex.findall(r"[{,](\d+)", pattern)) > MOST_REPEATS:
        raise ValueError(f"split pattern {pattern!r}: it repeats more than {MOST_REPEATS:,} times")
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        piece = (token["atom"] or token[0]) if token else ""
        own = {piece, *("[" + name for name in _ESCAPE.findall(piece))} & FROM_ONIGURUMA.keys()
        kinds = [kind.lower() for kind in regex.findall(_CLASS, piece) if "[^" in piece]
        # subtle: to regex 2026.11 a set of a class and its complement is all, even negated, and
        # [[^a][^b]] is [^a]
        twice = len({*kinds}) < len(kinds) or piece.count("[^") > 1
        if token is None or not own <= meaning.keys() or twice:
            raise ValueError(f"split pattern {pattern!r}: no counterpart of {pattern[at:][:9]!r}")
        text = meaning.get(piece) or _ESCAPE.sub(lambda m: meaning.get("[" + m[0], m[0]), piece)
        deep |= token["deep"] is not None or (piece[0] == "[" and text != piece)
        if token["fold"] is not None:
            text = f"(?:{_LETTER.sub(_both_cases, token['fold'])})"
        more = token["more"]
        parts.append(meaning["{}" + more].format(text, token["times"]) if more else text)
        at = token.end()
    return "".join(parts), deep


def _both_cases(match: regex.Match) -> str:
    """A letter or a set of letters, in both cases, with the long s and the sign of kelvin."""
    letters = match[0].strip("[]")
    signs = "ſ" * ("s" in letters) + "\u212a" * ("k" in letters)
    return f"[{letters}{letters.upper()}{signs}]"


def pretokenize(split: regex.Pattern, text: str) -> list[str]:
    """The pieces that no merge may cross. What the pattern leaves out is a piece too.

    Found as Oniguruma does: after an empty match the search goes on one character later.
    ValueError if the pattern takes so long that it must be backtracking without end.
    """
    limit = LIMIT * (1 + len(text) / 100_000)
    until = time.monotonic() + limit
    try:
        words = split.findall(text, timeout=limit) if not split.groups else []
        if all(words) and sum(map(len, words)) == len(text):
            return words
        spans = [match.span() for match in split.finditer(text, timeout=limit)]
        if any(start == stop for start, stop in spans):
            spans, at = [], 0
            while at <= len(text):
                match = split.search(text, at, timeout=max(until - time.monotonic(), 1e-3))
                spans.append(match.span() if match else (len(text), len(text)))
                at = max(spans[-1][1], spans[-1][0] + 1)
    except TimeoutError:
        error = f"split pattern {split.pattern!r} took over {limit:.0f} s on {text[:20]!r} ..."
        raise ValueError(error) from None
    edges = [0, *chain.from_iterable(spans), len(text)]
    return [text[start:stop] for start, stop in pairwise(edges) if start < stop]
