"""Runs an experiment row by row and seed by seed; its figures go to data/results/NN_what.json.

    python experiments/06_blip_ablations.py --seeds 0 1 2 [--rows 0 3] [--steps 300]

A script declares an Experiment and hands it to ``main``. The file is written whole after every
row: a run that was stopped goes on with the row it was at. Figures of other settings never enter
the file; --fresh begins a new one.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from platform import python_version

import numpy
import torch

from minivlm.parts.training import progress
from minivlm.results import FOLDER

Measure = Callable[[str, int], dict[str, float]]  # a row's name, a seed -> figures by column
KEYS = "experiment question command versions steps train_scenes test_scenes columns rows notes"


@dataclass(frozen=True)
class Settings:
    """What is equal for all figures of a file."""

    steps: int | dict[str, int]  # of training, by stage where there are several
    train_scenes: int
    test_scenes: int  # of each split


@dataclass(frozen=True)
class Experiment:
    """A table that one script makes."""

    name: str  # that of its script and of its file of results
    question: str  # one sentence
    rows: list[str]
    columns: dict[str, str]  # name -> what is measured; it begins with "%" if that is the unit
    settings: Settings  # of the committed table
    prepare: Callable[[Settings], Measure]  # draws the data, and returns what makes a row of it
    notes: str = ""


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """The command line of every experiment; bad input ends it with one line."""
    chosen = parse(experiment, arguments)
    path = chosen.out / f"{experiment.name}.json"
    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
        if chosen.fresh:
            path.unlink(missing_ok=True)
        content = load_file(path, experiment, chosen.settings)
    except (ValueError, OSError) as error:
        sys.exit(f"{experiment.name}: {error}")
    done = {(row["row"], row["seed"]) for row in content["rows"]}
    todo = [(row, seed) for row in chosen.rows for seed in chosen.seeds if (row, seed) not in done]
    torch.set_num_threads(chosen.threads)
    measure = experiment.prepare(chosen.settings) if todo else None
    for row, seed in (bar := progress(todo, desc=experiment.name)):
        began = time.process_time()
        figures = {name: round(value, 4) for name, value in measure(row, seed).items()}
        made = {"row": row, "seed": seed, "figures": figures}
        made["seconds"] = round(time.process_time() - began, 1)
        now = load_file(path, experiment, chosen.settings)  # another process may add rows as well
        write_file(path, add(now, made, experiment, chosen))
        bar.write(f"{row}, seed {seed}: {figures}", file=sys.stdout)


def percent(shares: dict[str, float]) -> dict[str, float]:
    """Shares of one -> percents."""
    return {name: 100 * share for name, share in shares.items()}


# The command line


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}\n")


def parse(experiment: Experiment, arguments: Sequence[str] | None) -> argparse.Namespace:
    """-> seeds, rows (names), settings, threads, out, fresh."""
    parser, usual = Parser(experiment.name, description=experiment.question), experiment.settings
    option = parser.add_argument
    option("--seeds", type=int, nargs="+", default=[0])
    option("--rows", nargs="+", default=experiment.rows, help="names or numbers, the first is 0")
    option("--steps", type=int, nargs="+", help="a number for each stage of the training")
    option("--train-scenes", type=int, default=usual.train_scenes)
    option("--test-scenes", type=int, default=usual.test_scenes, help="of each split")
    option("--threads", type=int, default=1)
    option("--out", type=Path, default=FOLDER, help="folder for the results")
    option("--fresh", action="store_true", help="forget the rows that are there")
    chosen = parser.parse_args(arguments)
    counts = [*(chosen.steps or []), chosen.train_scenes, chosen.test_scenes, chosen.threads]
    if min(counts) < 1 or min(chosen.seeds) < 0:
        parser.error("steps, scenes and threads are numbers from 1, seeds from 0")
    try:
        chosen.rows = [*dict.fromkeys(_row(name, experiment.rows) for name in chosen.rows)]
        steps = _steps(chosen.steps, usual.steps)
    except ValueError as error:
        parser.error(str(error))
    chosen.seeds = [*dict.fromkeys(chosen.seeds)]
    chosen.settings = Settings(steps, chosen.train_scenes, chosen.test_scenes)
    return chosen


def _row(name: str, rows: list[str]) -> str:
    if name in rows:
        return name
    if name.isdecimal() and int(name) < len(rows):
        return rows[int(name)]
    raise ValueError(f"no row {name!r}; rows: {'; '.join(rows)}")


def _steps(given: list[int] | None, usual: int | dict[str, int]) -> int | dict[str, int]:
    if given is None:
        return usual
    stages = [*usual] if isinstance(usual, dict) else ["of the training"]
    if len(given) != len(stages):
        raise ValueError(f"--steps wants {len(stages)} numbers ({', '.join(stages)}), not {given}")
    return dict(zip(stages, given, strict=True)) if isinstance(usual, dict) else given[0]


# The file


def load_file(path: Path, experiment: Experiment, settings: Settings) -> dict:
    """The file's content, or that of a new one; a ValueError if its figures are of another kind."""
    new = {"experiment": experiment.name, "versions": versions()} | asdict(settings)
    if not path.exists():
        return new | {"columns": experiment.columns, "rows": [], "notes": experiment.notes}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if content["versions"] is None:  # carried over from elsewhere, as its notes say
        del new["versions"]
    there = content | {"columns": [*content["columns"]]}
    new |= {"columns": [*experiment.columns]}
    other = [f"{k} {there[k]} there, {new[k]} here" for k in new if there[k] != new[k]]
    if strange := {row["row"] for row in content["rows"]} - {*experiment.rows}:
        other.append(f"rows {sorted(strange)} there, not here")
    if other:
        raise ValueError(f"{path} has other settings: {'; '.join(other)} (--fresh begins anew)")
    return content


