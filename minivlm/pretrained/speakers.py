"""Published models and what they say of pictures and strings.

A speaker (LLaVA, BLIP-2 with OPT, BLIP) describes and answers; a scorer (CLIP, SigLIP) says how
well a picture and a text go together. Each is a folder's model with the processor of its family.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minivlm.clip import Clip, Siglip
from minivlm.parts.generation import generate
from minivlm.parts.training import default_device
from minivlm.pretrained.blip import BlipProcessor
from minivlm.pretrained.blip2 import Blip2Processor
from minivlm.pretrained.checkpoints import read_json
from minivlm.pretrained.clip import ClipProcessor, SiglipProcessor
from minivlm.pretrained.llava import LlavaProcessor
from minivlm.pretrained.loading import from_pretrained
from minivlm.pretrained.preprocessing import Images
from minivlm.pretrained.processing import Said, SpeakingProcessor, never_asked

LONGEST = 40  # tokens of an answer, unless the caller says otherwise
SPEAKING: dict[str, type[SpeakingProcessor]] = {  # model_type of config.json
    "llava": LlavaProcessor,
    "blip": BlipProcessor,
    "blip-2": Blip2Processor,
}
SCORING = {"clip": ClipProcessor, "siglip": SiglipProcessor}


class PublishedSpeaker:
    """A folder of one of the families; dtype: of the weights.

    ValueError where its files are broken or do not fit each other.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        self.processor = SPEAKING[read_json(folder / "config.json")["model_type"]](folder)
        self.model = from_pretrained(folder, dtype, default_device())  # takes the longest

    def caption(self, image: Images, **how: Any) -> str:
        """What the image shows. how: as for ``ask``."""
        return self._say(self.processor.caption_inputs(image), **how)

    def ask(self, image: Images, question: str, before: Said = (), **how: Any) -> str:
        """The answer to a question about an image, after what was said ``before``.

        A LLaVA may be shown several. how: max_tokens (40), temperature (0, which is greedy),
        top_p (1), seed (0) of a draw. ValueError for a special token in a text, and from a BLIP,
        which was never trained on questions.
        """
        if isinstance(self.processor, BlipProcessor):
            raise never_asked(self.processor.folder)
        return self._say(self.processor.inputs(image, question, before), **how)

    def inputs(self, image: Images, text: str, before: Said = ()) -> dict[str, Tensor]:
        """What ``model`` takes, and ``model.caption_logits`` of a BLIP, on the model's device."""
        return moved(self.processor.inputs(image, text, before), self.model)

    def _say(self, given: dict[str, Tensor], **how: Any) -> str:
        prompt = self.processor.prompt(self.model, moved(given, self.model))
        new = said_after(self.model, prompt, self.processor.ends(), **how)
        return self.processor.words(new)


class PairProcessor(Protocol):
    """What a scorer needs: images -> pixel_values, texts -> input_ids and what belongs to them."""

    def images(self, images: Images) -> Tensor: ...

    def texts(self, texts: str | Sequence[str]) -> dict[str, Tensor]: ...


class Scorer:
    """A CLIP or a SigLIP that is shown PIL images and told strings, one or several of each."""

    def __init__(self, model: Clip | Siglip, processor: PairProcessor):
        self.model, self.processor = model, processor

    @torch.no_grad()
    def encode_image(self, images: Images) -> Tensor:
        """-> unit vectors (B_images, D)."""
        given = moved({"pixel_values": self.processor.images(images)}, self.model)
        return self.model.encode_image(**given)

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """-> unit vectors (B_texts, D); ValueError for a text that is longer than is read."""
        return self.model.encode_text(**moved(self.processor.texts(texts), self.model))

    @torch.no_grad()
    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        """Unit vectors (B_images, D), (B_texts, D) -> the model's logits (B_images, B_texts)."""
        logits = self.model.scale.exp() * image @ text.T
        return logits + self.model.bias if isinstance(self.model, Siglip) else logits

    def similarity(self, images: Images, texts: str | Sequence[str]) -> Tensor:
        """The model's logits (B_images, B_texts): the cosines times its scale, plus its bias."""
        return self.logits(self.encode_image(images), self.encode_text(texts))

    def probabilities(self, images: Images, texts: str | Sequence[str]) -> Tensor:
        """(B_images, B_texts) in 0..1: of CLIP, which of the texts it is (a row sums to 1); of
        SigLIP, whether each one fits.
        """
        return self.shares(self.similarity(images, texts))

    def shares(self, logits: Tensor) -> Tensor:
        """Logits (B_images, B_texts) -> ``probabilities``; ValueError for a CLIP's of one text."""
        if isinstance(self.model, Siglip):
            return logits.float().sigmoid()
        if logits.shape[1] < 2:
            raise ValueError("a CLIP compares texts with each other: one alone is always right")
        return logits.float().softmax(dim=1)


def published_scorer(folder: Path, dtype: torch.dtype = torch.float32) -> Scorer:
    """The CLIP or SigLIP of a folder; ValueError where its files do not fit each other."""
    processor = SCORING[read_json(folder / "config.json")["model_type"]](folder)
    model = from_pretrained(folder, dtype, default_device())
    assert isinstance(model, Clip | Siglip)
    return Scorer(model, processor)


def moved(given: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The inputs on the device of the model; what is no id, in its precision."""
    weight = next(model.parameters())
    return {
        name: value.to(weight) if value.is_floating_point() else value.to(weight.device)
        for name, value in given.items()
    }


def said_after(
    model: Callable[..., Tensor],
    prompt: dict[str, Any],
    ends: Any,
    *,
    max_tokens: int = LONGEST,
    temperature: float = 0,
    top_p: float = 1,
    seed: int = 0,
) -> list[int]:
    """The new ids after one prompt, as ``generate`` takes it; ends: one id, several or none."""
    generator = torch.Generator(prompt["input_ids"].device).manual_seed(seed)
    new = generate(
        model,
        max_new_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        eos_id=ends,
        generator=generator,
        **prompt,
    )
    return new[0].tolist()
