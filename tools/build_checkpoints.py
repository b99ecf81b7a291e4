"""Train the small frozen models of data/checkpoints again: python tools/build_checkpoints.py [vqvae] [blip]

vqvae: images of 64 x 64 pixels <-> 8 x 8 codes (minivlm/vqvae.py); two to four minutes on one core.
blip: retrieval, matching and captions of scenes (minivlm/train_blip.py); some 16 minutes.

Another CPU gives other weights, because sums differ in the last digit and training makes much of it. What must hold is
the quality that is printed; a test asks for it.
"""

import sys

import torch

from minivlm import scenes, vqvae
from minivlm.blip import LOSSES
from minivlm.captioner import pixels
from minivlm.train_blip import ToyBlip, judgements, retrieval, told_truly

FOLDER = scenes.DATA.parent / "checkpoints"
SPLITS = ("val", "test", "composition")
SCENES, STEPS = 16_000, 8000
BLIP_SCENES = 8000
BLIP_PHASES = (  # losses, steps, batch, captions that contradict each other side by side, Muon's learning rate, seed
    (LOSSES, 1000, 64, False, 0.015, 0),
    (("lm",), 700, 64, False, 0.015, 2),
    (LOSSES, 500, 64, True, 0.015, 10),
    (LOSSES, 500, 128, True, 0.02, 10),
    (LOSSES, 650, 128, True, 0.015, 10),
)


def build_vqvae() -> None:
    images = vqvae.to_unit([scene.image for scene in scenes.sample(SCENES, seed=0)])
    model, _ = vqvae.train_vqvae(images, STEPS)
    model.save(FOLDER / "vqvae")
    for split in SPLITS:
        held_out = vqvae.to_unit([scene.image for scene in scenes.load(split)])
        ids = model.encode_to_ids(held_out)
        used, k = len(ids.unique()), model.config.codes
        quality = vqvae.psnr(held_out, model.decode_ids(ids))
        print(f"{split}: {len(ids)} scenes, PSNR {quality:.2f} dB, {used} of {k} codes in use, ", end="")
        print(f"perplexity {vqvae.perplexity(ids, k):.1f}")


def report(toy: ToyBlip, name: str, found: list[scenes.Scene]) -> None:
    asked = pixels([scene.image for scene in found])
    measured = {"true captions": told_truly(toy, found, asked)} | retrieval(toy, found, asked)
    measured |= {f"ITM, {kind}": value for kind, value in judgements(toy, found, asked).items()}
    print(f"{name}: " + ", ".join(f"{what} {value:.1%}" for what, value in measured.items()), flush=True)


def build_blip() -> None:
    """All three losses; LM alone, which learns the relation sooner when alone; then all three again, for ITM's sake."""
    train = scenes.sample(BLIP_SCENES, seed=0)
    images, captions = pixels([scene.image for scene in train]), [scene.caption for scene in train]
    toy, held_out = ToyBlip.new(captions), scenes.sample(250, seed=5, split="composition")
    for losses, steps, batch, alike, rate, seed in BLIP_PHASES:
        rates = {"muon_lr": rate, "adamw_lr": rate * 2 / 15}
        toy.train(images, captions, steps, losses=losses, batch=batch, alike=alike, seed=seed, **rates)
        report(toy, f"{'+'.join(losses)}, {steps} steps of {batch}; other composition scenes", held_out)
    toy.model.half()  # half the size on disk
    toy.save(FOLDER / "blip")
    toy = ToyBlip.load(FOLDER / "blip")
    for split in SPLITS:
        report(toy, split, scenes.load(split))


BUILD = {"vqvae": build_vqvae, "blip": build_blip}


def main() -> None:
    names = sys.argv[1:] or [*BUILD]
    if unknown := {*names} - {*BUILD}:
        sys.exit(f"unknown model {min(unknown)!r}; known: {', '.join(BUILD)}")
    torch.set_num_threads(1)
    for name in names:
        BUILD[name]()


if __name__ == "__main__":
    main()
