"""Softmax against sigmoid, on CLIP's towers and on SigLIP's, at two batch sizes.

Every run sees the same number of pairs, drawn with the same seed, and starts from the same towers
with the scale and bias of its loss's paper. Either pair of towers has learning rates of its own,
those of notebook 05, picked from a few on scenes with seed 7. Measured on scenes of the composition
stream with seed 5, not on the files in data/scenes. Half a minute a row on one core.
"""

from collections.abc import Callable, Sequence
from math import log
from pathlib import Path

import torch
from torch import Tensor, nn

from minivlm import scenes
from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, Siglip, contrastive_loss, sigmoid_loss
from minivlm.parts.training import fit, minibatches
from minivlm.scenes import Scene
from minivlm.scenes.pixels import augment, pixels
from minivlm.toys.clip import END, PAD, sentence_pairs, sentences, toy
from minivlm.toys.common import rates, truth_table
from runner import Experiment, Measure, Settings, main, percent

ROWS = {  # name -> towers, loss, pairs a step
    f"{name} towers, {loss}, batch {batch}": (towers, loss, batch)
    for name, towers in (("CLIP's", "clip"), ("SigLIP's", "siglip"))
    for loss in ("softmax", "sigmoid")
    for batch in (32, 256)
}
RATES = {"clip": rates(0.015), "siglip": {"muon_lr": 0.02, "adamw_lr": 1e-3}}
COLUMNS = {
    "image to text": "% of images whose nearest caption is true (R@1; chance 1.2)",
    "text to image": "% of captions that are true of their nearest image (R@1; chance 1.2)",
    "R@1": "% in both directions, the mean",
    "colours swapped": "% of true captions that are nearer to the image than the same caption with "
    "the colours of its two objects exchanged (chance 50)",
}


def made(towers: str, loss: str, tokenizer: BPETokenizer, length: int, seed: int) -> Clip | Siglip:
    """Towers with the scale and bias at which a loss starts; softmax has no use for a bias."""
    torch.manual_seed(seed)
    model = toy(towers, tokenizer, length)
    softmax = loss == "softmax"
    model.scale = nn.Parameter(torch.tensor(log(1 / 0.07) if softmax else log(10.0)))
    model.bias = nn.Parameter(torch.tensor(-10.0), requires_grad=not softmax)
    return model


def softmax_loss(model: Clip | Siglip, batch: tuple[Tensor, Tensor]) -> Tensor:
    """CLIP's."""
    with torch.no_grad():
        model.scale.clamp_(max=log(100))
    images = model.encode_image(augment(batch[0]))
    return contrastive_loss(images, model.encode_text(batch[1]), model.scale)


def pairwise_loss(model: Clip | Siglip, batch: tuple[Tensor, Tensor]) -> Tensor:
    """SigLIP's."""
    images = model.encode_image(augment(batch[0]))
    return sigmoid_loss(images, model.encode_text(batch[1]), model.scale, model.bias)


LOSSES = {"softmax": softmax_loss, "sigmoid": pairwise_loss}


def recall(cosine: Tensor, true: Tensor) -> float:
    """Share of rows whose highest cosine is one of the true pairs: both (N, N)."""
    return true.gather(1, cosine.argmax(1, keepdim=True)).float().mean().item()


@torch.no_grad()
def measured(
    model: Clip | Siglip,
    held_out: Sequence[Scene],
    true: Tensor,
    encode: Callable[[list[str]], Tensor],
) -> dict[str, float]:
    """Shares by column; true: which caption is true of which scene, (N, N)."""
    images = model.encode_image(pixels([scene.image for scene in held_out]))
    cosine = images @ model.encode_text(encode([scene.caption for scene in held_out])).T
    shares = {"image to text": recall(cosine, true), "text to image": recall(cosine.T, true.T)}
    shares["R@1"] = sum(shares.values()) / 2
    pairs = [sentence_pairs(scene).get("colours swapped") for scene in held_out]
    asked = [(i, pair) for i, pair in enumerate(pairs) if pair]
    image = images[[i for i, _ in asked]]
    sides = zip(*(pair for _, pair in asked), strict=True)
    right, wrong = ((image * model.encode_text(encode([*side]))).sum(1) for side in sides)
    return shares | {"colours swapped": (right > wrong).float().mean().item()}


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, seed=0)
    held_out = scenes.sample(settings.test_scenes, seed=5, split="composition")
    true = truth_table(held_out, [scene.caption for scene in held_out])
    texts = [scene.caption for scene in train]
    tokenizer = BPETokenizer.train(texts, vocab_size=400, special_tokens=(END, PAD))
    ids, images = sentences(texts, tokenizer), pixels([scene.image for scene in train])

    def measure(row: str, seed: int) -> dict[str, float]:
        towers, loss, batch = ROWS[row]
        model = made(towers, loss, tokenizer, ids.shape[1], seed)
        stream = minibatches(images, ids, batch_size=batch, seed=seed)
        steps = max(1, settings.steps * 32 // batch)
        fit(model, stream, LOSSES[loss], steps, seed=seed, **RATES[towers], weight_decay=0.1)
        encode = lambda texts: sentences(texts, tokenizer, ids.shape[1])
        return percent(measured(model, held_out, true, encode))

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="In retrieval, what matters more: the towers, the loss or the batch?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=420, train_scenes=8000, test_scenes=250),
    prepare=prepare,
    notes="The steps are those of the rows with 32 pairs a step; the others see as many pairs, "
    "13,440.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
