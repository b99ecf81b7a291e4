"""Notebook 04's three ways to bring an image and a question together, and the questions.

Scenes of 2 x 2 cells with two objects of different shapes; every answer is one token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.bpe import BPETokenizer
from minivlm.multimodal import CONTROL, CrossFusion, EarlyFusion, LateFusion
from minivlm.parts.decoder import DecoderConfig
from minivlm.parts.training import fit, minibatches
from minivlm.scenes import Scene
from minivlm.scenes.grammar import COLORS, OPPOSITE, SHAPES, relations
from minivlm.scenes.instructions import NUMBERS
from minivlm.scenes.pixels import MEAN, STD
from minivlm.toys.common import image_map, rates
from minivlm.vit import ViTConfig, to_pixels

KINDS = ("colour", "relation", "column", "row", "content")
SPOKEN = ("yes", "no", "zero", "one", *COLORS, *SHAPES)  # answers, a token each
WIDTH, LONGEST = 64, 12  # of the models; of a question, in tokens


@dataclass(frozen=True)
class Asked:
    """A question about a scene."""

    scene: Scene
    text: str
    answer: str
    kind: str  # one of KINDS


def ask_all(
    scenes: Sequence[Scene], seed: int, kinds: Sequence[str] = ("colour", "relation")
) -> list[Asked]:
    """Questions of each scene with two different shapes: of the two first kinds one, else two."""
    rng = Random(seed)
    asked: list[Asked] = []
    for scene in scenes:
        if len(scene.objects) == 2 and scene.objects[0].shape != scene.objects[1].shape:
            asked += [question for question in _about(scene, rng) if question.kind in kinds]
    return asked


def _about(scene: Scene, rng: Random) -> list[Asked]:
    first, second = rng.sample(scene.objects, 2)
    relation = said = rng.choice(relations(first, second, scene.cell))
    if rng.random() >= 0.5:
        said = OPPOSITE[relation]
    told = [(f"what colour is the {first.shape}?", first.color, "colour")]
    claim = f"is the {first.shape} {said} the {second.shape}?"
    told.append((claim, "yes" if said == relation else "no", "relation"))
    for thing in (first, second):
        column, row = (int(place // scene.cell) for place in thing.center)
        noun = thing.shape
        told.append((f"how many columns are left of the {noun}?", NUMBERS[column], "column"))
        told.append((f"how many rows are above the {noun}?", NUMBERS[row], "row"))
        told.append((f"what shape is in row {row + 1} column {column + 1}?", noun, "content"))
    return [Asked(scene, *question) for question in told]


def question_tokenizer(scenes: Sequence[Scene]) -> BPETokenizer:
    """For questions of all kinds; each answer is one token, with a space before it."""
    texts = [question.text for question in ask_all(scenes, 0, KINDS)]
    texts += [f"{word}\n {word}" for word in SPOKEN] * 2_000
    return BPETokenizer.train(texts, 400, special_tokens=CONTROL)


def exam_tensors(asked: Sequence[Asked], tokenizer: BPETokenizer) -> tuple[Tensor, ...]:
    """Left-padded questions (B, T), their mask, pixels, and the ids of the answers (B,)."""
    pad = tokenizer.special_tokens["<|pad|>"]
    encoded = [tokenizer.encode(question.text) for question in asked]
    ids = torch.tensor([[pad] * (LONGEST - len(e)) + e for e in encoded])
    images = to_pixels([question.scene.image for question in asked], mean=MEAN, std=STD)
    answers = [tokenizer.encode(f" {question.answer}") for question in asked]
    return ids, (ids != pad).long(), images, torch.tensor(answers)[:, 0]


def _tower(layers: int, hidden: int) -> ViTConfig:
    return ViTConfig((32, 32), 16, WIDTH, layers, heads=4, hidden=hidden)


def _speaker(vocab_size: int, layers: int, hidden: int) -> DecoderConfig:
    return DecoderConfig(vocab_size, WIDTH, layers, heads=4, kv_heads=4, hidden=hidden)


BUILDS: dict[str, Callable[[int], nn.Module]] = {
    "early": lambda size: EarlyFusion(_tower(0, 64), _speaker(size, 4, 128)),  # no tower
    "late": lambda size: LateFusion(_tower(2, 128), _speaker(size, 2, 128), hidden=80),
    "cross": lambda size: CrossFusion(_tower(1, 128), _speaker(size, 2, 64), hidden=160),
}


def new_fusion(name: str, vocab_size: int, seed: int = 0) -> nn.Module:
    """Untrained; positions start as a large map of the image, see notebook 02, section 4.2."""
    torch.manual_seed(seed)
    model = BUILDS[name](vocab_size)
    with torch.no_grad():
        model.vision.positions[0, 1:] = image_map(2, WIDTH)
    return model


def exam_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross-entropy of the answers."""
    return F.cross_entropy(model(*batch[:3]), batch[3])


def train_fusion(
    model: nn.Module, tensors: tuple[Tensor, ...], steps: int, seed: int = 0
) -> dict[str, list[float]]:
    """128 questions a step; returns the history of ``fit``."""
    batches = minibatches(*tensors, batch_size=min(128, len(tensors[0])), seed=seed)
    options = rates(0.015) | {"weight_decay": 0.1}
    return fit(model, batches, exam_loss, steps, seed=seed, **options)


@torch.no_grad()
def marks_of(
    model: nn.Module, asked: Sequence[Asked], tensors: tuple[Tensor, ...]
) -> dict[str, float]:
    """The share of right answers, for each kind of question that is asked."""
    *inputs, answers = tensors
    right = model(*inputs).argmax(dim=1) == answers
    of_kind = {kind: torch.tensor([q.kind == kind for q in asked]) for kind in KINDS}
    return {k: right[rows].float().mean().item() for k, rows in of_kind.items() if rows.any()}
