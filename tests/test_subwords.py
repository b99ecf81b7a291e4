"""subwords.py, with the WordPiece and Unigram models of `tokenizers` as oracles."""

import math
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from minivlm.subwords import (
    MAX_WORD,
    SPACED,
    UNKNOWN,
    WORDS,
    Unigram,
    WordPiece,
    count_matches,
)

TEXT = (
    "low lower lowest new newer newest wide wider widest "
    "the small red circle is left of the blue square. "
) * 3


def hf_wordpiece(model: WordPiece) -> Tokenizer:
    hf = Tokenizer(
        models.WordPiece(model.vocab, unk_token=UNKNOWN, max_input_chars_per_word=MAX_WORD)
    )
    hf.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf


def hf_unigram(model: Unigram) -> Tokenizer:
    hf = Tokenizer(models.Unigram([("<unk>", 0.0), *model.scores.items()], unk_id=0))
    hf.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return hf


def ids_of(model: Unigram, pieces: list[str]) -> list[int]:
    ids = {piece: i for i, piece in enumerate(model.scores, start=1)}
    return [ids.get(piece, 0) for piece in pieces]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=20) | st.text("a_1 #\n\x1c\u3000中🙂", max_size=20), max_size=4))
def test_words_to_train_on_are_those_that_the_pattern_finds(texts):
    for pattern in (WORDS, SPACED):
        found = Counter(word for text in texts for word in pattern.findall(text))
        assert count_matches(texts, pattern) == found


# --- WordPiece


@settings(max_examples=200, deadline=None)
@given(
    vocab=st.lists(st.text("abc中", min_size=1, max_size=3), max_size=8),
    marked=st.lists(st.text("abc中", min_size=1, max_size=3), max_size=8),
    word=st.text("abcd中", min_size=1, max_size=12),
)
def test_wordpiece_cuts_like_tokenizers_with_the_same_vocabulary(vocab, marked, word):
    model = WordPiece([UNKNOWN, *vocab, *("##" + piece for piece in marked)])
    assert model.tokenize_word(word) == hf_wordpiece(model).encode(word).tokens


def test_wordpiece_makes_the_whole_word_unknown_where_one_place_fails():
    model = WordPiece([UNKNOWN, "play", "##ing", "p"])
    assert model.tokenize("play playing played") == ["play", "play", "##ing", UNKNOWN]


def test_wordpiece_gives_up_on_words_of_more_than_a_hundred_characters():
    model = WordPiece([UNKNOWN, "a", "##a"])
    hf = hf_wordpiece(model)
    for length in (100, 101):
        assert model.tokenize("a" * length) == hf.encode("a" * length).tokens
    assert len(model.tokenize("a" * 100)) == 100 and model.tokenize("a" * 101) == [UNKNOWN]


def test_wordpiece_training_prefers_the_pair_that_is_surprising_not_the_frequent_one():
    # "ab" occurs 6 times among 12 a and 12 b: 6/144; "xy" twice among 2 x and 2 y: 2/4
    model = WordPiece.train("ab ab ab ab ab ab ac ac ac ac ac ac bd bd bd bd bd bd xy xy", 14)
    learned = [
        piece for piece in model.vocab if len(piece.removeprefix("##")) > 1 and piece != UNKNOWN
    ]
    assert learned[0] == "xy"


def test_wordpiece_training_grows_to_the_size_asked_for_or_until_nothing_is_left():
    assert len(WordPiece.train(TEXT, 60).vocab) == 60
    whole = WordPiece.train("ab ab", 100)
    assert list(whole.vocab) == [UNKNOWN, "##b", "a", "ab"]
    assert WordPiece.train(TEXT, 60).vocab == WordPiece.train([TEXT], 60).vocab
    assert WordPiece.train("", 5).tokenize("a") == [UNKNOWN]


# --- Unigram

log_p = st.floats(-20, -0.01)


