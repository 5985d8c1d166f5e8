"""Every variant of LoRA on every architecture: merged as PEFT merges it in float64, or refused.

python -m tests.lora.matrix            prints the tables
python -m tests.lora.matrix --write    writes them into docs/lora.md
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergekit_cl.errors import ClmergeError
from tests.lora.merging import merge
from tests.lora.narrowing import WAYS, Way, trouble
from tests.lora.peft_side import merged_by_peft, quiet, save_adapter, saved
from tests.lora.variants import VARIANTS, Variant
from tests.lora.zoo import ZOO, Architecture

PAGE = Path(__file__).parents[2] / "docs" / "lora.md"
BEGIN, END = "<!-- the tables: python -m tests.lora.matrix --write -->", "<!-- end -->"
BOUND = 1e-12


@dataclass(frozen=True)
class Cell:
    """One variant on one architecture.

    outcome: "merged", "refused", "PEFT cannot" or "-" where there are no such layers. why: of the
    middle two. worst: the largest relative distance of a tensor.
    """

    architecture: str
    variant: str
    outcome: str
    why: str = ""
    worst: float = 0.0


def measure(
    architecture: Architecture, variant: Variant, place: Path, ways: Sequence[Way] = ()
) -> Cell:
    """Make the adapters, merge them both ways and compare every tensor of the files.

    ways: in which it is also merged in a narrower dtype, and taken back.
    """
    every = variant.settings(architecture)
    names = (architecture.name, variant.name)
    if every is None:
        return Cell(*names, "-")
    saved(architecture.build(), place / "base")
    adapters, plain = [], []
    for number, settings in enumerate(every):
        plain.append(place / f"plain{number}")
        try:
            save_adapter(architecture.build(), plain[-1], seed=number, **settings)
        except (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
            return Cell(*names, "PEFT cannot", _first_line(error))
        adapters.append(place / f"adapter{number}")
        shutil.copytree(plain[-1], adapters[-1])
        if variant.named:
            _with_name(adapters[-1])
    try:
        merge(place / "base", adapters, place / "merged")
    except ClmergeError as error:
        return Cell(*names, "refused", error.message)
    build = architecture.untied if variant.unties and architecture.untied else architecture.build
    try:
        expected = merged_by_peft(build(), plain, place / "expected")
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return Cell(*names, "PEFT cannot", _first_line(error))
    found = load_file(place / "merged" / "model.safetensors")
    before = load_file(place / "base" / "model.safetensors")
    cell = Cell(*names, *_compared(found, expected, before))
    for way in ways if cell.outcome == "merged" else ():
        if why := trouble(place, place / "base", adapters, expected, way):
            return Cell(*names, "differs", why)
    return cell


def _compared(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> tuple[str, str, float]:
    if found.keys() != expected.keys():
        return "differs", f"names: {sorted(found.keys() ^ expected.keys())[:3]}", 1.0
    distances = {n: relative(found[n], tensor) for n, tensor in expected.items()}
    worst = max(distances, key=lambda name: distances[name])
    changed = any(n not in before or not torch.equal(t, before[n]) for n, t in expected.items())
    if distances[worst] > BOUND or not changed:
        return "differs", worst if changed else "nothing changed", distances[worst]
    return "merged", "", distances[worst]


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    if torch.equal(found, expected):
        return 0.0
    distance = (found.double() - expected.double()).norm()
    return float(distance / expected.double().norm().clamp_min(1e-300))


def _with_name(folder: Path) -> None:
    """Give the keys of an adapter its name, as a state dict of the wrapped model has them."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(
        {name.replace(".weight", ".default.weight"): value for name, value in tensors.items()},
        file.with_suffix(".new"),
        {"format": "pt"},
    )
    file.with_suffix(".new").replace(file)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


def measured(zoo: Sequence[Architecture] = ZOO, *, thorough: bool = False) -> list[Cell]:
    """All cells, architecture by architecture; each in one narrower way, or in every one."""
    cells: list[Cell] = []
    with quiet():
        for architecture in zoo:
            for variant in VARIANTS:
                number = len(cells) % len(WAYS)
                ways = WAYS if thorough else WAYS[number : number + 1]
                with tempfile.TemporaryDirectory() as place:
                    cells.append(measure(architecture, variant, Path(place), ways))
    return cells


def tables(cells: Sequence[Cell]) -> str:
    """Markdown: a row per variant, a column per architecture, and the reasons below."""
    reasons: dict[str, int] = {}
    names = list(dict.fromkeys(cell.architecture for cell in cells))
    by_place = {(cell.variant, cell.architecture): cell for cell in cells}
    lines = [["variant", *(f"`{name}`" for name in names)], ["---"] * (len(names) + 1)]
    for variant in dict.fromkeys(cell.variant for cell in cells):
        row = [variant]
        for name in names:
            cell = by_place[variant, name]
            mark = f" ({reasons.setdefault(cell.why, len(reasons) + 1)})" if cell.why else ""
            row.append(cell.outcome + mark)
        lines.append(row)
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([table, "\n".join(f"{n}. {why}" for why, n in reasons.items())]).strip()


def documented() -> str:
    """The tables as the page has them."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def main() -> None:
    """Print the tables, or write them into the page."""
    cells: list[Any] = measured()
    for cell in cells:
        sys.stderr.write(f"{cell.architecture}: {cell.variant}: {cell.outcome} {cell.worst:.1e}\n")
    if "--write" in sys.argv[1:]:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n\n{tables(cells)}\n\n{END}{rest.partition(END)[2]}")
    else:
        sys.stdout.write(tables(cells) + "\n")


if __name__ == "__main__":
    main()
