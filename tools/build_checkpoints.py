"""Train the small models of data/checkpoints again: python tools/build_checkpoints.py [NAME ...]

vqvae: images of 64 x 64 pixels <-> 8 x 8 codes. blip: retrieval, matching and captions of scenes.
clip: an image encoder. decoder: a language model of text alone. qformer: BLIP-2's stage 1, needs
clip; blip2: its stage 2, needs qformer too; llava: both stages; both need clip and decoder.
qwen_vl: stages 1 and 2, needs decoder. qwen2_vl: for videos. Each is trained in minivlm/toys/, in
the module of its name; qformer, blip2 and llava in assistant.py. data/README.md says how long each
takes.

Another CPU gives other weights, because sums differ in the last digit and training makes much of
it. What must hold is the quality that is printed; a test asks for it.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import torch

from minivlm import scenes, vqvae
from minivlm.blip2 import second_stage
from minivlm.bpe import BPETokenizer
from minivlm.llava import train_llava_stage
from minivlm.pretrained.clip import publish_clip
from minivlm.qwen2_vl import Qwen2VL
from minivlm.scenes import Scene, instructions, tasks
from minivlm.scenes.hands import redrawn
from minivlm.scenes.pixels import FORMS, pixels
from minivlm.toys.assistant import (
    Assistant,
    first_stage,
    load_stage_one,
    load_stage_two,
    measure,
    own_captions,
    save_projector,
    save_trained_parts,
)
from minivlm.toys.blip import BLIP_STAGES, ToyBlip, judgements, retrieval, told_truly
from minivlm.toys.clip import recall_at_1, train_clip
from minivlm.toys.common import BERT_MARKS, FROZEN, load_toy, rates, save_toy
from minivlm.toys.decoder import LanguageModel, train_decoder
from minivlm.toys.drills import drill
from minivlm.toys.qwen2_vl import VIDEOS, AnySizeCaptioner, mixed, tells_motion
from minivlm.toys.qwen_vl import Pointer
from minivlm.toys.vqvae import save_vqvae, train_vqvae

SPLITS = ("val", "test", "composition")
VQVAE_SCENES, VQVAE_STEPS = 16_000, 8000
VIDEO_STEPS = 250
CLIP_LAYERS, CLIP_STEPS, QFORMER_STEPS, BLIP2_STEPS = 3, 6000, 2000, 3000
FEW_SCENES = 8000
MANY_SCENES = 24_000
LLAVA_STAGES = (  # stage, steps, batch, Muon's learning rate
    (1, 300, 96, 0.02),
    (2, 4000, 96, 0.015),
)
LLAVA_SCENES = 14_000
QWEN_VL_PHASES = (  # stage, tasks, steps, seed of the scenes and of their order
    (1, (tasks.caption,), 200, 0),
    (2, (*tasks.TASKS, tasks.grounding), 1500, 0),
    (2, (*tasks.TASKS, *[tasks.grounding] * 4), 1300, 1),
)


def in_forms(some: Sequence[Scene]) -> dict[str, list[Scene]]:
    """The same scenes in each of the FORMS, and by other hands."""
    stored = {
        name: [replace(scene, image=form(scene.image)) for scene in some]
        for name, form in FORMS.items()
    }
    return stored | {"by other hands": redrawn(some, seed=1)}


def images_of(some: Sequence[Scene]) -> torch.Tensor:
    return pixels([scene.image for scene in some])


def report(what: str, measured: dict[str, float]) -> None:
    """One line of shares."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in measured.items())
    print(f"{what}: {shares}", flush=True)


def build_vqvae() -> None:
    images = vqvae.to_unit([scene.image for scene in scenes.sample(VQVAE_SCENES, seed=0)])
    model, _ = train_vqvae(images, VQVAE_STEPS)
    save_vqvae(model, FROZEN / "vqvae")
    for split in SPLITS:
        held_out = vqvae.to_unit([scene.image for scene in scenes.load(split)])
        ids = model.encode_to_ids(held_out)
        used, k = len(ids.unique()), model.config.codes
        quality = vqvae.psnr(held_out, model.decode_ids(ids))
        print(
            f"{split}: {len(ids)} scenes, PSNR {quality:.2f} dB, {used} of {k} codes in use, ",
            end="",
        )
        print(f"perplexity {vqvae.perplexity(ids, k):.1f}")


