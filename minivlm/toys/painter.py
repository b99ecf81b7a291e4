"""Notebook 04's decoder that draws one object from its caption and describes what is drawn.

Scenes of 2 x 2 cells, 32 x 32 pixels: 16 codes of the VQ-VAE, which are tokens beside the words.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minivlm.bpe import BPETokenizer
from minivlm.multimodal import CONTROL, IGNORE, ImageVocabulary, answer_loss
from minivlm.parts.decoder import Decoder, DecoderConfig
from minivlm.parts.generation import generate
from minivlm.parts.training import fit, minibatches
from minivlm.scenes import Scene, is_true
from minivlm.scenes.grammar import Object, describe_en
from minivlm.scenes.reading import read_objects
from minivlm.scenes.sampling import SEEN, sample
from minivlm.toys.common import shrink_weights
from minivlm.vqvae import VQVAE, to_unit

SMALL = {"rows": 2, "columns": 2}  # cells of 16 pixels
GRID, EIGHT = (4, 4), 8
RATES = {"muon_lr": 0.02, "adamw_lr": 4e-3, "weight_decay": 0.1}
Row = tuple[list[int], list[int]]  # the ids of a row, and its labels
Misread = Callable[[Tensor, Tensor], Tensor]  # ids (B, T), row numbers (B,) -> other ids (B, T)


# Scenes of one object, and what is said of them


def singles(n: int, seed: int, split: str = "train") -> list[Scene]:
    """The first n scenes of a stream that show a single object."""
    found: list[Scene] = []
    asked = 6 * n
    while len(found) < n:
        found = [s for s in sample(asked, seed, split, **SMALL) if len(s.objects) == 1]
        asked *= 2
    return found[:n]


def cell_of(thing: Object) -> tuple[int, int]:
    """Row and column of an object, from 1."""
    x, y = thing.center
    return int(y // 16) + 1, int(x // 16) + 1


def placed(scene: Scene) -> str:
    """A caption of a single object that says where it is."""
    thing = scene.objects[0]
    return "{} in row {} column {}".format(describe_en(thing), *cell_of(thing))


def fits(text: str, scene: Scene) -> bool:
    """Is the caption true of the scene, and the object in the cell that it names?"""
    said, _, place = text.partition(" in ")
    if not is_true(said, scene):
        return False
    return place == "row {} column {}".format(*cell_of(scene.objects[0]))


def share(texts: Sequence[str], found: Sequence[Scene]) -> float:
    """How many captions fit the scene of the same number."""
    return sum(map(fits, texts, found)) / len(texts)


def read_back(images: Tensor) -> list[Scene]:
    """Images (B, 3, H, W) in 0..1 as scenes: what a strict reader sees in them."""
    pixels = (images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    pictures = [Image.fromarray(one) for one in pixels]
    return [Scene(read_objects(p) or (), "", "", p) for p in pictures]


def faults(texts: Sequence[str], drawn: Sequence[Scene]) -> Counter:
    """What is wrong with the false ones among the drawings: how many of each kind."""
    found: Counter = Counter()
    for text, scene in zip(texts, drawn, strict=True):
        if fits(text, scene):
            continue
        if len(scene.objects) != 1:
            found["unreadable"] += 1
            continue
        thing, words = scene.objects[0], text.split()
        known = (thing.color, thing.shape) in SEEN
        if thing.color in words and thing.shape not in words and known:
            found["its colour in a shape of training"] += 1
        elif thing.shape in words and thing.color not in words and known:
            found["its shape in a colour of training"] += 1
        else:
            found["another fault"] += 1
    return found


# Rows of tokens


def tokenizer_of(scenes: Sequence[Scene], size: int = 420) -> BPETokenizer:
    """For captions of single objects."""
    texts = [placed(scene) for scene in scenes if len(scene.objects) == 1]
    return BPETokenizer.train(texts, size, special_tokens=CONTROL)


def stacked(rows: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths -> ids and labels (B, T), padded on the right."""
    longest = max(len(ids) for ids, _ in rows)
    ids = [ids + [pad] * (longest - len(ids)) for ids, _ in rows]
    labels = [labels + [IGNORE] * (longest - len(labels)) for _, labels in rows]
    return torch.tensor(ids), torch.tensor(labels)


def same_place(scenes: Sequence[Scene], ids: Tensor) -> Misread:
    """What a row reads wrongly: the ids of another one, whose object fills the same box.

    ids: (2 * scenes, T), of each scene the row that draws and the row that describes.
    """
    groups: dict[tuple, list[int]] = defaultdict(list)
    for number, scene in enumerate(scenes):
        for kind in (0, 1):
            groups[scene.objects[0].box, kind].append(2 * number + kind)
    order = torch.tensor([number for rows in groups.values() for number in rows])
    start, size = torch.zeros(2, len(ids), dtype=torch.long)
    begun = 0
    for rows in groups.values():
        start[rows], size[rows] = begun, len(rows)
        begun += len(rows)

    def other(_: Tensor, numbers: Tensor) -> Tensor:
        chosen = start[numbers] + (torch.rand(len(numbers)) * size[numbers]).long()
        return ids[order[chosen]]

    return other


