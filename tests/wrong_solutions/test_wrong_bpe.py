"""Notebook 01: right solutions are accepted, and each likely mistake is named."""

import codecs
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from wrong_solutions import accepts, refuses

from minivlm.bpe import BPETokenizer
from minivlm.exercises import bpe as exercises

# Fertility


def fertility(tokenizer: BPETokenizer, text: str) -> float:
    return len(tokenizer.encode(text)) / max(len(text.split()), 1)


def fertility_by_cases(tokenizer: BPETokenizer, text: str) -> float:
    words = sum(1 for _ in text.split())
    return sum(1 for _ in tokenizer.encode(text)) / words if words else 0


WRONG_FERTILITY = {
    "divides by zero": ("ZeroDivisionError", lambda t, s: len(t.encode(s)) / len(s.split())),
    "upside down": (
        "words per token",
        lambda t, s: len(s.split()) / max(len(t.encode(s)), 1),
    ),
    "integer division": (
        "integer division",
        lambda t, s: len(t.encode(s)) // max(len(s.split()), 1),
    ),
    "rounded": ("rounded", lambda t, s: round(fertility(t, s), 2)),
    "characters": ("characters", lambda t, s: len(s) / max(len(s.split()), 1)),
    "bytes": ("count tokens", lambda t, s: len(s.encode()) / max(len(s.split()), 1)),
    "tokens a character": ("per character", lambda t, s: len(t.encode(s)) / max(len(s), 1)),
    "split at each space": ("split", lambda t, s: len(t.encode(s)) / len(s.split(" "))),
    "word by word": (
        "space",
        lambda t, s: sum(len(t.encode(w)) for w in s.split()) / max(len(s.split()), 1),
    ),
    "distinct words": ("twice", lambda t, s: len(t.encode(s)) / max(len(set(s.split())), 1)),
    "tokens alone": ("divide", lambda t, s: len(t.encode(s))),
    "one for empty": ("empty", lambda t, s: fertility(t, s) if s else 1.0),
    "returns nothing": ("return", lambda t, s: None),
}


def test_fertility_accepts_right_solutions() -> None:
    accepts(exercises.check_fertility, fertility)
    accepts(exercises.check_fertility, fertility_by_cases)


@pytest.mark.parametrize(("word", "wrong"), WRONG_FERTILITY.values(), ids=WRONG_FERTILITY)
def test_fertility_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_fertility, wrong, word)


# Streaming


