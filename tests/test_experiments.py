"""Experiments: the runner, the files in data/results, and what may be claimed of their figures."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from math import isclose
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import notebook_checks
import runner
from minivlm import results
from minivlm.results import NO_DIFFERENCE, Results
from notebook_env import ROOT

EXPERIMENTS = ROOT / "experiments"
SCRIPTS = sorted(path.stem for path in EXPERIMENTS.glob("[0-9][0-9]_*.py"))


def script(name: str) -> ModuleType:
    """experiments/name.py: its name begins with a number, so no import statement can name it."""
    spec = spec_from_file_location(f"experiment_{name}", EXPERIMENTS / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The files in data/results


def test_each_results_file_has_a_script_and_each_script_a_results_file() -> None:
    assert SCRIPTS, "no experiments"
    assert [f"{name}.json" for name in SCRIPTS] == sorted(p.name for p in results.FOLDER.iterdir())


@pytest.mark.parametrize("name", SCRIPTS)
def test_results_are_those_of_the_script(name: str) -> None:
    experiment = script(name).EXPERIMENT
    found = json.loads((results.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert experiment.name == found["experiment"] == name
    assert found["question"] == experiment.question and found["columns"] == experiment.columns
    assert (
        runner.Settings(found["steps"], found["train_scenes"], found["test_scenes"])
        == experiment.settings
    )
    assert {row["row"] for row in found["rows"]} <= {*experiment.rows}
    assert found["command"].startswith(f"python experiments/{name}.py --seeds ")
    assert found["notes"].startswith(experiment.notes)


@pytest.mark.parametrize("name", SCRIPTS)
def test_results_file_is_valid(name: str) -> None:
    text = (results.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    found = json.loads(text)
    runner.check(found)
    assert text == runner.as_text(found), "not as the runner writes it"
    assert found["rows"] and re.fullmatch(r"[A-Z][^.?]*\?", found["question"])
    assert found["versions"] or "versions unknown" in found["notes"]
    for row in found["rows"]:
        assert type(row["seed"]) is int and row["seed"] >= 0
        assert row["seconds"] is None or row["seconds"] > 0
        percents = [v for c, v in row["figures"].items() if found["columns"][c].startswith("%")]
        assert all(0 <= value <= 100 for value in percents)
        assert all(value == round(value, 4) for value in row["figures"].values())


@pytest.mark.parametrize("name", SCRIPTS)
def test_first_row_of_every_script_runs_with_tiny_settings(name: str, tmp_path: Path) -> None:
    experiment = script(name).EXPERIMENT
    stages = len(experiment.settings.steps) if isinstance(experiment.settings.steps, dict) else 1
    tiny = ["--steps", *["1"] * stages, "--train-scenes", "64", "--test-scenes", "16"]
    runner.main(experiment, [*tiny, "--rows", "0", "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    assert row["row"] == experiment.rows[0] and {*row["figures"]} == {*experiment.columns}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_results_file_makes_a_table(name: str) -> None:
    found = results.read(name)
    lines = found.table().splitlines()
    assert len(lines) == 2 + len(found.names) + 2
    assert {line.count("|") for line in lines[:-2]} == {len(found.columns) + 3}


@pytest.mark.parametrize(
    "change", ["key", "column", "nan", "text", "flag", "twice", "empty", "list"]
)
def test_a_broken_results_file_is_refused(change: str) -> None:
    found = json.loads((results.FOLDER / f"{SCRIPTS[0]}.json").read_text(encoding="utf-8"))
    first, column = found["rows"][0], next(iter(found["rows"][0]["figures"]))
    if change == "key":
        del found["notes"]
    elif change == "twice":
        found["rows"].append(first)
    elif change == "empty":
        first["figures"] = {}
    elif change == "column":
        first["figures"]["beauty"] = 1.0
    elif change == "list":
        found = [found]
    else:
        first["figures"][column] = {"nan": float("nan"), "text": "12", "flag": True}[change]
    with pytest.raises(ValueError):
        runner.check(found)


# Reading results


def made(**rows: list[float]) -> Results:
    """Results of one column, "x": a row's figures, a seed each."""
    cells = [
        {"row": row, "seed": seed, "figures": {"x": value}, "seconds": None}
        for row, values in rows.items()
        for seed, value in enumerate(values)
    ]
    return Results("python experiments/00_made.py", {"x": "% of something", "y": "a length"}, cells)


