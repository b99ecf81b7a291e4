"""08 · Checks of notebook 08's exercises: each takes a reader's function, says what is wrong."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from minivlm.bpe import BPETokenizer
from minivlm.exercises.answers import (
    compare_answers,
    expect_items,
    expect_number,
    expect_tensor,
    near,
)
from minivlm.llava import Llava
from minivlm.multimodal import CONTROL, IGNORE, Processor
from minivlm.pretrained.llava import build_llava
from minivlm.scenes.pixels import pixels

SMALL = ((32, 16, 3, 5, 1), (48, 8, 6, 4, 2), (42, 14, 7, 9, 3), (50, 10, 11, 8, 2))


def check_bridge(bridge: Callable) -> None:
    """Exercise 1: against small projectors, then the two published ones."""
    cases, tokens, parameters = [], [], []
    for image_size, patch, vision, text, depth in SMALL:
        case = f"{image_size} pixels, patches of {patch}, {vision} -> {text}, depth {depth}"
        got = expect_items(bridge(image_size, patch, vision, text, depth), case, 2)
        cases.append(case)
        tokens.append(expect_number(got[0], f"{case}, tokens"))
        parameters.append(expect_number(got[1], f"{case}, parameters"))
    sides = [image_size // patch for image_size, patch, *_ in SMALL]
    mistakes = {
        "an image has rows and columns of patches": sides,
        "the class token is dropped": [side**2 + 1 for side in sides],
        "pixels are not tokens: a token is a patch": [size[0] ** 2 for size in SMALL],
    }
    of_tokens = [f"{case}, tokens" for case in cases]
    compare_answers(of_tokens, [side**2 for side in sides], tokens, mistakes)
    _check_projectors(cases, parameters)
    for name, sizes, right in (
        ("LLaVA-1.0 7B", (224, 14, 1024, 4096, 1), (256, 4_198_400)),
        ("LLaVA-1.5 13B", (336, 14, 1024, 5120, 2), (576, 31_467_520)),
    ):
        assert tuple(bridge(*sizes)) == right, f"{name}: {right}, not {bridge(*sizes)}"


def _check_projectors(cases: list[str], got: list[float]) -> None:
    """The numbers of parameters that a reader counts in the projectors of SMALL."""
    right = [_projector([vision] + [text] * depth) for *_, vision, text, depth in SMALL]
    mistakes = {
        "every layer has a bias": [
            count - depth * text for count, (*_, text, depth) in zip(right, SMALL, strict=True)
        ],
        "a later layer goes from text to text width": [
            depth * _projector([vision, text]) for *_, vision, text, depth in SMALL
        ],
        "depth counts the Linear layers, all of them: one more than it should be": [
            _projector([vision] + [text] * (depth + 1)) for *_, vision, text, depth in SMALL
        ],
        "all layers but the first stay in the language model's width": [
            _projector([vision] * depth + [text]) for *_, vision, text, depth in SMALL
        ],
        "that is one layer, whatever the depth": [
            _projector([vision, text]) for *_, vision, text, _ in SMALL
        ],
    }
    compare_answers([f"{case}, parameters" for case in cases], right, got, mistakes)


def _projector(widths: list[int]) -> int:
    """The parameters of Linear layers from each width to the next."""
    layers = (nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
    return sum(p.numel() for layer in layers for p in layer.parameters())


CHATS = {
    "one turn": "user: what colour is the star? assistant: red",
    "two turns": "user: a? assistant: yes user: b? assistant: no",
    "a system turn": "system: be brief. user: a? assistant: yes",
    "a user who writes 'assistant'": "user: the assistant\nsays no assistant: no",
    "a user who begins with 'assistant'": "user: assistant\na assistant: no",
    "an answer that says 'user'": "user: who? assistant: user\n",
    "an answer that begins with 'assistant'": "user: who? assistant: assistant\na",
    "two answers in a row": "user: a? assistant: yes assistant: or no",
    "an empty answer": "user: say nothing assistant: user: thanks",
    "no answer": "user: who?",
}


def turns_of(chat: str) -> list[dict]:
    """ "user: a? assistant: yes" -> messages."""
    turns: list[dict] = []
    for word in chat.split(" "):
        if word in ("system:", "user:", "assistant:"):
            turns.append({"role": word[:-1], "content": []})
        else:
            turns[-1]["content"].append(word)
    return [turn | {"content": " ".join(turn["content"])} for turn in turns]


@cache
def small_tokenizer() -> BPETokenizer:
    """So few merges that "assistant" takes several ids."""
    return BPETokenizer.train(
        ["user\n", "system\n", "what is so brief"], 264, special_tokens=CONTROL
    )


def check_chatml_labels(chatml_labels: Callable) -> None:
    """Exercise 2: against the labels of the processor, which knows who speaks."""
    tokenizer = small_tokenizer()
    start, end = (tokenizer.special_tokens[f"<|im_{name}|>"] for name in ("start", "end"))
    opening, processor = tokenizer.encode("assistant\n"), Processor(tokenizer, 4, pixels)
    for case, chat in CHATS.items():
        row = processor.prepare(turns_of(chat))
        ids, right = row["input_ids"][0].tolist(), row["labels"][0].tolist()
        got = chatml_labels(list(ids), start, end, list(opening))
        got = expect_items(got, f"{case}, {len(ids)} ids", len(ids))
        shifted = got[:-1] == right[1:] and got != right
        assert not shifted, f"{case}: label t is the id at t; the loss does the shift"
        for t, (label, expected) in enumerate(zip(got, right, strict=True)):
            what = f"{case}: token {t}, {tokenizer.decode([ids[t]])!r}"
            _check_label(label, expected, ids[t], what)


def _check_label(label: object, right: int, token: int, what: str) -> None:
    """One label: the token's id, or IGNORE."""
    known = label in (IGNORE, token)
    assert known, f"{what}: a label is the token's id, {token}, or {IGNORE}; not {label}"
    assert label == right or right == IGNORE, (
        f"{what}: part of an answer; the label is {right}, not {label}"
    )
    assert label == right, f"{what}: not part of an answer; the label is {right}"


