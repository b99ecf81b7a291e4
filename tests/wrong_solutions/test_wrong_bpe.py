"""Notebook 01: right solutions are accepted, and each likely mistake is named."""

import codecs
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from typing import Any

import pytest
from wrong_solutions import accepts, refuses

from minivlm.bpe import BPETokenizer
from minivlm.exercises import bpe as exercises
from minivlm.exercises import bpe_core as core

Pair = tuple[int, int]
Words = dict[tuple[int, ...], int]

# Count the pairs


def count_pairs(words: Words) -> Counter[Pair]:
    counts: Counter[Pair] = Counter()
    for word, n in words.items():
        for pair in pairwise(word):
            counts[pair] += n
    return counts


def count_pairs_by_index(words: Words) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for word in words:
        for i in range(len(word) - 1):
            pair = (word[i], word[i + 1])
            counts[pair] = counts.get(pair, 0) + words[word]
    return counts


def count_past_the_end(words: Words) -> Counter[Pair]:
    counts: Counter[Pair] = Counter()
    for word, n in words.items():
        for i in range(len(word)):
            counts[word[i], word[i + 1]] += n
    return counts


def count_each_pair_once_a_word(words: Words) -> Counter[Pair]:
    counts: Counter[Pair] = Counter()
    for word, n in words.items():
        counts.update(dict.fromkeys(pairwise(word), n))
    return counts


def count_with_str_count(words: Words) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for word, n in words.items():
        text = "".join(map(chr, word))
        for pair in set(pairwise(word)):  # str.count counts without overlaps
            counts[pair] = counts.get(pair, 0) + n * text.count("".join(map(chr, pair)))
    return counts


def count_sorted(words: Words) -> Counter[Pair]:
    counts: Counter[Pair] = Counter()
    for pair, n in count_pairs(words).items():
        counts[min(pair), max(pair)] += n
    return counts


def count_single_ids(words: Words) -> Counter[int]:
    return Counter(i for word, n in words.items() for i in word for _ in range(n))


def count_slices(words: Words) -> Counter[tuple[int, ...]]:
    counts: Counter[tuple[int, ...]] = Counter()
    for word, n in words.items():
        for i in range(len(word)):
            counts[word[i : i + 2]] += n
    return counts


WRONG_COUNTS = {
    "words are not weighted": (
        "brings each of its pairs",
        lambda words: Counter(chain.from_iterable(map(pairwise, words))),
    ),
    "runs past the end": ("no right neighbour", count_past_the_end),
    "across words": ("crosses", lambda words: Counter(pairwise(chain(*words)))),
    "a set for each word": ("twice", count_each_pair_once_a_word),
    "str.count": ("(1, 1) twice", count_with_str_count),
    "the last pair is missing": (
        "last pair",
        lambda words: count_pairs({word[:-1]: n for word, n in words.items()}),
    ),
    "pairs without order": ("order", count_sorted),
    "single ids": ("single ids", count_single_ids),
    "slices up to the end": ("begins no pair", count_slices),
    "a list of pairs": ("Counter or dict", lambda words: [*chain(*map(pairwise, words))]),
    "returns nothing": ("return", lambda words: None),
}


@pytest.mark.parametrize("right", [count_pairs, count_pairs_by_index])
def test_count_pairs_accepts_right_solutions(right: Callable) -> None:
    accepts(core.check_count_pairs, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_COUNTS.values(), ids=WRONG_COUNTS)
def test_count_pairs_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(core.check_count_pairs, wrong, word)


# Merge one pair


def merge(ids: list[int], pair: Pair, new: int) -> list[int]:
    out, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair
        out.append(new if found else ids[i])
        i += 2 if found else 1
    return out


def merge_as_text(ids: list[int], pair: Pair, new: int) -> tuple[int, ...]:
    text = "".join(map(chr, ids)).replace("".join(map(chr, pair)), chr(new))
    return tuple(map(ord, text))


def merge_past_the_end(ids: list[int], pair: Pair, new: int) -> list[int]:
    out, i = [], 0
    while i < len(ids):
        found = (ids[i], ids[i + 1]) == pair
        out.append(new if found else ids[i])
        i += 2 if found else 1
    return out


def merge_without_the_last(ids: list[int], pair: Pair, new: int) -> list[int]:
    out, i = [], 0
    while i < len(ids) - 1:
        found = (ids[i], ids[i + 1]) == pair
        out.append(new if found else ids[i])
        i += 2 if found else 1
    return out


