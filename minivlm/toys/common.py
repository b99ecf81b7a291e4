"""What the small models share: where they start, how fast they learn, texts, folders."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.bpe import BPETokenizer
from minivlm.parts.training import minibatches
from minivlm.pretrained import from_pretrained
from minivlm.pretrained.checkpoints import Names, read_json, replacing, write_checkpoint
from minivlm.pretrained.loading import names_of
from minivlm.scenes import Scene, grammar, is_true
from minivlm.scenes.files import DATA
from minivlm.vit import sincos_2d

FROZEN = DATA / "checkpoints"  # clip, an image encoder; decoder, a language model; ...
SPEAKER = "minivlm"  # the key of a config.json that says which of the small models speaks
TOY_WIDTH = 96  # of every small model
BERT_MARKS = ("[PAD]", "[CLS]", "[SEP]", "[ENC]", "[DEC]")  # of a BLIP and a Q-Former


def rates(muon_lr: float = 0.015) -> dict[str, float]:
    """Learning rates for ``fit``, in the proportion that suits all small models."""
    return {"muon_lr": muon_lr, "adamw_lr": muon_lr * 2 / 15}


RATES = rates()


# Where a small model starts


def image_map(side: int, width: int = 16) -> Tensor:
    """Where the positions of side x side patches start: as a map of the image, (N, width).

    Positions are learned, but they start as 2-D sin-cos, in 16 features alone and large: notebook
    02, section 4.2, measures that positions which are small beside the pixels are not read in a
    short training.
    """
    return F.pad(4 * sincos_2d(side, side, 16, theta=10), (0, width - 16))


@torch.no_grad()
def shrink_weights(model: nn.Module, embedding: nn.Parameter | None = None) -> None:
    """Make the weights of all Linear layers 0.6 times as large.

    embedding: of words, to which an output layer is tied; it stays as it is.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not embedding:
            module.weight *= 0.6


# Texts


def as_bert(tokenizer: BPETokenizer, texts: Sequence[str], positions: int) -> Tensor:
    """Texts -> (B, T) ids: [CLS], the words, [SEP], padding.

    A text with more tokens than positions is cut.
    """
    pad, cls, sep = (tokenizer.special_tokens[name] for name in BERT_MARKS[:3])
    return pad_right([[cls, *tokenizer.encode(text)[: positions - 2], sep] for text in texts], pad)


def pad_right(rows: Sequence[list[int]], pad: int, length: int = 0) -> Tensor:
    """Rows of ids -> (B, T), padded to ``length`` or to the longest."""
    longest = max(map(len, rows), default=0)
    if not rows or 0 < length < longest:
        raise ValueError(f"cannot pad {len(rows)} rows of up to {longest} ids to {length}")
    length = length or longest
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def decode_rows(tokenizer: BPETokenizer, ids: Tensor, marks: Collection[int]) -> list[str]:
    """The new ids (B, T) of ``generate`` -> texts, without marks.

    One of the marks is the end, with which ``generate`` fills a row that has said it.
    """
    return [tokenizer.decode([i for i in row if i not in marks]) for row in ids.tolist()]


# Batches


