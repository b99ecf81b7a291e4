"""Train the small frozen models of data/checkpoints again: python tools/build_checkpoints.py [NAME
...]

vqvae: images of 64 x 64 pixels <-> 8 x 8 codes (minivlm/vqvae.py); two to four minutes on one core.
blip: retrieval, matching and captions of scenes (minivlm/train_blip.py); some 16 minutes.
clip: an image encoder (minivlm/train_clip.py); three minutes. decoder: a language model of text
alone; 12 on two cores.
qformer: BLIP-2's stage 1, needs clip; six. blip2: its stage 2, needs qformer too; llava: both
stages; both need clip and decoder; four and 28. qwen_vl: stages 1 and 2, needs decoder; some 20 on
two cores.

Another CPU gives other weights, because sums differ in the last digit and training makes much of
it. What must hold is the quality that is printed; a test asks for it.
"""

import os
import sys
from collections import defaultdict
from itertools import chain
from math import log
from pathlib import Path
from random import Random

import torch

from minivlm import scenes, vqvae
from minivlm.blip import LOSSES
from minivlm.blip2 import second_stage
from minivlm.bpe import BPETokenizer
from minivlm.clip import Clip, contrastive_loss
from minivlm.llava import train_stage
from minivlm.multimodal import CONTROL, Processor, answer_loss
from minivlm.parts.decoder import Decoder
from minivlm.parts.generation import generate
from minivlm.parts.masks import causal, segments
from minivlm.parts.training import fit, minibatches
from minivlm.pretrained import from_pretrained, save_pretrained
from minivlm.pretrained.checkpoints import Names, write
from minivlm.pretrained.llama import build_llama
from minivlm.scenes import drawing, instructions, tasks
from minivlm.scenes.pixels import pixels, vary_channels
from minivlm.toys import assistant
from minivlm.toys.assistant import Assistant, first_stage
from minivlm.toys.blip import ToyBlip, judgements, retrieval, told_truly
from minivlm.toys.clip import END, PAD, sentences, toy, toy_config
from minivlm.toys.common import BERT_MARKS, mates
from minivlm.toys.qwen_vl import Pointer
from minivlm.toys.vqvae import train_vqvae

FOLDER = drawing.DATA.parent / "checkpoints"
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

CLIP_LAYERS, CLIP_STEPS, QFORMER_STEPS, BLIP2_STEPS = 3, 1200, 800, 1500
MANY_SCENES = (
    24_000  # between frozen models the unseen pairs are what is hard, and more scenes help
)
MAKERS = instructions.conversation, instructions.description, instructions.reasoning
LLAVA_STAGES = (
    (1, 150, 64, 0.02),
    (2, 2000, 48, 0.015),
)  # stage, steps, batch, Muon's learning rate
QWEN_VL_PHASES = (  # stage, tasks, steps, seed of the scenes and of their order
    (1, (tasks.caption,), 200, 0),
    (2, (*tasks.TASKS, tasks.grounding), 1500, 0),
    (2, (*tasks.TASKS, *[tasks.grounding] * 4), 1300, 1),
)
DECODER_PHASES = (  # kinds of conversation (by their place in instructions.corpus), steps, Muon's learning rate
    ((1, 2), 800, 0.02),
    (range(5), 4000, 0.02),
)
BARE_PHASES = ((range(5), 1600, 0.02),)  # of the one that has nothing to read


def build_vqvae() -> None:
    images = vqvae.to_unit([scene.image for scene in scenes.sample(SCENES, seed=0)])
    model, _ = train_vqvae(images, STEPS)
    model.save(FOLDER / "vqvae")
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


def report(toy: ToyBlip, name: str, found: list[scenes.Scene]) -> None:
    asked = pixels([scene.image for scene in found])
    measured = {"true captions": told_truly(toy, found, asked)} | retrieval(toy, found, asked)
    measured |= {f"ITM, {kind}": value for kind, value in judgements(toy, found, asked).items()}
    print(
        f"{name}: " + ", ".join(f"{what} {value:.1%}" for what, value in measured.items()),
        flush=True,
    )