def merge_step_by_step(ids: list[int], pair: Pair, new: int) -> list[int]:
    out = []
    for i in range(len(ids)):
        out.append(new if tuple(ids[i : i + 2]) == pair else ids[i])
    return out


def merge_once(ids: list[int], pair: Pair, new: int) -> list[int]:
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            return [*ids[:i], new, *ids[i + 2 :]]
    return ids


def merge_from_the_right(ids: list[int], pair: Pair, new: int) -> list[int]:
    return merge(ids[::-1], pair[::-1], new)[::-1]


def merge_in_place(ids: list[int], pair: Pair, new: int) -> list[int]:
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            ids[i : i + 2] = [new]
        i += 1
    return ids


WRONG_MERGES = {
    "goes on by one": ("right half", merge_step_by_step),
    "runs past the end": ("no right neighbour", merge_past_the_end),
    "loses the last id": ("last id is lost", merge_without_the_last),
    "only the first": ("only the first", merge_once),
    "changes its argument": ("changed the list", merge_in_place),
    "from the right": ("from the left", merge_from_the_right),
    "in any order": ("order", lambda ids, p, new: merge(merge(ids, p, new), p[::-1], new)),
    "only the new ones": ("must stay", lambda ids, p, new: [new] * merge(ids, p, new).count(new)),
    "nothing": ("nothing was merged", lambda ids, p, new: list(ids)),
    "a list against a tuple": (
        "nothing was merged",
        lambda ids, p, new: [new if ids[i : i + 2] == p else ids[i] for i in range(len(ids))],
    ),
    "returns nothing": ("return", lambda ids, p, new: None),
}


@pytest.mark.parametrize("right", [merge, merge_as_text])
def test_merge_accepts_right_solutions(right: Callable) -> None:
    accepts(core.check_merge, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_MERGES.values(), ids=WRONG_MERGES)
def test_merge_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(core.check_merge, wrong, word)


# Choose the best pair


def best_pair(counts: dict[Pair, int]) -> Pair | None:
    return min(counts, key=lambda pair: (-counts[pair], pair), default=None)


def best_pair_in_two_steps(counts: dict[Pair, int]) -> Pair | None:
    if not counts:
        return None
    most = max(counts.values())
    return sorted(pair for pair, n in counts.items() if n == most)[0]


def most_common(counts: dict[Pair, int]) -> Pair | None:
    return Counter(counts).most_common(1)[0][0] if counts else None


WRONG_CHOICES = {
    "max of the counts": ("came first", lambda c: max(c, key=c.get, default=None)),
    "most_common": ("came first", most_common),
    "max of (count, pair)": (
        "largest pair",
        lambda c: max(c, key=lambda pair: (c[pair], pair), default=None),
    ),
    "fails for no pair": ("no pair at all", lambda c: min(c, key=lambda p: (-c[p], p))),
    "the last of the best": (
        "came last",
        lambda c: sorted(c, key=c.get)[-1] if c else None,
    ),
    "the rarest": ("rarest", lambda c: min(c, key=lambda p: (c[p], p), default=None)),
    "the smallest pair of all": ("count decides", lambda c: min(c, default=None)),
    "as text": ("numbers", lambda c: min(c, key=lambda p: (-c[p], str(p)), default=None)),
    "by the sum": ("sum", lambda c: min(c, key=lambda p: (-c[p], sum(p)), default=None)),
    "the pair and its count": (
        "alone",
        lambda c: min(((p, n) for p, n in c.items()), key=lambda x: (-x[1], x[0]), default=None),
    ),
    "the count": ("alone", lambda c: max(c.values(), default=None)),
    "returns nothing": ("return", lambda c: None),
}


@pytest.mark.parametrize("right", [best_pair, best_pair_in_two_steps])
def test_best_pair_accepts_right_solutions(right: Callable) -> None:
    accepts(core.check_best_pair, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_CHOICES.values(), ids=WRONG_CHOICES)
def test_best_pair_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(core.check_best_pair, wrong, word)


# Train


def train(words: Words, count: int, first: int = 256, choose: Callable = best_pair) -> list[Pair]:
    merges: list[Pair] = []
    for new in range(first, first + count):
        best = choose(count_pairs(words))
        if best is None:
            break
        words = {tuple(merge([*word], best, new)): n for word, n in words.items()}
        merges.append(best)
    return merges


def train_on_lists(words: Words, count: int) -> list[tuple[int, ...]]:
    spread = [list(word) for word, n in words.items() for _ in range(n)]
    merges: list[tuple[int, ...]] = []
    while len(merges) < count and any(len(word) > 1 for word in spread):
        counts = Counter(pair for word in spread for pair in pairwise(word))
        merges.append(sorted(counts, key=lambda pair: (-counts[pair], pair))[0])
        spread = [merge(word, merges[-1], 255 + len(merges)) for word in spread]
    return merges


