"""Compared scores as a Markdown table for people and a document for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from examples.compare import Difference, Scores, against


@dataclass(frozen=True)
class Unit:
    """How scores are told."""

    name: str
    better: str
    scale: float
    digits: int

    def tell(self, difference: Difference) -> str:
        """A signed difference and its standard error."""
        value, error = difference.value * self.scale, difference.error * self.scale
        return f"{value:+.{self.digits}f} ± {error:.{self.digits}f}"


NATS = Unit("nats per token", "less", 1.0, 3)
RIGHT = Unit("% right", "more", 100.0, 1)


def table(scores: Mapping[str, Mapping[str, Scores]], unit: Unit) -> str:
    """A Markdown table: a line per model, a column per text and one for their mean.

    scores: {model: {text: scores}}. Each entry is the mean score and, but for the first model, its
    difference from the first with the standard error of that.
    """
    baseline = next(iter(scores))
    texts = list(scores[baseline])
    lines = [["model", *texts, "mean"]]
    for model, by_text in scores.items():
        means = [by_text[text].mean for text in texts]
        differences = against(scores, model, baseline)
        cells = []
        for mean, column in zip([*means, sum(means) / len(means)], [*texts, "mean"], strict=True):
            cell = f"{mean * unit.scale:.{unit.digits}f}"
            if model != baseline:
                cell += f" ({unit.tell(differences[column])})"
            cells.append(cell)
        lines.append([model, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"


def summary(scores: Mapping[str, Mapping[str, Scores]], unit: Unit) -> str:
    """The table and what it means, as Markdown."""
    baseline = next(iter(scores))
    counts = ", ".join(f"{len(s.units)} of {text}" for text, s in scores[baseline].items())
    lines = [
        table(scores, unit),
        "",
        f"Held-out {unit.name}; {unit.better} is better. In brackets: the difference from",
        f"{baseline} ± its standard error, paired over rows ({counts}).",
    ]
    if {"linear", "fisher"} <= scores.keys():
        parts = [
            f"{text} {unit.tell(d)}{'' if d.clear else ' (no clear difference)'}"
            for text, d in against(scores, "fisher", "linear").items()
        ]
        lines.append(f"Fisher merge less linear merge: {'; '.join(parts)}.")
    return "\n".join(lines) + "\n"


def results(scores: Mapping[str, Mapping[str, Scores]], unit: Unit) -> dict[str, object]:
    """The same for machines, with two more digits."""
    baseline = next(iter(scores))

    def told(new: str, old: str) -> dict[str, object]:
        return {
            text: {
                "difference": round(d.value * unit.scale, unit.digits + 2),
                "standard_error": round(d.error * unit.scale, unit.digits + 2),
            }
            for text, d in against(scores, new, old).items()
        }

    document: dict[str, object] = {
        "unit": unit.name,
        "rows": {text: len(s.units) for text, s in scores[baseline].items()},
        "mean": {
            model: {t: round(s.mean * unit.scale, unit.digits + 2) for t, s in by_text.items()}
            for model, by_text in scores.items()
        },
        f"against {baseline}": {m: told(m, baseline) for m in scores if m != baseline},
    }
    if {"linear", "fisher"} <= scores.keys():
        document["fisher against linear"] = told("fisher", "linear")
    return document
