"""One worker's span: digests, sums and refusals, whatever the size of its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from making import fisher_like, linear, write_model, write_sidecar

from mergekit_cl.block import BLOCK, BlockWorker, keep_agreement
from mergekit_cl.divergence.sums import total
from mergekit_cl.errors import MismatchError, NonFiniteError
from mergekit_cl.merging import OutputOptions, make_plan
from mergekit_cl.plan import Step
from mergekit_cl.results import SpanResult


def step_of(inputs: list[Path], name: str = "w", **options: Any) -> Step:
    reported = options.pop("reported", False)
    weights = options.pop("weights", None)
    normalize = options.pop("normalize", True)
    method = linear(inputs, weights=weights, normalize=normalize, reported=reported)
    target = OutputOptions(target=inputs[0].parent / "out", **options)
    return make_plan(method, target).steps[name]


def run(
    step: Step, begin: int, end: int, *, report: bool = True, allow: bool = False
) -> tuple[SpanResult, bytes]:
    """A span's result, and the bytes it wrote in the order of their offsets."""
    written: dict[int, bytes] = {}

    def write(data: memoryview, offset: int) -> None:
        written[offset] = bytes(data)

    worker = BlockWorker(report, allow)
    found = worker.run(step, begin, end, write)
    return found, b"".join(data for _, data in sorted(written.items()))


def pair(folder: Path, size: int, dtype: torch.dtype) -> list[Path]:
    generator = torch.Generator().manual_seed(size)
    tensors = [torch.randn(size, generator=generator).to(dtype) for _ in range(2)]
    return [write_model(folder / str(k), {"w": t}) for k, t in enumerate(tensors)]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_a_span_is_written_whole_and_digested_as_written(tmp_path: Path, size: int) -> None:
    inputs = pair(tmp_path, size, torch.bfloat16)
    found, written = run(step_of(inputs, weights=(0.3, 0.7)), 0, size)
    assert len(written) == 2 * size
    assert found.pieces == ([blake3(written).digest()] if size else [])
    assert found.bytes_moved == 3 * 2 * size
    for path, pieces in zip(inputs, found.operand_pieces, strict=True):
        data = (path / "model.safetensors").read_bytes()
        stored = data[len(data) - 2 * size :]
        assert pieces == ([blake3(stored).digest()] if size else [])
    whole = total([block[0] for block in found.block_sums])
    assert whole.count == size


def test_blocks_meet_without_a_seam(tmp_path: Path) -> None:
    size = 2 * BLOCK + 5
    inputs = pair(tmp_path, size, torch.float32)
    _, whole = run(step_of(inputs), 0, size)
    parts = [run(step_of(inputs), a, b)[1] for a, b in [(0, BLOCK), (BLOCK, size)]]
    assert whole == b"".join(parts)


def test_without_a_report_the_bytes_are_the_same_and_nothing_is_measured(tmp_path: Path) -> None:
    inputs = pair(tmp_path, 1000, torch.bfloat16)
    with_report, one = run(step_of(inputs), 0, 1000)
    without, other = run(step_of(inputs), 0, 1000, report=False)
    assert one == other
    assert with_report.block_sums != [[]]
    assert without.block_sums == [[]]


def test_entries_whose_bits_differ_are_counted(tmp_path: Path) -> None:
    one = torch.tensor([0.0, -0.0, 1.0, 5.0])
    other = torch.tensor([0.0, 0.0, 1.0, 7.0])
    inputs = [write_model(tmp_path / n, {"w": t}) for n, t in (("a", one), ("b", other))]
    found, written = run(step_of(inputs, weights=(0.0, 1.0)), 0, 4)
    assert written == other.numpy().tobytes()
    assert [sums.changed for sums in found.block_sums[0]] == [2, 0]  # -0.0 against 0.0 counts


def test_float16_is_not_counted_as_changed_by_being_widened(tmp_path: Path) -> None:
    tensor = torch.randn(100).half()
    inputs = [write_model(tmp_path / n, {"w": tensor}) for n in "ab"]
    found, _ = run(step_of(inputs, dtype="F32"), 0, 100)
    assert [sums.changed for sums in found.block_sums[0]] == [0, 0]


def test_the_fisher_of_a_parent_enters_its_sum_only(tmp_path: Path) -> None:
    inputs = pair(tmp_path, 100, torch.bfloat16)
    for k, path in enumerate(inputs):
        write_sidecar(path, fisher_like({"w": torch.ones(100)}, k))
    found, written = run(step_of(inputs, reported=True), 0, 100)
    merged = torch.frombuffer(bytearray(written), dtype=torch.bfloat16).double()
    for k, sums in enumerate(found.block_sums[0]):
        data = bytearray((inputs[k] / "model.safetensors").read_bytes()[-200:])
        parent = torch.frombuffer(data, dtype=torch.bfloat16).double()
        fisher = fisher_like({"w": torch.ones(100)}, k)["w"].double()
        expected = float((fisher * (merged - parent) ** 2).sum())
        assert sums.fisher_square == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_nan_and_infinity_are_refused_with_their_place(
    tmp_path: Path, dtype: torch.dtype, bad: float
) -> None:
    inputs = pair(tmp_path, BLOCK + 9, dtype)
    poisoned = torch.ones(BLOCK + 9, dtype=dtype)
    poisoned[-1] = bad
    write_model(inputs[1], {"w": poisoned})
    with pytest.raises(NonFiniteError) as caught:
        run(step_of(inputs), 0, BLOCK + 9)
    assert f"{inputs[1]}: w" in (caught.value.detail or "")