def train_without_stopping(words: Words, count: int) -> list[Pair]:
    merges = []
    for new in range(256, 256 + count):
        counts = count_pairs(words)
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        words = {tuple(merge([*word], merges[-1], new)): n for word, n in words.items()}
    return merges


def train_past_the_end(words: Words, count: int) -> list[Pair | None]:
    merges = train(words, count)
    return [*merges, *[None] * (count - len(merges))]


def train_counting_once(words: Words, count: int) -> list[Pair]:
    counts = count_pairs(words)
    return sorted(counts, key=lambda pair: (-counts[pair], pair))[:count]


def train_without_writing(words: Words, count: int) -> list[Pair]:
    return [pair for _ in range(count) if (pair := best_pair(count_pairs(words)))]


def train_with_one_id(words: Words, count: int) -> list[Pair]:
    merges: list[Pair] = []
    while len(merges) < count and (best := best_pair(count_pairs(words))):
        words = {tuple(merge([*word], best, 256)): n for word, n in words.items()}
        merges.append(best)
    return merges


def train_unweighted(words: Words, count: int) -> list[Pair]:
    return train(dict.fromkeys(words, 1), count)


def train_in_place(words: Words, count: int) -> list[Pair]:
    merges: list[Pair] = []
    while len(merges) < count and (best := best_pair(count_pairs(words))):
        for word in list(words):
            words[tuple(merge([*word], best, 256 + len(merges)))] = words.pop(word)
        merges.append(best)
    return merges


def train_to_tokens(words: Words, count: int) -> list[bytes]:
    return [bytes(i % 256 for i in pair) + b"!" for pair in train(words, count)]


WRONG_TRAININGS = {
    "no end": ("no pair is left", train_without_stopping),
    "no pair as a merge": ("no pair is left", train_past_the_end),
    "count as the vocabulary's size": ("how many merges", lambda words, count: []),
    "counts once": ("count the pairs again", train_counting_once),
    "does not write": ("again and again", train_without_writing),
    "changes its argument": ("changed the words", train_in_place),
    "first seen": (
        "smallest pair",
        lambda words, count: train(words, count, 256, most_common),
    ),
    "unweighted": ("brings its pairs", train_unweighted),
    "ids from 0": ("0 to 255", lambda words, count: train(words, count, 0)),
    "ids from 257": ("first new id is 256", lambda words, count: train(words, count, 257)),
    "one id for all": ("of its own", train_with_one_id),
    "one too few": ("missing", lambda words, count: train(words, count - 1)),
    "one too many": ("too many", lambda words, count: train(words, count + 1)),
    "ranks": ("list", lambda words, count: {p: r for r, p in enumerate(train(words, count))}),
    "tokens": ("pairs of ids", train_to_tokens),
    "returns nothing": ("return", lambda words, count: None),
}


@pytest.mark.parametrize("right", [train, train_on_lists])
def test_training_accepts_right_solutions(right: Callable) -> None:
    accepts(core.check_training, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_TRAININGS.values(), ids=WRONG_TRAININGS)
def test_training_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(core.check_training, wrong, word)


# Encode

Ranks = dict[Pair, int]


def encode(ids: list[int], ranks: Ranks) -> list[int]:
    while known := [pair for pair in pairwise(ids) if pair in ranks]:
        best = min(known, key=ranks.__getitem__)
        ids = merge(ids, best, 256 + ranks[best])
    return ids


def encode_merge_by_merge(ids: list[int], ranks: Ranks) -> list[int]:
    for pair, rank in ranks.items():
        ids = merge(ids, pair, 256 + rank)
    return ids


def encode_leftmost_first(ids: list[int], ranks: Ranks) -> list[int]:
    while True:
        found = [(ranks[p], i) for i, p in enumerate(pairwise(ids)) if p in ranks]
        if not found:
            return ids
        rank, i = min(found)
        ids = [*ids[:i], 256 + rank, *ids[i + 2 :]]


def encode_longest(ids: list[int], ranks: Ranks) -> list[int]:
    spelled = {i: [i] for i in range(256)}
    for (left, right), rank in ranks.items():
        spelled[256 + rank] = spelled[left] + spelled[right]
    out: list[int] = []
    while ids:
        fitting = [i for i, word in spelled.items() if ids[: len(word)] == word]
        out.append(max(fitting, key=lambda i: len(spelled[i])))
        ids = ids[len(spelled[out[-1]]) :]
    return out


