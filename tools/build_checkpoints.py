"""Train the small frozen models of data/checkpoints again: python tools/build_checkpoints.py [vqvae] [blip]

vqvae: images of 64 x 64 pixels <-> 8 x 8 codes (minivlm/vqvae.py); two minutes on one core.
blip: retrieval, matching and captions of scenes (minivlm/train_blip.py); BLIP_MINUTES minutes.

Another CPU gives other weights, because sums differ in the last digit and training makes much of it. What must hold is
the quality that is printed; a test asks for it.
"""

import sys

import torch

from minivlm import scenes, vqvae
from minivlm.captioner import pixels
from minivlm.train_blip import ToyBlip, judgements, retrieval, told_truly

FOLDER = scenes.DATA.parent / "checkpoints"
SPLITS = ("val", "test", "composition")
SCENES, STEPS = 16_000, 8000
BLIP_SCENES, BLIP_STEPS, BLIP_MORE = 8000, 1000, 700


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


def build_blip() -> None:
    """Ordinary batches first; then every second one is of captions that name the same objects, for ITM."""
    train = scenes.sample(BLIP_SCENES, seed=0)
    images, captions = pixels([scene.image for scene in train]), [scene.caption for scene in train]
    toy = ToyBlip.new(captions)
    toy.train(images, captions, BLIP_STEPS)
    toy.train(images, captions, BLIP_MORE, alike=True, seed=1)
    toy.model.half()  # half the size on disk
    toy.save(FOLDER / "blip")
    toy = ToyBlip.load(FOLDER / "blip")
    for split in SPLITS:
        found = scenes.load(split)
        asked = pixels([scene.image for scene in found])
        measured = {"true captions": told_truly(toy, found, asked)} | retrieval(toy, found, asked)
        measured |= {f"ITM, {kind}": value for kind, value in judgements(toy, found, asked).items()}
        print(f"{split}: " + ", ".join(f"{name} {value:.1%}" for name, value in measured.items()))


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
