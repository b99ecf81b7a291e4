"""01 · Checks of what notebook 01's readers build: count pairs, merge, choose, train, encode."""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain, pairwise, product
from random import Random
from typing import Any

from minivlm.exercises.answers import compare_answers, expect_items, named_kind

Pair = tuple[int, int]
WordCounts = Mapping[tuple[int, ...], int]  # {word, as its ids: how often it occurs}
Counting = Callable[[WordCounts], Mapping[Pair, int]]
Merging = Callable[[list[int], Pair, int], list[int]]
Choosing = Callable[[Mapping[Pair, int]], Any]
Training = Callable[[WordCounts, int], list[Pair]]
Encoding = Callable[[list[int], dict[Pair, int]], list[int]]


def _or_say(said: str, errors: tuple[type[Exception], ...], function: Callable, *args: Any) -> Any:
    """The answer of a function; where some errors are likely, they become advice."""
    try:
        return function(*args)
    except errors as error:
        raise AssertionError(f"{said} ({type(error).__name__}: {error})") from None


# Count the pairs


def _pairs_in(words: WordCounts, cut: Callable = pairwise, weigh: bool = True) -> dict[Pair, int]:
    """How often each pair occurs in all words; or what comes of another cut, or of no weights."""
    counts: Counter[Pair] = Counter()
    for word, n in words.items():
        for pair in cut(word):
            counts[pair] += n if weigh else 1
    return dict(counts)


def _without_overlaps(word: tuple[int, ...]) -> list[Pair]:
    """The pairs of a word; of two equal ones that overlap, only the first."""
    pairs: list[Pair] = []
    before, skip = None, False
    for pair in pairwise(word):
        skip = pair == before and not skip
        pairs += [] if skip else [pair]
        before = pair
    return pairs


COUNTING_MISTAKES: dict[str, Counting] = {
    "a word that occurs 4 times brings each of its pairs 4 times": (
        lambda words: _pairs_in(words, weigh=False)
    ),
    "one word can hold a pair twice": (
        lambda words: _pairs_in(words, lambda ids: set(pairwise(ids)))
    ),
    "no pair crosses from one word into the next": lambda words: _pairs_in({(*chain(*words),): 1}),
    "each word's last pair is missing": (
        lambda words: _pairs_in(words, lambda ids: pairwise(ids[:-1]))
    ),
    "a pair has an order, (1, 2) is not (2, 1)": (
        lambda words: _pairs_in(words, lambda ids: map(tuple, map(sorted, pairwise(ids))))
    ),
    "pairs overlap: (1, 2, 3, 4) holds (2, 3) too": (
        lambda words: _pairs_in(words, lambda ids: [*pairwise(ids)][::2])
    ),
    "1, 1, 1 holds the pair (1, 1) twice": lambda words: _pairs_in(words, _without_overlaps),
    "these are single ids, not pairs": lambda words: _pairs_in(words, lambda ids: ids),
    "the last id of a word has no right neighbour, so it begins no pair": (
        lambda words: _pairs_in(words, lambda ids: [ids[i : i + 2] for i in range(len(ids))])
    ),
}


def check_count_pairs(count_pairs: Counting) -> None:
    """The counts for words that repeat, that hold a pair twice, that are short, and for none."""
    cases: list[dict[tuple[int, ...], int]] = [
        {(1, 2, 3, 4): 1},
        {(1, 2, 3): 1, (2, 3): 4},
        {(1, 2, 1, 2): 3, (2, 1): 2},
        {(1, 1, 1): 2, (1, 2): 1},
        {(7,): 5, (1, 7): 1, (): 2},
        {},
    ]
    short = "the last id of a word has no right neighbour, and a word can be a single id"
    got = []
    for words in cases:
        counts = _or_say(f"{words}: {short}", (IndexError,), count_pairs, dict(words))
        given = f"{words}: give a Counter or dict {{pair: count}}, not {named_kind(counts)}"
        assert isinstance(counts, Mapping), given
        got.append(dict(counts))
    mistakes = {what: map(wrong, cases) for what, wrong in COUNTING_MISTAKES.items()}
    compare_answers([str(words) for words in cases], [*map(_pairs_in, cases)], got, mistakes)


# Merge one pair


