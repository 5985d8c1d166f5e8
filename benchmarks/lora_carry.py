"""What 50 merges one after the other keep of their updates, with `--carry` and without.

    python benchmarks/lora_carry.py [--plot docs/lora-carry.svg]

A bfloat16 weight of 512 x 512 normal numbers; adapters of rank 8 whose updates are a thousandth of
it, all the same or all new; each merged into what the last one made. Kept: <d, e> / <d, d>, d being
the exact sum of the updates so far, e what the file holds of it. About a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import load_file, save_file

from benchmarks.measuring import table
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.lora.adapter import open_adapter
from mergekit_cl.merging import OutputOptions, run_merge
from mergekit_cl.methods.lora import lora_method
from mergekit_cl.report.progress import no_progress

SIZE, RANK, RELATIVE, MERGES = 512, 8, 1e-3, 50
SHOWN = (1, 2, 5, 10, 20, 50)
NAME, WEIGHTS = "layer.weight", "model.safetensors"
Curve = list[float]


def write_adapter(folder: Path, seed: int, norm: float) -> torch.Tensor:
    """Random factors whose product has a norm; returns the product in float64."""
    random = torch.Generator().manual_seed(seed)
    down = torch.randn(RANK, SIZE, generator=random)
    up = torch.randn(SIZE, RANK, generator=random)
    up *= norm / float((up @ down).norm())
    folder.mkdir()
    factors = {"base_model.model.layer.lora_A.weight": down}
    factors["base_model.model.layer.lora_B.weight"] = up
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["layer"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return up.double() @ down.double()


def shares(work: Path, *, same: bool, carry: bool) -> Iterator[float]:
    """What is kept of the summed updates after each merge."""
    torch.manual_seed(0)
    base = (torch.randn(SIZE, SIZE) * 0.02).bfloat16()
    before = work / "base"
    before.mkdir()
    save_file({NAME: base}, before / WEIGHTS)
    norm = RELATIVE * float(base.double().norm())
    total = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for number in range(MERGES):
        adapter, after = work / f"a{number}", work / f"m{number}"
        total += write_adapter(adapter, 0 if same else number, norm)
        method = lora_method(
            open_checkpoint(before),
            [open_adapter(adapter)],
            scales=None,
            undo="none",
            allow_other_base=False,
            carry=carry,
        )
        run_merge(method, OutputOptions(after, carry=carry, report=False), no_progress)
        before = after
        kept = load_file(after / WEIGHTS)[NAME].double() - base.double()
        yield float((total * kept).sum() / total.square().sum())


def draw(curves: dict[str, Curve]) -> str:
    """A line per curve, in per cent over the number of merges, as SVG."""
    width, height, left, top = 560, 300, 46, 14
    colours = ("#1f77b4", "#17becf", "#d62728", "#ff7f0e")

    def x(merges: float) -> float:
        return left + merges / MERGES * (width - left - 190)

    def y(share: float) -> float:
        return top + (1.05 - share) / 1.05 * (height - top - 36)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<path d="M{x(0)} {y(share):.1f}H{x(MERGES)}" stroke="#ddd"/>'
            f'<text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        )
    for merges in range(0, MERGES + 1, 10):
        at = f'x="{x(merges):.1f}" y="{height - 22}"'
        parts.append(f'<text {at} text-anchor="middle">{merges}</text>')
    parts.append(
        f'<text x="{x(MERGES / 2):.1f}" y="{height - 6}" text-anchor="middle">merges</text>'
    )
    for number, (name, curve) in enumerate(curves.items()):
        points = " ".join(f"{x(k + 1):.1f},{y(share):.1f}" for k, share in enumerate(curve))
        dashes = ' stroke-dasharray="5 3"' if number % 2 else ""
        line = f'fill="none" stroke="{colours[number]}" stroke-width="2"{dashes}'
        at = 40 + 20 * number
        parts += [
            f'<polyline points="{points}" {line}/>',
            f'<path d="M{x(MERGES) + 14:.0f} {at}h22" {line}/>',
            f'<text x="{x(MERGES) + 42:.0f}" y="{at + 4}">{name}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def rows(curves: dict[str, Curve]) -> Iterator[Sequence[str]]:
    for name, curve in curves.items():
        yield [name, *(f"{100 * curve[merges - 1]:.1f} %" for merges in SHOWN)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    curves = {}
    for carry in (True, False):
        for same in (True, False):
            name = f"{'--carry' if carry else 'plain'}, {'same' if same else 'new'} directions"
            with tempfile.TemporaryDirectory() as work:
                curves[name] = list(shares(Path(work), same=same, carry=carry))
    print(table(["kept after", *map(str, SHOWN)], [list(row) for row in rows(curves)]))
    if given.plot:
        given.plot.write_text(draw(curves))


if __name__ == "__main__":
    main()
