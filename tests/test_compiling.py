"""Compiled kernels in whole merges: the same files, the same numbers, the same refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from making import (
    by_fisher,
    fisher_like,
    linear,
    merge,
    model_tensors,
    weight_bytes,
    write_model,
    write_sidecar,
)
from safetensors.torch import load_file

from mergekit_cl import merging
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.compiled_block import CompiledBlocks
from mergekit_cl.compiling import needs_torch
from mergekit_cl.errors import NonFiniteError
from mergekit_cl.merging import MergeOutcome, OutputOptions, make_plan
from mergekit_cl.methods.ema import ema_method
from mergekit_cl.methods.method import Method
from mergekit_cl.plan import Selection


def several(folder: Path, dtypes: tuple[torch.dtype, ...]) -> list[Path]:
    paths = []
    for k, dtype in enumerate(dtypes):
        generator = torch.Generator().manual_seed(k)
        tensors = {**model_tensors(k, dtype), "ids": torch.arange(5)}
        tensors["long"] = (torch.randn(300_001, generator=generator) * 0.1).to(dtype)
        paths.append(write_model(folder / str(k), tensors))
        floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
        write_sidecar(paths[-1], fisher_like(floats, k))
    return paths


def averaged(inputs: list[Path]) -> Method:
    rest = len(inputs) - 1
    return linear(inputs, weights=(0.3, *[0.7 / rest] * rest), reported=True)


def moved(inputs: list[Path]) -> Method:
    """The first moved by what the others differ from it."""
    rest = inputs[1:]
    return linear(rest, weights=(0.4,) * len(rest), normalize=False, base=inputs[0])


def updated(inputs: list[Path]) -> Method:
    opened = [open_checkpoint(path) for path in inputs]
    none = [None] * len(opened)
    return ema_method(opened, decay=0.99, half_life=None, warmup=False, sidecars=none)


def without(patch: pytest.MonkeyPatch, run: Callable[[], MergeOutcome]) -> MergeOutcome:
    """What a merge gives where there is no compiler."""
    with patch.context() as inner:
        inner.setattr(merging, "can_compile", lambda: False)
        return run()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Says how many blocks compiled kernels made."""
    made: list[int] = []
    usual = CompiledBlocks.merge

    def counting(self: CompiledBlocks, *arguments: Any) -> Any:
        found = usual(self, *arguments)
        made.append(found is not None)
        return found

    monkeypatch.setattr(CompiledBlocks, "merge", counting)
    return made


BF16, F32, F16 = torch.bfloat16, torch.float32, torch.float16


@pytest.mark.parametrize("method", [averaged, by_fisher, updated, moved])
@pytest.mark.parametrize(
    "dtypes",
    [(BF16, BF16), (F32, F32), (BF16, F32), (F16, BF16), (F16, F16), (BF16, BF16, BF16)],
)
def test_a_merge_is_the_same_with_and_without_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Callable[[list[Path]], Method],
    dtypes: tuple[torch.dtype, ...],
) -> None:
    inputs = several(tmp_path, dtypes)
    carry = dtypes[0] != F32 and len(set(dtypes)) == 1  # the output has 16 bits
    report = method is not moved  # a report of a base's differences is torch's
    options = {"carry": carry, "report": report}
    plain = without(monkeypatch, lambda: merge(method(inputs), tmp_path / "plain", **options))
    made = counted(monkeypatch)
    fast = merge(method(inputs), tmp_path / "fast", **options)
    assert made
    assert all(made)
    assert weight_bytes(tmp_path / "fast") == weight_bytes(tmp_path / "plain")
    assert fast.manifest["tensors"] == plain.manifest["tensors"]
    assert fast.manifest["inputs"] == plain.manifest["inputs"]
    if carry:
        kept = [(tmp_path / name / "clmerge/carry.safetensors") for name in ("fast", "plain")]
        assert kept[0].read_bytes() == kept[1].read_bytes()
    if report:
        agree(tmp_path / "fast", tmp_path / "plain")


def agree(*merged: Path) -> None:
    """Divergence of both is the same, up to the order of sums."""
    one, other = (
        json.loads((folder / "clmerge/divergence.json").read_bytes()) for folder in merged
    )
    for mine, theirs in zip(
        [one["model"], *one["tensors"]], [other["model"], *other["tensors"]], strict=True
    ):
        assert mine.keys() == theirs.keys()
        for metric, value in theirs.items():
            is_number = isinstance(value, float)
            assert mine[metric] == (pytest.approx(value, rel=1e-9) if is_number else value), metric


