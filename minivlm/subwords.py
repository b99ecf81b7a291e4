"""WordPiece (BERT) and Unigram (T5, XLNet): the two siblings of byte-level BPE, small enough to
compare.

Papers: Schuster & Nakajima 2012, Wu et al. 2016 (WordPiece); Kudo 2018, "Subword Regularization"
(Unigram).
Notebook: 01_bpe_tokenizer. Data in: str. Data out: its pieces; some characters neither of them can
write. Encoding is that of the `tokenizers` library with the same vocabulary. Training follows the
papers, but every
step looks at every word again: for small texts only.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import regex

from minivlm.bpe import check_text

WORDS = regex.compile(r"\w+|[^\w\s]+")  # WordPiece: a run of letters and digits, or of punctuation
SPACED = regex.compile(r"\S+")  # Unigram
UNKNOWN = "[UNK]"
MAX_WORD = 100  # WordPiece gives up on words of more characters
UNKNOWN_PENALTY = 10.0  # Unigram: an unknown character costs so much more than the worst piece


def count_words(texts: str | Iterable[str], words: regex.Pattern) -> Counter[str]:
    """{word: count} over one text or several."""
    texts = [texts] if isinstance(texts, str) else texts
    return Counter(word for text in texts if not check_text(text) for word in words.findall(text))


class WordPiece:
    """Cuts a word from the left, each time the longest piece it knows; "##" marks a piece inside a
    word.
    """

    def __init__(self, vocab: Iterable[str]) -> None:
        self.vocab = {piece: i for i, piece in enumerate(vocab)}  # piece -> id
        if UNKNOWN not in self.vocab:
            raise ValueError(
                f"a WordPiece vocabulary needs {UNKNOWN!r}, got {list(self.vocab)[:5]}"
            )

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int) -> "WordPiece":
        """From characters on, merge the pair that gains most likelihood: count(ab) / count(a)
        count(b).
        """
        counts = count_words(texts, WORDS)
        words = {word: [word[0], *("##" + char for char in word[1:])] for word in counts}
        vocab = [UNKNOWN, *sorted({piece for pieces in words.values() for piece in pieces})]
        if vocab_size < len(vocab):
            raise ValueError(
                f"vocab_size {vocab_size} is less than {len(vocab)} characters and {UNKNOWN}"
            )
        while len(vocab) < vocab_size and (pair := _most_likely_pair(words, counts)):
            vocab.append(pair[0] + pair[1][2:])
            for pieces in words.values():
                for i in range(
                    len(pieces)
                ):  # the range may end beyond the shrinking list: the slice is empty
                    if tuple(pieces[i : i + 2]) == pair:
                        pieces[i : i + 2] = vocab[-1:]
        return cls(vocab)

    def tokenize(self, text: str) -> list[str]:
        """The pieces of every word."""
        check_text(text)
        return [piece for word in WORDS.findall(text) for piece in self.tokenize_word(word)]

    def tokenize_word(self, word: str) -> list[str]:
        """Greedy longest match. One place where nothing matches makes the whole word unknown."""
        pieces, start = [], 0
        while start < len(word):
            ends = range(len(word), start, -1)
            candidates = ("##" * (start > 0) + word[start:end] for end in ends)
            piece = next((piece for piece in candidates if piece in self.vocab), None)
            if piece is None or len(word) > MAX_WORD:
                return [UNKNOWN]
            start += len(piece) - 2 * (start > 0)
            pieces.append(piece)
        return pieces


def _most_likely_pair(
    words: dict[str, list[str]], counts: dict[str, int]
) -> tuple[str, str] | None:
    """The neighbours with the largest count(ab) / count(a) count(b), the first by alphabet among
    equals.
    """
    singles, pairs = Counter(), Counter()
    for word, pieces in words.items():
        for piece, pair in zip(pieces, [*pairwise(pieces), None], strict=True):
            singles[piece] += counts[word]
            pairs[pair] += counts[word]
    del pairs[None]
    return min(
        pairs, key=lambda ab: (-pairs[ab] / (singles[ab[0]] * singles[ab[1]]), ab), default=None
    )


class Unigram:
    """Cuts a word into the pieces of largest probability, each drawn on its own: Viterbi over log
    p.
    """

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = dict(scores)  # piece -> log p
        if (
            not self.scores
            or "" in self.scores
            or not all(score <= 0 for score in self.scores.values())
        ):
            raise ValueError(f"Unigram needs pieces with log probabilities, got {scores!r:.80}")
        self.longest = max(map(len, self.scores))
        self.unknown = min(self.scores.values()) - UNKNOWN_PENALTY

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int, longest: int = 8) -> "Unigram":
        """From every substring that occurs twice: EM, drop the quarter that is least useful, again."""
        words = {"▁" + word: n for word, n in count_words(texts, SPACED).items()}
        counts = Counter()
        for word, n in words.items():
            for start, end in (
                (i, j) for i in range(len(word)) for j in range(i + 1, len(word) + 1)
            ):
                counts[word[start:end]] += n * (end - start <= longest)
        counts = {
            piece: float(n * len(piece)) for piece, n in counts.items() if n > 1 or len(piece) == 1
        }
        if not 0 < (characters := sum(len(piece) == 1 for piece in counts)) <= vocab_size:
            raise ValueError(
                f"vocab_size {vocab_size} does not fit {characters} characters in the texts"
            )
        while True:
            for _ in range(2):
                counts = cls.from_counts(counts).expected_counts(words)
            model = cls.from_counts(counts)
            if len(counts) <= vocab_size:
                return model
            useful = sorted(
                counts, key=lambda piece: (-model.loss_without(piece, counts[piece]), piece)
            )
            counts = {
                piece: counts[piece] for piece in useful[: max(vocab_size, len(counts) * 3 // 4)]
            }

    @classmethod
    def from_counts(cls, counts: dict[str, float]) -> "Unigram":
        """M-step: p of each piece in proportion to its count, never zero."""
        total = sum(counts.values())
        return cls({piece: math.log(max(n / total, 1e-12)) for piece, n in counts.items()})

    def expected_counts(self, words: dict[str, int]) -> dict[str, float]:
        """E-step: how often each piece occurs, over all ways to cut each word, weighted by
        probability.
        """
        expected = dict.fromkeys(self.scores, 0.0)
        for word, n in words.items():
            edges = [
                (i, j, math.exp(s)) for i in range(len(word)) for j, s in self._matches(word, i)
            ]
            forward, backward = defaultdict(float, {0: 1.0}), defaultdict(float, {len(word): 1.0})
            for i, j, p in edges:
                forward[j] += forward[i] * p
            for i, j, p in reversed(edges):
                backward[i] += p * backward[j]
            for i, j, p in edges:
                expected[word[i:j]] += n * forward[i] * p * backward[j] / forward[len(word)]
        return expected

    def loss_without(self, piece: str, count: float) -> float:
        """What log p of the texts loses if the next best cut takes its place. Characters always
        stay.
        """
        best_other = self.viterbi(piece, without=piece)[1] if len(piece) > 1 else -math.inf
        return count * (self.scores[piece] - best_other)

    def viterbi(self, word: str, without: str = "") -> tuple[list[str], float]:
        """The best pieces of a word and their log p. Neighbouring unknown characters are one piece."""
        # best[end] of the word up to there: (log p, start of its last piece, is that piece
        # unknown?)
        best = [(0.0, 0, False), *[(-math.inf, 0, False)] * len(word)]
        for start in range(len(word)):
            edges = [
                (e, s, False) for e, s in self._matches(word, start) if word[start:e] != without
            ]
            if not edges or edges[0][0] > start + 1:
                edges.append((start + 1, self.unknown, True))
            for end, score, unknown in edges:
                if best[start][0] + score > best[end][0]:
                    best[end] = (best[start][0] + score, start, unknown)
        pieces, end, after = [], len(word), False
        while end:
            _, start, unknown = best[end]
            pieces.append(word[start:end] + (pieces.pop() if unknown and after else ""))
            end, after = start, unknown
        return pieces[::-1], best[-1][0]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of every word; "▁" stands for the space before it."""
        check_text(text)
        return [piece for word in SPACED.findall(text) for piece in self.viterbi("▁" + word)[0]]

    def _matches(self, word: str, start: int) -> Iterable[tuple[int, float]]:
        """(end, log p) of the pieces that begin at `start`, shortest first."""
        ends = range(start + 1, min(start + self.longest, len(word)) + 1)
        return (
            (end, self.scores[word[start:end]]) for end in ends if word[start:end] in self.scores
        )