def test_finite_numbers_whose_sum_overflows_are_not_refused(tmp_path: Path) -> None:
    large = torch.full((100,), 3e38)
    inputs = [write_model(tmp_path / n, {"w": large}) for n in "ab"]
    _, written = run(step_of(inputs), 0, 100)
    assert written == large.numpy().tobytes()


@pytest.mark.parametrize(
    ("value", "dtype", "asked"),
    [
        (70000.0, torch.float32, "F16"),
        (3.4e38, torch.float32, "BF16"),
        (1e39, torch.float64, "F32"),
        (1e300, torch.float64, "F16"),
    ],
)
def test_a_result_too_large_for_its_dtype_is_refused_not_made_infinite(
    tmp_path: Path, value: float, dtype: torch.dtype, asked: str
) -> None:
    inputs = [
        write_model(tmp_path / n, {"w": torch.tensor([1.0, value], dtype=dtype)}) for n in "ab"
    ]
    with pytest.raises(NonFiniteError) as caught:
        run(step_of(inputs, dtype=asked), 0, 2)
    assert "w" in (caught.value.detail or "")


def test_a_sum_that_overflows_is_refused(tmp_path: Path) -> None:
    inputs = [write_model(tmp_path / n, {"w": torch.full((3,), 40000.0).half()}) for n in "ab"]
    with pytest.raises(NonFiniteError):
        run(step_of(inputs, weights=(1.0, 1.0), normalize=False), 0, 3)


@pytest.mark.parametrize(
    ("weights", "normalize"), [((0.3, 0.7), True), ((1.0, 1.0), False), ((1.0, -1.0), False)]
)
def test_letting_infinity_through_changes_no_finite_entry(
    tmp_path: Path, weights: tuple[float, float], normalize: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn((2, 1000), generator=generator).bfloat16()
    other[::2] = one[::2]  # entries that agree
    inputs = [write_model(tmp_path / n, {"w": t}) for n, t in (("a", one), ("b", other))]
    step = step_of(inputs, weights=weights, normalize=normalize)
    assert run(step, 0, 1000, allow=True)[1] == run(step, 0, 1000)[1]


def test_infinity_on_which_all_agree_is_kept(tmp_path: Path) -> None:
    values = torch.tensor([float("inf"), float("-inf"), 1.0])
    inputs = [write_model(tmp_path / n, {"w": values}) for n in "ab"]
    _, written = run(step_of(inputs), 0, 3, allow=True)
    assert written == values.numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.uint8])
def test_integers_that_differ_have_no_average(tmp_path: Path, dtype: torch.dtype) -> None:
    one, other = torch.tensor([1, 0, 1]).to(dtype), torch.tensor([1, 1, 1]).to(dtype)
    inputs = [write_model(tmp_path / n, {"ids": t}) for n, t in (("a", one), ("b", other))]
    with pytest.raises(MismatchError) as caught:
        run(step_of(inputs, "ids"), 0, 3)
    assert "ids" in (caught.value.detail or "")
    same = [inputs[0], write_model(tmp_path / "c", {"ids": one})]
    assert run(step_of(same, "ids"), 0, 3)[1] == one.numpy().tobytes()


def test_a_counter_is_the_last_inputs(tmp_path: Path) -> None:
    name = "bn.num_batches_tracked"
    inputs = [write_model(tmp_path / str(k), {name: torch.tensor(k)}) for k in (3, 9, 5)]
    found, written = run(step_of(inputs, name), 0, 1)
    assert int.from_bytes(written, "little") == 5
    assert len(found.operand_pieces) == 3  # the others are read: their digests are recorded


def test_a_copied_tensor_of_another_dtype_is_rounded_once(tmp_path: Path) -> None:
    from mergekit_cl.plan import Selection

    values = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)
    inputs = [write_model(tmp_path / n, {"w": values}) for n in "ab"]
    step = step_of(inputs, dtype="BF16", selection=Selection(exclude=("w",)))
    _, written = run(step, 0, 1)
    assert torch.frombuffer(bytearray(written), dtype=torch.bfloat16).item() == 1 + 2**-7


def test_buffers_are_counted(tmp_path: Path) -> None:
    inputs = pair(tmp_path, 10, torch.bfloat16)
    worker = BlockWorker(True, False)
    step = step_of(inputs, weights=(0.3, 0.7))
    worker.run(step, 0, 10, lambda data, offset: None)
    held = sum(buffer.nbytes for buffer in worker._buffers.values()) + worker._arrays.nbytes
    assert 0 < held <= BlockWorker.buffer_bytes(step)


def test_what_has_no_parents_keeps_its_infinities() -> None:
    exact = torch.tensor([1.0, torch.inf])
    assert keep_agreement(exact, []) is exact
