"""How a VQ-VAE's codebook is kept alive, and what its size brings.

The same model, scenes and steps; only the named thing differs. Rows with another number of codes
have moving averages and restarts, as "EMA, restarts" has with 128. Measured on scenes of the test
stream with seed 5. About ten seconds a row on one core.
"""

from pathlib import Path
from typing import Any

from minivlm import scenes, vqvae
from minivlm.toys.vqvae import train_vqvae
from minivlm.vqvae import perplexity, psnr
from runner import Experiment, Measure, Settings, main

ROWS: dict[str, dict[str, Any]] = {
    "gradient": {"ema": False, "restart": 0.0},
    "gradient, k-means start": {"ema": False, "restart": 0.0, "kmeans_start": True},
    "EMA": {"restart": 0.0},
    "EMA, restarts": {},
    "8 codes": {"codes": 8},
    "512 codes": {"codes": 512},
}
COLUMNS = {
    "PSNR": "of the images drawn from codes, in dB",
    "in use": "number of codes that occur in the held-out scenes",
    "perplexity": "of the codes of the held-out scenes",
}


def prepare(settings: Settings) -> Measure:
    train = vqvae.to_unit([s.image for s in scenes.sample(settings.train_scenes, seed=0)])
    held_out = scenes.sample(settings.test_scenes, seed=5, split="test")
    asked = vqvae.to_unit([scene.image for scene in held_out])

    def measure(row: str, seed: int) -> dict[str, float]:
        model, _ = train_vqvae(train, settings.steps, seed=seed, **ROWS[row])
        ids = model.encode_to_ids(asked)
        return {
            "PSNR": psnr(asked, model.decode_ids(ids)),
            "in use": len(ids.unique()),
            "perplexity": perplexity(ids, model.config.codes),
        }

    return measure


EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="What keeps the codes of a VQ-VAE in use, and what does the size of a codebook bring?",
    rows=[*ROWS],
    columns=COLUMNS,
    settings=Settings(steps=250, train_scenes=8000, test_scenes=250),
    prepare=prepare,
    notes="16 scenes a step.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