def build_blip() -> None:
    """All three losses; LM alone, which learns the relation sooner when alone; then all three
    again, for ITM's sake.
    """
    train = scenes.sample(BLIP_SCENES, seed=0)
    images, captions = pixels([scene.image for scene in train]), [scene.caption for scene in train]
    toy, held_out = ToyBlip.new(captions), scenes.sample(250, seed=5, split="composition")
    for losses, steps, batch, alike, rate, seed in BLIP_PHASES:
        rates = {"muon_lr": rate, "adamw_lr": rate * 2 / 15}
        toy.train(
            images, captions, steps, losses=losses, batch=batch, alike=alike, seed=seed, **rates
        )
        report(
            toy, f"{'+'.join(losses)}, {steps} steps of {batch}; other composition scenes", held_out
        )
    toy.model.half()  # half the size on disk
    toy.save(FOLDER / "blip")
    toy = ToyBlip.load(FOLDER / "blip")
    for split in SPLITS:
        report(toy, split, scenes.load(split))


def build_clip() -> None:
    """As in notebook 05, with one block more in the image tower: what is read of it is the layer
    before the last.

    Every second batch holds captions that contradict each other side by side. Otherwise the
    pictures of a batch differ so much that nobody needs to look at where things are.
    """
    train = scenes.sample(8000, seed=0)
    images, captions = pixels([scene.image for scene in train]), [scene.caption for scene in train]
    tokenizer = BPETokenizer.train(captions, vocab_size=400, special_tokens=(END, PAD))
    ids = sentences(captions, tokenizer)
    shape = "clip", tokenizer, ids.shape[1]
    torch.manual_seed(0)
    model = toy(*shape, layers=CLIP_LAYERS)

    def loss(model: Clip, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            model.scale.clamp_(max=log(100))
        return contrastive_loss(
            model.encode_image(vary_channels(batch[0])), model.encode_text(batch[1]), model.scale
        )

    plain = minibatches(images, ids, batch_size=128)
    near = (
        (images[rows.flatten()], ids[rows.flatten()])
        for (rows,) in minibatches(mates(captions), batch_size=64)
    )
    batches = chain.from_iterable(zip(plain, near, strict=True))  # both are endless
    fit(model, batches, loss, CLIP_STEPS, muon_lr=0.015, adamw_lr=2e-3, weight_decay=0.1)
    save_pretrained(model.half(), toy_config(*shape, layers=CLIP_LAYERS), FOLDER / "clip")
    tokenizer.save(FOLDER / "clip" / "tokenizer.json")
    model = from_pretrained(FOLDER / "clip")
    for split in SPLITS:
        found = scenes.load(split)
        asked, said = pixels([scene.image for scene in found]), [scene.caption for scene in found]
        with torch.no_grad():
            cosine = (
                model.encode_image(asked)
                @ model.encode_text(sentences(said, tokenizer, ids.shape[1])).T
            )
        true = torch.tensor(
            [[scenes.is_true(caption, scene) for caption in said] for scene in found]
        )
        for way, scores, right in (
            ("image to text", cosine, true),
            ("text to image", cosine.T, true.T),
        ):
            hits = right.gather(1, scores.argmax(dim=1, keepdim=True))
            print(f"{split}, {len(found)} scenes, {way}: R@1 {hits.float().mean():.1%}", flush=True)


def read_text(model: Decoder, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    ids, labels, segment, place = batch
    mask = segments(segment) & causal(ids.shape[1])
    return answer_loss(model.head(model.states(ids, mask=mask, positions=place)), labels)


def report_text(model: Decoder, processor: Processor, split: str, context: bool) -> None:
    """How often the first answer of each kind of conversation is right, scenes being given in
    words.
    """
    found, rng, right = scenes.sample(200, seed=5, split=split), Random(0), defaultdict(list)
    asked = [(scene, make(scene, rng)[0]) for scene in found for make in MAKERS]
    rows = [
        processor.prepare(
            instructions.messages([turn], instructions.listing(scene) if context else "")[:1],
            reply=True,
        )
        for scene, turn in asked
    ]
    batch, end = processor.collate(rows, "left"), processor.tokenizer.special_tokens["<|im_end|>"]
    new = generate(
        model, batch["input_ids"], 24, eos_id=end, attention_mask=batch["attention_mask"]
    )
    for (scene, turn), row in zip(asked, new.tolist(), strict=True):
        said = processor.tokenizer.decode([i for i in row if i != end])
        right[turn.kind].append(instructions.accepts(turn, said, scene))
    shares = ", ".join(f"{kind} {sum(oks) / len(oks):.0%}" for kind, oks in sorted(right.items()))
    print(f"{split}, {len(found)} scenes in words: {shares}", flush=True)


def build_decoder(context: bool = True, folder: Path = FOLDER / "decoder") -> None:
    """Text alone: scenes in words, what can be said of them and asked. Short conversations first,
    then all.

    It reads of every colour-shape pair, also of those that no picture in training shows.
    ``context=False`` is the
    ablation: the same conversations without the scenes, for fewer steps, as the loss hardly falls
    after 400 of them.
    """
    read = scenes.sample(6000, seed=0) + scenes.sample(2000, seed=7, split="composition")
    conversations = instructions.corpus(read, seed=0, context=context)
    some = [message for turns in conversations[:12_000] for message in turns]
    contents = [
        [{"text": c}] if isinstance(c, str) else c for c in (message["content"] for message in some)
    ]
    texts = [part["text"] for content in contents for part in content] + [
        f"{message['role']}\n" for message in some
    ]
    tokenizer = BPETokenizer.train(texts, vocab_size=400, special_tokens=CONTROL)
    processor = Processor(tokenizer, 0, pixels)
    shape = {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    shape |= {
        "intermediate_size": 192,
        "vocab_size": tokenizer.vocab_size,
        "tie_word_embeddings": True,
    }
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | shape
    torch.manual_seed(0)
    model = build_llama(config)
    for kinds, steps, rate in DECODER_PHASES if context else BARE_PHASES:
        rows = [processor.prepare(turns) for i, turns in enumerate(conversations) if i % 5 in kinds]
        Random(0).shuffle(rows)
        packed = processor.pack(rows, 208)
        columns = (packed[name] for name in ("input_ids", "labels", "segment_ids", "position_ids"))
        batches = minibatches(*columns, batch_size=12)
        rates = {"muon_lr": rate, "adamw_lr": rate * 2 / 15, "weight_decay": 0.1}
        loss = fit(model, batches, read_text, steps, **rates)["loss"]
        parts = [loss[steps * i // 8 : steps * (i + 1) // 8] for i in range(8)]
        print(
            "loss by eighths:",
            ", ".join(f"{sum(part) / len(part):.3f}" for part in parts),
            flush=True,
        )
        for split in SPLITS[::2]:
            report_text(model, processor, split, context)
    save_pretrained(model.half(), config, folder)
    tokenizer.save(folder / "tokenizer.json")


def build_qformer() -> None:
    """BLIP-2's stage 1 on the frozen image encoder; no language model takes part in it."""
    train = scenes.sample(MANY_SCENES, seed=0)
    images, captions = pixels([scene.image for scene in train]), [scene.caption for scene in train]
    tokenizer = BPETokenizer.train(captions, vocab_size=400, special_tokens=BERT_MARKS)
    made = Assistant.blip2(queries=8, read=tokenizer.vocab_size)
    first_stage(made.model, tokenizer, images, captions, QFORMER_STEPS, weight_decay=0.1)
    config = {"queries": 8} | assistant.QFORMER | {"vocab_size": tokenizer.vocab_size}
    write(assistant.trained_parts(made.model).half(), config, Names(), FOLDER / "qformer")
    tokenizer.save(FOLDER / "qformer" / "tokenizer.json")
    made, tokenizer = assistant.load_stage_one()
    for split in SPLITS:
        found = scenes.load(split)
        said = assistant.own_captions(
            made.model, tokenizer, pixels([scene.image for scene in found])
        )
        true = sum(map(scenes.is_true, said, found))
        print(f"{split}: the Q-Former's own captions, {true} of {len(said)} true", flush=True)


def build_blip2() -> None:
    """BLIP-2's stage 2: from the Q-Former of stage 1 to the frozen language model."""
    train = scenes.sample(MANY_SCENES, seed=0)
    made, _ = assistant.load_stage_one()
    second_stage(made.model)
    told = instructions.illustrated(train, 0, captions=True)
    made.train(told, pixels([scene.image for scene in train]), BLIP2_STEPS, weight_decay=0.1)
    config = {"queries": made.model.qformer.config.queries} | assistant.QFORMER
    write(assistant.trained_parts(made.model).half(), config, Names(), FOLDER / "blip2")
    made = assistant.load_stage_two()
    for split in SPLITS:
        found = scenes.load(split)
        true = sum(
            map(scenes.is_true, made.describe(pixels([scene.image for scene in found])), found)
        )
        print(f"{split}: the language model's captions, {true} of {len(found)} true", flush=True)


def build_llava() -> None:
    """Both stages of notebook 08, longer, with more scenes and more turns a conversation."""
    train = scenes.sample(MANY_SCENES, seed=0)
    images = pixels([scene.image for scene in train])
    made = Assistant.llava()
    for stage, steps, batch, rate in LLAVA_STAGES:
        train_stage(made.model, stage)
        told = instructions.illustrated(train, 0, captions=stage == 1, turns=6)
        made.train(
            told, images, steps, batch=batch, muon_lr=rate, adamw_lr=rate * 2 / 15, weight_decay=0.1
        )
        for split in SPLITS[::2]:
            found = scenes.sample(100, seed=5, split=split)
            shares = assistant.measure(made, found, pixels([scene.image for scene in found]))
            told = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
            print(f"after stage {stage}, {len(found)} other {split} scenes: {told}", flush=True)
    made.model.half()
    made.save(FOLDER / "llava")


def build_qwen_vl() -> None:
    """Stages 1 and 2 of notebook 09, stage 2 in two parts."""
    made = Pointer.new()
    for stage, makers, steps, seed in QWEN_VL_PHASES:
        train = scenes.sample(MANY_SCENES, seed)
        images = pixels([scene.image for scene in train])
        make = lambda i, rng, train=train, makers=makers: made.row(
            rng.choice(makers)(train[i], rng), i
        )
        made.train(make, images, steps, stage, seed=seed)
        found = {split: scenes.sample(250, 5, split) for split in ("test", "composition")}
        report_pointing(made, found, f"after {steps} steps of stage {stage}, other scenes, ")
    made.model.half()
    made.save(FOLDER / "qwen_vl")
    report_pointing(Pointer.load(), {split: scenes.load(split) for split in SPLITS}, "")


def report_pointing(made: Pointer, splits: dict[str, list[scenes.Scene]], what: str) -> None:
    for split, found in splits.items():
        rng = Random("test")
        asked = [(i, make(scene, rng)) for i, scene in enumerate(found) for make in tasks.TASKS]
        shares = made.measure(asked, found, pixels([scene.image for scene in found]))
        told = ", ".join(f"{kind} {share:.1%}" for kind, share in sorted(shares.items()))
        print(f"{what}{split}, {len(found)} scenes: {told}", flush=True)


BUILD = {"vqvae": build_vqvae, "blip": build_blip, "clip": build_clip, "decoder": build_decoder}
BUILD |= {
    "qformer": build_qformer,
    "blip2": build_blip2,
    "llava": build_llava,
    "qwen_vl": build_qwen_vl,
}


def main() -> None:
    names = sys.argv[1:] or [*BUILD]
    if unknown := {*names} - {*BUILD}:
        sys.exit(f"unknown model {min(unknown)!r}; known: {', '.join(BUILD)}")
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    for name in names:
        BUILD[name]()


if __name__ == "__main__":
    main()
