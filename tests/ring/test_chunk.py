"""What is queued on a card asks it for nothing, and stays within its buffers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from making import by_fisher, linear
from ring_cases import models, noise, plan_of

from mergekit_cl.block import BLOCK
from mergekit_cl.merge.kernel import can_be_asked
from mergekit_cl.plan import Plan
from mergekit_cl.ring import chunk as chunks

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[Plan]:
    found = []
    for dtype in DTYPES:
        folder = tmp_path_factory.mktemp("inputs")
        tensors = [{"w": noise(50, dtype, seed)} for seed in range(3)]
        paths = models(folder, tensors, with_fisher=True)
        found += [plan_of(linear(paths), carry=True), plan_of(by_fisher(paths), dtype="BF16")]
    return found


@pytest.mark.parametrize("allow", [False, True])
def test_no_value_is_asked_for(plans: list[Plan], allow: bool) -> None:
    # Tensors of the meta device have no values: whoever asks for one fails.
    count = BLOCK + 3
    for plan in plans:
        step = plan.steps["w"]

        def room(nbytes: int) -> torch.Tensor:
            return torch.empty(nbytes, dtype=torch.uint8, device="meta")

        kept = step.dtype in ("BF16", "F16")
        stored = chunks.carve_stored(step, room(chunks.stored_bytes(step, count)), count)
        assert not can_be_asked(stored[0])
        written = room(chunks.written_bytes(step, count, kept))
        out, residual = chunks.carve_written(step, written, count, kept)
        table = chunks.carve_table(step, room(chunks.table_bytes(step, count)), count)
        scratch = room(chunks.scratch_bytes(step, count))
        chunks.merge_chunk(
            step,
            0,
            stored,
            out,
            residual,
            table,
            scratch,
            report=True,
            allow_nonfinite=allow,
        )
        with pytest.raises(RuntimeError):
            table.sum().item()


def test_a_table_has_a_row_per_block() -> None:
    assert chunks.block_counts(0) == []
    assert chunks.block_counts(BLOCK) == [BLOCK]
    assert chunks.block_counts(2 * BLOCK + 1) == [BLOCK, BLOCK, 1]


def test_operands_lie_where_the_card_reads_well(tmp_path: Path) -> None:
    tensors = [{"w": noise(33, dtype, 1)} for dtype in (torch.bfloat16, torch.float64)]
    step = plan_of(linear(models(tmp_path, tensors))).steps["w"]
    buffer = torch.zeros(chunks.stored_bytes(step, 33), dtype=torch.uint8)
    one, other = chunks.carve_stored(step, buffer, 33)
    assert (one.dtype, other.dtype) == (torch.bfloat16, torch.float64)
    assert (other.data_ptr() - one.data_ptr()) % 256 == 0
