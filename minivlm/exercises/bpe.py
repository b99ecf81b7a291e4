"""01 · Checks of the last exercises of notebook 01: each says what is wrong with a function."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, pairwise, product
from random import Random
from typing import Any

from minivlm.bpe import BPETokenizer
from minivlm.exercises.answers import compare_answers, expect_number, named_kind
from minivlm.exercises.bpe_core import Pair, merged_word

# Exercise 1

FERTILITY_MISTAKES: dict[str, Callable[[BPETokenizer, str], float]] = {
    "words per token: the other way round": lambda t, s: len(s.split()) / len(t.encode(s)),
    "an integer division": lambda t, s: len(t.encode(s)) // len(s.split()),
    "rounded: give the quotient as it is": lambda t, s: round(len(t.encode(s)) / len(s.split()), 2),
    "characters per word: count tokens": lambda t, s: len(s) / len(s.split()),
    "bytes per word: count tokens": lambda t, s: len(s.encode()) / len(s.split()),
    "tokens per character: divide by the words": lambda t, s: len(t.encode(s)) / len(s),
    "not divided by the number of words": lambda t, s: len(t.encode(s)),
    'split(" ") makes empty words of double spaces': (
        lambda t, s: len(t.encode(s)) / len(s.split(" "))
    ),
    "encode the whole text: a space belongs to a token too": (
        lambda t, s: sum(len(t.encode(word)) for word in s.split()) / len(s.split())
    ),
    "a word that occurs twice counts twice": (lambda t, s: len(t.encode(s)) / len(set(s.split()))),
}


def check_fertility(fertility: Callable[[BPETokenizer, str], float]) -> None:
    """Tokens per word, also where spaces are double and where there is no text at all."""
    tokenizer = BPETokenizer.train("low lower lowest low low", 259)
    texts = ["中 low", "lower low low", "a  b\n", "low", ""]
    got = [expect_number(fertility(tokenizer, text), repr(text)) for text in texts]
    sizes = [(len(tokenizer.encode(text)), len(text.split())) for text in texts]
    cases = [f"{s!r}, {n} tokens, {m} words" for s, (n, m) in zip(texts, sizes, strict=True)]
    right = [n / max(m, 1) for n, m in sizes]
    mistakes: dict[str, Iterable] = {
        name: [formula(tokenizer, text) if text else 0 for text in texts]
        for name, formula in FERTILITY_MISTAKES.items()
    }
    mistakes["mind the empty text"] = [*right[:-1], got[-1]]
    compare_answers(cases, right, got, mistakes, _equal)


def _equal(a: float, b: float) -> bool:
    """Up to rounding."""
    return abs(a - b) < 1e-9


# Exercise 2


class OneByOne(list[int]):
    """A list of ids that knows how far it has been read."""

    read = 0

    def __iter__(self) -> Iterator[int]:
        for i in range(len(self)):
            yield self[i]

    def __getitem__(self, place: Any) -> Any:
        last = range(len(self))[place]
        ends = [last] if isinstance(last, int) else list(last[-1:])
        self.read = max([self.read, *(end + 1 for end in ends)])
        return super().__getitem__(place)


def check_stream(stream: Callable[[BPETokenizer, list[int]], Iterable[str]]) -> None:
    """Pieces that join to the whole text, each as early as its last byte allows."""
    tokenizer = BPETokenizer.train("the red circle", 262)
    for text in ["the circle", "a 圆 and a 🙂!", "🙂🙂", ""]:
        ids = tokenizer.encode(text)
        pieces = _pieces(stream(tokenizer, OneByOne(ids)), text)
        got = "".join(pieces)
        broken = "�" in got and ": a token may hold only a part of a character"
        assert got == text, f"{text!r} came out as {got!r}{broken or ''}"
        _check_prompt(pieces, [tokenizer.decode_bytes(ids[:n]) for n in range(len(ids) + 1)])
    for ids in _unfinished(tokenizer):
        pieces = _pieces(stream(tokenizer, OneByOne(ids)), "an unfinished character")
        got, expected = "".join(pieces), tokenizer.decode(ids)
        assert got == expected, f"an unfinished character: {got!r}, not {expected!r}"
    _check_reads_on_demand(stream, tokenizer)


def _pieces(got: Any, case: str) -> list[str]:
    """What was yielded: a list of texts, none of them empty."""
    several = isinstance(got, Iterable) and not isinstance(got, str)
    assert several, f"yield pieces of text, one after the other, not {named_kind(got)}"
    pieces = list(got)
    kinds = {type(piece).__name__ for piece in pieces} - {"str"}
    assert not kinds, f"yield pieces of text (str), not {', '.join(kinds)}"
    assert "" not in pieces, f"{case!r}: an empty piece is nothing to print"
    return pieces


def _check_prompt(pieces: list[str], prefixes: list[bytes]) -> None:
    """Whenever a token completes a character, a piece ends there."""
    ends = set(accumulate(map(len, pieces)))
    for before, now in pairwise(prefixes):
        late = len(now.decode(errors="ignore"))
        if late > len(before.decode(errors="ignore")):
            said = f"{prefixes[-1].decode()!r} came as {pieces}"
            assert late in ends, f"{said}: what is complete must not wait for what comes next"


def _unfinished(tokenizer: BPETokenizer) -> list[list[int]]:
    """Ids whose last character, or one in the middle, lacks bytes."""
    smile, circle = tokenizer.encode("🙂"), tokenizer.encode("圆")
    return [tokenizer.encode("a🙂")[:-1], smile[:2], circle[:2] + tokenizer.encode("the red")]


def _check_reads_on_demand(stream: Callable, tokenizer: BPETokenizer) -> None:
    """The first piece must come before the last id is read."""
    ids = OneByOne(tokenizer.encode("圆 and a circle"))
    first = next(iter(stream(tokenizer, ids)))
    early = ids.read < len(ids)
    assert early, f"all ids were read before {first!r} came: a model's ids come one by one"


# Exercise 3


def check_pair_changes(
    pair_changes: Callable[[list[int], Pair, int], Mapping[Pair, int]],
) -> None:
    """The counts after the merge minus the counts before, on words with runs and repetitions."""
    rng = Random(0)
    words = [[0, 1, 2, 3, 0, 4], [1, 2], [1, 2, 1, 2], [1, 2, 3, 1, 2], [1, 1, 1], [3, 3], []]
    words += [[rng.randint(1, 3) for _ in range(rng.randint(0, 9))] for _ in range(300)]
    for ids, pair in product(words, [(1, 2), (1, 1)]):
        got = pair_changes(list(ids), pair, 9)
        case = f"{ids} with {pair} -> 9"
        assert isinstance(got, Mapping), f"{case}: give a Counter or dict, not {named_kind(got)}"
        before, after = Counter(pairwise(ids)), Counter(pairwise(merged_word(ids, pair)))
        same = [key for key, n in got.items() if n == 0]
        assert not same, f"{case}: leave out what does not change, {same[0]}"
        _check_changes(dict(got), before, after, pair, case)


def _check_changes(
    got: dict[Pair, int], before: Counter[Pair], after: Counter[Pair], pair: Pair, case: str
) -> None:
    """Every pair's change, with the sign mixed up and the counts themselves told apart."""
    run = (9, 9) in after and "; two merges side by side: the left neighbour was merged too"
    keys = sorted(before.keys() | after.keys() | got.keys())
    expected = {key: after[key] - before[key] for key in keys if after[key] != before[key]}
    if got == expected:
        return
    flipped = got == {key: -n for key, n in expected.items()}
    assert not flipped, f"{case}: the signs are turned around, it is after minus before"
    counted = bool(after) and got == dict(after)
    assert not counted, f"{case}: these are the counts after the merge, not their changes"
    key = next(key for key in keys if got.get(key, 0) != expected.get(key, 0))
    said = f"{case}: the count of {key} changes by {expected.get(key, 0)}, not {got.get(key, 0)}"
    assert key != pair, f"{said}; {pair} itself disappears wherever it was"
    pairs = "its pair with 9" if 9 in key else f"the pair it made with {pair[0]} or {pair[1]}"
    verb = "gains" if 9 in key else "loses"
    raise AssertionError(said + (run or f"; each neighbour {verb} {pairs}"))


