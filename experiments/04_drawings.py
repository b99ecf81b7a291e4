"""Why a decoder that draws from captions fails on unseen pairs, and what helps.

The same start and the same scenes; only what a row reads in training differs, and in the last row
what is decoded. Measured on streams with seed 5. About a minute a row.
"""

from pathlib import Path

from minivlm.toys.painter import Painter, faults, placed, read_back, share, singles, tokenizer_of
from minivlm.toys.vqvae import load_vqvae
from runner import Experiment, Measure, Settings, main, percent

ROWS: dict[str, dict] = {
    "true tokens so far": {"misread": 0.0},
    "30 % any token": {"misread": 0.3, "anything": True},
    "40 % of another object": {"misread": 0.4},
    "40 % of another object, guided": {"misread": 0.4, "untold": 0.1},
}
GUIDANCE = {"40 % of another object, guided": 1.5}
SPLITS = ("test", "composition")
COLUMNS = {
    "drawn, test": "% of captions of test scenes whose greedy drawing is true",
    "drawn, composition": "% of captions of unseen pairs whose greedy drawing is true",
    "its colour": "% of these captions drawn in their colour and with another shape, a seen pair",
    "its shape": "% of these captions drawn with their shape and in another colour, a seen pair",
    "unreadable": "% of these captions whose drawing cannot be read",
    "described, test": "% of true descriptions of test scenes",
    "described, composition": "% of true descriptions of unseen pairs",
    "codes, composition": "% of unseen pairs that are true when drawn from their own codes",
}
KINDS = {
    "its colour": "its colour in a shape of training",
    "its shape": "its shape in a colour of training",
    "unreadable": "unreadable",
}


def prepare(settings: Settings) -> Measure:
    train, vqvae = singles(settings.train_scenes, 0), load_vqvae()
    tokenizer = tokenizer_of(train)
    tests = {split: singles(settings.test_scenes, 5, split) for split in SPLITS}
    asked = {split: [placed(scene) for scene in held_out] for split, held_out in tests.items()}

    def measure(row: str, seed: int) -> dict[str, float]:
        made, shares = Painter.new(tokenizer, vqvae, seed), {}
        made.train(train, settings.steps, seed=seed, **ROWS[row])
        for split, held_out in tests.items():
            codes, texts = made.codes(held_out), asked[split]
            drawn = made.paint(texts, guidance=GUIDANCE.get(row, 1))
            shares[f"drawn, {split}"] = share(texts, drawn)
            shares[f"described, {split}"] = share(made.describe(codes), held_out)
        false = faults(texts, drawn)
        shares |= {name: false[kind] / len(texts) for name, kind in KINDS.items()}
        shares["codes, composition"] = share(texts, read_back(vqvae.decode_ids(codes)))
        return percent(shares)

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="Which reading in training lets a decoder draw colour-shape pairs it never saw?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=1000, train_scenes=2500, test_scenes=250),
    prepare=prepare,
    notes="Scenes of one object in 2 x 2 cells; batches of 32 rows, drawing and describing.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
