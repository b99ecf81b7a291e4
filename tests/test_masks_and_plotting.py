"""Masks as functions, what a model obeys as measured from gradients, and the figures."""

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivlm import plotting
from minivlm.parts import masks
from minivlm.parts.layers import Attention, attend, attention_weights


def test_masks_of_three_positions_are_the_ones_on_paper():
    assert masks.bidirectional(3).tolist() == [[True] * 3] * 3
    assert masks.causal(3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert masks.prefix(3, 2).int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert masks.padding(torch.tensor([[1, 1, 0], [0, 1, 1]])).int().tolist() == [
        [[[1, 1, 0]]],
        [[[0, 1, 1]]],
    ]


@given(st.integers(1, 12), st.integers(0, 12))
def test_a_causal_mask_with_a_past_is_the_last_rows_of_the_whole_one(length, past):
    assert torch.equal(masks.causal(length, past), masks.causal(length + past)[past:])


@given(st.integers(1, 12))
def test_a_prefix_mask_lies_between_causal_and_bidirectional(length):
    assert torch.equal(masks.prefix(length, 0), masks.causal(length))
    assert torch.equal(masks.prefix(length, length), masks.bidirectional(length))


@pytest.mark.parametrize("seed", range(4))
def test_attention_obeys_exactly_the_mask_it_is_given(seed):
    generator = torch.Generator().manual_seed(seed)
    declared = torch.rand(7, 7, generator=generator) < 0.5
    declared |= torch.eye(7, dtype=torch.bool)  # a row without any key has no softmax
    torch.manual_seed(seed)
    layer = Attention(12, 3)
    x = torch.randn(1, 7, 12, generator=generator)
    assert torch.equal(plotting.effective_mask(lambda x: layer(x, declared), x), declared)


def test_effective_mask_sees_through_sums_that_cancel():
    """The features of a layer norm sum to zero; projected on ones, they depend on nothing."""
    x = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(
        plotting.effective_mask(torch.nn.LayerNorm(6, dtype=torch.float64), x), torch.eye(4).bool()
    )


def test_effective_mask_of_a_rectangle_has_queries_as_rows():
    x = torch.randn(5, 3)
    assert plotting.effective_mask(lambda x: x[[4, 0]], x).int().tolist() == [
        [0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0],
    ]


def test_attention_weights_are_those_of_the_fused_kernel():
    q, k, v = (torch.randn(2, 3, n, 8) for n in (5, 7, 7))
    mask = torch.rand(5, 7) < 0.7
    mask[:, 0] = True
    weights = attention_weights(q, k, mask)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 5))
    assert torch.allclose(weights @ v, attend(q, k, v, mask), atol=1e-6)


def test_show_mask_draws_one_square_a_pair_and_labels_both_sides():
    kinds = ["special", "image", "text"]
    ax = plotting.show_mask(masks.causal(3), ["<s>", "p0", "cat"], kinds, title="causal")
    assert ax.images[0].get_array().shape == (3, 3)
    assert [tick.get_text()[-1] for tick in ax.get_xticklabels()] == [">", "0", "t"]
    assert len(ax.get_legend().get_texts()) == 3
    plt.close("all")


def test_show_tokens_draws_one_box_a_token_filled_where_it_is_trained_on():
    kinds, trained = ["special", "image", "text", "text"], [False, False, True, True]
    ax = plotting.show_tokens(["<s>", "1", " cat", "\n"], kinds, trained, width=12, title="a row")
    boxes, texts = ax.patches, [text.get_text() for text in ax.texts]
    assert [
        text.removeprefix(plotting.KINDS[kind][1]) for text, kind in zip(texts, kinds, strict=True)
    ] == [*("<s>", "1", "␣cat", "⏎")]
    white = (1.0, 1.0, 1.0, 1.0)
    assert [box.get_facecolor() != white for box in boxes] == trained
    assert boxes[0].get_edgecolor() != boxes[1].get_edgecolor() != boxes[2].get_edgecolor()
    assert (
        max(box.get_y() for box in boxes) > 0
        and max(box.get_x() + box.get_width() for box in boxes) <= 12
    )
    assert [text.get_text()[-5:] for text in ax.get_legend().get_texts()][-2:] == ["arned", "arned"]
    assert len(plotting.show_tokens(["a"], ["text"]).get_legend().get_texts()) == 1
    plt.close("all")


def test_show_images_and_curves_draw_what_they_are_given():
    figure = plotting.show_images([torch.rand(3, 4, 4)] * 5, list("abcde"), columns=3)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c", "d", "e", ""]
    ax = plotting.show_curves({"one": [3.0, 1.0, 2.0], "two": [1.0, 1.0, 1.0]}, smooth=2)
    assert list(ax.lines[0].get_ydata()) == [2.0, 1.5] and list(ax.lines[0].get_xdata()) == [1, 2]
    plt.close("all")


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda: masks.prefix(3, 4), "4"),
        (lambda: masks.padding(torch.ones(3)), r"\(3,\)"),
        (lambda: masks.padding(torch.tensor([[0, 2]])), "2"),
        (lambda: plotting.show_mask(torch.ones(2, 2, 2)), r"\(2, 2, 2\)"),
        (lambda: plotting.show_mask(torch.ones(2, 2), ["a"]), "1 labels"),
        (lambda: plotting.show_mask(torch.ones(2, 2), ["a", "b"], ["text", "sound"]), "sound"),
        (lambda: plotting.effective_mask(lambda x: x, torch.ones(2, 3, 4)), r"\(2, 3, 4\)"),
        (lambda: plotting.show_images([]), "0 images"),
        (lambda: plotting.show_tokens(["a"], ["text", "text"]), "2 kinds"),
        (lambda: plotting.show_tokens(["a"], ["text"], [True, False]), "2 flags"),
        (lambda: plotting.show_tokens(["a"], ["sound"]), "text"),
    ],
)
def test_bad_input_is_refused_by_name(call, names):
    with pytest.raises(ValueError, match=names):
        call()
    plt.close("all")


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_tokens_of_one_run_see_each_other_and_no_others(places):
    number, count = [], 0
    for i, inside in enumerate(places):
        count += inside and (i == 0 or not places[i - 1])
        number.append(count if inside else None)
    mask = masks.runs(torch.tensor([places]))[0, 0]
    expected = [[a is not None and a == b for b in number] for a in number]
    assert mask.tolist() == expected