NUMBERS = st.floats(-1e6, 1e6)
SEEDS = st.lists(NUMBERS, min_size=2, max_size=6)


@given(SEEDS)
def test_mean_and_standard_error_are_numpys(values: list[float]) -> None:
    found = made(a=values)
    assert found.values("a", "x") == values
    assert isclose(found.mean("a", "x"), np.mean(values), rel_tol=1e-9, abs_tol=1e-6)
    expected = np.std(values, ddof=1) / np.sqrt(len(values))
    assert isclose(found.error("a", "x"), expected, rel_tol=1e-6, abs_tol=1e-6)


@given(SEEDS, SEEDS)
def test_a_comparison_names_the_higher_mean_or_nobody(a: list[float], b: list[float]) -> None:
    found = made(a=a, b=b)
    gap = np.mean(a) - np.mean(b)
    error = np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    said = found.compare("a", "b", "x")
    if abs(abs(gap) - 2 * error) > 1e-6 * (1 + abs(gap) + error):
        higher = "a" if gap > 0 else "b"
        assert said == (higher if abs(gap) > 2 * error else NO_DIFFERENCE)
    assert said == found.compare("b", "a", "x"), "the order of the two rows must not matter"
    assert said == made(a=a[::-1], b=b[::-1]).compare("a", "b", "x"), "nor that of the seeds"


@given(NUMBERS, SEEDS)
def test_one_seed_claims_nothing(one: float, many: list[float]) -> None:
    found = made(a=[one], b=many, c=[one + 1])
    assert found.error("a", "x") is None
    assert found.compare("a", "b", "x") == found.compare("a", "c", "x") == NO_DIFFERENCE


@given(SEEDS)
def test_a_row_does_not_differ_from_itself(values: list[float]) -> None:
    assert made(a=values, b=values).compare("a", "b", "x") == NO_DIFFERENCE


@pytest.mark.parametrize(
    ("b", "said"),
    [
        ([2.5, 4.5], NO_DIFFERENCE),
        ([3, 5], "b"),
        ([-2, 0], "a"),
        ([2, 2], NO_DIFFERENCE),
        ([3, 3], "b"),
    ],
)
def test_two_standard_errors_are_a_difference_and_less_is_none(b: list[float], said: str) -> None:
    assert made(a=[2, 2], b=b).compare("a", "b", "x") == said  # the error of b's mean is 1, or 0


def test_a_claim_holds_against_each_of_the_others() -> None:
    found = made(a=[50, 51, 52], b=[10, 11, 12], c=[50, 52, 54], d=[9])
    found.claim("a", "b", column="x")
    found.claim("a", column="x")
    for other in ("c", "d", "a"):
        with pytest.raises(AssertionError, match=f"x: 'a' has 51.0.*{other}.*no difference seen"):
            found.claim("a", "b", other, column="x")
    with pytest.raises(AssertionError, match="x: 'b' has 11.0 ± 0.6 against 51.0 ± 0.6 of 'a': a"):
        found.claim("b", "a", column="x")


def test_table_shows_mean_and_error_and_no_error_of_one_seed() -> None:
    cells = [
        {
            "row": "one",
            "seed": 0,
            "figures": {"right": 42, "size": 1234, "IoU": 0.69},
            "seconds": 1,
        },
        {"row": "two", "seed": 0, "figures": {"right": 42, "size": 1234}, "seconds": 1},
        {"row": "two", "seed": 1, "figures": {"right": 43.25, "size": 1234}, "seconds": 1},
    ]
    columns = {"right": "% of answers", "size": "number of parameters", "IoU": "0 to 1"}
    found = Results("python experiments/00_made.py --seeds 0 1", columns, cells)
    assert found.table() == (
        "| | right (%) | size | IoU | seeds |\n"
        "|---|---:|---:|---:|---:|\n"
        "| one | 42 | 1,234 | 0.690 | 1 |\n"
        "| two | 42.6 ± 0.6 | 1,234 | – | 2 |\n"
        "\n"
        "Mean ± standard error over seeds. `python experiments/00_made.py --seeds 0 1`"
    )
    assert found.table(["size"], ["two"]).splitlines()[2] == "| two | 1,234 | 2 |"
    alone = found.table(rows=["one"])
    assert "One seed: no difference can be claimed. `python" in alone and "±" not in alone


