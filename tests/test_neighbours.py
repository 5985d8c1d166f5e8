"""Small tensors merged together are what each is by itself: bytes, digests, sums, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import (
    by_fisher,
    fisher_like,
    linear,
    merge,
    weight_bytes,
    write_model,
    write_sharded,
    write_sidecar,
)

from mergekit_cl import stream
from mergekit_cl.block import BLOCK, BlockWorker
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import NonFiniteError
from mergekit_cl.merging import OutputOptions, make_plan
from mergekit_cl.methods.ema import ema_method
from mergekit_cl.methods.method import Method
from mergekit_cl.neighbours import Neighbours, gather
from mergekit_cl.plan import Step

BF16, F32, F16 = torch.bfloat16, torch.float32, torch.float16
SIZES = [0, 1, 7, 2048, 2048, BLOCK // 2, BLOCK - 3000, 5, BLOCK, BLOCK + 1, 300, 0, 12]


def tensors(seed: int, dtypes: tuple[torch.dtype, ...] = (BF16,)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {
        f"layers.{i:02}": torch.randn(size, generator=generator).to(dtypes[i % len(dtypes)])
        for i, size in enumerate(SIZES)
    }
    return {**found, "ids": torch.arange(5), "scalar": torch.tensor(float(seed)).to(BF16)}


def models(folder: Path, dtypes: tuple[torch.dtype, ...] = (BF16,)) -> list[Path]:
    paths = []
    for k in range(2):
        made = tensors(k, dtypes)
        paths.append(write_model(folder / str(k), made))
        floats = {name: t for name, t in made.items() if t.is_floating_point()}
        write_sidecar(paths[-1], fisher_like(floats, k))
    return paths


def averaged(inputs: list[Path]) -> Method:
    return linear(inputs, weights=(0.3, 0.7), reported=True)


def updated(inputs: list[Path]) -> Method:
    opened = [open_checkpoint(path) for path in inputs]
    return ema_method(opened, decay=0.99, half_life=None, warmup=False, sidecars=[None, None])


def outcome(
    method: Method, target: Path, patch: pytest.MonkeyPatch, *, apart: bool, **options: object
) -> tuple[object, ...]:
    """Bytes, records and divergence of a merge with compiled kernels."""
    with patch.context() as inner:
        if apart:
            inner.setattr(stream, "gather", lambda steps, most: iter(steps))
        made = merge(method, target, **options)
    carry = target / "clmerge/carry.safetensors"
    return (
        weight_bytes(target),
        made.manifest["tensors"],
        [one["weights_digest"] for one in made.manifest["inputs"]],
        (target / "clmerge/divergence.json").read_bytes(),
        carry.read_bytes() if carry.exists() else None,
    )


@pytest.mark.parametrize("method", [averaged, by_fisher, updated])
@pytest.mark.parametrize("dtypes", [(BF16,), (F32, BF16), (F16, BF16)])
def test_together_they_are_what_each_is_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Callable[[list[Path]], Method],
    dtypes: tuple[torch.dtype, ...],
) -> None:
    inputs = models(tmp_path, dtypes)
    together: list[int] = []
    usual = BlockWorker.run_together

    def counted(self: BlockWorker, neighbours: Neighbours, *writes: object) -> object:
        together.append(len(neighbours.steps))
        return usual(self, neighbours, *writes)

    monkeypatch.setattr(BlockWorker, "run_together", counted)
    carry = dtypes == (BF16,)
    alone = outcome(method(inputs), tmp_path / "alone", monkeypatch, apart=True, carry=carry)
    assert together == []
    found = outcome(method(inputs), tmp_path / "found", monkeypatch, apart=False, carry=carry)
    assert found == alone
    assert sum(together) >= len(SIZES) // 2


def test_neighbours_in_one_input_may_lie_anywhere_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, made = write_model(tmp_path / "0", tensors(0)), tensors(1)
    names = sorted(made, reverse=True)
    groups = [{name: made[name] for name in names[k::3]} for k in range(3)]
    scattered = write_sharded(tmp_path / "1", groups)
    whole = write_model(tmp_path / "2", made)
    found = outcome(
        linear([first, scattered], weights=(0.3, 0.7)), tmp_path / "a", monkeypatch, apart=False
    )
    wanted = outcome(
        linear([first, whole], weights=(0.3, 0.7)), tmp_path / "b", monkeypatch, apart=True
    )
    assert found[:3] == wanted[:3]


def test_what_is_not_finite_is_named_among_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = models(tmp_path)
    broken = tensors(1)
    broken["layers.04"][3] = float("nan")
    write_model(inputs[1], broken)
    with pytest.raises(NonFiniteError) as caught:
        merge(linear(inputs), tmp_path / "out")
    assert f"{inputs[1]}: layers.04" in str(caught.value.detail)
    allowed = {"allow_nonfinite": True}
    found = outcome(linear(inputs), tmp_path / "a", monkeypatch, apart=False, **allowed)
    assert found == outcome(linear(inputs), tmp_path / "b", monkeypatch, apart=True, **allowed)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    folder = tmp_path_factory.mktemp("inputs")
    target = OutputOptions(target=folder / "out")
    return [
        step
        for dtypes in ((BF16,), (F32, BF16))
        for method in (averaged, by_fisher)
        for step in make_plan(
            method(models(folder / f"{dtypes}{method}", dtypes)), target
        ).steps.values()
    ]


@given(order=st.randoms(use_true_random=False), most=st.integers(1, 3 * BLOCK))
def test_no_step_is_lost_moved_or_joined_beyond_a_block(
    steps: list[Step], order: object, most: int
) -> None:
    shuffled = list(steps)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    units = list(gather(shuffled, most))
    parts = [unit.steps if isinstance(unit, Neighbours) else (unit,) for unit in units]
    assert [id(step) for part in parts for step in part] == [id(step) for step in shuffled]
    for part in (part for part in parts if len(part) > 1):
        assert sum(step.operands[0].info.numel for step in part) <= most
        assert all(step.formula is not None for step in part)
        assert len({(step.dtype, tuple(o.info.dtype for o in step.operands)) for step in part}) == 1
