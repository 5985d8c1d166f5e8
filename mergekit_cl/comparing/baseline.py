"""The release before: a `divergence.json` (or `check --json`) that a check is held against."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from mergekit_cl.decide.policy import LOSSY_BELOW, METRICS
from mergekit_cl.decide.worse import is_worse
from mergekit_cl.divergence.summary import FORMAT
from mergekit_cl.divergence.verdict import Finding
from mergekit_cl.errors import FormatError, InputError

Values = dict[str, float]


@dataclass(frozen=True)
class Baseline:
    """rows: {(level, name): {parent: its metrics}}; parents in their order."""

    path: str
    parents: tuple[str, ...]
    rows: dict[tuple[str, str], dict[str, Values]]

    def before(self, finding: Finding, parents: Sequence[str]) -> float | None:
        """What the metric of a finding was; None for a name or metric that is new.

        The parent is the one of the same path, else the one in the same place of as many parents,
        else the one for which the metric was worst.
        """
        found = self.rows.get((finding.level, finding.name), {})
        metric = finding.metric
        if finding.parent in self.parents:
            return found.get(finding.parent, {}).get(metric)
        if len(parents) == len(self.parents):
            there = self.parents[parents.index(finding.parent)]
            return found.get(there, {}).get(metric)
        values = [one[metric] for one in found.values() if metric in one]
        worst = min if metric in LOSSY_BELOW else max
        return worst(values, default=None)


def split(
    findings: Sequence[Finding], baseline: Baseline, parents: Sequence[str], tolerance: float
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """(what is new or worse than in the baseline, what is as bad there or was worse)."""
    failing: list[Finding] = []
    known: list[Finding] = []
    for finding in findings:
        before = baseline.before(finding, parents)
        worse = before is None or is_worse(finding.metric, finding.value, before, tolerance)
        (failing if worse else known).append(finding)
    return tuple(failing), tuple(known)


def read_baseline(path: Path) -> Baseline:
    """Read a baseline; raises InputError where it is missing, FormatError where it is none."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            "the baseline cannot be read", detail=f"--baseline {path}: {error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        said = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise _broken(path, f"format {said!r:.60}")
    try:
        parents = tuple(str(parent) for parent in document["parents"])
        rows: dict[tuple[str, str], dict[str, Values]] = {}
        for level, key, of in (
            ("model", "model_by_parent", None),
            ("layer", "layers", "layer"),
            ("tensor", "tensors", "name"),
        ):
            for row in document[key]:
                name = "" if of is None else str(row[of])
                rows.setdefault((level, name), {})[str(row["parent"])] = _values(row)
    except (KeyError, TypeError, AttributeError) as error:
        raise _broken(path, f"lacks or misspells {error}") from error
    return Baseline(str(path), parents, rows)


def _values(row: Mapping[str, Any]) -> Values:
    numbers = {name: row.get(name) for name in METRICS}
    return {
        name: float(value)
        for name, value in numbers.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    }


def _broken(path: Path, detail: str) -> FormatError:
    return FormatError(
        "the baseline is no divergence.json of this version",
        detail=f"--baseline {path}: {detail:.160}",
        hint="give the clmerge/divergence.json of the last release, or what check --json printed",
    )
