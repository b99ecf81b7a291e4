"""01 · Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): text -> token ids and back.

In: a str without lone surrogates. Out: its ids, a list of int in [0, vocab_size), from which the
text comes back without loss. In between: bytes, in the pieces that a regular expression cuts.
Training is algorithm 1 of Sennrich et al.; bytes and pieces are section 2.2 of Radford et al.
(GPT-2). The patterns, the order of the bytes and the files are in formats/.

The ids are those of the `tokenizers` library, whose two rules are kept: training takes the most
frequent pair and, among equals, the smaller (left id, right id); encoding merges the pair that
comes first in the merge list, leftmost first. tiktoken has another rule: it joins neighbours whose
joined bytes are in the vocabulary. `to_tiktoken` proves that both rules agree, or refuses.
"""

import operator
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise, permutations
from pathlib import Path
from typing import Literal

import regex
import tiktoken

from minivlm.formats import patterns, tokenizer_files
from minivlm.formats.patterns import GPT2_SPLIT, pretokenize
from minivlm.formats.tokenizer_files import BYTE_TO_ID, ID_TO_BYTE, to_visible

CL100K_SPLIT, QWEN2_SPLIT, NO_SPLIT = patterns.CL100K_SPLIT, patterns.QWEN2_SPLIT, patterns.NO_SPLIT
CACHED_WORDS = 1 << 17  # a tokenizer remembers the ids of so many words ...
CACHED_LENGTH = 100  # ... of at most so many characters
Counts = defaultdict[str, int]  # {pair: how often it occurs}
Index = defaultdict[str, list[int]]  # {pair: indices of the words that hold it, or held it once}


def check_text(text: str) -> None:
    """TypeError if `text` is no str, ValueError for half a surrogate pair, which has no bytes."""
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
    except (regex.error, TypeError, RecursionError) as error:
        raise ValueError(f"split pattern {pattern!r} is no regular expression: {error}") from None


def count_words(texts: str | Iterable[str], split: regex.Pattern) -> Counter[str]:
    """How often each piece occurs: {word: count}. Training sees each distinct one only once."""
    counts: Counter[str] = Counter()
    for text in [texts] if isinstance(texts, str) else texts:
        check_text(text)
        counts.update(pretokenize(split, text))
    return counts


def learn_merges(word_counts: dict[str, int], count: int) -> list[tuple[int, int]]:
    """Choose the most frequent pair and merge it, `count` times, or until no pair is left.

    A word is a str with one character chr(id) for each token, so that a merge is a
    str.replace and a pair is a str of length 2 that sorts as (left id, right id). The
    heap is lazy: an entry whose count has dropped is put back when it comes up.
    """
    words = [word.encode().translate(BYTE_TO_ID).decode("latin-1") for word in word_counts]
    counts = list(word_counts.values())
    pair_counts, words_with = count_pairs(words, counts)
    heap = [(-n, pair) for pair, n in pair_counts.items()]
    heapify(heap)
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < count:
        n, pair = heappop(heap)
        if -n != pair_counts[pair]:
            if pair_counts[pair] > 0:
                heappush(heap, (-pair_counts[pair], pair))
            continue
        new = chr(256 + len(merges))
        fresh = merge_pair(pair, new, words, counts, pair_counts, words_with)
        for arisen in fresh:
            if pair_counts[arisen] > 0:
                heappush(heap, (-pair_counts[arisen], arisen))
        merges.append((ord(pair[0]), ord(pair[1])))
    return merges


def count_pairs(words: list[str], counts: list[int]) -> tuple[Counts, Index]:
    """How often each pair occurs, and in which words. counts: of the words."""
    pair_counts: Counts = defaultdict(int)
    words_with: Index = defaultdict(list)
    for i, (word, n) in enumerate(zip(words, counts, strict=True)):
        for pair in map("".join, pairwise(word)):
            pair_counts[pair] += n
            words_with[pair].append(i)
    return pair_counts, words_with


