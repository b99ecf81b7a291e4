"""What each choice in LLaVA's training brings, on scenes.

Every row starts from the frozen image encoder and language model of data/checkpoints and sees the
same scenes in the same batches; only the named thing differs. Measured on scenes of the composition
stream with seed 5, not on the files in data/scenes: one conversation, one description and one
reasoning a scene, and its places, in several turns, each asked after the model's own answers. Two
minutes a row on one core. The last two rows need a language model that never read a scene in words:
it is trained first, in some minutes, which count in the seconds of the row.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from minivlm import scenes
from minivlm.llava import train_llava_stage
from minivlm.parts.layers import init_weights
from minivlm.scenes import instructions
from minivlm.scenes.pixels import pixels
from minivlm.toys.assistant import Assistant, measure
from minivlm.toys.decoder import build_decoder
from runner import Experiment, Measure, Settings, main, percent

CAPTIONS, INSTRUCTIONS = "captions", "instructions"  # the data of the two stages
FIRST, SECOND = (CAPTIONS, 1), (INSTRUCTIONS, 2)  # data, stage of train_llava_stage
ROWS = {  # name -> stages, and what differs
    "both stages": ((FIRST, SECOND), ""),
    "stage 1 only": ((FIRST,), ""),
    "stage 2 only": ((SECOND,), ""),
    "both, language model always frozen": ((FIRST, (INSTRUCTIONS, 1)), ""),
    "both, linear projector": ((FIRST, SECOND), "linear"),
    "both, features of the last layer": ((FIRST, SECOND), "last"),
    "both, image tokens see each other": ((FIRST, SECOND), "two-way"),
    "stage 1 only, language model without contexts": ((FIRST,), "bare"),
    "both, language model without contexts": ((FIRST, SECOND), "bare"),
}
NAMES = {  # kind of question -> column
    "caption": "captions",
    "colour": "colours",
    "shape": "shapes",
    "size": "sizes",
    "count": "counts",
    "relation": "relations",
    "column": "columns",
    "row": "rows",
    "yes/no": "yes/no",
    "same": "same",
    "which": "which",
    "later turns": "later turns",
    "all": "all",
}
ANEW = "all, stated anew"
COLUMNS = {column: f"% of right answers, {column}" for column in NAMES.values()}
COLUMNS |= {ANEW: "% of right answers to all questions, in phrasings that no training shows"}


def start(what: str, seed: int, bare: Path | None) -> Assistant:
    """An untrained projector between the two models, changed as the row says."""
    made = Assistant.llava(seed, language_model=bare) if bare else Assistant.llava(seed)
    model = made.model
    if what == "linear":
        linear = nn.Linear(model.config.vision.width, model.config.text.width)
        model.projector = linear.apply(init_weights)
    elif what == "last":
        model.config = replace(model.config, feature_layers=(-1,))
    elif what == "two-way":
        model.config = replace(model.config, two_way=True)
    return made


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, seed=0)
    held_out = scenes.sample(settings.test_scenes, seed=5, split="composition")
    images, asked = (pixels([scene.image for scene in part]) for part in (train, held_out))
    data = {
        CAPTIONS: (instructions.illustrated(train, 0, captions=True), settings.steps["stage 1"]),
        INSTRUCTIONS: (instructions.illustrated(train, 0), settings.steps["stage 2"]),
    }
    temporary = TemporaryDirectory()

    @cache
    def bare() -> Path:
        """The folder of a language model that never read a scene in words."""
        build_decoder(context=False, folder=Path(temporary.name))
        return Path(temporary.name)

    def row_of(row: str, seed: int) -> dict[str, float]:
        stages, what = ROWS[row]
        made = start(what, seed, bare() if what == "bare" else None)
        for kind, trained in stages:
            train_llava_stage(made.model, trained)
            conversations, steps = data[kind]
            made.train(conversations, images, steps, seed=seed)
        shares = measure(made, held_out, asked)
        figures = {column: shares[kind] for kind, column in NAMES.items() if kind in shares}
        return percent(figures | {ANEW: measure(made, held_out, asked, held_out=True)["all"]})

    return row_of


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What does each choice in LLaVA's training bring?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings({"stage 1": 100, "stage 2": 150}, train_scenes=8000, test_scenes=200),
    prepare=prepare,
    notes='"Later turns" are those after the first answer of a conversation.',
)

if __name__ == "__main__":
    main(EXPERIMENT)
