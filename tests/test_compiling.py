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

from mergekit_cl import merging
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.compiled_block import CompiledBlocks
from mergekit_cl.compiling import needs_torch
from mergekit_cl.errors import NonFiniteError
from mergekit_cl.merging import MergeOutcome, OutputOptions, make_plan
from mergekit_cl.methods.ema import ema_method
from mergekit_cl.methods.method import Method
from mergekit_cl.plan import Selection


def two(folder: Path, dtypes: tuple[torch.dtype, torch.dtype]) -> list[Path]:
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
    return linear(inputs, weights=(0.3, 0.7), reported=True)


def updated(inputs: list[Path]) -> Method:
    opened = [open_checkpoint(path) for path in inputs]
    return ema_method(opened, decay=0.99, half_life=None, warmup=False, sidecars=[None, None])


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


@pytest.mark.parametrize("method", [averaged, by_fisher, updated])
@pytest.mark.parametrize("dtypes", [(BF16, BF16), (F32, F32), (BF16, F32), (F16, BF16)])
def test_a_merge_is_the_same_with_and_without_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Callable[[list[Path]], Method],
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    inputs = two(tmp_path, dtypes)
    carry = dtypes == (BF16, BF16)
    plain = without(monkeypatch, lambda: merge(method(inputs), tmp_path / "plain", carry=carry))
    made = counted(monkeypatch)
    fast = merge(method(inputs), tmp_path / "fast", carry=carry)
    assert any(made) == (F16 not in dtypes)
    assert weight_bytes(tmp_path / "fast") == weight_bytes(tmp_path / "plain")
    assert fast.manifest["tensors"] == plain.manifest["tensors"]
    assert fast.manifest["inputs"] == plain.manifest["inputs"]
    if carry:
        kept = [(tmp_path / name / "clmerge/carry.safetensors") for name in ("fast", "plain")]
        assert kept[0].read_bytes() == kept[1].read_bytes()
    one, other = (
        json.loads((tmp_path / name / "clmerge/divergence.json").read_bytes())
        for name in ("fast", "plain")
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


def test_three_inputs_have_no_compiled_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = two(tmp_path, (F32, F32))
    made = counted(monkeypatch)
    merge(linear([*inputs, inputs[0]]), tmp_path / "out")
    assert made == []


@pytest.mark.parametrize("report", [True, False])
@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
def test_a_merge_of_two_that_is_compiled_loads_no_torch(
    tmp_path: Path, command: str, report: bool
) -> None:
    inputs = two(tmp_path, (BF16, F32))
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
    inputs = two(tmp_path, dtypes)
    options = OutputOptions(tmp_path / "out", selection=Selection(exclude=exclude))
    plan = make_plan(averaged(inputs), options)
    slow = F16 in dtypes
    assert needs_torch(plan, compiled=True, report=True) == slow
    assert needs_torch(plan, compiled=False, report=False)
    three = make_plan(linear([*inputs, inputs[0]]), options)
    assert needs_torch(three, compiled=True, report=False)
    copied = make_plan(averaged(inputs), replace(options, selection=Selection(exclude=("*",))))
    assert not needs_torch(copied, compiled=False, report=False)
    assert needs_torch(copied, compiled=False, report=True)
