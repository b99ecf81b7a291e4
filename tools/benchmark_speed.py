"""How fast is the toy LLaVA beside transformers' class with the same weights?

    python tools/benchmark_speed.py

Both run in turn, on one thread, in float32: greedy decoding of 24 tokens with a cache, and one
training step (forward, loss, backward) on 64 rows. Printed are the medians, and the median of the
ratios pair by pair (above 1: ours is faster). Both must say the same tokens and have the same loss.
"""

import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration

from minivlm.parts.generation import generate
from minivlm.pretrained import from_pretrained

WIDTH, IMAGE, IMAGES, TOKENS = 96, 359, 16, 24
SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 6}
CONFIG = LlavaConfig(  # the captioner's
    vision_config=SHAPE
    | {"model_type": "clip_vision_model", "image_size": 64, "patch_size": 16}
    | {"intermediate_size": 4 * WIDTH},
    text_config=SHAPE
    | {"model_type": "llama", "vocab_size": 360, "num_key_value_heads": 6}
    | {"intermediate_size": 2 * WIDTH},
    image_token_index=IMAGE,
    vision_feature_layer=-1,
)


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> None:
    """Time both in turn and print a line."""
    ours(), theirs()  # warm up
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{name:28} ours {mine * 1e3:8.1f} ms, transformers {other * 1e3:8.1f} ms: {ratio:.2f} x")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        theirs = LlavaForConditionalGeneration(CONFIG).eval()
        theirs.generation_config.eos_token_id = None  # all say as much
        theirs.save_pretrained(folder)
        ours = from_pretrained(folder)
    for batch in (1, 64):
        ids, pixels = torch.full((batch, IMAGES), IMAGE), torch.randn(batch, 3, 64, 64)
        options = {"max_new_tokens": TOKENS, "do_sample": False}
        mask = torch.ones_like(ids)
        say = lambda i=ids, p=pixels: generate(ours, i, TOKENS, pixel_values=p)
        their = lambda i=ids, p=pixels, m=mask, o=options: theirs.generate(
            input_ids=i, pixel_values=p, attention_mask=m, pad_token_id=0, **o
        )
        assert torch.equal(say(), their()[:, IMAGES:])
        compare(f"decoding, batch {batch}", say, their, 15)
    ids = torch.cat([ids, torch.randint(0, 300, (batch, TOKENS))], dim=1)
    labels = ids.masked_fill(ids == IMAGE, -100)

    def step() -> torch.Tensor:
        states = ours.states(ids, pixels)[:, IMAGES - 1 : -1]  # as the captioner: what has a loss
        logits = ours.decoder.head(states).flatten(0, 1)
        loss = F.cross_entropy(logits, ids[:, IMAGES:].flatten())
        loss.backward()
        return loss.detach()

    def their_step() -> torch.Tensor:
        loss = theirs(input_ids=ids, pixel_values=pixels, labels=labels).loss
        loss.backward()
        return loss.detach()

    assert torch.allclose(step(), their_step(), atol=1e-5)
    compare("training step, batch 64", step, their_step, 15)


if __name__ == "__main__":
    main()
