"""What queries and stage 1 bring to BLIP-2, on scenes: the table of notebook 07, section 4.3.

    python tools/blip2_ablations.py [--first 150] [--second 250] [--seeds 0]

The image encoder and the language model of data/checkpoints stay frozen. Every row sees the same
8,000 scenes in the same batches; only the named thing differs. Stage 2 has the same number of steps
in each. Measured on 250 scenes of the composition stream with seed 5 (not the files in
data/scenes): greedy captions that are true; the language model's loss.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import torch

from build_checkpoints import build_decoder
from minivlm import scenes
from minivlm.blip2 import second_stage
from minivlm.bpe import BPETokenizer
from minivlm.scenes import instructions
from minivlm.scenes.pixels import pixels
from minivlm.toys.assistant import Assistant, first_stage
from minivlm.toys.common import BERT_MARKS, FROZEN

ROWS = {  # name -> queries, stage 1 first, contexts in the language model's text
    "1 query": (1, True, True),
    "4 queries": (4, True, True),
    "8 queries": (8, True, True),
    "16 queries": (16, True, True),
    "1 query, no stage 1": (1, False, True),
    "4 queries, no stage 1": (4, False, True),
    "8 queries, no stage 1": (8, False, True),
    "16 queries, no stage 1": (16, False, True),
    "8 queries, language model without contexts": (8, True, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=150, help="steps of stage 1")
    parser.add_argument("--second", type=int, default=250, help="steps of stage 2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[*range(len(ROWS))], help="numbers of rows"
    )
    parser.add_argument(
        "--bare",
        type=Path,
        help="folder of a language model without contexts; trained if it is empty",
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    train, held_out = scenes.sample(8000, seed=0), scenes.sample(250, seed=5, split="composition")
    images, asked = pixels([s.image for s in train]), pixels([s.image for s in held_out])
    captions = [s.caption for s in train]
    tokenizer = BPETokenizer.train(captions, vocab_size=400, special_tokens=BERT_MARKS)
    told = instructions.illustrated(train, 0, captions=True)
    names = [[*ROWS][row] for row in chosen.rows]
    print("| training | seed | parameters trained in stage 2 | tokens of a picture | ", end="")
    print("last loss of stage 2 | true captions | CPU seconds |")
    print("|" + "---|" * 7)
    with tempfile.TemporaryDirectory() as temporary:
        bare = chosen.bare or Path(temporary)
        if not all(ROWS[name][2] for name in names) and not (bare / "config.json").exists():
            with contextlib.redirect_stdout(sys.stderr):
                build_decoder(context=False, folder=bare)
        for name in names:
            queries, first, context = ROWS[name]
            for seed in chosen.seeds:
                words = FROZEN / "decoder" if context else bare
                made, began = (
                    Assistant.blip2(queries, seed, tokenizer.vocab_size, words),
                    time.process_time(),
                )
                if first:
                    first_stage(made.model, tokenizer, images, captions, chosen.first, seed=seed)
                second_stage(made.model)
                size = sum(p.numel() for p in made.model.parameters() if p.requires_grad)
                history = made.train(told, images, chosen.second, seed=seed)
                seconds = time.process_time() - began
                said = made.describe(asked)
                true = sum(map(scenes.is_true, said, held_out)) / len(said)
                last = history["loss"][-20:]
                loss = sum(last) / len(last)
                row = f"{name} | {seed} | {size:,} | {queries} | {loss:.3f} | {true:.1%} | {seconds:.0f}"
                print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
