"""What queries and stage 1 bring to BLIP-2, on scenes.

The image encoder and the language model of data/checkpoints stay frozen. Every row sees the same
scenes; only the named thing differs. Rows without stage 1 have as many steps in all. Measured on
scenes of the composition stream with seed 5, not on the files in data/scenes.
One to two minutes a row on one core.
"""

from pathlib import Path

from minivlm import scenes
from minivlm.blip2 import second_stage
from minivlm.bpe import BPETokenizer
from minivlm.scenes import instructions
from minivlm.scenes.pixels import pixels
from minivlm.toys.assistant import Assistant, first_stage
from minivlm.toys.common import BERT_MARKS
from runner import Experiment, Measure, Settings, main

ROWS = {  # name -> queries, stage 1 first
    "1 query": (1, True),
    "4 queries": (4, True),
    "8 queries": (8, True),
    "16 queries": (16, True),
    "1 query, no stage 1": (1, False),
    "4 queries, no stage 1": (4, False),
    "8 queries, no stage 1": (8, False),
    "16 queries, no stage 1": (16, False),
}
COLUMNS = {
    "true captions": "% of the language model's greedy captions that are true",
    "last loss": "the language model's, in stage 2, mean of the last 20 steps (nats a token)",
    "trained": "number of parameters trained in stage 2",
}


def prepare(settings: Settings) -> Measure:
    train = scenes.sample(settings.train_scenes, seed=0)
    held_out = scenes.sample(settings.test_scenes, seed=5, split="composition")
    images, asked = (pixels([scene.image for scene in part]) for part in (train, held_out))
    captions = [scene.caption for scene in train]
    tokenizer = BPETokenizer.train(captions, vocab_size=400, special_tokens=BERT_MARKS)
    told = instructions.illustrated(train, 0, captions=True)
    first, second = settings.steps.values()

    def measure(row: str, seed: int) -> dict[str, float]:
        queries, stage_one = ROWS[row]
        made = Assistant.blip2(queries, seed, tokenizer.vocab_size)
        if stage_one:
            first_stage(made.model, tokenizer, images, captions, first, seed=seed)
        second_stage(made.model)
        size = sum(p.numel() for p in made.model.parameters() if p.requires_grad)
        steps = second if stage_one else first + second
        last = made.train(told, images, steps, seed=seed)["loss"][-20:]
        true = sum(map(scenes.is_true, made.describe(asked), held_out))
        shares = {"true captions": 100 * true / len(held_out), "last loss": sum(last) / len(last)}
        return shares | {"trained": size}

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What do the number of queries and stage 1 bring to BLIP-2?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings({"stage 1": 150, "stage 2": 250}, train_scenes=16_000, test_scenes=250),
    prepare=prepare,
)

if __name__ == "__main__":
    main(EXPERIMENT)
