"""What notebooks share: source in colour, reports on exercises, measured masks, diagrams."""

import builtins
from functools import cached_property, lru_cache, partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_hex
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from mistune import create_markdown
from torch import Tensor, nn

from minivlm import diagrams, lesson, plotting, scenes
from minivlm.lesson import (
    Arrow,
    Box,
    Group,
    Picture,
    Tokens,
    diagram,
    feed,
    obeyed,
    replay,
    report,
    show_source,
    verdict,
)

# Source


class Shown:
    """Has one of each kind of thing that can be shown."""

    def method(self) -> str:
        """Of two
        lines.
        """
        return "method"

    @property
    def a_property(self) -> str:
        return "property"

    @cached_property
    def a_cached_property(self) -> str:
        return "cached property"

    @classmethod
    def a_class_method(cls) -> str:
        return "class method"

    @staticmethod
    def a_static_method() -> str:
        return "static method"


@lru_cache
def decorated() -> str:
    return "``` decorated"


def printed(capsys: pytest.CaptureFixture, *objects: object) -> str:
    show_source(*objects)
    return capsys.readouterr().out


def test_source_is_shown_under_its_file_without_indentation(capsys):
    text = printed(capsys, Shown.method)
    assert text.startswith("# test_lesson.py, class Shown\ndef method(self) -> str:\n")
    assert '\n    """Of two\n    lines.\n    """\n    return "method"\n' in text


@pytest.mark.parametrize(
    ("thing", "word"),
    [
        (Shown.a_property, "property"),
        (Shown.a_cached_property, "cached property"),
        (Shown.a_class_method, "class method"),
        (vars(Shown)["a_class_method"], "class method"),
        (Shown.a_static_method, "static method"),
        (Shown().method, "method"),
        (decorated, "``` decorated"),
        (partial(decorated), "``` decorated"),
    ],
)
def test_whatever_holds_a_function_shows_that_function(thing, word, capsys):
    assert printed(capsys, thing).rstrip().endswith(f'return "{word}"')


def test_a_file_is_named_once_for_neighbours_and_anew_for_others(capsys):
    text = printed(capsys, plotting.show_masks, plotting.show_mask, Shown, plotting.show_boxes)
    places = [line for line in text.splitlines() if line.startswith("# ")]
    assert places == ["# minivlm/plotting.py", "# test_lesson.py", "# minivlm/plotting.py"]


def test_the_file_of_a_folder_is_its_init(capsys):
    assert lesson.origin(torch.nn.functional.relu) == "# torch/nn/functional.py"
    assert lesson.origin(torch.is_tensor) == "# torch/__init__.py"


def test_what_a_notebook_defines_is_not_shown_again(capsys):
    here: dict = {"__name__": "__main__"}
    exec("def f(): pass", here)
    with pytest.raises(ValueError, match="f is defined in this notebook"):
        show_source(here["f"])


def test_a_notebook_gets_markdown_and_plain_text_without_an_address():
    data, _ = DisplayFormatter().format(lesson.Source("x = 1"))
    assert data == {"text/plain": "x = 1", "text/markdown": "```python\nx = 1\n```"}