def add(content: dict, made: dict, experiment: Experiment, chosen: argparse.Namespace) -> dict:
    """The file's content with one more row."""
    rows = [*content["rows"], made]
    rows.sort(key=lambda row: (experiment.rows.index(row["row"]), row["seed"]))
    seeds = sorted({row["seed"] for row in rows})
    command = f"python experiments/{experiment.name}.py --seeds {' '.join(map(str, seeds))}"
    for key, value in asdict(chosen.settings).items():
        if value != getattr(experiment.settings, key):
            values = value.values() if isinstance(value, dict) else [value]
            command += f" --{key.replace('_', '-')} {' '.join(map(str, values))}"
    command += f" --threads {chosen.threads}" if chosen.threads > 1 else ""
    new = {"question": experiment.question, "command": command, "versions": versions()}
    new |= {"columns": experiment.columns, "rows": rows}
    return {key: (content | new)[key] for key in KEYS.split()}


def write_file(path: Path, content: dict) -> None:
    """First beside the file, then in its place: never half a file."""
    check(content)
    beside = path.with_name(path.name + ".part")
    beside.write_text(as_text(content), encoding="utf-8")
    beside.replace(path)


def as_text(content: dict) -> str:
    """JSON with a line for each row."""
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in content["rows"])
    frame = json.dumps(content | {"rows": []}, ensure_ascii=False, indent=1)
    return frame.replace('"rows": []', f'"rows": [\n{rows}\n ]') + "\n"


def versions() -> dict[str, str]:
    """Of what figures may depend on."""
    torch_version = str(torch.__version__)
    return {"python": python_version(), "torch": torch_version, "numpy": numpy.__version__}


def check(content: dict) -> None:
    """A ValueError says what is wrong with a file of results."""
    if not isinstance(content, dict) or [*content] != KEYS.split():
        raise ValueError(f"the keys are not {KEYS}")
    seen = set()
    for row in content["rows"]:
        if [*row] != ["row", "seed", "figures", "seconds"] or not row["figures"]:
            raise ValueError(f"not a row with its figures: {row}")
        if (name := f"{row['row']!r} with seed {row['seed']}") in seen:
            raise ValueError(f"row {name} is there twice")
        seen.add(name)
        for column, value in row["figures"].items():
            number = type(value) in (int, float) and isfinite(value)
            if column not in content["columns"] or not number:
                raise ValueError(f"row {name}: {column} {value} is no column or no number")
