"""A span through the ring is a span through the CPU: bytes, digests, sums, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import FakeBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from making import by_fisher, linear, write_model, write_sidecar
from ring_cases import Made, models, noise, on_cpu, on_ring, plan_of

from mergekit_cl.block import BLOCK
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.divergence.sums import Sums, total
from mergekit_cl.errors import ClmergeError, MismatchError, NonFiniteError
from mergekit_cl.methods.ema import ema_method
from mergekit_cl.methods.method import Method
from mergekit_cl.plan import Plan

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SIZES = [0, 1, 33, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK + 5]


def ema(paths: list[Path]) -> Method:
    return ema_method(
        [open_checkpoint(path) for path in paths],
        decay=0.9,
        half_life=None,
        warmup=False,
        sidecars=[None] * len(paths),
    )


METHODS: dict[str, Callable[[list[Path]], Method]] = {
    "linear": lambda paths: linear(paths, reported=True),
    "sum": lambda paths: linear(paths, weights=(0.5,) * len(paths), normalize=False),
    "deltas": lambda paths: linear(
        paths[1:], weights=(0.5,) * (len(paths) - 1), normalize=False, base=paths[0]
    ),
    "fisher": by_fisher,
    "fisher to the first": lambda paths: by_fisher(paths, fallback="first", floor=0.0),
    "ema": ema,
}


def assert_same(one: Made, other: Made) -> None:
    assert one.written == other.written
    assert one.residual == other.residual
    assert one.result.pieces == other.result.pieces
    assert one.result.operand_pieces == other.result.operand_pieces
    assert one.result.bytes_moved == other.result.bytes_moved
    assert len(one.result.block_sums) == len(other.result.block_sums)
    for ours, theirs in zip(summed(one), summed(other), strict=True):
        expected = asdict(theirs)
        for quantity, value in asdict(ours).items():
            known = expected[quantity]
            assert value == (known if known is None else pytest.approx(known, rel=1e-9)), quantity


def summed(made: Made) -> list[Sums]:
    parents = range(len(made.result.block_sums[0]))
    return [total([block[k] for block in made.result.block_sums]) for k in parents]


@pytest.mark.parametrize("name", METHODS)
@settings(deadline=None, max_examples=8)
@given(
    size=st.sampled_from(SIZES),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=2, max_size=3),
    dtype=st.sampled_from([None, "BF16", "F16", "F32"]),
    carry=st.booleans(),
    report=st.booleans(),
    blocks=st.sampled_from([1, 2]),
    slow=st.sampled_from(["into", "compute", "out"]),
)
def test_bytes_digests_and_sums_are_the_cpus(
    name: str,
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    dtypes: list[torch.dtype],
    dtype: str | None,
    carry: bool,
    report: bool,
    blocks: int,
    slow: str,
) -> None:
    folder = tmp_path_factory.mktemp("inputs")
    tensors = [
        {"w": noise(size, kept, seed), "v": torch.ones(2)} for seed, kept in enumerate(dtypes)
    ]
    plan = plan_of(
        METHODS[name](models(folder, tensors, with_fisher=True)), dtype=dtype, carry=carry
    )
    backend = FakeBackend({slow: 0.003})
    found = on_ring(plan, backend, report=report, chunk=blocks * BLOCK)
    assert_same(found, on_cpu(plan, report=report))
    assert backend.allocated or size == 0


def test_a_scalar_goes_through(tmp_path: Path) -> None:
    tensors = [{"w": torch.tensor(value)} for value in (1.0, 4.0)]
    plan = plan_of(linear(models(tmp_path, tensors)))
    assert_same(on_ring(plan, FakeBackend()), on_cpu(plan))


def test_entries_that_nobody_measured_are_counted_once(tmp_path: Path) -> None:
    paths = []
    for seed in range(2):
        paths.append(
            write_model(tmp_path / str(seed), {"w": noise(3 * BLOCK, torch.float32, seed)})
        )
        squares = noise(3 * BLOCK, torch.float32, seed + 9).square()
        squares[: BLOCK + 7] = 0.0
        write_sidecar(paths[-1], {"w": squares})
    plan = plan_of(by_fisher(paths, floor=0.0))
    found, expected = on_ring(plan, FakeBackend()), on_cpu(plan)
    assert_same(found, expected)
    assert [sums.fallback for sums in summed(found)] == [expected_share(paths)] * 2


def expected_share(paths: list[Path]) -> int:
    zeros = [open_checkpoint(path / "clmerge/fisher.safetensors").read("w") == 0 for path in paths]
    return int((zeros[0] & zeros[1]).sum())


def test_digests_of_wide_operands_close_in_the_middle_of_a_slot(tmp_path: Path) -> None:
    size = 2**22 + 2 * BLOCK + 3  # float32: one 16 MiB piece and a part
    tensors = [{"w": noise(size, torch.float32, seed)} for seed in (1, 2)]
    plan = plan_of(linear(models(tmp_path, tensors)))
    found = on_ring(plan, FakeBackend(), chunk=2**22 + BLOCK, report=False)
    assert_same(found, on_cpu(plan, report=False))
    assert len(found.result.pieces) == 2


def refusal(run: Callable[..., Made], *given: Any) -> ClmergeError:
    with pytest.raises(ClmergeError) as caught:
        run(*given)
    return caught.value


def assert_refused_alike(plan: Plan, kind: type[ClmergeError]) -> ClmergeError:
    ours, theirs = refusal(on_ring, plan, FakeBackend()), refusal(on_cpu, plan)
    assert type(ours) is type(theirs) is kind
    assert (str(ours), ours.detail, ours.hint) == (str(theirs), theirs.detail, theirs.hint)
    return ours


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("place", [3, 2 * BLOCK + 1, 4 * BLOCK + 4])
def test_what_is_not_finite_is_named_as_on_a_cpu(
    tmp_path: Path, bad: float, which: int, place: int
) -> None:
    tensors = [{"w": noise(4 * BLOCK + 5, torch.bfloat16, seed)} for seed in (1, 2)]
    tensors[which]["w"][place] = bad
    tensors[0]["w"][-1] = bad  # further on, or the same
    plan = plan_of(linear(models(tmp_path, tensors)))
    error = assert_refused_alike(plan, NonFiniteError)
    named = str(tmp_path / str(which if place < 4 * BLOCK + 4 else 0))
    assert named in (error.detail or "")


def test_a_fisher_that_is_not_finite_is_named_as_on_a_cpu(tmp_path: Path) -> None:
    paths = models(tmp_path, [{"w": noise(9, torch.float32, seed)} for seed in (1, 2)])
    files = [write_sidecar(path, {"w": torch.ones(9)}) for path in paths]
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-4] + torch.tensor([float("inf")]).numpy().tobytes())
    error = assert_refused_alike(plan_of(by_fisher(paths)), NonFiniteError)
    assert "fisher.safetensors: w (1 in one block)" in (error.detail or "")


def test_an_overflow_is_refused_as_on_a_cpu(tmp_path: Path) -> None:
    values = noise(3 * BLOCK, torch.float32, 1)
    values[BLOCK + 1] = 1e6
    plan = plan_of(linear(models(tmp_path, [{"w": values}, {"w": values}])), dtype="F16")
    assert "overflows" in str(assert_refused_alike(plan, NonFiniteError))


def test_integers_that_differ_are_refused_as_on_a_cpu(tmp_path: Path) -> None:
    plan = plan_of(linear(models(tmp_path, [{"w": torch.arange(5)}, {"w": torch.ones(5).long()}])))
    assert_refused_alike(plan, MismatchError)


def test_infinity_that_is_let_through_is_the_same_infinity(tmp_path: Path) -> None:
    tensors = [{"w": noise(BLOCK + 5, torch.bfloat16, seed)} for seed in (1, 2)]
    for held in tensors:
        held["w"][:3] = float("inf")
    plan = plan_of(linear(models(tmp_path, tensors)))
    found, expected = (
        run(plan, *rest, allow=True) for run, rest in ((on_ring, [FakeBackend()]), (on_cpu, []))
    )
    assert found.written == expected.written
    assert torch.frombuffer(bytearray(found.written[:6]), dtype=torch.bfloat16).isinf().all()
