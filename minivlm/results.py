"""The notebooks' tables: figures by row and seed, which experiments/ wrote to data/results.

A figure is claimed to be higher only where several seeds say so: see ``Results.compare``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from statistics import mean, stdev

FOLDER = Path(__file__).parent.parent / "data" / "results"
NO_DIFFERENCE = "no difference seen"


def read(name: str, folder: Path = FOLDER) -> "Results":
    """The results of experiments/``name``.py."""
    path = folder / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
        raise ValueError(f"no results {name!r} in {folder.name}; known: {known or 'none'}")
    content = json.loads(path.read_text(encoding="utf-8"))
    return Results(content["command"], content["columns"], content["rows"])


@dataclass(frozen=True)
class Results:
    """What one experiment measured."""

    command: str  # makes the table again
    columns: dict[str, str]  # name -> what is measured; it begins with "%" if that is the unit
    rows: list[dict]  # each with "row", "seed", "figures" (column -> number) and "seconds"

    @property
    def names(self) -> list[str]:
        """The rows' names, in the order of the table."""
        return [*dict.fromkeys(row["row"] for row in self.rows)]

    def values(self, row: str, column: str) -> list[float]:
        """The figures of one cell, a seed each; empty if this row was not measured so."""
        if row not in self.names or column not in self.columns:
            raise ValueError(f"no cell {row!r}, {column!r} in the results")
        figures = [entry["figures"] for entry in self.rows if entry["row"] == row]
        return [by_column[column] for by_column in figures if column in by_column]

    def mean(self, row: str, column: str) -> float:
        """Over the seeds."""
        if not (values := self.values(row, column)):
            raise ValueError(f"{row!r} has no figure in {column!r}")
        return mean(values)

    def error(self, row: str, column: str) -> float | None:
        """The standard error of the mean over seeds; None for fewer than two of them."""
        values = self.values(row, column)
        return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None

    def compare(self, a: str, b: str, column: str) -> str:
        """The row with the higher mean, or "no difference seen".

        That is said of a single seed, and of means that are closer than two standard errors of
        their difference; the seeds of the two rows count as independent.
        """
        gap = self.mean(a, column) - self.mean(b, column)
        error_a, error_b = self.error(a, column), self.error(b, column)
        if error_a is None or error_b is None:  # a single seed
            return NO_DIFFERENCE
        if gap == 0 or abs(gap) < 2 * hypot(error_a, error_b):
            return NO_DIFFERENCE
        return a if gap > 0 else b

    def claim(self, winner: str, *others: str, column: str) -> None:
        """Assert that a row is higher than each of the others, as ``compare`` sees it."""
        for other in others:
            seen = self.compare(winner, other, column)
            cells = f"{self.cell(winner, column)} against {self.cell(other, column)} of {other!r}"
            assert seen == winner, f"{column}: {winner!r} has {cells}: {seen}"

    def cell(self, row: str, column: str) -> str:
        """One cell as text: the mean, and the standard error if there are several seeds."""
        if not self.values(row, column):
            return "–"
        value, error = self.mean(row, column), self.error(row, column)
        percent = self.columns[column].startswith("%")
        if isinstance(value, int) and (error is None or not (percent or error)):
            return f"{value:,}"  # a count, or known to whole percents
        digits = 1 if percent else 3
        return f"{value:,.{digits}f}" + ("" if error is None else f" ± {error:,.{digits}f}")

    def table(self, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> str:
        """Markdown: the chosen columns and rows (all), and the command below."""
        columns, rows = columns or [*self.columns], rows or self.names
        heads = [f"{name} (%)" if self.columns[name].startswith("%") else name for name in columns]
        seeds = {row: sum(entry["row"] == row for entry in self.rows) for row in rows}
        lines = [f"| | {' | '.join(heads)} | seeds |", f"|---{'|---:' * (len(columns) + 1)}|"]
        for row in rows:
            cells = [self.cell(row, column) for column in columns]
            lines.append(f"| {row} | {' | '.join(cells)} | {seeds[row]} |")
        what = "Mean ± standard error over seeds."
        if max(seeds.values()) < 2:
            what = "One seed: no difference can be claimed."
        return "\n".join([*lines, "", f"{what} `{self.command}`"])
