"""Train the small frozen models of data/checkpoints again: python tools/build_checkpoints.py (two minutes on one core)

vqvae: images of 64 x 64 pixels <-> 8 x 8 codes (minivlm/vqvae.py). Another CPU gives other weights, because sums differ
in the last digit and training makes much of it. What must hold is the quality that is printed; a test asks for it.
"""

from minivlm import scenes, vqvae

FOLDER = scenes.DATA.parent / "checkpoints" / "vqvae"
SCENES, STEPS = 16_000, 8000


def main() -> None:
    images = vqvae.to_unit([scene.image for scene in scenes.sample(SCENES, seed=0)])
    model, _ = vqvae.train_vqvae(images, STEPS)
    model.save(FOLDER)
    for split in ("val", "test", "composition"):
        held_out = vqvae.to_unit([scene.image for scene in scenes.load(split)])
        ids = model.encode_to_ids(held_out)
        used, k = len(ids.unique()), model.config.codes
        quality = vqvae.psnr(held_out, model.decode_ids(ids))
        print(f"{split}: {len(ids)} scenes, PSNR {quality:.2f} dB, {used} of {k} codes in use, ", end="")
        print(f"perplexity {vqvae.perplexity(ids, k):.1f}")


if __name__ == "__main__":
    main()
