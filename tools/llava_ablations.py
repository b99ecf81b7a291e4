"""What each choice in LLaVA's training brings, on scenes: the table of notebook 08, section 5.4.

    python tools/llava_ablations.py [--first 60] [--second 100] [--seeds 0]

Every row starts from the frozen image encoder and language model of data/checkpoints and sees the
same 8,000 scenes in the same batches; only the named thing differs. Measured on 200 scenes of the
composition stream with seed 5 (not the files in data/scenes): right answers by kind, over one
conversation, one description and one reasoning a scene; "later turns" are asked behind the model's
own answers. The last column asks the same in phrasings that no training shows.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from build_checkpoints import build_decoder
from minivlm import scenes
from minivlm.llava import train_stage
from minivlm.parts.layers import init_weights
from minivlm.scenes import instructions
from minivlm.scenes.pixels import pixels
from minivlm.toys.assistant import Assistant, measure

KINDS = (
    "caption",
    "colour",
    "shape",
    "size",
    "count",
    "relation",
    "yes/no",
    "same",
    "which",
    "later turns",
    "all",
)
CAPTIONS, INSTRUCTIONS = "captions", "instructions"  # the data of the two stages
FIRST, SECOND = (CAPTIONS, 1), (INSTRUCTIONS, 2)  # data, and what is trained: see llava.train_stage
ROWS = {  # name -> stages, and what differs
    "both stages": ((FIRST, SECOND), ""),
    "stage 1 only": ((FIRST,), ""),
    "stage 2 only": ((SECOND,), ""),
    "both, language model always frozen": ((FIRST, (INSTRUCTIONS, 1)), ""),
    "both, linear projector": ((FIRST, SECOND), "linear"),
    "both, features of the last layer": ((FIRST, SECOND), "last"),
    "both, image tokens see each other": ((FIRST, SECOND), "two-way"),
    "stage 1 only, language model without contexts": ((FIRST,), "bare"),
    "both, language model without contexts": ((FIRST, SECOND), "bare"),
}


def start(what: str, seed: int, bare: Path) -> Assistant:
    """An untrained projector between the two models, changed as the row says."""
    made = Assistant.llava(seed, words=bare) if what == "bare" else Assistant.llava(seed)
    model = made.model
    if what == "linear":
        model.projector = nn.Linear(model.config.vision.width, model.config.text.width).apply(
            init_weights
        )
    elif what == "last":
        model.config = replace(model.config, feature_layers=(-1,))
    elif what == "two-way":
        model.config = replace(model.config, two_way=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=60, help="steps of stage 1")
    parser.add_argument("--second", type=int, default=100, help="steps of stage 2")
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
    train, held_out = scenes.sample(8000, seed=0), scenes.sample(200, seed=5, split="composition")
    images, asked = pixels([s.image for s in train]), pixels([s.image for s in held_out])
    data = {
        CAPTIONS: (instructions.illustrated(train, 0, captions=True), chosen.first),
        INSTRUCTIONS: (instructions.illustrated(train, 0), chosen.second),
    }
    names = [[*ROWS][row] for row in chosen.rows]
    print(f"| training | seed | {' | '.join(KINDS)} | all, stated another way | CPU seconds |")
    print("|" + "---|" * (len(KINDS) + 4))
    with tempfile.TemporaryDirectory() as temporary:
        bare = chosen.bare or Path(temporary)
        if any(ROWS[name][1] == "bare" for name in names) and not (bare / "config.json").exists():
            with contextlib.redirect_stdout(sys.stderr):
                build_decoder(context=False, folder=bare)
        for name in names:
            stages, what = ROWS[name]
            for seed in chosen.seeds:
                made, began = start(what, seed, bare), time.process_time()
                for kind, trained in stages:
                    train_stage(made.model, trained)
                    conversations, steps = data[kind]
                    made.train(conversations, images, steps, seed=seed)
                seconds = time.process_time() - began
                found, other = (
                    measure(made, held_out, asked, held_out=flag) for flag in (False, True)
                )
                shares = " | ".join(f"{found[kind]:.0%}" for kind in KINDS)
                print(
                    f"| {name} | {seed} | {shares} | {other['all']:.0%} | {seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