def check_expand(expand: Callable) -> None:
    """Exercise 3: pictures first, last, side by side and cut; too few and too many of them."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(9, 5, generator=generator)
    pictures = torch.randn(5, 4, 5, generator=generator)
    for ids in ([1, -200, 2, 3], [-200, 4, -200, -200, 5, 6], [1, 2, 3], [7, -200], [-200]):
        count = ids.count(-200)
        labels = [10 + k if k % 2 == 0 else IGNORE for k in range(len(ids))]
        vectors, right = _spliced(ids, labels, table, pictures)
        for longest in (100, 6, 3):
            case = f"ids {ids}, at most {longest}"
            given = (list(ids), list(labels), table.clone(), pictures[:count].clone())
            got, new = expect_items(expand(*given, longest), case, 2)
            length, new = min(longest, len(right)), expect_items(new, f"{case}, labels")
            cut = f"{case}: splice, then cut: {length} positions"
            assert len(new) == length, f"{cut}, not {len(new)} labels"
            assert not isinstance(got, Tensor) or len(got) == length, f"{cut}, not {len(got)}"
            got = expect_tensor(got, (length, 5), case)
            _check_labels(new, right[:length], case)
            assert near(got, vectors[:length]), _misplaced(got, vectors, pictures, case)
        for wrong in {0, count - 1, count + 1, count + 2} & set(range(6)) - {count}:
            _check_refused(expand, ids, labels, table, pictures[:wrong])


def _spliced(
    ids: list[int], labels: list[int], table: Tensor, pictures: Tensor
) -> tuple[Tensor, list[int]]:
    """Embeddings and labels, not cut."""
    rows, right, left = [], [], list(pictures)
    for i, label in zip(ids, labels, strict=True):
        rows.append(left.pop(0) if i == -200 else table[[i]])
        right += [IGNORE] * 4 if i == -200 else [label]
    return torch.cat(rows), right


def _check_labels(new: list, right: list[int], case: str) -> None:
    """The labels of a spliced row."""
    taught = [t for t, label in enumerate(right) if label == IGNORE and new[t] != IGNORE]
    assert new == right or not taught, (
        f"{case}: position {taught[0]} has the label {IGNORE} (an image, or ignored before)"
    )
    assert new == right, f"{case}: labels {right}, not {new}"


def _misplaced(got: Tensor, vectors: Tensor, pictures: Tensor, case: str) -> str:
    """The first position whose vector is wrong, and where that vector comes from."""
    at = next(t for t, vector in enumerate(got) if not near(vector, vectors[t]))
    for number, picture in enumerate(pictures):
        if any(near(got[at], vector) for vector in picture):
            return f"{case}: position {at} has a vector of image {number}, which is not its own"
    return f"{case}: position {at} has another vector than its own"


def _check_refused(
    expand: Callable, ids: list[int], labels: list[int], table: Tensor, pictures: Tensor
) -> None:
    """Marks and pictures that do not agree: a ValueError, and no other."""
    case = f"ids {ids} with {len(pictures)} images"
    try:
        expand(list(ids), list(labels), table.clone(), pictures.clone(), 100)
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"{case}: a ValueError, not {type(error).__name__}") from error
    raise AssertionError(f"{case}: no ValueError")


PLACE = 11


def small_llava() -> Llava:
    """A LLaVA with random weights: four image tokens, 12 ids."""
    shape = {"hidden_size": 16, "intermediate_size": 24}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision, text = {"image_size": 32, "patch_size": 16}, {"vocab_size": 12}
    parts = {"vision_config": shape | vision, "text_config": shape | text}
    return build_llava({"image_token_index": PLACE} | parts).eval()


@torch.no_grad()
def check_ask_all(ask_all: Callable) -> None:
    """Exercise 4: three questions of unequal length; what is computed is counted."""
    torch.manual_seed(0)
    model, picture = small_llava(), torch.randn(1, 3, 32, 32)
    beginning = torch.tensor([[1, 2, PLACE, PLACE, PLACE, PLACE, 3]])
    questions = [torch.tensor([row]) for row in ([5, 6, 7], [8], [5, 9, 7, 6])]
    looked, entered = [], []
    hooks = [
        model.vision.patch.register_forward_pre_hook(lambda _, x: looked.append(1)),
        model.decoder.blocks[0].register_forward_pre_hook(
            lambda _, x: entered.append(x[0].shape[0] * x[0].shape[1])
        ),
    ]
    try:
        got = ask_all(model, beginning.clone(), picture.clone(), [q.clone() for q in questions])
    finally:
        for hook in hooks:
            hook.remove()
    got = expect_items(
        list(got) if isinstance(got, Tensor) and got.ndim else got, "three questions", 3
    )
    assert len(looked) == 1, f"the tower ran {len(looked)} times: once is enough for all questions"
    for i, logits in enumerate(got):
        _check_answer(model, logits, beginning, picture, questions[: i + 1])
    most = 7 + 3 * 4  # the questions may be padded to one length
    few = "7 of the beginning, once, and 8 of the questions are enough"
    assert sum(entered) <= most, f"{sum(entered)} positions were computed: {few}"


def _check_answer(
    model: Llava, got: Tensor, beginning: Tensor, picture: Tensor, asked: list[Tensor]
) -> None:
    """The logits after the last of the questions asked."""
    question, name = asked[-1], f"question {len(asked) - 1}"
    right = model(torch.cat([beginning, question], dim=1), picture)[0]
    got = expect_tensor(got, right[-1].shape, name)
    before = torch.cat([beginning, *asked], dim=1)
    behind = len(asked) > 1 and near(got, model(before, picture)[0, -1])
    assert not behind, (
        f"{name} sees the questions before it: give each its own copy of the cache, layers "
        "included (a shallow copy of the whole shares them)"
    )
    alone = model(question)[0, -1]
    assert not near(got, alone), (
        f"{name} does not see the beginning: go on from a copy of its cache"
    )
    early = question.shape[1] > 1 and near(got, right[-question.shape[1]])
    assert not early, f"{name}: the logits after its last token, not its first"
    assert not near(got, right[6]), f"{name}: these are the logits after the beginning"
    assert near(got, right[-1]), f"{name}: other logits than in one pass"
