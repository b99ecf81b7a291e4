"""Tokenizers as published: from the files of a checkpoint's folder to ids, and back.

In: a str. Out: a list of int, equal to what transformers' fast tokenizers give for the bare text.
What the course builds is its own here: byte-level BPE (`minivlm.bpe`: GPT-2, OPT, Llama 3, Qwen2),
CLIP's BPE (`clip_tokenizer`), BERT's WordPiece (`bert_tokenizer`). SentencePiece's BPE and Unigram
(Llama 2, SigLIP) are run by the `tokenizers` library. The files count, not the class they name:
what is not implemented is refused by name.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from minivlm.bpe import BPETokenizer
from minivlm.formats.tokenizer_files import byte_level, errors_name, load_json
from minivlm.pretrained.bert_tokenizer import BertTokenizer
from minivlm.pretrained.clip_tokenizer import ClipTokenizer
from minivlm.pretrained.older_tokenizers import complete, older_files
from minivlm.pretrained.sentencepiece_tokenizer import SentencePieceTokenizer
from minivlm.pretrained.tokenizer_parts import expect, ids_around


class Tokenizer(Protocol):
    """What the algorithms have in common."""

    @property
    def vocab_size(self) -> int: ...

    special_tokens: dict[str, int]

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class PublishedTokenizer:
    """A tokenizer, and the ids that it puts around a single text: [CLS] ... [SEP], <s> ..."""

    algorithm: Tokenizer
    prefix: list[int] = field(default_factory=list)
    suffix: list[int] = field(default_factory=list)

    @property
    def special_tokens(self) -> dict[str, int]:
        """{token: id} of the tokens that are looked for before a text is cut into words."""
        return self.algorithm.special_tokens

    @property
    def vocab_size(self) -> int:
        """The rows that an embedding table needs: the largest id + 1."""
        return self.algorithm.vocab_size

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """Ids of the bare text, without prefix and suffix.

        A special token in the text must be allowed ("all": each is), else ValueError.
        """
        return self.algorithm.encode(text, allowed_special)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens included; ValueError for an unknown id."""
        return self.algorithm.decode(ids)


def open_tokenizer(folder: str | Path) -> PublishedTokenizer:
    """The tokenizer of a published folder, from tokenizer.json or the older files of its kind.

    ValueError where a file is missing, broken, or asks for what is not implemented.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    names = ("tokenizer_config", "special_tokens_map", "added_tokens")
    config, roles, more = (load_json(folder / f"{name}.json", optional=True) for name in names)
    path = folder / "tokenizer.json"
    data = load_json(path) if path.exists() else older_files(folder, config)
    with errors_name(path if path.exists() else folder):
        complete(data, config, roles, more)
        prefix, suffix = ids_around(data.get("post_processor"))
        return PublishedTokenizer(_algorithm(data), prefix, suffix)


def _algorithm(data: dict[str, Any]) -> Tokenizer:
    """The reader of a tokenizer.json, by the kind of its model, which older files do not name."""
    model = data["model"]
    guess = "Unigram" if isinstance(model["vocab"], list) else "WordPiece"
    guess = "BPE" if "merges" in model else guess
    match model.get("type", guess):
        case "BPE" if model.get("end_of_word_suffix"):
            return ClipTokenizer(data)
        case "BPE" if not model.get("byte_fallback"):
            expect(data, "decoder", {"type": "ByteLevel"})
            return byte_level(data, BPETokenizer)
        case "BPE" | "Unigram":
            return SentencePieceTokenizer(data)
        case "WordPiece":
            return BertTokenizer(data)
    raise ValueError(f"a tokenizer of the kind {model['type']!r} is not supported")
