"""How fast is our byte-level BPE? Beside tokenizers, tiktoken and minbpe's algorithm.

    python tools/benchmark_bpe.py [--megabytes 5] [--vocab-size 8192] [--repeat 3]

The text is Python's own standard library, as it lies on this machine: nothing is downloaded, and
the figures differ a little between machines. All run on one thread; tokenizers could use several
cores for several texts. A row is the best of `--repeat` runs. The last line says whether the merge
lists and the ids are the same; if not, the exit status is 1.
"""

import argparse
import json
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # noqa: E402

from minivlm.bpe import BYTE_TO_ID, BPETokenizer  # noqa: E402
from minivlm.formats.tokenizer_files import from_visible  # noqa: E402

NAIVE_BYTES, NAIVE_MERGES = 200_000, 20  # the naive loop is timed on so much


def long_text(megabytes: float) -> str:
    """Sources of the standard library, one after the other, in the order of their names."""
    text, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in path.parts:
            text.append(path.read_text(encoding="utf-8", errors="ignore"))
            size += len(text[-1].encode())
            if size >= megabytes * 1e6:
                break
    return "".join(text)


def naive_merges(ids: list[int], count: int) -> list[tuple[int, int]]:
    """minbpe's BasicTokenizer.train: for every merge count all pairs, rewrite the whole text."""
    merges = []
    for new in range(256, 256 + count):
        pairs = {}
        for pair in zip(ids, ids[1:], strict=False):
            pairs[pair] = pairs.get(pair, 0) + 1
        best = max(pairs, key=pairs.get)
        merged, i = [], 0
        while i < len(ids):
            if i < len(ids) - 1 and (ids[i], ids[i + 1]) == best:
                merged.append(new)
                i += 2
            else:
                merged.append(ids[i])
                i += 1
        ids = merged
        merges.append(best)
    return merges


def ids_looked_at(tok: BPETokenizer, text: str) -> float:
    """The length of the text in tokens, summed over all merges: what the naive loop reads."""
    grid = [int(len(tok.merges) * x**3) for x in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    lengths = [len(BPETokenizer(tok.ranks, tok.merges[:n]).encode(text)) for n in grid]
    return sum(
        (b - a) * (x + y) / 2
        for (a, b), (x, y) in zip(pairwise(grid), pairwise(lengths), strict=True)
    )


def train_tokenizers(text: str, vocab_size: int) -> Tokenizer:
    """The same training in the tokenizers library."""
    hf = Tokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    hf.train_from_iterator([text], trainer)
    return hf


def best_time(run: Callable, repeat: int) -> tuple[float, object]:
    """(seconds of the fastest run, its result)."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=5)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    text, size = long_text(arguments.megabytes), arguments.vocab_size
    megabytes, count = len(text.encode()) / 1e6, size - 256
    print(f"{megabytes:.2f} MB of Python sources, vocabulary {size}, one thread, ", end="")
    print(f"best of {arguments.repeat}\n")

    ours, tok = best_time(lambda: BPETokenizer.train(text, size), arguments.repeat)
    theirs, hf = best_time(lambda: train_tokenizers(text, size), arguments.repeat)
    piece = list(text.encode()[:NAIVE_BYTES].translate(BYTE_TO_ID))
    naive = best_time(lambda: naive_merges(piece, NAIVE_MERGES), 1)[0] / (len(piece) * NAIVE_MERGES)
    naive *= ids_looked_at(tok, text)
    print(f"{'training':34}{'seconds':>10}{'ours is faster by':>20}")
    print(f"{'minivlm':34}{ours:10.2f}")
    print(f"{'tokenizers':34}{theirs:10.2f}{theirs / ours:19.1f}x")
    print(f"{'naive loop over all ids, estimated':34}{naive:10.0f}{naive / ours:19.0f}x\n")

    def cold() -> list[int]:
        tok._cache.clear()
        return tok.encode(text)

    encoding = tok.to_tiktoken()
    runs = {
        "minivlm, every word new": cold,
        "minivlm, words known": lambda: tok.encode(text),
        "tokenizers": lambda: hf.encode(text).ids,
        "tiktoken (to_tiktoken)": lambda: encoding.encode(text),
    }
    print(f"{'encoding':34}{'MB/s':>10}")
    ids = []
    for name, run in runs.items():
        seconds, result = best_time(run, arguments.repeat)
        ids.append(result)
        print(f"{name:34}{megabytes / seconds:10.1f}")

    merges = [
        (from_visible(a), from_visible(b)) for a, b in json.loads(hf.to_str())["model"]["merges"]
    ]
    equal = sum(a == b for a, b in zip(tok.merges, merges, strict=True))
    same_ids = all(result == ids[0] for result in ids)
    print(f"\n{equal} of {count} merges equal those of tokenizers; ", end="")
    print(f"ids the same in all rows: {same_ids}")
    return 0 if equal == count and same_ids else 1


if __name__ == "__main__":
    sys.exit(main())
