"""Three ways to bring image and question together, with and without questions about places.

The same number of steps in every row. "Places first": what is where, then where something is, then
all kinds of questions; else colours and relations from the first step on. Measured on streams with
seed 5. A minute a row.
"""

from pathlib import Path

from minivlm import scenes
from minivlm.toys.fusion import (
    BUILDS,
    KINDS,
    ask_all,
    exam_tensors,
    marks_of,
    new_fusion,
    question_tokenizer,
    train_fusion,
)
from minivlm.toys.painter import SMALL
from runner import Experiment, Measure, Settings, main, percent

PLACES, WITHOUT = "places first", "colours and relations"
STAGES = {
    "what is where": ("colour", "content"),
    "where it is": ("content", "column", "row"),
    "all": KINDS,
}
BOTH = ("colour", "relation")
SPLITS = ("test", "composition")


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, 0, **SMALL)
    tokenizer = question_tokenizer(train[:3000])
    lessons = {
        kinds: exam_tensors(ask_all(train, 0, kinds), tokenizer)
        for kinds in (*STAGES.values(), BOTH)
    }
    exams = {}
    for split in SPLITS:
        asked = ask_all(scenes.sample(settings.test_scenes, 5, split, **SMALL), 1, KINDS)
        exams[split] = asked, exam_tensors(asked, tokenizer)

    def measure(row: str, seed: int) -> dict[str, float]:
        name, diet = row.split(", ")
        model, shares = new_fusion(name, tokenizer.vocab_size, seed), {}
        for stage, steps in settings.steps.items():
            kinds = STAGES[stage] if diet == PLACES else BOTH
            train_fusion(model, lessons[kinds], steps, seed)
        for split, exam in exams.items():
            marks = marks_of(model, *exam)
            shares |= {f"{kind}, {split}": marks.get(kind, 0.0) for kind in KINDS}
        return percent(shares)

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="Which fusions answer which questions, and do places first make relations learnable?",
    rows=[f"{name}, {diet}" for diet in (WITHOUT, PLACES) for name in BUILDS],
    columns={f"{kind}, {split}": "% of right answers" for split in SPLITS for kind in KINDS},
    settings=Settings(
        steps={"what is where": 200, "where it is": 300, "all": 400},
        train_scenes=12_000,
        test_scenes=1500,
    ),
    prepare=prepare,
    notes="Scenes of 2 x 2 cells; 128 questions a step, about two objects of different shapes.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