def merged_word(ids: list[int], pair: Pair, new: int = 9) -> list[int]:
    """The word after the merge, from the left."""
    merged: list[int] = []
    for i in ids:
        merged.append(i)
        if tuple(merged[-2:]) == pair:
            merged[-2:] = [new]
    return merged


def _merged_once(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Only the first occurrence."""
    at = next((i for i, found in enumerate(pairwise(ids)) if found == pair), None)
    return ids if at is None else [*ids[:at], new, *ids[at + 2 :]]


def _merged_step_by_step(ids: list[int], pair: Pair, new: int) -> list[int]:
    """What a loop writes that goes on by one id after a merge."""
    return [new if found == pair else found[0] for found in pairwise(ids)] + ids[-1:]


def _merged_up_to_the_last(ids: list[int], pair: Pair, new: int) -> list[int]:
    """What a loop writes that ends one id early: the last one is lost, unless it was merged."""
    merged = merged_word(ids, pair, new)
    return merged if merged[-1:] == [new] else merged[:-1]


MERGING_MISTAKES: dict[str, Merging] = {
    "only the first occurrence is merged": _merged_once,
    "the right half stays: after a merge go on after both ids": _merged_step_by_step,
    "the last id is lost": _merged_up_to_the_last,
    "merge from the left: in 1, 1, 1 the first two": (
        lambda ids, pair, new: merged_word(ids[::-1], pair[::-1], new)[::-1]
    ),
    "a pair has an order, (1, 2) is not (2, 1)": (
        lambda ids, pair, new: merged_word(merged_word(ids, pair, new), pair[::-1], new)
    ),
    "an id that is not merged must stay": (
        lambda ids, pair, new: [i for i in merged_word(ids, pair, new) if i == new]
    ),
    "nothing was merged": lambda ids, pair, new: ids,
}


def check_merge(merge: Merging) -> None:
    """A word after a merge: at its start and end, twice, in runs of one id, and where none is."""
    words = [[3, 1, 2, 4, 1, 2], [1, 2], [1, 1, 1], [1, 1, 1, 1, 5], [2, 1, 3], [5, 1], [4], []]
    calls = [(word, pair, 9) for word, pair in product(words, [(1, 2), (1, 1)])]
    cases = [f"{word} with {pair} -> {new}" for word, pair, new in calls]
    got = []
    for case, (word, pair, new) in zip(cases, calls, strict=True):
        given = list(word)
        said = f"{case}: the last id has no right neighbour"
        answer = _or_say(said, (IndexError,), merge, given, pair, new)
        got.append(expect_items(answer, case))
        assert given == word, f"{case}: your function changed the list that it was given"
    right = [merged_word(*call) for call in calls]
    mistakes = {what: [wrong(*call) for call in calls] for what, wrong in MERGING_MISTAKES.items()}
    compare_answers(cases, right, got, mistakes)


# Choose the best pair


def _best(counts: Mapping[Pair, int], key: Callable | None = None) -> Pair | None:
    """The most frequent pair, of several the smallest; or the one with the least key."""
    return min(counts, key=key or (lambda pair: (-counts[pair], pair)), default=None)


CHOOSING_MISTAKES: dict[str, Choosing] = {
    "of equal counts this is the pair that came first: take the smallest": (
        lambda counts: _best(counts, lambda pair: -counts[pair])
    ),
    "of equal counts this is the largest pair: take the smallest": (
        lambda counts: max(counts, key=lambda pair: (counts[pair], pair), default=None)
    ),
    "this is the rarest pair": lambda counts: _best(counts, lambda pair: (counts[pair], pair)),
    "the count decides first, the pair only between equal counts": (
        lambda counts: min(counts, default=None)
    ),
    "compare the ids as numbers, not as text": (
        lambda counts: _best(counts, lambda pair: (-counts[pair], str(pair)))
    ),
    "compare the left ids first, then the right ones; not their sum": (
        lambda counts: _best(counts, lambda pair: (-counts[pair], sum(pair)))
    ),
    "of equal counts this is the pair that came last: take the smallest": (
        lambda counts: max(reversed([*counts]), key=lambda pair: counts[pair], default=None)
    ),
}


def check_best_pair(best_pair: Choosing) -> None:
    """Clear winners, ties that each rule breaks in its own way, and no pair at all."""
    cases: list[dict[Pair, int]] = [
        {(1, 2): 4, (2, 3): 5, (3, 4): 3},
        {(2, 9): 4, (4, 0): 4, (3, 0): 4, (2, 5): 4, (0, 1): 1, (3, 2): 4},
        {(10, 2): 2, (9, 3): 2},
        {(2, 1): 2, (1, 9): 2},
        {},
    ]
    names = [str(counts or "no pair at all") for counts in cases]
    got = []
    for name, counts in zip(names, cases, strict=True):
        said = f"{name}: " + ("give one of these pairs" if counts else "give None")
        errors = () if counts else (ValueError, IndexError, TypeError)
        pair = _or_say(said, errors, best_pair, dict(counts))
        assert pair is not None or not counts, f"{said}, not None (is there a return?)"
        whole = isinstance(pair, tuple) and [*map(type, pair)] == [int, int]
        assert pair is None or whole, f"{said}, and the pair alone, not {pair!r}"
        got.append(pair)
    mistakes = {what: map(wrong, cases) for what, wrong in CHOOSING_MISTAKES.items()}
    compare_answers(names, [*map(_best, cases)], got, mistakes)


# Train


def _learned(
    words: WordCounts,
    count: int,
    *,
    first: int = 256,
    step: int = 1,
    choose: Choosing = _best,
    weigh: bool = True,
) -> list[Pair]:
    """The merges, or what a loop with one mistake learns. step 0: every merge makes the same id."""
    merges: list[Pair] = []
    while len(merges) < count:
        best = choose(_pairs_in(words, weigh=weigh))
        if best is None:
            break
        new = first + step * len(merges)
        words = {tuple(merged_word([*word], best, new)): n for word, n in words.items()}
        merges.append(best)
    return merges


def _most_frequent(words: WordCounts, count: int) -> list[Pair]:
    """The most frequent pairs of the beginning, with no merge in between."""
    counts = _pairs_in(words)
    return sorted(counts, key=lambda pair: (-counts[pair], pair))[:count]


TRAINING_MISTAKES: dict[str, Training] = {
    "the same pair again and again: write the new id into the words": (
        lambda words, count: _learned(words, 1) * count
    ),
    "count the pairs again after each merge": _most_frequent,
    "the first new id is 256: 0 to 255 are the bytes": (
        lambda words, count: _learned(words, count, first=0)
    ),
    "the first new id is 256, the next one 257": (
        lambda words, count: _learned(words, count, first=257)
    ),
    "each merge has a new id of its own: 256, 257, and so on": (
        lambda words, count: _learned(words, count, step=0)
    ),
    "a word that occurs 9 times brings its pairs 9 times": (
        lambda words, count: _learned(words, count, weigh=False)
    ),
    "of equal counts take the smallest pair": (
        lambda words, count: _learned(
            words, count, choose=lambda counts: _best(counts, lambda pair: -counts[pair])
        )
    ),
    "nothing was merged: count is how many merges to learn, not the size of the vocabulary": (
        lambda words, count: []
    ),
    "one merge is missing": lambda words, count: _learned(words, count - 1),
    "one merge too many": lambda words, count: _learned(words, count + 1),
}


def check_training(train: Training) -> None:
    """The merges of a rhyme, of words that repeat, of a chain, none, and more than there are."""
    text = "hug a pug in a mug, rug on a bug"
    rhyme = Counter(tuple(word.encode()) for word in text.split())
    often = {(5, 6, 7, 5, 6, 7): 2, (6, 7, 8): 9, (8, 5): 4, (5, 6): 3}
    calls: list[tuple[WordCounts, int]]
    calls = [(rhyme, 4), (often, 5), (often, 0), ({(1, 2, 3, 4): 3}, 3), ({(5, 6, 7): 1}, 9)]
    names = [f"the bytes of {text!r}", *(str(dict(words)) for words, _ in calls[1:])]
    cases = [f"{count} merges of {name}" for name, (_, count) in zip(names, calls, strict=True)]
    got = []
    for case, (words, count) in zip(cases, calls, strict=True):
        given = dict(words)
        errors = (ValueError, IndexError, TypeError, KeyError) if count == 9 else ()
        merges = _or_say(f"{case}: stop when no pair is left", errors, train, given, count)
        got.append(_pairs_of(merges, case))
        assert given == words, f"{case}: your function changed the words that it was given"
    right = [_learned(*call) for call in calls]
    mistakes = {what: [wrong(*call) for call in calls] for what, wrong in TRAINING_MISTAKES.items()}
    compare_answers(cases, right, got, mistakes)


def _pairs_of(merges: Any, case: str) -> list[Pair]:
    """The merges of an answer, a tuple each."""
    merges = expect_items(merges, case)
    assert None not in merges, f"{case}: stop when no pair is left; None is no merge"
    whole = all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in merges)
    assert whole, f"{case}: give a list of pairs of ids, not {merges}"
    return [*map(tuple, merges)]


# Encode


def _encoded(
    ids: list[int],
    ranks: dict[Pair, int],
    choose: Callable = min,
    rounds: int = 99,
    base: int = 256,
) -> list[int]:
    """The tokens of a word, or what comes of another choice among its pairs."""
    for _ in range(rounds):
        known = [pair for pair in pairwise(ids) if pair in ranks]
        if not known:
            break
        best = choose(known, key=ranks.__getitem__)
        ids = merged_word(ids, best, base + ranks[best])
    return ids


def _longest_first(ids: list[int], ranks: dict[Pair, int]) -> list[int]:
    """Cut from the left, each time the longest token."""
    spelled: dict[int, tuple[int, ...]] = {i: (i,) for i in range(256)}
    for (left, right), rank in ranks.items():
        spelled[256 + rank] = spelled[left] + spelled[right]
    tokens: list[int] = []
    while ids:
        fitting = [i for i, word in spelled.items() if tuple(ids[: len(word)]) == word]
        tokens.append(max(fitting, key=lambda i: len(spelled[i])))
        ids = ids[len(spelled[tokens[-1]]) :]
    return tokens


def _from_the_left(ids: list[int], ranks: dict[Pair, int], again: bool = True) -> list[int]:
    """Join whatever is known, from left to right, one place after the other."""
    ids, i = [*ids], 0
    while i < len(ids) - 1:
        rank = ranks.get((ids[i], ids[i + 1]))
        if rank is None:
            i += 1
        else:
            ids[i : i + 2] = [256 + rank]
            i = 0 if again else i + 1
    return ids


ENCODING_MISTAKES: dict[str, Encoding] = {
    "this is the longest match: join the pair that was learned first": _longest_first,
    "this goes from left to right: join the pair of lowest rank": (
        lambda ids, ranks: _encoded(ids, ranks, lambda known, key: known[0])
    ),
    "this goes from left to right, place by place: join the pair of lowest rank": _from_the_left,
    "this goes from left to right once: join the pair of lowest rank, again and again": (
        lambda ids, ranks: _from_the_left(ids, ranks, again=False)
    ),
    "this joins the pair of highest rank: the lowest was learned first": (
        lambda ids, ranks: _encoded(ids, ranks, max)
    ),
    "go on until no pair is in the list": lambda ids, ranks: _encoded(ids, ranks, rounds=1),
    "the id of a merge is 256 + its rank": lambda ids, ranks: _encoded(ids, ranks, base=0),
    "nothing was merged": lambda ids, ranks: ids,
}


def check_encoding(encode: Encoding) -> None:
    """Words in which the order of the merges decides; one byte, and none."""
    rng = Random(0)
    corpus = {tuple(rng.choices(range(1, 4), k=rng.randint(2, 9))): 1 for _ in range(60)}
    few = {(2, 3): 0, (1, 2): 1, (256, 4): 2}
    many = {pair: rank for rank, pair in enumerate(_learned(corpus, 24))}
    words = [[2, 3, 5], [1, 2, 3, 4], [2], []]
    calls = [(word, few) for word in words]
    calls += [(rng.choices(range(1, 5), k=8), many) for _ in range(200)]
    cases = [f"{word} with {ranks if ranks is few else '24 ranks'}" for word, ranks in calls]
    got = []
    for case, (word, ranks) in zip(cases, calls, strict=True):
        said = f"{case}: not every pair is in the list; a word may hold none, or no pair at all"
        answer = _or_say(said, (ValueError, IndexError, KeyError), encode, [*word], dict(ranks))
        got.append(expect_items(answer, case))
    right = [_encoded(*call) for call in calls]
    mistakes = {what: [wrong(*c) for c in calls] for what, wrong in ENCODING_MISTAKES.items()}
    compare_answers(cases, right, got, mistakes)