def encode_left_to_right(ids: list[int], ranks: Ranks) -> list[int]:
    i = 0
    while i < len(ids) - 1:
        pair = (ids[i], ids[i + 1])
        if pair in ranks:
            ids, i = [*ids[:i], 256 + ranks[pair], *ids[i + 2 :]], 0
        else:
            i += 1
    return ids


def encode_in_one_pass(ids: list[int], ranks: Ranks) -> list[int]:
    out, i = [], 0
    while i < len(ids):
        rank = ranks.get(tuple(ids[i : i + 2]))
        out.append(ids[i] if rank is None else 256 + rank)
        i += 1 if rank is None else 2
    return out


def encode_highest(ids: list[int], ranks: Ranks) -> list[int]:
    while known := [pair for pair in pairwise(ids) if pair in ranks]:
        best = max(known, key=ranks.__getitem__)
        ids = merge(ids, best, 256 + ranks[best])
    return ids


def encode_once(ids: list[int], ranks: Ranks) -> list[int]:
    known = [pair for pair in pairwise(ids) if pair in ranks]
    return merge(ids, (best := min(known, key=ranks.get)), 256 + ranks[best]) if known else ids


def encode_to_ranks(ids: list[int], ranks: Ranks) -> list[int]:
    while known := [pair for pair in pairwise(ids) if pair in ranks]:
        best = min(known, key=ranks.__getitem__)
        ids = merge(ids, best, ranks[best])
    return ids


def encode_unknown_pairs(ids: list[int], ranks: Ranks) -> list[int]:
    while len(ids) > 1:
        best = min(pairwise(ids), key=lambda pair: ranks[pair])
        ids = merge(ids, best, 256 + ranks[best])
    return ids


def encode_single_ids(ids: list[int], ranks: Ranks) -> list[int]:
    while True:
        best = min(pairwise(ids), key=lambda pair: ranks.get(pair, 999))
        if best not in ranks:
            return ids
        ids = merge(ids, best, 256 + ranks[best])


WRONG_ENCODINGS = {
    "longest match": ("longest match", encode_longest),
    "left to right": ("left to right", encode_left_to_right),
    "one pass": ("once", encode_in_one_pass),
    "highest rank": ("highest rank", encode_highest),
    "one merge": ("go on", encode_once),
    "ranks as ids": ("256 + its rank", encode_to_ranks),
    "unknown pairs": ("not every pair is in the list", encode_unknown_pairs),
    "no pair at all": ("no pair at all", encode_single_ids),
    "nothing": ("nothing was merged", lambda ids, ranks: ids),
    "bytes": ("list", lambda ids, ranks: bytes(ids)),
    "returns nothing": ("return", lambda ids, ranks: None),
}


@pytest.mark.parametrize("right", [encode, encode_merge_by_merge, encode_leftmost_first])
def test_encoding_accepts_right_solutions(right: Callable) -> None:
    accepts(core.check_encoding, right)


@pytest.mark.parametrize(("word", "wrong"), WRONG_ENCODINGS.values(), ids=WRONG_ENCODINGS)
def test_encoding_names_the_mistake(word: str, wrong: Callable) -> None:
    refuses(core.check_encoding, wrong, word)


def test_an_error_is_told_with_its_name() -> None:
    def careless(ids: list[int], pair: Pair, new: int) -> Any:
        return ids + new

    refuses(core.check_merge, careless, "TypeError")


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


def pair_changes(ids: list[int], pair: Pair, new: int) -> dict[Pair, int]:
    changes = Counter(pairwise(merge(ids, pair, new)))
    changes.subtract(Counter(pairwise(ids)))
    return {key: n for key, n in changes.items() if n}


def pair_changes_by_neighbours(
    ids: list[int], pair: Pair, new: int, runs: bool = True, itself: bool = True
) -> Counter[Pair]:
    word, changes = merge(ids, pair, new), Counter()
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
    changes = Counter(pairwise(merge(ids, pair, new)))
    changes.subtract(Counter(pairwise(ids)))
    return changes


def pair_changes_once_a_merge(ids: list[int], pair: Pair, new: int) -> dict[Pair, int]:
    changes = Counter(pair_changes(ids, pair, new))
    changes[pair] = -merge(ids, pair, new).count(new)  # in a run more of them disappear
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
        lambda ids, p, new: Counter(pairwise(merge(ids, p, new))),
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
        lambda ids, p, new: Counter(pairwise(merge(ids, p, new))) - Counter(pairwise(ids)),
    ),
    "returns the word": ("Counter or dict", merge),
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
