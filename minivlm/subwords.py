"""01 · WordPiece (Wu et al. 2016) and Unigram (Kudo 2018): byte-level BPE's two siblings.

In: str. Out: its pieces, a list of str; some characters neither of them can write.
WordPiece is first described by Schuster & Nakajima 2012. Encoding is that of the `tokenizers`
library with the same vocabulary. Training follows the papers, but every step looks at every word
again: for small texts only.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise

import regex

from minivlm.bpe import check_text, count_words

WORDS = regex.compile(r"\w+|[^\w\s]+")  # WordPiece: a run of letters and digits, or of punctuation
SPACED = regex.compile(r"▁?[^\s▁]+|▁")  # Unigram: a "▁" in the text is a space too
UNKNOWN = "[UNK]"
MAX_WORD = 100  # WordPiece gives up on words of more characters
UNKNOWN_PENALTY = 10.0  # Unigram: an unknown character costs so much more than the worst piece
Pair = tuple[str, str]


def count_matches(texts: str | Iterable[str], pattern: regex.Pattern) -> dict[str, int]:
    """{word: count} of what the pattern finds in one text or several, without what lies between."""
    counts = count_words(texts, pattern)
    return {word: n for word, n in counts.items() if pattern.fullmatch(word)}


class WordPiece:
    """Cuts a word from the left, each time the longest piece it knows; "##": not at the start."""

    def __init__(self, vocab: Iterable[str]) -> None:
        self.vocab = {piece: i for i, piece in enumerate(vocab)}  # piece -> id
        if UNKNOWN not in self.vocab:
            begin = list(self.vocab)[:5]
            raise ValueError(f"a WordPiece vocabulary needs {UNKNOWN!r}, got {begin}")

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int) -> "WordPiece":
        """From characters on, merge the pair that gains most likelihood, until the size is reached.

        That is the pair of largest count(ab) / count(a) count(b).
        """
        counts = count_matches(texts, WORDS)
        words = {word: [word[0], *("##" + char for char in word[1:])] for word in counts}
        vocab = [UNKNOWN, *sorted({piece for pieces in words.values() for piece in pieces})]
        if vocab_size < len(vocab):
            needed = f"{len(vocab)} characters and {UNKNOWN}"
            raise ValueError(f"vocab_size {vocab_size} is less than {needed}")
        while len(vocab) < vocab_size:
            pair = _most_likely_pair(words, counts)
            if pair is None:
                break
            vocab.append(pair[0] + pair[1].removeprefix("##"))
            for pieces in words.values():
                _merge(pieces, pair, vocab[-1])
        return cls(vocab)

    def tokenize(self, text: str) -> list[str]:
        """The pieces of every word."""
        check_text(text)
        return [piece for word in WORDS.findall(text) for piece in self.tokenize_word(word)]

    def tokenize_word(self, word: str) -> list[str]:
        """Greedy longest match. One place where nothing matches makes the whole word unknown."""
        if len(word) > MAX_WORD:
            return [UNKNOWN]
        pieces: list[str] = []
        start = 0
        while start < len(word):
            mark, end = "##" if start else "", len(word)
            while end > start and mark + word[start:end] not in self.vocab:
                end -= 1
            if end == start:
                return [UNKNOWN]
            pieces.append(mark + word[start:end])
            start = end
        return pieces


def _merge(pieces: list[str], pair: Pair, new: str) -> None:
    """Write `new` for the pair, in place, from the left."""
    i = 0
    while i < len(pieces) - 1:
        if (pieces[i], pieces[i + 1]) == pair:
            pieces[i : i + 2] = [new]
        i += 1


def _most_likely_pair(words: dict[str, list[str]], counts: dict[str, int]) -> Pair | None:
    """The pair of largest count(ab) / count(a) count(b), among equals the first by alphabet."""
    singles: Counter[str] = Counter()
    pairs: Counter[Pair] = Counter()
    for word, pieces in words.items():
        for piece in pieces:
            singles[piece] += counts[word]
        for pair in pairwise(pieces):
            pairs[pair] += counts[word]
    return min(
        pairs, key=lambda ab: (-pairs[ab] / (singles[ab[0]] * singles[ab[1]]), ab), default=None
    )


class Unigram:
    """Cuts a word into the pieces of largest probability, each drawn on its own."""

    def __init__(self, scores: dict[str, float]) -> None:
        if not scores or "" in scores or not all(log_p <= 0 for log_p in scores.values()):
            raise ValueError(f"Unigram needs pieces with log probabilities, got {scores!r:.80}")
        self.scores = dict(scores)  # piece -> log p
        self.longest = max(map(len, self.scores))
        self.unknown = min(self.scores.values()) - UNKNOWN_PENALTY

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int, longest: int = 8) -> "Unigram":
        """From all substrings that occur twice: EM, drop the least useful quarter, and again."""
        words: Counter[str] = Counter()
        for word, n in count_matches(texts, SPACED).items():
            words["▁" + word.removeprefix("▁")] += n
        counts = _substrings(words, longest)
        characters = sum(len(piece) == 1 for piece in counts)
        if not 0 < characters <= vocab_size:
            in_texts = f"{characters} characters in the texts"
            raise ValueError(f"vocab_size {vocab_size} does not fit {in_texts}")
        while True:
            for _ in range(2):
                counts = cls.from_counts(counts).expected_counts(words)
            model = cls.from_counts(counts)
            if len(counts) <= vocab_size:
                return model
            losses = {piece: model.loss_without(piece, n) for piece, n in counts.items()}
            useful = sorted(counts, key=lambda piece: (-losses[piece], piece))
            kept = useful[: max(vocab_size, len(counts) * 3 // 4)]
            counts = {piece: counts[piece] for piece in kept}

    @classmethod
    def from_counts(cls, counts: dict[str, float]) -> "Unigram":
        """M-step: p of each piece in proportion to its count, never zero."""
        total = sum(counts.values())
        return cls({piece: math.log(max(n / total, 1e-12)) for piece, n in counts.items()})

    def expected_counts(self, words: dict[str, int]) -> dict[str, float]:
        """E-step: how often each piece occurs, over all ways to cut each word, by their p."""
        expected = dict.fromkeys(self.scores, 0.0)
        for word, n in words.items():
            starts = range(len(word))
            edges = [(i, j, math.exp(s)) for i in starts for j, s in self._matches(word, i)]
            forward, backward = defaultdict(float, {0: 1.0}), defaultdict(float, {len(word): 1.0})
            for i, j, p in edges:
                forward[j] += forward[i] * p
            for i, j, p in reversed(edges):
                backward[i] += p * backward[j]
            for i, j, p in edges:
                expected[word[i:j]] += n * forward[i] * p * backward[j] / forward[len(word)]
        return expected

    def loss_without(self, piece: str, count: float) -> float:
        """What log p of the texts loses if the next best cut replaces a piece. Characters stay."""
        best_other = self.viterbi(piece, without=piece)[1] if len(piece) > 1 else -math.inf
        return count * (self.scores[piece] - best_other)

    def viterbi(self, word: str, without: str = "") -> tuple[list[str], float]:
        """The best pieces of a word and their log p. Unknown neighbours are one piece."""
        # best[end], of the word up to there: (log p, start of the last piece, unknown?)
        best = [(0.0, 0, False), *[(-math.inf, 0, False)] * len(word)]
        for start in range(len(word)):
            edges = [(end, score, False) for end, score in self._matches(word, start, without)]
            if not edges or edges[0][0] > start + 1:
                edges.append((start + 1, self.unknown, True))
            for end, score, unknown in edges:
                if best[start][0] + score > best[end][0]:
                    best[end] = (best[start][0] + score, start, unknown)
        pieces: list[str] = []
        end, after = len(word), False
        while end:
            _, start, unknown = best[end]
            joined = pieces.pop() if unknown and after else ""
            pieces.append(word[start:end] + joined)
            end, after = start, unknown
        return pieces[::-1], best[-1][0]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of every word; "▁" stands for the space before it."""
        check_text(text)
        words = ["▁" + word.removeprefix("▁") for word in SPACED.findall(text)]
        return [piece for word in words for piece in self.viterbi(word)[0]]

    def _matches(self, word: str, start: int, without: str = "") -> Iterator[tuple[int, float]]:
        """(end, log p) of the pieces that begin at `start`, shortest first."""
        for end in range(start + 1, min(start + self.longest, len(word)) + 1):
            piece = word[start:end]
            if piece in self.scores and piece != without:
                yield end, self.scores[piece]


def _substrings(words: dict[str, int], longest: int) -> dict[str, float]:
    """{substring: characters that it covers} for those that occur twice, and for each character."""
    counts: Counter[str] = Counter()
    for word, n in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + longest, len(word)) + 1):
                counts[word[start:end]] += n
    return {piece: float(n * len(piece)) for piece, n in counts.items() if n > 1 or len(piece) == 1}