def stream(tokenizer: BPETokenizer, ids: list[int]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for i in ids:
        piece = decoder.decode(tokenizer.decode_bytes([i]))
        if piece:
            yield piece
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def stream_from_a_buffer(tokenizer: BPETokenizer, ids: list[int]) -> Iterator[str]:
    buffer: list[int] = []
    for n in range(len(ids)):
        buffer.append(ids[n])
        try:
            piece = tokenizer.decode_bytes(buffer).decode()
        except UnicodeDecodeError:
            continue
        yield piece
        buffer = []
    if buffer:
        yield tokenizer.decode(buffer)


def stream_characters(tokenizer: BPETokenizer, ids: list[int]) -> Iterator[str]:
    for piece in stream(tokenizer, ids):
        yield from piece


def stream_with_empty_pieces(tokenizer: BPETokenizer, ids: list[int]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for i in ids:
        yield decoder.decode(tokenizer.decode_bytes([i]))
    yield decoder.decode(b"", final=True)


def stream_without_the_end(tokenizer: BPETokenizer, ids: list[int]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for i in ids:
        piece = decoder.decode(tokenizer.decode_bytes([i]))
        if piece:
            yield piece


def stream_ignoring(tokenizer: BPETokenizer, ids: list[int]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
    for i in ids:
        piece = decoder.decode(tokenizer.decode_bytes([i]))
        if piece:
            yield piece


def stream_words(tokenizer: BPETokenizer, ids: list[int]) -> Iterator[str]:
    held = ""
    for piece in stream(tokenizer, ids):
        if piece.startswith(" ") and held:
            yield held
            held = ""
        held += piece
    if held:
        yield held


def stream_whole(tokenizer: BPETokenizer, ids: list[int]) -> Iterator[str]:
    if ids:
        yield tokenizer.decode(ids)


def stream_read_first(tokenizer: BPETokenizer, ids: list[int]) -> Iterator[str]:
    yield from list(stream(tokenizer, ids))


def stream_strict(tokenizer: BPETokenizer, ids: list[int]) -> Iterator[str]:
    for i in ids:
        yield tokenizer.decode_bytes([i]).decode()


WRONG_STREAM = {
    "each token alone": ("part of a character", lambda t, ids: (t.decode([i]) for i in ids)),
    "strict decoding": ("UnicodeDecodeError", stream_strict),
    "empty pieces": ("empty piece", stream_with_empty_pieces),
    "the end is lost": ("unfinished", stream_without_the_end),
    "bad bytes ignored": ("unfinished", stream_ignoring),
    "waits for a space": ("wait", stream_words),
    "all at once": ("wait", stream_whole),
    "reads all ids first": ("one by one", stream_read_first),
    "returns a text": ("yield", lambda t, ids: t.decode(ids)),
    "returns nothing": ("yield", lambda t, ids: None),
    "yields bytes": ("bytes", lambda t, ids: (t.decode_bytes([i]) for i in ids)),
}


@pytest.mark.parametrize("right", [stream, stream_from_a_buffer, stream_characters])
def test_stream_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_stream, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_STREAM.values(), ids=WRONG_STREAM)
def test_stream_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_stream, wrong, word)


# Pair changes

Pair = tuple[int, int]


def merged(ids: list[int], pair: Pair, new: int) -> list[int]:
    out, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair
        out.append(new if found else ids[i])
        i += 2 if found else 1
    return out


def pair_changes(ids: list[int], pair: Pair, new: int) -> dict[Pair, int]:
    changes = Counter(pairwise(merged(ids, pair, new)))
    changes.subtract(Counter(pairwise(ids)))
    return {key: n for key, n in changes.items() if n}


def pair_changes_by_neighbours(
    ids: list[int], pair: Pair, new: int, runs: bool = True, itself: bool = True
) -> Counter[Pair]:
    word, changes = merged(ids, pair, new), Counter()
    for at, token in enumerate(word):
        if token != new:
            continue
        changes[pair] -= itself
        if at:
            before = word[at - 1]
            changes[pair[1] if runs and before == new else before, pair[0]] -= 1
            changes[before, new] += 1
        if at + 1 < len(word) and (not runs or word[at + 1] != new):
            changes[pair[1], word[at + 1]] -= 1
            changes[new, word[at + 1]] += 1
    return Counter({key: n for key, n in changes.items() if n})


def pair_changes_with_zeros(ids: list[int], pair: Pair, new: int) -> Counter[Pair]:
    changes = Counter(pairwise(merged(ids, pair, new)))
    changes.subtract(Counter(pairwise(ids)))
    return changes


def pair_changes_once_a_merge(ids: list[int], pair: Pair, new: int) -> dict[Pair, int]:
    changes = Counter(pair_changes(ids, pair, new))
    changes[pair] = -merged(ids, pair, new).count(new)  # in a run more of them disappear
    return {key: n for key, n in changes.items() if n}


def only_disappearing(ids: list[int], pair: Pair, new: int) -> dict[Pair, int]:
    return {key: n for key, n in pair_changes(ids, pair, new).items() if n < 0}


def only_arising(ids: list[int], pair: Pair, new: int) -> dict[Pair, int]:
    return {key: n for key, n in pair_changes(ids, pair, new).items() if n > 0}


WRONG_CHANGES = {
    "zeros are kept": ("leave out", pair_changes_with_zeros),
    "signs turned around": (
        "after minus before",
        lambda ids, p, new: {key: -n for key, n in pair_changes(ids, p, new).items()},
    ),
    "counts, not changes": (
        "not their changes",
        lambda ids, p, new: Counter(pairwise(merged(ids, p, new))),
    ),
    "runs are forgotten": (
        "side by side",
        lambda ids, p, new: pair_changes_by_neighbours(ids, p, new, runs=False),
    ),
    "the pair itself is forgotten": (
        "itself",
        lambda ids, p, new: pair_changes_by_neighbours(ids, p, new, itself=False),
    ),
    "overlaps in a run": ("itself", pair_changes_once_a_merge),
    "only what disappears": ("neighbour gains", only_disappearing),
    "only what arises": ("neighbour loses", only_arising),
    "Counter's minus": (
        "changes by -1",
        lambda ids, p, new: Counter(pairwise(merged(ids, p, new))) - Counter(pairwise(ids)),
    ),
    "returns the word": ("Counter or dict", merged),
    "returns nothing": ("Counter or dict", lambda ids, p, new: None),
}


@pytest.mark.parametrize("right", [pair_changes, pair_changes_by_neighbours])
def test_pair_changes_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_pair_changes, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_CHANGES.values(), ids=WRONG_CHANGES)
def test_pair_changes_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_pair_changes, wrong, word)