def test_without_ipython_source_is_printed(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("IPython"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert 'return "``` decorated"' in printed(capsys, decorated)


LINES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp", "Cs")))


BACKTICKS = st.integers(3, 9).map("`".__mul__)


@given(st.lists(LINES | BACKTICKS | st.text("`~ x", max_size=9), min_size=1).filter(any))
def test_a_fence_holds_any_source(lines):
    code = "\n".join(lines)
    parsed = create_markdown(renderer=None)(lesson.Source(code)._repr_markdown_())
    assert [block["type"] for block in parsed] == ["block_code"]
    assert parsed[0]["raw"].removesuffix("\n") == code
    assert parsed[0]["attrs"] == {"info": "python"}


# Exercises


def check_double(double) -> None:
    for n in (1, 2, 30):
        got = double(n)
        assert got == 2 * n, f"{n}: {2 * n}, not {got}"


def old_report(check, function) -> None:
    """What each notebook had before."""
    try:
        check(function)
    except NotImplementedError:
        print(f"{function.__name__}: not written yet")
    except AssertionError as error:
        print(f"{function.__name__}: {error}")
    else:
        print(f"{function.__name__}: correct")


def stub(n: int) -> int:
    raise NotImplementedError


def squared(n: int) -> int:
    return n * n


def doubled(n: int) -> int:
    return n + n


@pytest.mark.parametrize("function", [stub, squared, doubled])
def test_reports_read_as_they_did(function, capsys):
    assert report(check_double, function) is None  # a cell that ends with it shows nothing else
    new = capsys.readouterr().out
    old_report(check_double, function)
    assert new == capsys.readouterr().out


def outside(n: int) -> int:
    return [2, 4][n - 1]


def nothing(n: int) -> None:
    pass


def from_torch(n: int) -> Tensor:
    return torch.zeros(2, 3) @ torch.zeros(n)


def check_sum(function) -> None:
    assert function(2).sum() == 4, "wrong"


def check_one(function) -> None:
    assert function(1) == 1, "wrong"


def test_an_exception_is_put_into_words_with_its_line_and_the_input():
    assert verdict(check_double, outside) == (
        "your function raised IndexError: list index out of range at `return [2, 4][n - 1]`, "
        "for this input: 30"
    )


def test_the_exception_of_a_library_is_the_function_s_own():
    text = verdict(check_one, from_torch)
    assert text.startswith("your function raised RuntimeError: ")
    assert text.endswith("`return torch.zeros(2, 3) @ torch.zeros(n)`, for this input: 1")


def test_a_result_that_the_check_cannot_use_is_shown():
    assert verdict(check_sum, nothing) == (
        "the check stopped with AttributeError: 'NoneType' object has no attribute 'sum' "
        'at `assert function(2).sum() == 4, "wrong"`; your function returned None, '
        "for this input: 2"
    )


def test_an_exception_after_the_last_call_is_the_check_s():
    def check(function) -> None:
        function(1)
        raise KeyError("mine")

    assert verdict(check, doubled).startswith("the check stopped with KeyError: 'mine'")
    assert "your function returned 2, for this input: 1" in verdict(check, doubled)
    assert verdict(lambda function: 1 / 0, doubled).startswith("the check stopped with Zero")


def test_a_condition_without_a_message_is_quoted():
    def check(function) -> None:
        if function(3) != 7:
            raise AssertionError

    text = verdict(check, doubled)
    assert "AssertionError at `raise AssertionError`; your function returned 6" in text


def test_a_generator_that_breaks_off_is_the_reader_s():
    def pieces(text):
        yield text[0]
        yield text[1]

    def check(function) -> None:
        assert list(function("ab")) == ["a", "b"]
        list(function("x"))

    text = verdict(check, pieces)
    assert text.startswith("your function raised IndexError: string index out of range")
    assert text.endswith("at `yield text[1]`, for this input: 'x'")


def test_a_class_is_handed_on_as_it_is_and_its_methods_are_the_reader_s():
    class Layer(nn.Module):
        def forward(self, x):
            return x.no_such_thing

    def check(layer) -> None:
        assert issubclass(layer, nn.Module)
        layer()(torch.zeros(2))

    text = verdict(check, Layer)
    assert "your function raised AttributeError" in text and "x.no_such_thing" in text


def test_only_an_empty_not_implemented_error_means_not_written():
    def unfinished(n):
        raise NotImplementedError("for Half")

    assert verdict(check_double, stub) == "not written yet"
    assert verdict(check_double, unfinished).startswith("your function raised NotImplementedError")


def test_a_call_with_the_wrong_number_of_arguments_is_put_into_words():
    text = verdict(check_one, lambda: 1)
    assert "your function raised TypeError" in text and text.endswith("for this input: 1")


def test_the_input_is_what_was_given_not_what_became_of_it():
    def clears(items):
        items.clear()
        return items[0]

    assert verdict(lambda f: f([1, 2]), clears).endswith("for this input: [1, 2]")


def fails(*args, **options):
    message = "two\nrows"
    raise ValueError(message)


def test_inputs_are_short_and_hold_no_address():
    big = torch.zeros(20, 3)
    given = (big, torch.arange(3), list(range(99)), "a" * 300, Shown())
    text = verdict(lambda f: f(*given, eps=None), fails)
    assert "a float32 tensor (20, 3), tensor([0, 1, 2]), [0, 1, 2, 3" in text
    assert "<test_lesson.Shown object>, eps=None" in text and "rows" not in text
    assert len(text) < 500


def test_a_function_that_notebooks_cannot_quote_is_reported_all_the_same():
    here: dict = {}
    exec(compile("def f(n):\n    return 1 / 0\n", "<cell>", "exec"), here)
    expected = "your function raised ZeroDivisionError: division by zero, for this input: 1"
    assert verdict(check_double, here["f"]) == expected


@given(st.sampled_from([ValueError, KeyError, RecursionError, StopIteration, AssertionError]))
def test_no_exception_gets_out(kind):
    def function(n):
        raise kind

    assert kind.__name__ in verdict(check_double, function)


# Masks


class Block(nn.Module):
    """Residual attention under a mask, with a cache for steps."""

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Linear(width, 3 * width)
        self.past: list[Tensor] = []

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        self.past.append(x)
        seen = torch.cat(self.past, dim=1)
        q, (_, k, v) = self.project(x).chunk(3, 2)[0], self.project(seen).chunk(3, 2)
        scores = (q @ k.transpose(1, 2)).masked_fill(~mask[-x.shape[1] :], -torch.inf)
        return x + scores.softmax(dim=2) @ v


class Model(nn.Module):
    """Two blocks; embeddings that are all alike, as those of placeholders are."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.embedding = nn.Parameter(torch.zeros(width))

    def forward(self, mask: Tensor, *lengths: int, batch: int = 1) -> None:
        for block in self.blocks:
            block.past.clear()
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            x = self.embedding.expand(batch, length, -1)
            for block in self.blocks:
                x = block(x, mask[:end, :end])


def closed(mask: Tensor) -> Tensor:
    """What can be reached in any number of steps."""
    for _ in range(len(mask)):
        mask = (mask.float() @ mask.float()).bool() | mask
    return mask


@given(st.integers(2, 6), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_model_obeys_the_mask_that_it_is_given(length, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(length, length, generator=generator) < 0.3
    mask = closed(mask | torch.eye(length).bool())  # two blocks reach no further than one
    model = Model()
    assert torch.equal(obeyed(model.blocks, lambda: model(mask, length)), mask)


@pytest.mark.parametrize("lengths", [(5,), (3, 2), (3, 1, 1), (1, 1, 1, 1, 1)])
def test_passes_behind_a_cache_add_up_to_one_mask(lengths):
    causal, model = torch.ones(5, 5).tril().bool(), Model()
    assert torch.equal(obeyed(model.blocks, lambda: model(causal, *lengths)), causal)


def test_one_block_of_several_can_be_measured_alone():
    model, chain = Model(), torch.eye(4).bool() | torch.eye(4).roll(1, 0).tril().bool()
    first = obeyed(model.blocks[:1], lambda: model(chain, 4))
    assert torch.equal(first, chain) and int(chain.sum()) == 7
    both = obeyed(model.blocks, lambda: model(chain, 4))
    assert torch.equal(both, (chain.float() @ chain.float()).bool())


def test_measuring_leaves_no_hook_and_draws_no_global_random_number():
    model, causal, before = Model(), torch.ones(3, 3).tril().bool(), torch.get_rng_state()
    obeyed(model.blocks, lambda: model(causal, 3))
    with pytest.raises(ZeroDivisionError):
        obeyed(model.blocks, lambda: 1 / 0)
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
    assert not any(hooks) and torch.equal(before, torch.get_rng_state())


def test_a_batch_and_another_number_of_positions_are_refused():
    model, causal = Model(), torch.ones(3, 3).tril().bool()
    with pytest.raises(ValueError, match="one sequence; 2 entered"):
        obeyed(model.blocks, lambda: model(causal, 3, batch=2))
    with pytest.raises(ValueError, match="more than 2 positions enter"):
        replay(model.blocks, lambda: model(causal, 3), torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="only 3 of 4 positions entered"):
        for block in model.blocks:
            block.past.clear()
        with feed(model.blocks[0], torch.zeros(1, 4, 6)):
            model.blocks[0](torch.zeros(1, 3, 6), causal)


def test_fed_vectors_enter_in_place_of_the_model_s():
    model, full, x = Model(), torch.ones(3, 3).bool(), torch.randn(1, 3, 6)
    out = replay(model.blocks, lambda: model(full, 3), x)
    with feed(model.blocks[0], x):
        model(full, 3)
    assert torch.equal(model.blocks[0].past[0], x)
    for block in model.blocks:
        block.past.clear()
        x = block(x, full)
    assert torch.equal(out, x)


# Diagrams


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def refused(*parts, **options) -> str:
    """Why a diagram cannot be read."""
    with pytest.raises(ValueError, match="the diagram cannot be read") as error:
        diagram(*parts, **options)
    return str(error.value)


def two_towers() -> list:
    """A diagram with every part that there is."""
    image = scenes.load("test")[0].image
    return [
        Picture("image", (0, 0), image, (4, 4)),
        Picture("patches", (2, 0), image, (4, 4), 1.5, True, section="2.1"),
        Picture("video", (4, 0), [image] * 3, (2, 2), 0.3),
        Box("tower", (0.6, 1.6), "all blocks\nbut the last", False, kind="image", section="2.2"),
        Box("head", (1.8, 1.6), "Linear", True, kind="text"),
        Box("sum", (3, 1.6), "no weights"),
        Tokens("row", (1.6, 2.8), "◆ ▪ ▪ a star ? ·", spans={"places": (1, 3)}, section="2.3"),
        Tokens("answer", (4, 2.8), "red ◆", filled=[1, 1], kind="text"),
        Tokens("queries", (4, 1.6), ["?"] * 2, ["query"] * 2, title=""),
        Group("× 12", ["tower", "head"], "2.4"),
        "image -> (64, 64, 3) -> patches ->  -> video",
        "tower -> (16, D) -> head -> (16, D) [2.5] -> sum",
        Arrow("row", "answer", "(T, V)"),
        Arrow("sum", "queries", kind="query", dashed="gradient"),
    ]


def test_a_diagram_has_the_size_and_the_type_of_a_notebook():
    figure = diagram(*two_towers(), columns=5)
    assert figure.get_size_inches()[0] * 100 + 20 <= 952  # with the border that notebooks add
    sizes = [text.get_fontsize() for text in figure.findobj(plt.Text) if text.get_text()]
    assert len(sizes) > 30 and min(sizes) >= 8
    assert figure in map(plt.figure, plt.get_fignums())  # plt.show() will show it


def test_a_diagram_has_the_same_size_every_time():
    assert repr(diagram(*two_towers(), columns=5)) == repr(diagram(*two_towers(), columns=5))


def test_the_legend_explains_what_occurs_and_nothing_else():
    def legend(*parts) -> list[str]:
        return [text.get_text() for text in diagram(*parts).axes[0].get_legend().texts]

    kinds = ["text", "▪ image", "? query", "◆ special", "· padding"]
    states = ["frozen part", "trained part", "token trained on", "gradient"]
    assert legend(*two_towers()) == kinds + states
    assert legend(Box("a", (0, 0))) == []
    assert legend(Box("a", (0, 0), trained=True, kind="query")) == ["? query", "trained part"]
    assert legend(Tokens("a", (1, 0), "x", filled=[1], meaning="true pair")) == [
        "text",
        "true pair",
    ]


def test_kinds_have_the_colours_of_the_masks():
    green = plotting.KINDS["query"][0]
    plain, trained, frozen = (
        diagram(Box("a", (0, 0), trained=state, kind="query")).axes[0].patches
        for state in (None, True, False)
    )
    assert {to_hex(patch.get_edgecolor()).upper() for patch in plain} == {green}
    assert [to_hex(patch.get_facecolor()) for patch in plain] == ["#ffffff"]
    assert [patch.get_facecolor()[:3] for patch in trained] == [diagrams.tint(green)]
    assert [patch.get_hatch() for patch in frozen] == [None, "/////", None]
    with pytest.raises(ValueError, match="unknown kind 'picture'"):
        diagram(Box("a", (0, 0), kind="picture"))


def test_a_text_that_does_not_fit_into_its_box_is_refused():
    message = refused(Box("a", (0, 0), "much too long a line"), columns=5)
    assert "'much too long a line' does not fit into 'a'" in message


def test_lines_that_are_too_many_for_a_box_are_refused():
    assert "does not fit into" in refused(Box("a", (0, 0), "1\n2\n3\n4\n5"), columns=5)


def test_two_labels_on_each_other_are_refused():
    a, b, c, d = Box("a", (0, 0)), Box("b", (2, 0)), Box("c", (0, 1)), Box("d", (2, 1))
    assert diagram(a, b, c, d, "a -> (B, D) -> b", "c -> (B, D) -> d")
    there, back = Arrow("a", "b", "(one, D)"), Arrow("b", "a", "(two, D)")
    assert "'(one, D)' and '(two, D)' overlap" in refused(a, b, there, back)


def test_arrows_that_cross_are_refused():
    a, b, c, d = Box("a", (0, 0)), Box("b", (2, 0)), Box("c", (0, 1)), Box("d", (2, 1))
    crossed = Arrow("a", "d", column=1.1), Arrow("b", "c", column=0.9)
    assert "the arrows a -> d and b -> c cross" in refused(a, b, c, d, *crossed)
    assert diagram(a, b, c, d, Arrow("a", "d", column=1.1), Arrow("d", "c"))


def test_a_label_without_room_is_refused():
    text = refused(Box("a", (0, 0)), Box("b", (1, 0)), "a -> (1, 2, 3, 4, 5, 6, 7) -> b", columns=6)
    assert "'a' and '(1, 2, 3, 4, 5, 6, 7)' overlap" in text


def test_a_badge_takes_more_room_than_its_number():
    canvas = lesson.drawn([Box("a", (0, 0), section="2.1")], columns=5, row=1.0)
    (badge,) = [item for item in canvas.texts if item.words == "2.1"]
    canvas.figure.draw_without_rendering()
    assert lesson.measured(badge).width > badge.at.get_window_extent().width / 100 + 0.02


def test_an_arrow_without_room_is_refused():
    boxes = Box("a", (0, 0), size=(0.96, 0.5)), Box("b", (1, 0), size=(0.96, 0.5))
    assert "the arrow a -> b is too short" in refused(*boxes, Arrow("a", "b"), columns=6)


def test_an_arrow_through_a_part_or_a_text_is_refused_and_one_around_it_is_not():
    boxes = [Box(name, (column, 0)) for column, name in enumerate("abc")]
    assert "the arrow a -> c crosses 'b'" in refused(*boxes, Arrow("a", "c"))
    assert diagram(*boxes, Arrow("a", "c", "around", row=-0.8))
    note = Box("note", (1, 0.5), outline=False, size=(0.3, 0.3))
    above, below = Box("above", (1, -0.6)), Box("below", (1, 1.6))
    assert "crosses 'note'" in refused(note, above, below, Arrow("above", "below"))


def test_parts_on_each_other_and_outside_the_page_are_refused():
    assert "'a' and 'b' overlap" in refused(Box("a", (0, 0)), Box("b", (0.3, 0)), columns=3)
    assert "'a' does not fit into 'the page'" in refused(Box("a", (2.4, 0)), columns=2)


def test_a_group_holds_its_members_and_their_groups_and_nothing_crosses_its_frame():
    boxes = [Box(name, (column, 0)) for column, name in enumerate("abcd")]
    inner, outer = Group("× 2", ["b", "c"]), Group("× 3", ["a", "× 2"], "2.1")
    assert diagram(*boxes, inner, outer, "a ->  -> b ->  -> c ->  -> d")
    assert "'b' and 'a and c' overlap" in refused(*boxes, Group("a and c", ["a", "c"]))
    assert "'x' and 'y' overlap" in refused(*boxes, Group("x", "ab"), Group("y", "bc"))


@settings(max_examples=25, deadline=None)
@given(st.from_regex(r"[!-#%-~]( ?[!-#%-~]){0,30}", fullmatch=True))
def test_a_box_takes_the_texts_that_are_narrower_than_it_is(label):
    """Measured a second time from the outlines of the letters, without a renderer."""
    path = TextPath((0, 0), label, size=8, prop=FontProperties(family="DejaVu Sans"), usetex=False)
    width, room = path.get_extents().width / 72, 0.58 * diagrams.WIDTH / 6 - 0.06
    if abs(width - room) < 0.08:
        return
    box = Box("a", (0, 0), label)
    if width < room:
        assert diagram(box, columns=6)
    else:
        assert "does not fit into" in refused(box, columns=6)
    plt.close("all")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12)), min_size=2, max_size=4))
def test_a_diagram_is_refused_exactly_where_its_boxes_overlap(places):
    at = [(x / 4, y / 4) for x, y in places]
    boxes = [Box(f"n{i}", place, size=(0.6, 0.6)) for i, place in enumerate(at)]
    pairs = [(a, b) for i, a in enumerate(at) for b in at[:i]]
    overlap = any(abs(a[0] - b[0]) < 0.6 and abs(a[1] - b[1]) < 0.6 for a, b in pairs)
    if overlap:
        assert "overlap" in refused(*boxes, columns=6)
    else:
        assert diagram(*boxes, columns=6)
    plt.close("all")


NAMES = st.text("abc xyz()×,1", min_size=1, max_size=8).map(str.strip).filter(bool)


@given(st.lists(st.tuples(NAMES, NAMES | st.just(""), st.sampled_from(["", "2.1"])), min_size=1))
def test_a_path_is_read_as_it_is_written(steps):
    written = "".join(
        f"{name} -> {label}{f' [{section}]' if section else ''} -> "
        for name, label, section in steps
    )
    arrows = lesson.along(written + "end")
    assert [(a.source, a.label, a.section) for a in arrows] == steps
    assert [a.target for a in arrows] == [name for name, _, _ in steps[1:]] + ["end"]
    assert lesson.along(f"{written}end; x -> y -> z") == [*arrows, Arrow("x", "z", "y")]


def test_an_arrow_leaves_and_reaches_edges_straight_or_with_elbows():
    a, b = diagrams.around((1, 1), 1, 1), diagrams.around((4, 3), 2, 1)
    right = diagrams.around((4, 1.2), 1, 1)
    canvas = diagrams.Canvas(5, 1.0)

    def route(target, **options):
        points = Arrow("a", "b", **options)._route(canvas, a, target)
        return [tuple(round(float(n), 6) for n in point) for point in points]

    assert route(right) == [(1.5, 1.0), (3.5, 1.0)]
    assert route(b) == [(1.5, 1.0), (4.0, 1.0), (4.0, 2.5)]
    assert route(b, bend="vh") == [(1.0, 1.5), (1.0, 3.0), (3.0, 3.0)]
    assert route(b, row=2) == [(1.0, 1.5), (1.0, 2.0), (4.0, 2.0), (4.0, 2.5)]
    x = round(diagrams.WIDTH / 5, 6)
    assert route(b, column=0.5) == [(1.5, 1.0), (x, 1.0), (x, 3.0), (3.0, 3.0)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([Box("a", (0, 0)), Arrow("a", "b")], "no part is called 'b'"),
        ([Box("a", (0, 0)), Box("a", (1, 0))], "two parts are called 'a'"),
        ([Box("a", (0, 0)), "a -> b"], "a path is part"),
        ([Tokens("a", (0, 0), "x y", ["text"])], r"tokens \(1, 2\), kinds \(1, 1\)"),
    ],
)
def test_a_mistake_in_a_description_is_named(parts, message):
    with pytest.raises(ValueError, match=message):
        diagram(*parts)


def test_tokens_are_marked_once_and_a_matrix_has_equal_cells():
    figure = diagram(
        Tokens("row", (1, 0), "◆ ▪ a ?"),
        Tokens("matrix", (1, 2), [["1", "22"], ["333", "4"]], [["image"] * 2] * 2, torch.eye(2)),
    )
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["◆", "▪", "a", "?", "row", "▪ 1", "▪ 22", "▪ 333", "▪ 4", "matrix"]
    cells = [p for p in figure.axes[0].patches if to_hex(p.get_edgecolor()) == "#d55e00"][-4:]
    assert len({round(cell.get_width(), 9) for cell in cells}) == 1


def test_patches_lie_side_by_side_in_reading_order():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    figure = diagram(Picture("p", (0, 0), image, (2, 2), apart=True))
    shown = sorted(figure.axes[0].images, key=lambda tile: tile.get_extent()[0])
    corners = [int(tile.get_array()[0, 0]) for tile in shown]
    assert corners == [0, 2, 8, 10]


def test_the_front_of_a_stack_is_its_first_image():
    images = [np.full((4, 4, 3), shade, dtype=np.uint8) for shade in (0, 100, 200)]
    figure = diagram(Picture("p", (0, 0), images))
    front = max(figure.axes[0].images, key=lambda image: image.get_zorder())
    assert len(figure.axes[0].images) == 3 and front.get_array().max() == 0


def test_a_refused_diagram_leaves_no_figure_behind():
    refused(Box("a", (0, 0), "much too long a line"), columns=6)
    assert plt.get_fignums() == []


def test_a_dollar_sign_is_a_dollar_sign():
    texts = diagram(Box("a", (0, 0), "$x$ 2$")).axes[0].texts
    assert [text.get_text() for text in texts] == ["a", "$x$ 2$"]
    assert not any(text.get_parse_math() for text in texts)