def test_a_wrong_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no results '06_flip' in results; known: .*06_capfilt"):
        results.read("06_flip")
    with pytest.raises(ValueError, match=r"no results 'x' .*known: none"):
        results.read("x", tmp_path)
    found = made(a=[1, 2])
    for row, column in (("b", "x"), ("a", "z")):
        with pytest.raises(ValueError, match=f"{row}.*{column}"):
            found.values(row, column)
    with pytest.raises(ValueError, match="'a' has no figure in 'y'"):
        found.compare("a", "a", "y")


# The runner

FAKE = """
import os
from pathlib import Path
from runner import Experiment, Settings, main

CALLS = Path(__file__).with_name("calls")

def prepare(settings):
    def measure(row, seed):
        with CALLS.open("a") as calls:
            print(row, seed, file=calls)
        if os.environ.get("DIE_AT") == f"{row} {seed}":
            os.kill(os.getpid(), 9)
        return {"score": 100 / (1 + seed + settings.steps["second"]), "size": 7}
    return measure

EXPERIMENT = Experiment(
    name=Path(__file__).stem,
    question="Does it run?",
    rows=["a", "b", "c"],
    columns={"score": "% of it", "size": "number of it"},
    settings=Settings({"first": 1, "second": 2}, train_scenes=8, test_scenes=4),
    prepare=prepare,
    notes="A fake.",
)

if __name__ == "__main__":
    main(EXPERIMENT)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """run(*arguments): the calls that a fake experiment then makes, in this process."""
    (tmp_path / "00_fake.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.delenv("DIE_AT", raising=False)
    spec = spec_from_file_location("fake_experiment", tmp_path / "00_fake.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: str) -> list[str]:
        module.CALLS.write_text("", encoding="utf-8")
        runner.main(module.EXPERIMENT, [*arguments, "--out", str(tmp_path)])
        return module.CALLS.read_text(encoding="utf-8").splitlines()

    return run


def content(folder: Path) -> dict:
    return json.loads((folder / "00_fake.json").read_text(encoding="utf-8"))


def test_runner_writes_what_the_design_asks_for(fake, tmp_path: Path) -> None:
    assert fake("--seeds", "1", "0") == ["a 1", "a 0", "b 1", "b 0", "c 1", "c 0"]
    found = content(tmp_path)
    seconds = {row.pop("seconds") for row in found["rows"]}
    assert all(value >= 0 for value in seconds)
    assert found.pop("versions").keys() == {"python", "torch", "numpy"}
    figures = {0: {"score": 33.3333, "size": 7}, 1: {"score": 25.0, "size": 7}}
    assert found == {
        "experiment": "00_fake",
        "question": "Does it run?",
        "command": "python experiments/00_fake.py --seeds 0 1",
        "steps": {"first": 1, "second": 2},
        "train_scenes": 8,
        "test_scenes": 4,
        "columns": {"score": "% of it", "size": "number of it"},
        "rows": [{"row": r, "seed": s, "figures": figures[s]} for r in "abc" for s in (0, 1)],
        "notes": "A fake.",
    }
    assert [path.name for path in tmp_path.glob("*.json*")] == ["00_fake.json"], (
        "nothing is left over"
    )
    assert results.read("00_fake", tmp_path).cell("b", "score") == "29.2 ± 4.2"


def test_a_killed_run_goes_on_without_repeating_rows(fake, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{EXPERIMENTS}")
    monkeypatch.setenv("DIE_AT", "b 1")
    command = [sys.executable, tmp_path / "00_fake.py", "--seeds", "0", "1", "--out", tmp_path]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -9
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert calls == ["a 0", "a 1", "b 0", "b 1"]
    assert [(row["row"], row["seed"]) for row in content(tmp_path)["rows"]] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
    ]
    monkeypatch.delenv("DIE_AT")
    assert fake("--seeds", "0", "1") == ["b 1", "c 0", "c 1"]
    runner.check(content(tmp_path))
    assert fake("--seeds", "0", "1") == []


def test_rows_are_chosen_by_name_or_number_and_seeds_are_added_later(fake, tmp_path: Path) -> None:
    assert fake("--rows", "c", "0", "c") == ["c 0", "a 0"]
    assert fake("--seeds", "5", "--rows", "2") == ["c 5"]
    assert fake("--seeds", "0", "5", "5") == ["a 5", "b 0", "b 5"]
    assert content(tmp_path)["command"] == "python experiments/00_fake.py --seeds 0 5"
    assert [row["row"] for row in content(tmp_path)["rows"]] == ["a", "a", "b", "b", "c", "c"]


def test_command_has_the_settings_that_are_unusual(fake, tmp_path: Path) -> None:
    fake("--steps", "1", "4", "--test-scenes", "9", "--train-scenes", "8")
    command = "python experiments/00_fake.py --seeds 0 --steps 1 4 --test-scenes 9"
    assert content(tmp_path)["command"] == command
    assert content(tmp_path)["rows"][0]["figures"]["score"] == 20


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (
            ["--steps", "1", "3"],
            r"steps {'first': 1, 'second': 2} there, {'first': 1, 'second': 3} here",
        ),
        (["--test-scenes", "5"], "test_scenes 4 there, 5 here"),
        (["--train-scenes", "5"], "train_scenes 8 there, 5 here"),
    ],
)
def test_other_settings_are_refused_and_the_difference_is_named(
    fake, tmp_path: Path, arguments: list[str], difference: str
) -> None:
    fake()
    before = (tmp_path / "00_fake.json").read_bytes()
    with pytest.raises(SystemExit) as refused:
        fake(*arguments)
    assert re.search(f"^00_fake: .*{difference}.*--fresh", refused.value.code)
    assert "\n" not in refused.value.code
    assert (tmp_path / "00_fake.json").read_bytes() == before
    assert fake(*arguments, "--fresh") == ["a 0", "b 0", "c 0"]


@pytest.mark.parametrize("change", ["versions", "columns", "experiment", "rows"])
def test_figures_of_another_kind_are_refused(fake, tmp_path: Path, change: str) -> None:
    fake("--rows", "a")
    found = content(tmp_path)
    if change == "rows":
        found["rows"][0]["row"] = "z"
    else:
        new = {"versions": {"python": "2.7"}, "columns": found["columns"] | {"more": ""}}
        found[change] = new.get(change, "01_other")
    (tmp_path / "00_fake.json").write_text(runner.as_text(found), encoding="utf-8")
    with pytest.raises(SystemExit, match=f"{change} .*there"):
        fake()


def test_rows_are_added_to_figures_of_unknown_versions(fake, tmp_path: Path) -> None:
    fake("--rows", "a")
    found = content(tmp_path) | {
        "versions": None,
        "notes": "A fake. Carried over; versions unknown.",
    }
    (tmp_path / "00_fake.json").write_text(runner.as_text(found), encoding="utf-8")
    assert fake() == ["b 0", "c 0"]
    assert content(tmp_path)["notes"] == found["notes"]
    assert content(tmp_path)["versions"] == runner.versions()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--rows", "d"], "no row 'd'; rows: a; b; c"),
        (["--rows", "3"], "no row '3'"),
        (["--rows", "-1"], "no row '-1'"),
        (["--seeds", "-1"], "--seeds|from 0"),
        (["--seeds", "x"], "--seeds.*'x'"),
        (["--steps", "5"], r"--steps wants 2 numbers \(first, second\), not \[5\]"),
        (["--steps", "5", "0"], "from 1"),
        (["--threads", "0"], "from 1"),
        (["--test-scenes", "0"], "from 1"),
        (["--what"], "--what"),
    ],
)
def test_bad_input_ends_in_one_line(fake, capsys, arguments: list[str], error: str) -> None:
    with pytest.raises(SystemExit) as ended:
        fake(*arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.search(error, said) and said.count("\n") == 1


def test_a_broken_file_ends_in_one_line(fake, tmp_path: Path) -> None:
    for text, error in (("{", "Expecting"), ("[]", "the keys are not"), ("{}", "the keys are not")):
        (tmp_path / "00_fake.json").write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit, match=f"^00_fake: [^\n]*00_fake.json: {error}[^\n]*$"):
            fake()


def one_row(figure: float) -> runner.Experiment:
    """An experiment of one row and one figure."""
    settings = runner.Settings(1, 1, 1)
    prepare = lambda settings: lambda row, seed: {"x": figure}
    return runner.Experiment("00_one", "Is it a number?", ["a"], {"x": "it"}, settings, prepare)


def test_a_folder_that_cannot_be_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match="^00_one: [^\n]*file[^\n]*$"):
        runner.main(one_row(1.0), ["--out", str(tmp_path / "file")])


def test_a_figure_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 'a' with seed 0: x nan"):
        runner.main(one_row(float("nan")), ["--out", str(tmp_path)])
    assert not (tmp_path / "00_one.json").exists()


# Tables in notebooks

TABLE = re.compile(r"(?m)^\|.*\|[ \t]*\n\|[ \t:|-]+\|[ \t]*\n(?:\|.*\|[ \t]*(?:\n|\Z))+")


def tables_with_numbers(nb: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """(id of the cell, first line) of each Markdown table with a number in its body."""
    found = []
    for cell in nb.cells:
        if cell.cell_type != "markdown":
            continue
        for table in TABLE.findall(cell.source):
            head, _, *rows = table.splitlines()
            cells = [text for row in rows for text in row.strip().strip("|").split("|")[1:]]
            if any(re.search(r"\d", re.sub(r"`[^`]*`", "", text)) for text in cells):
                found.append((cell.id, head))
    return found


# Cells whose tables hold no figure that was measured: those of papers and a toy's settings beside
# them, ids of published vocabularies, and what is drawn.
PUBLISHED = {
    "00_language_model": {"training"},
    "01_bpe_tokenizer": {"measure", "wrong-ids", "interview-walkthrough"},
    "02_vit_patches": {"train"},
    "03_vqvae_codes": {"train"},
    "04_multimodal_tokens": {"relation-read", "splice"},
    "05_clip_siglip": {"train", "published", "lineage"},
    "08_llava": {"stages"},
    "09_qwen_vl": {"stages"},
    "10_qwen_mrope": {"worth"},
}


@pytest.mark.parametrize("path", notebook_checks.main_notebooks(), ids=lambda path: path.stem)
def test_no_measured_table_is_typed(path: Path) -> None:
    typed = {cell for cell, _ in tables_with_numbers(notebook_checks.read(path))}
    assert typed - PUBLISHED.get(path.stem, set()) == set()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_results_file_is_read_by_its_notebook(name: str) -> None:
    (path,) = notebook_checks.NOTEBOOKS.glob(f"{name[:2]}_*.ipynb")
    code = "\n".join(cell.source for cell in notebook_checks.read(path).cells)
    assert f'results.read("{name}")' in code


def test_tables_with_numbers_are_found() -> None:
    text = "Before.\n\n| a | b |\n|---|--:|\n| one | 1.5 % |\n| two | – |\n\nBetween 3 and 4.\n\n"
    text += "| c | d |\n|---|---|\n| 7 | `<1>` |\n\n| no | table | 3 |\n"
    cells = [
        nbformat.v4.new_markdown_cell(text, id="typed"),
        nbformat.v4.new_code_cell(text, id="code"),
    ]
    cells.append(nbformat.v4.new_markdown_cell("| e | f |\n|:-:|---|\n| x | 2 |", id="last"))
    nb = nbformat.v4.new_notebook(cells=cells)
    assert tables_with_numbers(nb) == [("typed", "| a | b |"), ("last", "| e | f |")]
