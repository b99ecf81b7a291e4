"""04 · Checks of what the reader of notebook 04 builds: labels, loss, splice, image ids, gates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minivlm.bpe import BPETokenizer
from minivlm.exercises.answers import expect_items, expect_tensor, near
from minivlm.exercises.returned import expect_ids
from minivlm.multimodal import CONTROL, IGNORE, Processor
from minivlm.vit import to_pixels


def name_mistake(
    right: Mapping[str, Tensor], got: Mapping[str, Tensor], mistakes: Mapping[str, Mapping]
) -> None:
    """Refuse the first wrong tensor; name the mistake that gives all of the reader's tensors."""
    for case, wanted in right.items():
        if not near(got[case], wanted):
            known = (what for what, made in mistakes.items() if equal_everywhere(made, got))
            raise AssertionError(f"{case}: {next(known, 'other numbers than expected')}")


def equal_everywhere(made: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal up to rounding."""
    return all(made[case].shape == got[case].shape and near(got[case], made[case]) for case in got)


# Labels (section 2.3)

HERE = {"type": "image"}
CHATS: dict[str, list[tuple[str, Any]]] = {
    "one answer": [("user", "a star?"), ("assistant", "yes a star")],
    "no answer": [("system", "be brief"), ("user", "hello")],
    "two answers": [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    "an empty answer": [("user", "a"), ("assistant", "")],
    "the word in a question": [("user", "my assistant\na"), ("assistant", "b")],
    "a question that begins with the word": [("user", "assistant\na"), ("assistant", "b")],
    "an image in the question": [("user", [HERE]), ("assistant", "a star")],
    "an image in the answer": [("user", "draw"), ("assistant", [HERE])],
}


def check_labels_of(labels_of: Callable[[list[int], list[int], int, int], Sequence[int]]) -> None:
    """Conversations of every kind, against the labels of the package's processor."""
    tok = BPETokenizer.train("a star assistant\n user\n", 280, special_tokens=CONTROL)
    special, processor = tok.special_tokens, Processor(tok, 2, to_pixels)
    header = [special["<|im_start|>"], *tok.encode("assistant\n")]
    end, image = special["<|im_end|>"], special["<|image|>"]
    for name, chat in CHATS.items():
        messages = [{"role": role, "content": content} for role, content in chat]
        blank = [Image.new("RGB", (4, 4))] * sum(content == [HERE] for _, content in chat)
        row = processor.prepare(messages, blank)
        ids, right = (row[key][0].tolist() for key in ("input_ids", "labels"))
        got = expect_items(labels_of(list(ids), list(header), end, image), name, len(ids))
        shifted = got != right and got[:-1] == right[1:]
        assert not shifted, f"{name}: labels are not shifted here, the loss shifts them"
        for t, (mine, theirs) in enumerate(zip(got, right, strict=True)):
            what = f"{name}: the label of token {t} ({tok.decode([ids[t]])!r})"
            assert mine in (ids[t], IGNORE), f"{what} has to be its id or {IGNORE}, not {mine}"
            hint = _label_hint(ids, t, header, (end, image), theirs != IGNORE)
            assert mine == theirs, f"{what} has to be {theirs}, not {mine} ({hint})"


def _label_hint(
    ids: list[int], t: int, header: list[int], marks: tuple[int, int], learned: bool
) -> str:
    """Why a token has a label, or why not."""
    end, image = marks
    if learned:
        return "the end of an answer is trained on too" if ids[t] == end else "part of an answer"
    if ids[t] == image:
        return "placeholders of images are not trained on"
    begin = max((s for s in range(t + 1) if ids[s] == header[0]), default=0)
    answer = ids[begin : begin + len(header)] == header
    if answer and t < begin + len(header):
        return "the header is given, the answer begins after it"
    if answer:
        return "the answer ends with its <|im_end|>"
    word = header[1:]
    if any(ids[s : s + len(word)] == word for s in range(begin + 1, t)):
        return "only a header with <|im_start|> opens an answer, a user may write the word"
    return "only what the assistant says is trained on"


# The loss (section 2.3)

LABELLED = {  # 0 is an id as any other
    "one answer of three tokens": [[IGNORE, IGNORE, IGNORE, 4, 0, 6]],
    "answers of one and of four tokens": [
        [IGNORE, IGNORE, 2, IGNORE, IGNORE, IGNORE],
        [IGNORE, 7, 1, 9, 8, IGNORE],
    ],
    "rows whose first token has a label": [[6, IGNORE, 3, 2], [5, IGNORE, IGNORE, 1]],
}


def check_answer_loss(answer_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Rows with answers of unequal length; a label of the first token counts for nothing."""
    torch.manual_seed(0)
    given, got, right = {}, {}, {}
    for case, rows in LABELLED.items():
        labels = torch.tensor(rows)
        given[case] = 2 * torch.randn(*labels.shape, 11), labels
        loss = answer_loss(*(x.clone() for x in given[case]))
        loss = torch.as_tensor(loss) if isinstance(loss, float) else loss
        got[case] = expect_tensor(loss, (), f"{case}: the loss is one number")
        right[case] = _mean_loss(*_shifted(*given[case]))
    mistakes = {
        what: {case: mistake(*inputs) for case, inputs in given.items()}
        for what, mistake in LOSS_MISTAKES.items()
    }
    name_mistake(right, got, mistakes)


def _shifted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits before each token, and the label of that token."""
    return logits[:, :-1], labels[:, 1:]


def _token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, T), 0 where there is no label."""
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return _token_losses(logits, labels).sum() / (labels != IGNORE).sum()


def _row_means(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of the rows' means."""
    losses, labels = _token_losses(*_shifted(logits, labels)), labels[:, 1:]
    return (losses.sum(dim=1) / (labels != IGNORE).sum(dim=1)).mean()


LOSS_MISTAKES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "not shifted: the logits at t predict token t + 1": _mean_loss,
    "shifted the wrong way: the logits at t predict token t + 1, not t - 1": (
        lambda logits, labels: _mean_loss(logits[:, 1:], labels[:, :-1])
    ),
    "a mean over all tokens: divide by the number of tokens that have a label": (
        lambda logits, labels: _token_losses(*_shifted(logits, labels)).mean()
    ),
    "a sum: give the mean over the tokens that have a label": (
        lambda logits, labels: _token_losses(*_shifted(logits, labels)).sum()
    ),
    "a mean of the rows' means: each token counts the same, whichever row it is in": _row_means,
    "a label of -100 became a token to predict: leave these tokens out": (
        lambda logits, labels: _mean_loss(*_shifted(logits, labels.clamp(min=0)))
    ),
    "softmax before cross_entropy, which applies it itself": (
        lambda logits, labels: _mean_loss(*_shifted(logits.softmax(-1), labels))
    ),
    "the last token of a row predicts the first of the next row: shift before you flatten": (
        lambda logits, labels: F.cross_entropy(
            logits.flatten(0, 1)[:-1], labels.flatten()[1:], ignore_index=IGNORE
        )
    ),
    "the sign: a loss is minus the log-probability": (
        lambda logits, labels: -_mean_loss(*_shifted(logits, labels))
    ),
}