# Truncation


def truncate(tokenizer: BPETokenizer, text: str, limit: int) -> str:
    lengths = range(len(text), -1, -1)
    return next(text[:n] for n in lengths if len(tokenizer.encode(text[:n])) <= limit)


def truncate_keeping_the_best(tokenizer: BPETokenizer, text: str, limit: int) -> str:
    best = ""
    for n in range(1, len(text) + 1):
        if len(tokenizer.encode(text[:n])) <= limit:
            best = text[:n]
    return best


def truncate_from_the_front(tokenizer: BPETokenizer, text: str, limit: int) -> str:
    n = 0
    while n < len(text) and len(tokenizer.encode(text[: n + 1])) <= limit:
        n += 1
    return text[:n]


def truncate_by_bisection(tokenizer: BPETokenizer, text: str, limit: int) -> str:
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.encode(text[:middle])) <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def truncate_words(tokenizer: BPETokenizer, text: str, limit: int) -> str:
    words = text.split()
    while words and len(tokenizer.encode(" ".join(words))) > limit:
        words.pop()
    return " ".join(words)


def truncate_below(tokenizer: BPETokenizer, text: str, limit: int) -> str:
    lengths = range(len(text), -1, -1)
    fits = (text[:n] for n in lengths if len(tokenizer.encode(text[:n])) < limit)
    return next(fits, "")


def cut_ids(errors: str) -> Callable[[BPETokenizer, str, int], str]:
    return lambda t, text, limit: t.decode_bytes(t.encode(text)[:limit]).decode(errors=errors)


WRONG_TRUNCATE = {
    "cuts the ids": ("split a character", cut_ids("replace")),
    "cuts the ids, ignores the rest": ("of the whole text", cut_ids("ignore")),
    "stops at the first that is too long": ("fewer", truncate_from_the_front),
    "bisection": ("fits too", truncate_by_bisection),
    "limit is characters": ("fits too", lambda t, text, limit: text[:limit]),
    "limit is bytes": (
        "fits too",
        lambda t, text, limit: text.encode()[:limit].decode(errors="ignore"),
    ),
    "whole words": ("fits too", truncate_words),
    "fewer than the limit": ("fits too", truncate_below),
    "does not cut": ("more than the limit", lambda t, text, limit: text),
    "cuts at the front": (
        "no prefix",
        lambda t, text, limit: cut_ids("ignore")(t, text[::-1], limit)[::-1],
    ),
    "returns ids": ("text", lambda t, text, limit: t.encode(text)[:limit]),
    "returns nothing": ("text", lambda t, text, limit: None),
}


@pytest.mark.parametrize("right", [truncate, truncate_keeping_the_best])
def test_truncate_accepts_right_solutions(right: Callable) -> None:
    accepts(exercises.check_truncate, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_TRUNCATE.values(), ids=WRONG_TRUNCATE)
def test_truncate_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(exercises.check_truncate, wrong, word)