@settings(max_examples=200, deadline=None)
@given(
    scores=st.dictionaries(
        st.text("abc中▁", min_size=1, max_size=4), log_p, min_size=1, max_size=10
    ),
    text=st.text("abcd中🙂", min_size=1, max_size=14),
)
def test_unigram_cuts_like_tokenizers_with_the_same_scores(scores, text):
    model = Unigram(scores)
    assert ids_of(model, model.tokenize(text)) == hf_unigram(model).encode(text).ids


def ways(word: str) -> list[list[str]]:
    inner = range(1, len(word))
    cuts = [c for n in range(len(word)) for c in combinations(inner, n)]
    return [[word[i:j] for i, j in zip((0, *c), (*c, len(word)), strict=True)] for c in cuts]


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text("ab", min_size=2, max_size=3), log_p, max_size=5),
    st.text("ab", min_size=1, max_size=7),
)
def test_viterbi_and_expected_counts_are_those_of_listing_every_way_to_cut(scores, word):
    model = Unigram({"a": -1.0, "b": -2.0, **scores})
    known = [way for way in ways(word) if all(piece in model.scores for piece in way)]
    log_ps = [sum(model.scores[piece] for piece in way) for way in known]
    pieces, best = model.viterbi(word)
    assert best == pytest.approx(max(log_ps)) and sum(
        model.scores[p] for p in pieces
    ) == pytest.approx(best)
    total = sum(map(math.exp, log_ps))
    expected = model.expected_counts({word: 3})
    for piece in model.scores:
        count = sum(way.count(piece) * math.exp(s) for way, s in zip(known, log_ps, strict=True))
        assert expected[piece] == pytest.approx(3 * count / total)


def test_expectation_maximization_never_lowers_the_likelihood():
    counts = {"▁lowest": 3, "▁newest": 5, "▁low": 4, "▁new": 2}
    pieces = {w[i:j] for w in counts for i in range(len(w)) for j in range(i + 1, len(w) + 1)}
    expected, before = dict.fromkeys(sorted(pieces), 1.0), -math.inf
    for _ in range(6):
        model = Unigram.from_counts(expected)
        ways_p = {
            w: [math.exp(sum(model.scores[p] for p in way)) for way in ways(w)] for w in counts
        }
        likelihood = sum(n * math.log(sum(ways_p[word])) for word, n in counts.items())
        assert likelihood >= before - 1e-6
        expected, before = model.expected_counts(counts), likelihood


def test_unigram_training_shrinks_to_the_size_asked_for_and_keeps_every_character():
    model = Unigram.train(TEXT, 40)
    assert len(model.scores) == 40 and set(TEXT) - {" "} <= set(model.scores)
    assert sum(map(math.exp, model.scores.values())) == pytest.approx(1)
    assert "".join(model.tokenize("the newest circle")) == "▁the▁newest▁circle"
    assert Unigram.train([TEXT], 40).scores == model.scores


def test_unknown_neighbours_are_one_piece():
    assert Unigram({"▁": -1.0, "a": -1.0}).tokenize("a中🙂a") == ["▁", "a", "中🙂", "a"]


@pytest.mark.parametrize(
    ("call", "error", "names"),
    [
        (lambda: WordPiece(["a"]), ValueError, "UNK"),
        (lambda: WordPiece.train(TEXT, 5), ValueError, "vocab_size 5"),
        (lambda: WordPiece.train([b"x"], 5), TypeError, "bytes"),
        (lambda: WordPiece([UNKNOWN]).tokenize(None), TypeError, "NoneType"),
        (lambda: WordPiece([UNKNOWN]).tokenize("\ud800"), ValueError, "ud800"),
        (lambda: Unigram({}), ValueError, "{}"),
        (lambda: Unigram({"a": 0.5}), ValueError, "0.5"),
        (lambda: Unigram({"a": math.nan}), ValueError, "nan"),
        (lambda: Unigram({"": -1.0}), ValueError, "''"),
        (lambda: Unigram.train(TEXT, 5), ValueError, "vocab_size 5"),
        (lambda: Unigram.train("", 5), ValueError, "0 characters"),
        (lambda: Unigram({"a": -1.0}).tokenize(7), TypeError, "int"),
    ],
)
def test_bad_input_is_refused_and_named(call, error, names):
    with pytest.raises(error, match=names):
        call()