def any_token(size: int) -> Misread:
    """What a row reads wrongly: any of ``size`` ids."""
    return lambda ids, numbers: torch.randint(size, ids.shape)


class Guided:
    """A model of which a batch is asked twice: with the caption, and without it.

    Classifier-free guidance (Ho and Salimans 2022, eq. 6; on tokens Gafni et al. 2022, "Make-A-
    Scene", section 3.4): the logits without the caption, and ``scale`` times what it adds to them.
    """

    def __init__(self, model: Decoder, scale: float):
        self.model, self.scale = model, scale

    def next_logits(self, ids: Tensor, **inputs: object) -> Tensor:
        """(2 B, T), the half with captions first -> (2 B, V), two equal halves."""
        told, untold = self.model.next_logits(ids, **inputs).chunk(2)
        return (untold + self.scale * (told - untold)).repeat(2, 1)


@dataclass
class Painter:
    """A decoder over words and codes, with what makes tokens of captions and of images."""

    model: Decoder
    tokenizer: BPETokenizer
    vqvae: VQVAE
    vocabulary: ImageVocabulary

    @classmethod
    def new(cls, tokenizer: BPETokenizer, vqvae: VQVAE, seed: int = 0) -> "Painter":
        """Untrained: two layers; the table's rows of codes are like where the codes are alike."""
        first, last = (tokenizer.special_tokens[f"<|image_{end}|>"] for end in ("start", "end"))
        size, codes = tokenizer.vocab_size, vqvae.config.codes
        vocabulary = ImageVocabulary(size, codes, GRID, first, last)
        torch.manual_seed(seed)
        shape = {"width": 96, "layers": 2, "heads": 6, "kv_heads": 6, "hidden": 192}
        model = Decoder(DecoderConfig(vocabulary.size, **shape, theta=100))
        shrink_weights(model)
        start_from_codebook(model, vqvae.quantizer.codebook)
        return cls(model, tokenizer, vqvae, vocabulary)

    def mark(self, name: str) -> int:
        """The id of a control token, by its name without bars."""
        return self.tokenizer.special_tokens[f"<|{name}|>"]

    def codes(self, scenes: Sequence[Scene]) -> Tensor:
        """(B, 4, 4)."""
        return self.vqvae.encode_to_ids(to_unit([scene.image for scene in scenes]))

    def text_first(self, text: str, image: list[int]) -> Row:
        """A row that teaches to draw; image: its ids, between marks."""
        words = self.tokenizer.encode(text)
        labels = [IGNORE] * (len(words) + 2) + image[1:]
        return [self.mark("im_start"), *words, *image], labels

    def image_first(self, text: str, image: list[int]) -> Row:
        """A row that teaches to describe."""
        said = [*self.tokenizer.encode(text), self.mark("im_end")]
        return [self.mark("im_start"), *image, *said], [IGNORE] * (len(image) + 1) + said

    def rows(self, texts: Sequence[str], codes: Tensor) -> tuple[Tensor, Tensor]:
        """Captions and codes (B, 4, 4) -> ids and labels (2 B, T), drawing and describing."""
        rows = []
        for text, image in zip(texts, self.vocabulary.to_ids(codes).tolist(), strict=True):
            rows += [self.text_first(text, image), self.image_first(text, image)]
        return stacked(rows, self.mark("pad"))

    def loss(self, misread: float, other: Misread | None, untold: float) -> Callable:
        """Of both kinds of rows.

        misread: share of the learned tokens that are read as ``other`` says, never where they are
        the target; untold: share of rows whose given half is padding.
        """

        def sequence_loss(model: Decoder, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            ids, labels, numbers = batch
            read, learned = ids, labels != IGNORE
            if other:
                wrong = (torch.rand(ids.shape) < misread) & learned
                read = torch.where(wrong, other(ids, numbers), ids)
            if untold:
                begun = (learned | (ids == self.vocabulary.start)).cumsum(dim=1) > 0
                hidden = ~begun & (torch.rand(len(ids), 1) < untold)
                hidden[:, 0] = False  # <|im_start|>
                read = read.masked_fill(hidden, self.mark("pad"))
            return answer_loss(model(read), labels)

        return sequence_loss

    def train(  # noqa: PLR0913  (one argument for each thing that is compared)
        self,
        scenes: Sequence[Scene],
        steps: int,
        *,
        misread: float = 0.4,
        anything: bool = False,
        untold: float = 0.0,
        seed: int = 0,
    ) -> dict[str, list[float]]:
        """Fit to scenes of one object each; returns the history of ``fit``.

        misread: share of learned tokens that are read wrongly, as those of another object in the
        same place or, with ``anything``, as any token.
        """
        ids, labels = self.rows([placed(scene) for scene in scenes], self.codes(scenes))
        other = any_token(self.vocabulary.size) if anything else same_place(scenes, ids)
        loss = self.loss(misread, other if misread else None, untold)
        numbers = torch.arange(len(ids))
        batches = minibatches(ids, labels, numbers, batch_size=min(32, len(ids)), seed=seed)
        return fit(self.model, batches, loss, steps, seed=seed, **RATES)

    def draw(
        self,
        texts: Sequence[str],
        temperature: float = 0,
        generator: torch.Generator | None = None,
        guidance: float = 1,
    ) -> Tensor:
        """Captions -> codes (B, 4, 4); with ``guidance`` greedy alone."""
        begin, start, pad = (self.mark(name) for name in ("im_start", "image_start", "pad"))
        prompts = [[begin, *self.tokenizer.encode(text), start] for text in texts]
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
        mask = (ids != pad).long()
        model: Decoder | Guided = self.model
        if guidance != 1:
            untold = ids.masked_fill((ids != begin) & (ids != start), pad)
            ids, mask, model = torch.cat([ids, untold]), mask.repeat(2, 1), Guided(model, guidance)
        how = {"temperature": temperature, "generator": generator}
        new = generate(model, ids, 16, attention_mask=mask, **how)[: len(texts)]
        return self.vocabulary.to_codes(new.clamp(min=self.vocabulary.text_size))

    def describe(self, codes: Tensor) -> list[str]:
        """Codes (B, 4, 4) -> captions, greedy."""
        prompts = F.pad(self.vocabulary.to_ids(codes), (1, 0), value=self.mark("im_start"))
        end = self.mark("im_end")
        said = generate(self.model, prompts, 20, eos_id=end).tolist()
        size = self.vocabulary.text_size
        return [self.tokenizer.decode([i for i in row if i < size and i != end]) for row in said]

    def paint(self, texts: Sequence[str], **how: float) -> list[Scene]:
        """Captions -> the scenes that are drawn, as they are read; how: see ``draw``."""
        return read_back(self.vqvae.decode_ids(self.draw(texts, **how)))

    @torch.no_grad()
    def log_likelihood(self, rows: Sequence[Row]) -> Tensor:
        """The log-probability of the learned tokens of each row, (B,)."""
        ids, labels = stacked(rows, self.mark("pad"))
        logits = self.model(ids)[:, :-1].transpose(1, 2)
        losses = F.cross_entropy(logits, labels[:, 1:], ignore_index=IGNORE, reduction="none")
        return -losses.sum(dim=1)

    def scores(self, texts: Sequence[str], codes: Tensor) -> dict[str, Tensor]:
        """Three opinions of drawings (B, 4, 4) of their captions, each (B,)."""
        images = self.vocabulary.to_ids(codes).tolist()
        both = list(zip(texts, images, strict=True))
        picture = self.log_likelihood([self.text_first(*one) for one in both])
        caption = self.log_likelihood([self.image_first(*one) for one in both])
        return {"p(picture)": picture, "p(caption)": caption, "both": picture + caption}

    def keep_one(self, texts: Sequence[str], seed: int = 0) -> dict[str, float]:
        """Eight sampled drawings of each caption: the share that is true, by who chooses one."""
        many = [text for text in texts for _ in range(EIGHT)]
        codes = self.draw(many, 1, torch.Generator().manual_seed(seed))
        seen = read_back(self.vqvae.decode_ids(codes))
        right = torch.tensor(list(map(fits, many, seen))).view(-1, EIGHT).float()
        shares = {"a sample": right.mean().item()}
        for name, score in self.scores(many, codes).items():
            best = score.view(-1, EIGHT).argmax(dim=1, keepdim=True)
            shares[f"kept by {name}"] = right.gather(1, best).mean().item()
        return shares | {"any of the 8": right.amax(dim=1).mean().item()}


@torch.no_grad()
def start_from_codebook(model: Decoder, codebook: Tensor) -> None:
    """Put the codes' rows of both tables on a random projection of the codebook (K, D).

    Two codes of one look then begin as two tokens of one meaning, as the ids do not say.
    """
    centred = (codebook - codebook.mean(dim=0)) / codebook.std()
    generator = torch.Generator().manual_seed(0)
    shape = codebook.shape[1], model.config.width
    vectors = centred @ torch.randn(shape, generator=generator) / shape[0] ** 0.5
    for table in (model.embedding, model.head):
        assert isinstance(table, nn.Embedding | nn.Linear)
        words = table.weight[: -len(codebook)]
        table.weight[-len(codebook) :] = words.std() * vectors