def report_blip(toy: ToyBlip, what: str, held_out: Sequence[Scene]) -> None:
    asked = images_of(held_out)
    verdicts = {f"ITM, {kind}": share for kind, share in judgements(toy, held_out, asked).items()}
    ranked = retrieval(toy, held_out, asked)
    report(what, {"true captions": told_truly(toy, held_out, asked)} | ranked | verdicts)


def build_blip() -> None:
    """LM alone, which learns the relation sooner when alone; then all three losses; at last small
    batches, which mend ITC.
    """
    train = scenes.sample(MANY_SCENES, seed=0)
    images, captions = images_of(train), [scene.caption for scene in train]
    toy, held_out = ToyBlip.new(captions), scenes.sample(250, seed=5, split="composition")
    for stage, (losses, steps, batch, alike, rate, seed) in BLIP_STAGES.items():
        how = {"losses": losses, "batch": batch, "alike": alike, "seed": seed}
        toy.train(images, captions, steps, **how, **rates(rate))
        report_blip(toy, f"{stage}, {steps} steps of {batch}; other composition scenes", held_out)
    toy.model.half()  # half the size on disk
    toy.save(FROZEN / "blip")
    toy = ToyBlip.load(FROZEN / "blip")
    for split in SPLITS:
        for form, shown in in_forms(scenes.load(split)).items():
            report_blip(toy, f"{split}, {form}", shown)


def build_clip() -> None:
    """As in notebook 05, with one block more in the image tower: what is read of it is the layer
    before the last.
    """
    model, tokenizer = train_clip(
        scenes.sample(MANY_SCENES, seed=0), CLIP_STEPS, layers=CLIP_LAYERS
    )
    save_toy(model.half(), publish_clip(model), FROZEN / "clip", tokenizer)
    model, tokenizer = load_toy(FROZEN / "clip")
    for split in SPLITS:
        for form, shown in in_forms(scenes.load(split)).items():
            report(f"{split}, {form}, R@1", recall_at_1(model, tokenizer, shown))