# The splice (section 2.4)

SPLICED = {  # which tokens are placeholders, and how many images of how many vectors
    "one image in one row": ([[0, 1, 1, 0, 0]], 1, 2),
    "an image in each row, at different places": ([[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]], 2, 3),
    "two images of one vector in the first row": ([[1, 0, 1], [0, 0, 0]], 2, 1),
    "two images in the second row, none in the first": (
        [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 1]],
        2,
        2,
    ),
    "no image at all": ([[0, 0, 0]], 0, 2),
}


def check_splice(splice: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Images in one row, in several, in none; every token is looked at."""
    torch.manual_seed(0)
    for case, (rows, images, each) in SPLICED.items():
        places = torch.tensor(rows).bool()
        embeds, vectors = torch.randn(*places.shape, 5), torch.randn(images, each, 5)
        given = embeds.clone()
        got = expect_tensor(splice(given, places.clone(), vectors.clone()), embeds.shape, case)
        written = f"{case}: your function writes into embeds: copy them first"
        assert torch.equal(given, embeds), written
        waiting = iter(range(images * each))
        for b, t in ((b, t) for b, row in enumerate(rows) for t in range(len(row))):
            number = next(waiting) if places[b, t] else None
            said = _splice_hint(got[b, t], embeds[b, t], vectors, number)
            assert not said, f"{case}: row {b}, token {t} {said}"


def _splice_hint(got: Tensor, embed: Tensor, vectors: Tensor, number: int | None) -> str:
    """What is wrong with one token: text, or the place of a visual vector."""
    if number is None:
        return "" if near(got, embed) else "is text: its embedding has to stay"
    flat = vectors.flatten(0, 1)
    if near(got, flat[number]):
        return ""
    name = "vector {1} of image {0}".format(*divmod(number, vectors.shape[1]))
    if near(got, embed):
        return f"is a placeholder, and still has its own embedding: {name} goes there"
    if near(got, embed + flat[number]):
        return f"has {name} added: the placeholder's embedding is replaced"
    for other in range(len(flat)):
        if near(got, flat[other]):
            wrong = "vector {1} of image {0}".format(*divmod(other, vectors.shape[1]))
            return f"has {wrong}, not {name}: vectors go in order, whichever row they are in"
    return f"is a placeholder: {name} goes there, unchanged"


# Image tokens (section 3.1)


def check_image_ids(image_ids: Callable[[Tensor, int, int, int], Tensor]) -> None:
    """Grids that are not square, one image and two."""
    torch.manual_seed(0)
    given, got, right = {}, {}, {}
    for case, shape in {"one image of 2 x 3 codes": (1, 2, 3), "two of 3 x 2": (2, 3, 2)}.items():
        codes = torch.randperm(12)[: torch.Size(shape).numel()].view(shape)
        given[case] = codes
        answer = image_ids(codes.clone(), 50, 48, 49)
        got[case] = expect_ids(answer, (len(codes), 8), f"{case}: the codes between two marks")
        right[case] = _marked(codes.flatten(1) + 50)
    mistakes = {
        what: {case: mistake(codes) for case, codes in given.items()}
        for what, mistake in IMAGE_ID_MISTAKES.items()
    }
    name_mistake(right, got, mistakes)


def _marked(ids: Tensor, start: int = 48, end: int = 49) -> Tensor:
    return F.pad(F.pad(ids, (1, 0), value=start), (0, 1), value=end)


IMAGE_ID_MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "without text_size: code 0 would be the text's token 0": lambda c: _marked(c.flatten(1)),
    "one too high: code 0 is token text_size": lambda c: _marked(c.flatten(1) + 51),
    "one too low: the ids of the text end at text_size - 1": lambda c: _marked(c.flatten(1) + 49),
    "column by column: the codes are read row by row": (
        lambda c: _marked(c.transpose(1, 2).flatten(1) + 50)
    ),
    "the marks are swapped": lambda c: _marked(c.flatten(1) + 50, 49, 48),
    "text_size is added to the marks too: add it to the codes only": (
        lambda c: _marked(c.flatten(1) + 50, 98, 99)
    ),
    "the images are in another order": lambda c: _marked(c.flip(0).flatten(1) + 50),
}


# Gated cross-attention (section 3.3)

Gated = Callable[..., Tensor]  # of text, image, mask, gate and the four weights
SEEN = {  # the gate, and which of the 5 image vectors each of the 4 words sees
    "an open gate": (0.7, [[1, 1, 1, 1, 1]] * 4),
    "a negative gate": (-1.5, [[1, 1, 1, 1, 1]] * 4),
    "two images": (0.9, [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]),
    "a word before any image": (0.5, [[0, 0, 0, 0, 0], *[[1, 1, 1, 0, 0]] * 3]),
    "a closed gate": (0.0, [[1, 1, 1, 1, 1]] * 4),
}


def check_gated_attention(gated_attention: Gated) -> None:
    """Gates of both signs and at zero, and words that see all, some or none of the image."""
    torch.manual_seed(0)
    given, got, right = {}, {}, {}
    weights = tuple(torch.randn(shape) / 2 for shape in ((6, 9), (3, 9), (3, 9), (9, 6)))
    for case, (gate, rows) in SEEN.items():
        text, image, mask = torch.randn(4, 6), torch.randn(5, 3), torch.tensor(rows).bool()
        given[case] = text, image, mask, torch.tensor([gate])
        answer = gated_attention(*(x.clone() for x in given[case]), weights)
        got[case] = expect_tensor(answer, (4, 6), f"{case}: one vector for each of 4 words")
        right[case] = _gated(*given[case], weights)
    blind = got["a word before any image"]
    assert not blind[0].isnan().any(), "a word before any image: nan; its attention has to be 0"
    assert not any(x.isnan().any() for x in got.values()), "nan, where every word sees an image"
    mistakes = {
        what: {case: _gated(*inputs, weights, flaw) for case, inputs in given.items()}
        for what, flaw in GATED_MISTAKES.items()
    }
    name_mistake(right, got, mistakes)


def _gated(
    text: Tensor,
    image: Tensor,
    mask: Tensor,
    gate: Tensor,
    weights: tuple[Tensor, ...],
    flaw: str = "",
) -> Tensor:
    """The reference, with at most one flaw."""
    query, key, value, out = weights
    q, k, v = text @ query, image @ key, image @ (key if flaw == "value" else value)
    scale = {"scale": 1.0, "width": text.shape[1] ** 0.5}.get(flaw, q.shape[1] ** 0.5)
    scores = (q @ k.T / scale).masked_fill(mask if flaw == "mask" else ~mask, float("-inf"))
    scores = q @ k.T / scale if flaw == "no mask" else scores
    scores = scores.clamp(min=-1e9) if flaw == "finite" else scores
    update = scores.softmax(dim=0 if flaw == "axis" else 1).nan_to_num() @ v @ out
    opened = {"gate": gate, "sigmoid": gate.sigmoid(), "open": torch.ones(1)}.get(flaw, gate.tanh())
    sees = mask.any(dim=1, keepdim=True)
    kept = {"residual": 0 * text, "both": opened * text, "late": sees * text}.get(flaw, text)
    return kept + opened * update


GATED_MISTAKES = {
    "the gate is used as it is: it goes through tanh": "gate",
    "the gate goes through a sigmoid, which is 0.5 at zero: use tanh": "sigmoid",
    "the gate is missing": "open",
    "the text is missing: add the update to it": "residual",
    "the gate multiplies the text too: it belongs to the update alone": "both",
    "the scores are not divided by the root of the width of the queries": "scale",
    "the scores are divided by the root of the text's width, not the queries'": "width",
    "the mask is inverted: True means that the word may look": "mask",
    "the mask is not used": "no mask",
    "a word that sees nothing gets the mean of all image vectors: its update is 0": "finite",
    "a word that sees nothing loses its text: clear nan in the weights, not at the end": "late",
    "softmax over the words: each word has weights over the image, which sum to 1": "axis",
    "the keys are used as values: the values have weights of their own": "value",
}