def look_up_images(batch: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """A batch with the numbers of images in a stack -> the same with their pixel_values."""
    rest = {name: value for name, value in batch.items() if name != "image_numbers"}
    return rest | {"pixel_values": images[batch["image_numbers"]]}


def mates(captions: Sequence[str]) -> Tensor:
    """Pairs of captions (P, 2), by number, that name the same objects and contradict each other.

    Two of "A left of B" and "B left of A", or two counts of one thing; "A above B" may be true as
    well, and is none. In one batch they are each other's hard negatives: grouped mini-batches, Byun
    et al. 2022 (GRIT-VLP), section 3.1.
    """
    # The objects and the axis of their relation -> (their order, their count, number).
    groups: dict[tuple, list[tuple]] = defaultdict(list)
    for number, caption in enumerate(captions):
        phrases, relation = grammar.parse(caption)
        if relation in ("right of", "below"):  # "B right of A" says the same as "A left of B"
            phrases, relation = phrases[::-1], grammar.OPPOSITE[relation]
        things = [(p.color, p.shape, p.size or "") for p in phrases]
        groups[relation, *sorted(things)].append((things, phrases[0].count, number))
    pairs = []
    for group in groups.values():
        group.sort()
        half = len(group) // 2
        opposite = zip(group[: len(group) - half], group[half:], strict=True)
        pairs += [(a[-1], b[-1]) for a, b in opposite if a[:-1] != b[:-1]]
    return torch.tensor(pairs)


def batches_with_mates(
    images: Tensor, ids: Tensor, captions: Sequence[str], *, batch: int, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of images and ids; in every second one, each caption has its mate.

    Without them the images of a batch differ so much that no model needs to look at where things
    are.
    """
    plain = minibatches(images, ids, batch_size=batch, seed=seed)
    pairs = minibatches(mates(captions), batch_size=batch // 2, seed=seed)
    alike = ((images[rows.flatten()], ids[rows.flatten()]) for (rows,) in pairs)
    return chain.from_iterable(zip(plain, alike, strict=True))


def truth_table(scenes: Sequence[Scene], captions: Sequence[str]) -> Tensor:
    """Which caption is true of which scene: (scenes, captions)."""
    return torch.tensor([[is_true(caption, scene) for caption in captions] for scene in scenes])


# Folders


def save_toy(
    model: nn.Module, config: dict, folder: str | Path, tokenizer: BPETokenizer | None = None
) -> None:
    """Write config.json, model.safetensors and tokenizer.json: all of them or none.

    A config with a model_type is a published one, and so are the names of the weights then.
    """
    names = names_of(model, config) if "model_type" in config else Names()
    with replacing(Path(folder)) as new:
        write_checkpoint(model, config, names, new)
        if tokenizer:
            tokenizer.save(new / "tokenizer.json")


def load_toy(
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    kind: type[nn.Module] = nn.Module,
    marks: Collection[str] = (),
) -> tuple[nn.Module, BPETokenizer]:
    """A folder of ``save_toy`` with a published config -> the model and its tokenizer.

    ValueError if they do not belong together: a model of another kind, a tokenizer without one of
    the marks, of another size than the table of words, or of another id for an image.
    """
    model, tokenizer = from_pretrained(folder, dtype), load_tokenizer(folder)
    if not isinstance(model, kind):
        raise ValueError(f"{folder} holds a {type(model).__name__}, not a {kind.__name__}")
    special, image = tokenizer.special_tokens, getattr(model, "image_token_id", None)
    tables = {part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)}
    fits = tokenizer.vocab_size in tables and (image is None or image in special.values())
    if not fits or not {*marks} <= special.keys():
        found = f"{tokenizer.vocab_size} ids, marks {sorted(special)}"
        raise ValueError(f"{folder}: the tokenizer ({found}) is not that of the model")
    return model, tokenizer


def read_sizes(folder: str | Path, sizes: dict[str, int]) -> dict:
    """The config.json of a small model, before anything is made of it.

    sizes: what the weights need; ValueError if it says otherwise.
    """
    path = Path(folder) / "config.json"
    config = read_json(path)
    for key, size in sizes.items():
        if config.get(key) != size or isinstance(config[key], bool):
            raise ValueError(f"{path}: {key} is {config.get(key)!r}, but the weights need {size}")
    return config


def shape_of(tensors: dict[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor of a file; ValueError if it is not there or has not so many axes."""
    if name not in tensors or tensors[name].ndim != axes:
        raise ValueError(f"missing tensor {name} of {axes} axes")
    return tuple(tensors[name].shape)


def load_tokenizer(folder: str | Path) -> BPETokenizer:
    """The tokenizer of a folder."""
    return BPETokenizer.load(Path(folder) / "tokenizer.json")