# Exercise 4

CIRCLES = "a small circle, a small square, a small circle 圆圆圆形"
TRUNCATED = {  # the texts to cut, by (what the tokenizer is trained on, its size)
    (CIRCLES, 290): ["a small circle", "圆形 and 🙂🙂", "", "small squares and circles"],
    ("bcd bcd bcd bcd bcd ab ab ab", 262): ["abcd", "abcdab bcd"],
}


def check_truncate(truncate: Callable[[BPETokenizer, str, int], str]) -> None:
    """The longest prefix of the text that fits, where counts do not simply grow."""
    for (corpus, size), texts in TRUNCATED.items():
        tokenizer = BPETokenizer.train(corpus, size)
        for text in texts:
            for limit in range(len(tokenizer.encode(text)) + 2):
                _check_prefix(truncate(tokenizer, text, limit), tokenizer, text, limit)


def _check_prefix(got: Any, tokenizer: BPETokenizer, text: str, limit: int) -> None:
    """One prefix: of the text, short enough, and no longer one fits."""
    case = f"{text!r}, limit {limit}"
    assert isinstance(got, str), f"{case}: give text, not {named_kind(got)}"
    broken = "�" in got and ": cutting the ids has split a character"
    assert text.startswith(got), f"{case}: {got!r} is no prefix of the text{broken or ''}"
    count = len(tokenizer.encode(got))
    assert count <= limit, f"{case}: {got!r} has {count} tokens, more than the limit"
    sizes = [len(tokenizer.encode(text[:n])) for n in range(len(text) + 1)]
    best = max(n for n, size in enumerate(sizes) if size <= limit)
    assert len(got) == best, f"{case}: {text[:best]!r} fits too, not only {got!r}" + (
        _short_prefix(got, tokenizer, text, limit)
    )


def _short_prefix(got: str, tokenizer: BPETokenizer, text: str, limit: int) -> str:
    """What explains a prefix that could be longer."""
    ids, kept = tokenizer.encode(text), 0
    while len(tokenizer.encode(text[: kept + 1])) <= limit:
        kept += 1
    if got == text[:kept]:
        return " (go on: a longer prefix can have fewer tokens)"
    if got == tokenizer.decode_bytes(ids[:limit]).decode(errors="ignore"):
        return " (a prefix has tokens of its own, not the first ones of the whole text)"
    return ""