def test_what_is_not_finite_is_named_or_let_through_as_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.linspace(-1, 1, 1000).bfloat16()
    broken = values.clone()
    broken[7], broken[8] = float("nan"), float("inf")
    inputs = [write_model(tmp_path / str(k), {"w": v}) for k, v in enumerate([values, broken])]
    without(monkeypatch, lambda: merge(linear(inputs), tmp_path / "plain", allow_nonfinite=True))
    merge(linear(inputs), tmp_path / "fast", allow_nonfinite=True)
    assert weight_bytes(tmp_path / "fast") == weight_bytes(tmp_path / "plain")
    with pytest.raises(NonFiniteError, match="NaN or Inf") as error:
        merge(linear(inputs), tmp_path / "refused")
    assert "1: w (2 in one block)" in str(error.value.detail)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("method", [averaged, by_fisher, updated])
def test_residuals_are_given_back_as_without_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Callable[[list[Path]], Method],
    dtype: torch.dtype,
) -> None:
    first, *rest = several(tmp_path, (dtype,) * 3)
    state = tmp_path / "state"
    merge(updated([first, rest[0]]), state, carry=True)
    tensors = load_file(state / "model.safetensors")
    floats = {name: t for name, t in tensors.items() if t.is_floating_point()}
    write_sidecar(state, fisher_like(floats, 5))
    inputs = [state, *rest]
    without(monkeypatch, lambda: merge(method(inputs), tmp_path / "plain", carry=True))
    made = counted(monkeypatch)
    merge(method(inputs), tmp_path / "fast", carry=True)
    assert made
    assert all(made)
    for name in ("model.safetensors", "clmerge/carry.safetensors"):
        fast, plain = ((tmp_path / k / name).read_bytes() for k in ("fast", "plain"))
        assert fast == plain
    agree(tmp_path / "fast", tmp_path / "plain")


def test_a_fisher_that_is_only_reported_has_to_be_finite_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = several(tmp_path, (BF16, BF16))
    path = inputs[1] / "clmerge/fisher.safetensors"
    place = open_checkpoint(path).tensors["long"]
    with path.open("r+b") as stream:  # damaged after it was made: making one refuses this
        stream.seek(place.offset + 7 * place.nbytes // place.numel)
        stream.write(b"\xff" * (place.nbytes // place.numel))

    def refused() -> MergeOutcome:
        with pytest.raises(NonFiniteError, match="NaN or Inf") as error:
            merge(linear(inputs, reported=True), tmp_path / "out")
        assert "long (1 in one block)" in str(error.value.detail)
        return MergeOutcome("", "", {}, None, (), 0, 0)

    refused()
    without(monkeypatch, refused)


def test_a_weighted_sum_has_no_compiled_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = several(tmp_path, (F32, F32))
    made = counted(monkeypatch)
    merge(linear(inputs, weights=(1.0, 0.5), normalize=False), tmp_path / "out")
    assert made == []


@pytest.mark.parametrize("report", [True, False])
@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
def test_a_merge_of_two_that_is_compiled_loads_no_torch(
    tmp_path: Path, command: str, report: bool
) -> None:
    inputs = several(tmp_path, (BF16, F32))
    method = averaged(inputs) if command == "linear-merge" else by_fisher(inputs)
    merge(method, tmp_path / "first", report=report)  # what it needs is compiled by then
    line = [command, *map(str, inputs), "-o", str(tmp_path / "out"), "--quiet"]
    code = (
        "import sys\n"
        "from mergekit_cl import cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(sys.modules.keys() & {'torch', 'numba'})\n"
    )
    more = [] if report else ["--no-report"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *line, *more], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "set()\n", ran.stderr


@pytest.mark.parametrize("exclude", [(), ("long",)])
@pytest.mark.parametrize("dtypes", [(BF16, BF16), (F16, F16)])
def test_torch_is_loaded_where_something_needs_it(
    tmp_path: Path, dtypes: tuple[torch.dtype, torch.dtype], exclude: tuple[str, ...]
) -> None:
    inputs = several(tmp_path, dtypes)
    options = OutputOptions(tmp_path / "out", selection=Selection(exclude=exclude))
    plan = make_plan(averaged(inputs), options)
    assert not needs_torch(plan, compiled=True, report=True)
    assert needs_torch(plan, compiled=False, report=False)
    based = make_plan(moved(inputs), options)
    assert not needs_torch(based, compiled=True, report=False)
    assert needs_torch(based, compiled=True, report=True)
    added = make_plan(linear(inputs, weights=(1.0, 0.5), normalize=False), options)
    assert needs_torch(added, compiled=True, report=False)
    copied = make_plan(averaged(inputs), replace(options, selection=Selection(exclude=("*",))))
    assert not needs_torch(copied, compiled=False, report=False)
    assert needs_torch(copied, compiled=False, report=True)
