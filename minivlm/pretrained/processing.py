"""What a published folder needs besides its model: pictures and strings in, strings out.

In: PIL images, a question, and what was said before it. Out: the dict of tensors that the model
takes; of the ids that it says, the words. The processor of a family (in the file of its name) adds
its prompt and its placeholders.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from minivlm.formats.tokenizer_files import load_json
from minivlm.pretrained.bert_tokenizer import BertTokenizer
from minivlm.pretrained.checkpoints import read_json
from minivlm.pretrained.config import TOKEN, Section, Several, read_setting, refuse, section
from minivlm.pretrained.preprocessing import ImageProcessor, Images, listed, vision_side
from minivlm.pretrained.tokenizers import PublishedTokenizer, open_tokenizer

Said = Sequence[tuple[str, str]]  # the questions of a conversation so far, and what was answered

TIDY = [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")]
TIDY += [(f" {end}", end) for end in ("'m", "'s", "'ve", "'re")]


class PublishedProcessor:
    """Tokenizer and images of a folder; ValueError where a file is missing or broken."""

    image_kind, side = "CLIP", 224  # where the folder does not say

    def __init__(self, folder: Path):
        self.folder, self.config = folder, read_json(folder / "config.json")
        self.text = self.part("text_config")
        self.tokenizer = open_tokenizer(folder)
        side = vision_side(self.part("vision_config"), self.side)
        self.images = ImageProcessor(folder, self.image_kind, side)

    def part(self, key: str) -> Section:
        """The settings of a tower."""
        return section(self.config, key)

    def refuse_special_tokens(self, *texts: str) -> None:
        """ValueError for a text that contains one."""
        for text in texts:
            self.tokenizer.encode(text)

    def pad_id(self, default: int) -> int:
        """The id of the token that the tokenizer's files name for padding."""
        for name in ("tokenizer_config", "special_tokens_map"):
            said = load_json(self.folder / f"{name}.json", optional=True).get("pad_token")
            token = said.get("content") if isinstance(said, dict) else said
            if isinstance(token, str) and token in self.tokenizer.special_tokens:
                return self.tokenizer.special_tokens[token]
        return default


class SpeakingProcessor(PublishedProcessor):
    """Of a family that writes: its prompts, its end, and the words of what it wrote."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        said = load_json(folder / "tokenizer_config.json", optional=True)
        bert = isinstance(self.tokenizer.algorithm, BertTokenizer)
        self.tidy = TIDY if bert and said.get("clean_up_tokenization_spaces") else []

    def caption_inputs(self, image: Images) -> dict[str, Tensor]:
        """What the model takes for a caption."""
        raise NotImplementedError

    def inputs(self, image: Images, text: str, before: Said = ()) -> dict[str, Tensor]:
        """What the model takes for a question or, where it answers none, a caption's beginning."""
        raise NotImplementedError

    def words(self, ids: Iterable[int]) -> str:
        """What the model said, without special tokens and rows that stand for no token."""
        text = self.tokenizer.decode(spoken_ids(self.tokenizer, ids))
        for wide, narrow in self.tidy:
            text = text.replace(wide, narrow)
        return text.strip()

    def token(self, key: str, default: int) -> int | None:
        """An id of text_config; null is none."""
        value = self.text.get(key, default)
        if value is not None and value not in TOKEN:
            raise refuse(self.text, key, TOKEN)
        return value

    def prompt(self, model: nn.Module, given: dict[str, Tensor]) -> dict[str, Any]:
        """The inputs as ``generate`` takes them."""
        return given

    def ends(self) -> int | list[int] | None:
        """The id, or the ids, that end an answer: generation_config.json's, else config.json's."""
        path = self.folder / "generation_config.json"
        said = read_json(path).get("eos_token_id") if path.is_file() else None
        if said is None:
            return self.own_ends("eos_token_id", 2)
        if said not in TOKEN and said not in Several(TOKEN):
            raise ValueError(f"{path}: eos_token_id = {said!r:.200} is no id of a token")
        return said

    def own_ends(self, key: str, default: int) -> int | list[int] | None:
        """Those of text_config."""
        value = self.text.get(key)
        return value if value and value in Several(TOKEN) else self.token(key, default)


def plain_tokens(tokenizer: PublishedTokenizer) -> frozenset[str]:
    """Added tokens that are no special ones: text for a reader."""
    return getattr(tokenizer.algorithm, "plain_tokens", frozenset())


def spoken_ids(tokenizer: PublishedTokenizer, ids: Iterable[int]) -> list[int]:
    """Those that are words: no special tokens, and no rows of a table that stand for no token."""
    plain = plain_tokens(tokenizer)
    marks = {i for token, i in tokenizer.special_tokens.items() if token not in plain}
    return [i for i in ids if i not in marks and i < tokenizer.vocab_size]


def alternate(speakers: tuple[str, str], texts: Sequence[str]) -> list[tuple[str, str]]:
    """A conversation's texts, each with who says it: the two take turns."""
    return [(speakers[i % 2], text) for i, text in enumerate(texts)]


def single(image: Images) -> Image.Image:
    """The one picture; ValueError for several, of a family that is shown one."""
    several = listed(image)
    if len(several) != 1:
        raise ValueError(f"this model is shown one picture at a time, not {len(several)}")
    return several[0]


def one_row(ids: list[int], pixel_values: Tensor) -> dict[str, Tensor]:
    """One row of ids and its images, as a model takes them."""
    row = torch.tensor([ids])
    return {
        "input_ids": row,
        "pixel_values": pixel_values,
        "attention_mask": torch.ones_like(row),
    }


def check_length(config: dict, ids: Tensor) -> Tensor:
    """The prompt (1, T) of a LLaVA; ValueError if its language model is not made for so many."""
    text = section(config, "text_config")
    longest = read_setting(text, "max_position_embeddings", 2048)  # as transformers' LlamaConfig
    if ids.shape[1] > longest:
        raise ValueError(f"a prompt of {ids.shape[1]} tokens, but the model reads {longest}")
    return ids


def never_asked(folder: Path) -> ValueError:
    """The error of a checkpoint that describes."""
    return ValueError(
        f"the checkpoint in {folder} describes pictures and answers no question: "
        "it was never trained on questions"
    )
