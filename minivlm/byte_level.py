"""What byte-level tokenizers share: split patterns, the order of bytes, how words are cut out of a text.

Belongs to bpe.py and notebook 01_bpe_tokenizer. Patterns and byte order are those of GPT-2 (encoder.py),
tiktoken and transformers. Data in: a str. Data out: its words, and bytes in their visible form.

The `regex` package may know letters that Unicode added after `tokenizers` and tiktoken were built.
"""

import regex

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

# GPT-2 writes a byte as one visible character: 188 bytes as themselves, the other 68 as U+0100, U+0101, ...
# The ids 0-255 follow that order, so '!' is 0 and the space, written U+0120, is 220.
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
ID_TO_BYTE = bytes(_VISIBLE + [b for b in range(256) if b not in _VISIBLE])
BYTE_TO_ID = bytes(ID_TO_BYTE.index(b) for b in range(256))  # a table for bytes.translate
BYTE_TO_CHAR = {b: chr(b if i < 188 else 256 + i - 188) for i, b in enumerate(ID_TO_BYTE)}
CHAR_TO_BYTE = {char: b for b, char in BYTE_TO_CHAR.items()}


def to_visible(token: bytes) -> str:
    """Bytes as vocab.json and merges.txt write them: b' a' -> 'Ġa'."""
    return token.decode("latin-1").translate(BYTE_TO_CHAR)


def from_visible(text: str) -> bytes:
    """The inverse of `to_visible`; ValueError for a character that stands for no byte."""
    try:
        return bytes(map(CHAR_TO_BYTE.__getitem__, text))
    except KeyError as error:
        raise ValueError(f"not byte-level: {error} in token {text!r} stands for no byte") from None


def check_text(text: str) -> None:
    """TypeError if `text` is no str, ValueError if it holds half of a surrogate pair, which has no bytes."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = error.start
        raise ValueError(f"lone surrogate {text[at]!r} at position {at} of the text") from None


def compile_split(pattern: str) -> regex.Pattern:
    """The pattern, compiled; ValueError if it is no regular expression."""
    try:
        return regex.compile(pattern)
    except (regex.error, TypeError) as error:
        raise ValueError(f"split pattern {pattern!r} is no regular expression: {error}") from None


def pretokenize(split: regex.Pattern, text: str) -> list[str]:
    """Cut text into the pieces that no merge may cross; what the pattern leaves out is a piece too."""
    words = split.findall(text) if not split.groups else []
    if sum(map(len, words)) == len(text):
        return words
    words, end = [], 0
    for match in split.finditer(text):
        words += [text[end : match.start()], match.group()]
        end = match.end()
    return [word for word in (*words, text[end:]) if word]