def report_decoder(made: LanguageModel, losses: list[float]) -> None:
    """The loss by eighths of a phase, and the right answers about scenes given in words."""
    parts = [losses[len(losses) * i // 8 : len(losses) * (i + 1) // 8] for i in range(8)]
    means = ", ".join(f"{sum(part) / len(part):.3f}" for part in parts)
    print("loss by eighths:", means, flush=True)
    for split in SPLITS[::2]:
        held_out = scenes.sample(200, seed=5, split=split)
        report(f"{split}, {len(held_out)} scenes in words", made.measure(held_out))


def build_decoder() -> None:
    made = train_decoder(report=report_decoder, before=drill)
    made.model.half()
    made.save(FROZEN / "decoder")


def build_qformer() -> None:
    """BLIP-2's stage 1 on the frozen image encoder; no language model takes part in it."""
    train = scenes.sample(MANY_SCENES, seed=0)
    captions = [scene.caption for scene in train]
    tokenizer = BPETokenizer.train(captions, vocab_size=400, special_tokens=BERT_MARKS)
    model = Assistant.blip2(queries=8, vocab_size=tokenizer.vocab_size).model
    first_stage(model, tokenizer, images_of(train), captions, QFORMER_STEPS, weight_decay=0.1)
    save_trained_parts(model, FROZEN / "qformer", tokenizer)
    made, tokenizer = load_stage_one()
    for split in SPLITS:
        held_out = scenes.load(split)
        said = own_captions(made.model, tokenizer, images_of(held_out))
        true = sum(map(scenes.is_true, said, held_out))
        print(f"{split}: the Q-Former's own captions, {true} of {len(said)} true", flush=True)


def build_blip2() -> None:
    """BLIP-2's stage 2: from the Q-Former of stage 1 to the frozen language model."""
    train = scenes.sample(MANY_SCENES, seed=0)
    made, _ = load_stage_one()
    second_stage(made.model)
    told = instructions.illustrated(train, 0, captions=True)
    made.train(told, images_of(train), BLIP2_STEPS, weight_decay=0.1)
    save_trained_parts(made.model, FROZEN / "blip2")
    made = load_stage_two()
    for split in SPLITS:
        held_out = scenes.load(split)
        true = sum(map(scenes.is_true, made.describe(images_of(held_out)), held_out))
        print(f"{split}: the language model's captions, {true} of {len(held_out)} true", flush=True)


def build_llava() -> None:
    """Both stages of notebook 08, longer, with more scenes and more turns a conversation."""
    train = scenes.sample(LLAVA_SCENES, seed=0)
    images, made = images_of(train), Assistant.llava()
    for stage, steps, batch, rate in LLAVA_STAGES:
        train_llava_stage(made.model, stage)
        told = instructions.illustrated(train, 0, captions=stage == 1, turns=6)
        if stage == 2:
            save_projector(made, FROZEN / "projector")
        options = {"batch": batch, "erased": 0.2, "weight_decay": 0.1}
        made.train(told, images, steps, **options, **rates(rate))
        for split in SPLITS[::2]:
            held_out = scenes.sample(100, seed=5, split=split)
            what = f"after stage {stage}, {len(held_out)} other {split} scenes"
            report(what, measure(made, held_out, images_of(held_out)))
    made.model.half()
    made.save(FROZEN / "llava")
    made = Assistant.load(FROZEN / "llava")
    for split in SPLITS:
        held_out = scenes.load(split)
        for form, shown in in_forms(held_out).items():
            report(f"{split}, {form}", measure(made, shown, images_of(shown)))
        anew = measure(made, held_out, images_of(held_out), held_out=True)
        report(f"{split}, in phrasings that no training shows", anew)


def build_qwen_vl() -> None:
    """Stages 1 and 2 of notebook 09, stage 2 in two parts."""
    made = Pointer.new()
    for stage, makers, steps, seed in QWEN_VL_PHASES:
        train = scenes.sample(MANY_SCENES, seed)
        make = lambda i, rng, train=train, makers=makers: made.row(
            rng.choice(makers)(train[i], rng), i
        )
        made.train(make, images_of(train), steps, stage, seed=seed)
        held_out = {split: scenes.sample(250, 5, split) for split in ("test", "composition")}
        report_pointing(made, held_out, f"after {steps} steps of stage {stage}, other scenes, ")
    made.model.half()
    made.save(FROZEN / "qwen_vl")
    report_pointing(Pointer.load(), {split: scenes.load(split) for split in SPLITS}, "")


def report_pointing(made: Pointer, splits: dict[str, list[Scene]], what: str) -> None:
    for split, held_out in splits.items():
        rng = Random("test")
        asked = [(i, make(scene, rng)) for i, scene in enumerate(held_out) for make in tasks.TASKS]
        shares = made.measure(asked, held_out, images_of(held_out))
        report(f"{what}{split}, {len(held_out)} scenes", dict(sorted(shares.items())))


def build_qwen2_vl() -> None:
    """Videos of one moving object, of 6 and 8 frames; then longer ones are asked about."""
    train = mixed(FEW_SCENES, 0, "train", VIDEOS)
    made = AnySizeCaptioner.new(Qwen2VL, [scene.caption for scene in train], 0)
    made.train(train, VIDEO_STEPS, batch=48, seed=0)
    made.save(FROZEN / "qwen2_vl")  # in half precision
    made = AnySizeCaptioner.load()
    for frames in (6, 8, 12, 16):
        for turns in (0, 1):
            held_out = scenes.sample(100, 5, "test", frames=frames, turns=turns)
            right = list(map(tells_motion, made.caption(held_out), held_out))
            report(f"{frames} frames, {turns} turns", {"motion": sum(right) / len(right)})


BUILD = {
    "vqvae": build_vqvae,
    "blip": build_blip,
    "clip": build_clip,
    "decoder": build_decoder,
    "qformer": build_qformer,
    "blip2": build_blip2,
    "llava": build_llava,
    "qwen_vl": build_qwen_vl,
    "qwen2_vl": build_qwen2_vl,
}


def main() -> None:
    names = sys.argv[1:] or [*BUILD]
    if unknown := {*names} - {*BUILD}:
        sys.exit(f"unknown model {min(unknown)!r}; known: {', '.join(BUILD)}")
    torch.set_num_threads(min(2, torch.get_num_threads()))
    for name in names:
        BUILD[name]()


if __name__ == "__main__":
    main()