def merge_pair(
    pair: str, new: str, words: list[str], counts: list[int], pair_counts: Counts, words_with: Index
) -> set[str]:
    """Write `new` for `pair` in every word, correct counts and index; the pairs that arose."""
    left, right = pair[0], pair[1]
    fresh = set()
    for i in dict.fromkeys(words_with.pop(pair)):  # each word once
        if pair not in words[i]:  # the index is lazy too
            continue
        words[i] = word = words[i].replace(pair, new)
        n, at = counts[i], word.find(new)
        while at >= 0:
            before, after = word[at - 1 : at], word[at + 1 : at + 2]  # word[-1:0] is empty
            if before:  # subtle: a neighbour that is itself fresh ended in `right`
                pair_counts[(right if before == new else before) + left] -= n
                pair_counts[before + new] += n
                words_with[before + new].append(i)
                fresh.add(before + new)
            if after and after != new:  # a fresh neighbour counts this pair as its `before`
                pair_counts[right + after] -= n
                pair_counts[new + after] += n
                words_with[new + after].append(i)
                fresh.add(new + after)
            at = word.find(new, at + 1)
    return fresh


class BPETokenizer:
    """A vocabulary, an ordered merge list, a split pattern, and special tokens.

    ranks: {bytes: id} of the ordinary tokens. merges: pairs of tokens, the first has priority.
    Several pairs may spell one token and then share its id. Only files hold that; training cannot
    produce it, because up to each step a string is merged in the same way everywhere. late_tokens:
    the special tokens that are looked for after normalization ("normalized" in tokenizer.json), in
    their own normal form. plain_tokens: those that "special": false says are text for a reader.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        merges: Iterable[tuple[bytes, bytes]],
        pattern: str = GPT2_SPLIT,
        special_tokens: dict[str, int] | None = None,
        *,
        normalization: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = None,
        ignore_merges: bool = False,  # a whole word of the vocabulary is taken at once (Llama 3)
        late_tokens: Collection[str] = (),
        plain_tokens: Collection[str] = (),
    ) -> None:
        self.ranks, self.merges, self.pattern = dict(ranks), list(merges), pattern
        self.special_tokens, self.late_tokens = dict(special_tokens or {}), frozenset(late_tokens)
        self.normalization, self.ignore_merges = normalization, ignore_merges
        self.plain_tokens = frozenset(plain_tokens)
        if normalization not in (None, "NFC", "NFD", "NFKC", "NFKD"):
            raise ValueError(f"unknown normalization {normalization!r}; not NFC, NFD, NFKC, NFKD")
        self._split = compile_split(pattern)
        self._tokens = _invert(self.ranks, self.special_tokens)
        self._byte_ids = {token[0]: i for token, i in self.ranks.items() if len(token) == 1}
        self._pairs = {}  # (left id, right id) -> (rank of the merge, id of the result)
        for rank, (left, right) in enumerate(self.merges):
            for token in (left, right, left + right):
                if token not in self.ranks:
                    raise ValueError(f"merge {rank} needs {to_visible(token)!r}, which is no token")
            self._pairs[self.ranks[left], self.ranks[right]] = rank, self.ranks[left + right]
        self._late = {self._normalize(token): token for token in self.late_tokens}
        if len(self._late) < len(self.late_tokens):
            raise ValueError(f"late tokens with one {normalization} form: {sorted(late_tokens)}")
        self._cache: dict[str, list[int]] = {}  # word -> ids

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        pattern: str = GPT2_SPLIT,
        special_tokens: Iterable[str] = (),
    ) -> "BPETokenizer":
        """Learn merges until there are `vocab_size` ids: 256 bytes, merges, the special tokens.

        Fewer when no pair is left. Special tokens are not looked for in `texts`.
        """
        special = _check_special(special_tokens)
        count = operator.index(vocab_size) - 256 - len(special)
        if count < 0:
            raise ValueError(f"vocab_size {vocab_size} < 256 bytes + {len(special)} special tokens")
        tokens = [bytes([b]) for b in ID_TO_BYTE]
        merges = []
        for left, right in learn_merges(count_words(texts, compile_split(pattern)), count):
            merges.append((tokens[left], tokens[right]))
            tokens.append(tokens[left] + tokens[right])
        ranks = {token: i for i, token in enumerate(tokens)}
        special_ids = {token: i for i, token in enumerate(special, start=len(tokens))}
        return cls(ranks, merges, pattern, special_ids)

    @property
    def vocab_size(self) -> int:
        """The rows that an embedding table needs: the largest id + 1."""
        return max(self._tokens) + 1

    def encode(self, text: str, allowed_special: Iterable[str] | str = ()) -> list[int]:
        """Ids of text. A special token must be allowed ("all": each is), else ValueError."""
        check_text(text)
        allowed = self._allowed(allowed_special)
        early = frozenset(self.special_tokens.keys() - self.late_tokens)
        late = frozenset(form for form, token in self._late.items() if token in allowed)
        refuse_tokens(early - allowed, text)
        ids: list[int] = []
        for part in any_of(early & allowed).split(text):  # special tokens, and what lies between
            if part in early & allowed:
                ids.append(self.special_tokens[part])
                continue
            part = self._normalize(part)
            refuse_tokens(self._late.keys() - late, part)
            for piece in any_of(late).split(part):
                token = self._late[piece] if piece in late else None
                ids += self._encode_words(piece) if token is None else [self.special_tokens[token]]
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of text in which special tokens are text like any other."""
        check_text(text)
        return self._encode_words(self._normalize(text))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of all tokens; they need not be valid UTF-8. ValueError for an unknown id."""
        ids = [operator.index(i) for i in ids]
        try:
            return b"".join(map(self._tokens.__getitem__, ids))
        except KeyError as error:
            largest = self.vocab_size - 1
            raise ValueError(f"unknown token id {error}, the largest is {largest}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not valid UTF-8 (half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json as Hugging Face has it; the `tokenizers` library reads it too."""
        tokenizer_files.write_byte_level(Path(path), vars(self))

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """Read what `save` wrote, or any tokenizer.json of a byte-level BPE; else ValueError."""
        return tokenizer_files.read_byte_level(Path(path), cls)

    @classmethod
    def from_hf(cls, folder: str | Path) -> "BPETokenizer":
        """Read a folder with tokenizer.json, or vocab.json and merges.txt (GPT-2, Qwen, ...)."""
        return tokenizer_files.read_folder(Path(folder), cls)

    def to_tiktoken(self) -> tiktoken.Encoding:
        """The same ids at Rust's speed; ValueError where tiktoken's rule would give others."""
        conflict = _special_conflict(self) or _rank_conflict(self)
        if conflict:
            raise ValueError(f"not representable in tiktoken: {conflict}")
        return tiktoken.Encoding(
            "minivlm",
            pat_str=patterns.for_tiktoken(self.pattern),
            mergeable_ranks=self.ranks,
            special_tokens=self.special_tokens,
        )

    def _allowed(self, given: Iterable[str] | str) -> frozenset[str]:
        if given == "all":
            return frozenset(self.special_tokens)
        if isinstance(given, str):
            raise ValueError(f'allowed_special is "all" or a collection of tokens, not {given!r}')
        allowed = frozenset(given)
        for token in allowed - set(self.special_tokens):
            raise ValueError(f"allowed_special names {token!r}, which is no special token here")
        return allowed

    def _normalize(self, text: str) -> str:
        return unicodedata.normalize(self.normalization, text) if self.normalization else text

    def _encode_words(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in pretokenize(self._split, text):
            known = self._cache.get(word)
            ids += self._encode_word(word) if known is None else known
        return ids

    def _encode_word(self, word: str) -> list[int]:
        token = word.encode()
        whole = self.ranks.get(token) if self.ignore_merges else None
        ids = self.merge(token) if whole is None else [whole]
        if len(word) <= CACHED_LENGTH and len(self._cache) < CACHED_WORDS:
            self._cache[word] = ids
        return ids

    def merge(self, word: bytes) -> list[int]:
        """Merge the pair of lowest rank, leftmost first, until no neighbours are in the list.

        Tokens are a linked list, candidates a heap of (rank, position): O(n log n) time.
        """
        try:
            ids = [self._byte_ids[b] for b in word]
        except KeyError as error:
            byte = error.args[0]
            raise ValueError(f"the vocabulary has no token for byte 0x{byte:02x}") from None
        pairs, end = self._pairs, len(ids)
        following, previous = list(range(1, end + 1)), list(range(-1, end))
        ids.append(-1)  # the end, and what a merge has swallowed: in no pair
        heap = [(pairs[pair][0], i) for i, pair in enumerate(pairwise(ids)) if pair in pairs]
        heapify(heap)
        while heap:
            rank, i = heappop(heap)
            j = following[i]
            found = pairs.get((ids[i], ids[j])) if ids[i] >= 0 else None
            if found is None or found[0] != rank:  # a neighbour has changed since
                continue
            ids[i], ids[j] = found[1], -1
            following[i] = after = following[j]
            previous[after] = i
            for left, right in ((previous[i], i), (i, after)):
                found = pairs.get((ids[left], ids[right])) if left >= 0 else None
                if found:
                    heappush(heap, (found[0], left))
        return [i for i in ids if i >= 0]


@lru_cache(64)
def any_of(tokens: frozenset[str]) -> regex.Pattern:
    """Finds each of the tokens, of several that begin at one place the longest."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return regex.compile(f"({'|'.join(map(regex.escape, longest_first))})" if tokens else "((?!))")


def refuse_tokens(tokens: Collection[str], text: str) -> None:
    found = any_of(frozenset(tokens)).search(text)
    if found:
        raise ValueError(f"text contains the special token {found[0]!r}, which is not allowed")


def _check_special(tokens: Iterable[str]) -> list[str]:
    if isinstance(tokens, str):
        raise ValueError(f"special_tokens must be a collection of tokens, got the str {tokens!r}")
    tokens = list(tokens)
    for token in tokens:
        check_text(token)
        if tokens.count(token) > 1:
            raise ValueError(f"special token {token!r} is given twice")
    return tokens


def _invert(ranks: dict[bytes, int], special_tokens: dict[str, int]) -> dict[int, bytes]:
    """{id: bytes}. No two different tokens may have one id."""
    tokens: dict[int, bytes] = {}
    for token, i in [*ranks.items(), *((text.encode(), i) for text, i in special_tokens.items())]:
        if not token or not isinstance(i, int) or i < 0 or tokens.get(i, token) != token:
            other = tokens.get(i)
            raise ValueError(f"token {token!r} with id {i!r}: empty, no id, or the id of {other!r}")
        tokens[i] = token
    return tokens


def _special_conflict(tokenizer: BPETokenizer) -> str | None:
    """tiktoken knows no normalization, and no order among special tokens that overlap."""
    form, late = tokenizer.normalization, tokenizer.late_tokens
    if form:
        return f"it has no {form}; normalize before, and set normalization = None"
    for a, b in permutations(tokenizer.special_tokens, 2):
        overlap = b in a or any(a.endswith(b[:n]) for n in range(1, len(b)))
        if a.startswith(b) or (overlap and (a in late) != (b in late)):
            return f"the special tokens {a!r} and {b!r} overlap"
    return None


def _rank_conflict(tokenizer: BPETokenizer) -> str | None:
    """Why tiktoken gives other ids: it joins the neighbours whose joined bytes have the lowest id.

    They are the same if (1) merges make tokens in the order of their ids, from parts with smaller
    ids, and (2) every token, cut into bytes, merges back into itself. Proof: after all merges below
    some rank, what a string between two token boundaries has become depends on that string alone.
    At the first difference tiktoken joins neighbours x, y that are no merge; then xy alone stays
    [x, y] for good, against (2). Merges from parts with larger ids (Llama 3 lists every way to cut
    a token) may be left out: when such a part is made, the string xy is one token already. With
    `ignore_merges`, a token that ends in three or more pieces is harmless: it is never there as two
    neighbours.
    """
    ranks = tokenizer.ranks
    for b in range(256):
        if bytes([b]) not in ranks:
            return f"no token for the byte 0x{b:02x}"
    proper = [
        (left, right)
        for left, right in tokenizer.merges
        if all(len(part) == 1 or ranks[part] < ranks[left + right] for part in (left, right))
    ]
    for before, after in pairwise(ranks[left + right] for left, right in proper):
        if after < before:
            return f"id {after} comes after id {before} in the order of merges"
    staged = BPETokenizer(ranks, proper)
    for token, i in ranks.items():
        pieces = len(staged.merge(token))
        if pieces == 2 or (pieces > 1 and not tokenizer.ignore_merges):
            return f"id {i}, {token!r}, is not what its own bytes merge into"
    return None
