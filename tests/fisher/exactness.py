"""How far the estimator is from a loop over single rows in float64, for every architecture.

    python -m tests.fisher.exactness            prints the table
    python -m tests.fisher.exactness --write    writes it into docs/exactness.md

Labels are fixed, so that both sides take the gradient at the same ones. A distance is the largest
relative L2 distance of a parameter's diagonal over all parameters.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fisher.accumulator import Accumulator
from fisher.batch import Batch
from fisher.labels import mc
from fisher.reference import reference
from tests.fisher.zoo import ZOO, Architecture, build, ragged

PAGE = Path(__file__).parents[2] / "docs" / "exactness.md"
BEGIN, END = "<!-- the table: python -m tests.fisher.exactness --write -->", "<!-- end -->"
FLOAT32, BFLOAT16 = 1e-5, 5e-2
COLUMNS = ("model of transformers", "rows", "mc", "empirical", "exact", "checkpointed", "bfloat16")


@dataclass(frozen=True)
class Row:
    """One architecture: why its rows went singly, or None; distance per column."""

    name: str
    single: str | None
    distances: dict[str, float]

    def exact(self) -> bool:
        """Whether every distance is within its bound."""
        return all(cell[0] in "<-a" for cell in self.cells()[2:])

    def cells(self) -> list[str]:
        """As printed: bounds, not digits that change with the machine."""
        cells = [f"`{self.name}`", "singly" if self.single else "together"]
        for column in COLUMNS[2:]:
            value = self.distances.get(column)
            if value is None:
                cells.append("-")
            elif value < (BFLOAT16 if column == "bfloat16" else FLOAT32):
                cells.append("< 5e-2" if column == "bfloat16" else "< 1e-5")
            elif column == "bfloat16" and value < 1.5 * self.distances["loop"]:
                cells.append("as a loop")
            else:
                cells.append(f"{value:.0e}")
        return cells


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], noise: float) -> float:
    """The largest relative L2 distance; below `noise` of the largest tensor, a norm is rounding.

    Some gradients are zero by symmetry: the bias of an attention's keys, say.
    """
    floor = noise * max(float(tensor.double().norm()) for tensor in expected.values())
    return max(
        float((found[name].double() - tensor.double()).norm())
        / max(float(tensor.double().norm()), floor)
        for name, tensor in expected.items()
    )


def measure(architecture: Architecture) -> Row:
    """Every column for one architecture."""
    model, batch = build(architecture), ragged(architecture)
    labels = _drawn(model, batch)
    found, single = _estimate(model, batch, "mc", labels)
    expected = reference(model, [batch], labels=[labels])
    distances = {"mc": distance(found, expected, 1e-9)}
    empirical, _ = _estimate(model, batch, "empirical")
    distances["empirical"] = distance(
        empirical, reference(model, [batch], estimator="empirical"), 1e-9
    )
    if batch.labels.dim() == 1:
        exact, _ = _estimate(model, batch, "exact")
        distances["exact"] = distance(exact, reference(model, [batch], estimator="exact"), 1e-9)
    if getattr(model, "supports_gradient_checkpointing", False):
        saving: Any = deepcopy(model)
        saving.gradient_checkpointing_enable({"use_reentrant": len(architecture.name) % 2 == 0})
        again, _ = _estimate(saving, batch, "mc", labels)
        distances["checkpointed"] = distance(again, expected, 1e-9)
    return Row(architecture.name, single, {**distances, **_rounded(architecture, batch)})


def _rounded(architecture: Architecture, batch: Batch) -> dict[str, float]:
    """Ours in bfloat16 and torch's own gradients of single rows in it, both against float64.

    A router that rounds its scores may choose other experts, and does so in the loop as well.
    """
    model = build(architecture, 0.1)
    labels = _drawn(model, batch)
    for parameter in model.parameters():  # not buffers: rotary frequencies stay
        parameter.data = parameter.data.bfloat16()
    rows = replace(batch, inputs={n: _half(t) for n, t in batch.inputs.items()})
    exact = reference(model, [rows], labels=[labels])
    loop = reference(model, [rows], labels=[labels], dtype=torch.bfloat16)
    found, _ = _estimate(model, rows, "mc", labels)
    return {"bfloat16": distance(found, exact, 1e-3), "loop": distance(loop, exact, 1e-3)}


def table(rows: list[Row]) -> str:
    """Markdown, then the reasons of those that went singly."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row.cells() for row in rows)]
    reasons = [f"- `{row.name}`: {row.single}" for row in rows if row.single]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    together = sum(not row.single for row in rows)
    said = f"{together} of {len(rows)} together. One backward pass per row, and why:"
    return "\n\n".join([text, said, "\n".join(reasons)]).strip()


def documented() -> str:
    """The table as the page has it."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def _estimate(
    model: nn.Module, batch: Batch, estimator: str, labels: list[Tensor] | None = None
) -> tuple[dict[str, Tensor], str | None]:
    accumulator = Accumulator(model, estimator=estimator)
    accumulator.add(batch, labels=labels)
    assert all(parameter.grad is None for parameter in model.parameters())
    return accumulator.result().diagonal, accumulator.single_because


def _drawn(model: nn.Module, batch: Batch) -> list[Tensor]:
    quiet = deepcopy(model).eval()
    with torch.no_grad():
        logits = quiet(**batch.inputs).logits
    return mc(logits, batch.labels, batch.row_ids, seed=0)


def _half(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


def main() -> None:
    """Print the table, or write it into the page."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = [measure(architecture) for architecture in ZOO]
    for row in rows:
        seen = ", ".join(f"{column} {value:.1e}" for column, value in row.distances.items())
        sys.stderr.write(f"{row.name}: {seen}\n")
    if "--write" in sys.argv[1:]:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        tail = rest.partition(END)[2]
        PAGE.write_text(f"{head}{BEGIN}\n\n{table(rows)}\n\n{END}{tail}")
    else:
        sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
