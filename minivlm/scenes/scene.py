"""A scene: its objects, an image of them, and what can be said and asked about them."""

from dataclasses import dataclass, field

from PIL import Image

from minivlm.scenes import grammar, questions
from minivlm.scenes.grammar import Object
from minivlm.scenes.questions import Question


@dataclass(frozen=True)
class Scene:
    """One object, two different objects in a relation, or two to four alike, on a grid of cells."""

    objects: tuple[Object, ...]
    caption: str
    caption_zh: str
    image: Image.Image = field(compare=False, repr=False)
    cell: int = 16  # pixels a side of a grid cell
    # of a video: ``image`` is the first of them
    frames: tuple[Image.Image, ...] = field(default=(), compare=False, repr=False)

    @property
    def captions(self) -> list[str]:
        """Every English wording that the dataset uses for this scene; each is true."""
        return grammar.captions(self.objects, self.cell)

    @property
    def questions(self) -> list[Question]:
        """Questions about colour, shape, size, count and relation."""
        return questions.questions(self.objects, self.cell)

    @property
    def probes(self) -> list[Question]:
        """Yes/no questions, as many with "yes" as with "no"."""
        return questions.probes(self.objects, self.cell)


def is_true(caption: str, scene: Scene) -> bool:
    """Is the caption a sentence of the grammar (English or Chinese), true, and complete?

    It must account for every object: "a red circle" is false of a scene that also holds a blue
    square.
    """
    return grammar.holds(caption, scene.objects, scene.cell)
