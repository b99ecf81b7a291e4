"""Text to token ids: byte-level byte-pair encoding (BPE), as in GPT-2, Llama 3 and Qwen.

Papers: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units",
algorithm 1; Radford et al. 2019 (GPT-2), section 2.2: on bytes, within the pieces that a regular
expression cuts.
Notebook: 01_bpe_tokenizer.

Data in: any str without lone surrogates. Data out: ids below vocab_size, and back, without loss.

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
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken

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

# GPT-2 writes a byte as one visible character: 188 bytes as themselves, the other 68 as U+0100,
# U+0101, ... The ids 0-255 follow that order, so '!' is 0 and the space, written U+0120, is 220.
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
ID_TO_BYTE = bytes(_VISIBLE + [b for b in range(256) if b not in _VISIBLE])
BYTE_TO_ID = bytes(ID_TO_BYTE.index(b) for b in range(256))  # a table for bytes.translate
BYTE_TO_CHAR = {b: chr(b if i < 188 else 256 + i - 188) for i, b in enumerate(ID_TO_BYTE)}
CHAR_TO_BYTE = {char: b for b, char in BYTE_TO_CHAR.items()}

CACHED_WORDS = 1 << 17  # a tokenizer remembers the ids of so many words ...
CACHED_LENGTH = 100  # ... of at most so many characters
Counts, Index = dict[str, int], dict[str, list[int]]  # of pairs: how often; in which words


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
    """TypeError if `text` is no str, ValueError if it holds half of a surrogate pair, which has no
    bytes.
    """
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


from minivlm.parts import tokenizer_files  # noqa: E402


def count_words(texts: str | Iterable[str], split: regex.Pattern) -> Counter[str]:
    """How often each piece occurs: {word: count}. Training needs to see each distinct one only
    once.
    """
    counts = Counter()
    for text in [texts] if isinstance(texts, str) else texts:
        check_text(text)
        counts.update(pretokenize(split, text))
    return counts


def learn_merges(word_counts: dict[str, int], count: int) -> list[tuple[int, int]]:
    """Choose the most frequent pair and merge it, `count` times, or until no pair is left.

    A word is a str with one character chr(id) for each token, so that a merge is a str.replace and
    a pair is a str of length 2 that sorts as (left id, right id). The heap is lazy: an entry whose
    count has dropped since is put back with its present count when it comes up.
    """
    words = [word.encode().translate(BYTE_TO_ID).decode("latin-1") for word in word_counts]
    counts = list(word_counts.values())
    pair_counts, words_with = count_pairs(words, counts)
    heap = [(-n, pair) for pair, n in pair_counts.items()]
    heapify(heap)
    merges = []
    while heap and len(merges) < count:
        n, pair = heappop(heap)
        if -n != pair_counts[pair]:
            if pair_counts[pair] > 0:
                heappush(heap, (-pair_counts[pair], pair))
            continue
        fresh = merge_pair(pair, chr(256 + len(merges)), words, counts, pair_counts, words_with)
        for arisen in fresh:
            if pair_counts[arisen] > 0:
                heappush(heap, (-pair_counts[arisen], arisen))
        merges.append((ord(pair[0]), ord(pair[1])))
    return merges


def count_pairs(words: list[str], counts: list[int]) -> tuple[Counts, Index]:
    """{pair: how often it occurs} and {pair: indices of the words that hold it, or held it once}."""
    pair_counts, words_with = defaultdict(int), defaultdict(list)
    for i, (word, n) in enumerate(zip(words, counts, strict=True)):
        for pair in map("".join, pairwise(word)):
            pair_counts[pair] += n
            words_with[pair].append(i)
    return pair_counts, words_with


def merge_pair(
    pair: str, new: str, words: list[str], counts: list[int], pair_counts: Counts, words_with: Index
) -> set[str]:
    """Write `new` for `pair` in every word, keep counts and index right; return the pairs that
    arose.
    """
    left, right = pair
    fresh = set()
    for i in words_with.pop(pair):
        if pair not in words[i]:  # the index is lazy too
            continue
        words[i] = word = words[i].replace(pair, new)
        n, at = counts[i], word.find(new)
        while at >= 0:
            before, after = word[at - 1 : at], word[at + 1 : at + 2]  # at = 0: word[-1:0] is empty
            if before:  # subtle: if the neighbour is itself a fresh token, it ended in `right`
                pair_counts[(right if before == new else before) + left] -= n
                pair_counts[before + new] += n
                words_with[before + new].append(i)
                fresh.add(before + new)
            if after and after != new:  # a fresh neighbour counts this pair itself, as its `before`
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
    produce it, because at each step a string has one state, wherever it stands. late_tokens: the
    special tokens that are looked for after normalization ("normalized" in tokenizer.json).
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        merges: Iterable[tuple[bytes, bytes]],
        pattern: str = GPT2_SPLIT,
        special_tokens: dict[str, int] | None = None,
        *,
        normalization: str | None = None,  # "NFC", ... of Unicode
        ignore_merges: bool = False,  # a whole word of the vocabulary is taken at once (Llama 3)
        late_tokens: Collection[str] = (),
    ) -> None:
        self.ranks, self.merges, self.pattern = dict(ranks), list(merges), pattern
        self.special_tokens, self.late_tokens = dict(special_tokens or {}), frozenset(late_tokens)
        self.normalization, self.ignore_merges = normalization, ignore_merges
        self._split = compile_split(pattern)
        self._tokens = _invert(self.ranks, self.special_tokens)
        self._byte_ids = [self.ranks.get(bytes([b])) for b in range(256)]
        self._pairs = {}  # (left id, right id) -> (rank of the merge, id of the result)
        for rank, (left, right) in enumerate(self.merges):
            for token in (left, right, left + right):
                if token not in self.ranks:
                    raise ValueError(f"merge {rank} needs {to_visible(token)!r}, which is no token")
            self._pairs[self.ranks[left], self.ranks[right]] = rank, self.ranks[left + right]
        self._cache = {}  # word -> ids

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        pattern: str = GPT2_SPLIT,
        special_tokens: Iterable[str] = (),
    ) -> "BPETokenizer":
        """Learn merges until there are `vocab_size` ids: 256 bytes, merges, then the special
        tokens.

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
        return cls(
            ranks, merges, pattern, {token: len(tokens) + i for i, token in enumerate(special)}
        )

    @property
    def vocab_size(self) -> int:
        """The rows that an embedding table needs: the largest id + 1."""
        return max(self._tokens) + 1

    def encode(self, text: str, allowed_special: Iterable[str] | str = ()) -> list[int]:
        """Ids of text. A special token gives its id if it is allowed ("all": each is), else
        ValueError.
        """
        check_text(text)
        allowed = self._allowed(allowed_special)
        refused = _any_of(frozenset(self.special_tokens) - allowed).search(text)
        if refused:
            raise ValueError(
                f"text contains the special token {refused.group()!r}, which is not allowed"
            )
        ids = []
        for i, part in enumerate(_any_of(allowed - self.late_tokens).split(text)):
            pieces = (
                [part]
                if i % 2
                else _any_of(allowed & self.late_tokens).split(self._normalize(part))
            )
            for j, piece in enumerate(pieces):
                ids += [self.special_tokens[piece]] if i % 2 or j % 2 else self._encode_words(piece)
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
            raise ValueError(
                f"unknown token id {error}, the largest is {self.vocab_size - 1}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not valid UTF-8 (half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Write one JSON file in the form of Hugging Face's tokenizer.json; `tokenizers` reads it
        too.
        """
        tokenizer_files.write_json(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """Read what `save` wrote, or another tokenizer.json of a byte-level BPE; else ValueError."""
        return cls(**tokenizer_files.read_json(Path(path)))

    @classmethod
    def from_hf(cls, folder: str | Path) -> "BPETokenizer":
        """Read a folder with tokenizer.json, or vocab.json and merges.txt: GPT-2, Qwen, Llama 3 and
        so on.
        """
        return cls(**tokenizer_files.read_folder(Path(folder)))

    def to_tiktoken(self) -> tiktoken.Encoding:
        """The same ids at Rust's speed; ValueError where tiktoken's rule would give others."""
        return tokenizer_files.to_tiktoken(self)

    def _allowed(self, allowed_special: Iterable[str] | str) -> frozenset[str]:
        if isinstance(allowed_special, str) and allowed_special != "all":
            raise ValueError(
                f'allowed_special is "all" or a collection of tokens, not {allowed_special!r}'
            )
        allowed = frozenset(self.special_tokens if allowed_special == "all" else allowed_special)
        for token in allowed - set(self.special_tokens):
            raise ValueError(f"allowed_special names {token!r}, which is no special token here")
        return allowed

    def _normalize(self, text: str) -> str:
        return unicodedata.normalize(self.normalization, text) if self.normalization else text

    def _encode_words(self, text: str) -> list[int]:
        ids = []
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
        """Merge the pair of lowest rank, leftmost first, until no neighbours are in the merge list.

        The tokens are a linked list, the candidates a heap of (rank, position): O(n log n) for n
        bytes.
        """
        ids = [self._byte_ids[b] for b in word]
        if None in ids:
            raise ValueError(
                f"the vocabulary has no token for the byte 0x{word[ids.index(None)]:02x}"
            )
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
def _any_of(tokens: frozenset[str]) -> regex.Pattern:
    """Finds each of the tokens, the longest of those that begin at one place; nothing if there are
    none.
    """
    longest_first = sorted(tokens, key=len, reverse=True)
    return regex.compile(f"({'|'.join(map(regex.escape, longest_first))})" if tokens else "((?!))")


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
    tokens = {}
    for token, i in [*ranks.items(), *((text.encode(), i) for text, i in special_tokens.items())]:
        if not token or not isinstance(i, int) or i < 0 or tokens.get(i, token) != token:
            raise ValueError(
                f"token {token!r} with id {i!r}: empty, no id, or the id of {tokens.get(i)!r}"
            )
        tokens[i] = token
    return tokens
