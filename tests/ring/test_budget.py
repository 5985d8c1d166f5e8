"""The ring fits the memory it is given, all of it together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_device import FakeBackend
from making import by_fisher, linear
from ring_cases import models, noise, on_ring, plan_of

from mergekit_cl.block import BLOCK, BlockWorker
from mergekit_cl.errors import OptionError
from mergekit_cl.plan import Plan
from mergekit_cl.ring import budget
from mergekit_cl.ring.budget import FEWEST, SLOTS, goes_to_card, pinned_bytes, ring_size
from mergekit_cl.ring.card import Card


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("inputs")
    tensors = [{"w": noise(9 * BLOCK, torch.bfloat16, k), "n": torch.arange(3)} for k in (1, 2)]
    return plan_of(by_fisher(models(folder, tensors, with_fisher=True)))


def test_without_a_limit_slots_are_as_large_as_the_tensors(plan: Plan) -> None:
    size = ring_size(6, None, plan)
    assert (size.workers, size.chunk) == (6, 16 * BLOCK)
    one, shared = budget.worker_bytes(plan, size.chunk), budget.card_scratch(plan, size.chunk)
    assert size.nbytes == 6 * one + shared
    assert 1 <= ring_size(None, None, plan).workers <= 8


def test_slots_shrink_before_workers_go(plan: Plan) -> None:
    full = ring_size(6, None, plan)
    limit = full.nbytes
    sizes = []
    while limit > 2**20:
        try:
            size = ring_size(6, limit, plan)
        except OptionError:
            break
        assert size.nbytes <= limit
        assert size.workers >= FEWEST or size.chunk == BLOCK
        sizes.append((size.chunk, size.workers))
        limit = limit * 4 // 5
    assert sizes[0] == (full.chunk, 6)
    assert sizes[-1][0] == BLOCK
    assert sorted(sizes, key=lambda one: -one[0]) == sizes  # never larger again


def test_too_little_for_one_worker_is_refused_with_what_is_needed(plan: Plan) -> None:
    with pytest.raises(OptionError) as caught:
        ring_size(2, 2**20, plan)
    enough = (caught.value.hint or "").removeprefix("--memory ").partition("MiB")[0]
    assert ring_size(2, int(enough) * 2**20, plan).workers >= 1
    with pytest.raises(OptionError):
        ring_size(2, (int(enough) - 1) * 2**20, plan)


def test_what_is_allocated_is_what_was_counted(plan: Plan) -> None:
    size = ring_size(1, None, plan)
    backend = FakeBackend()
    card = Card(backend, size)
    card.slots()
    card.close()
    pinned = SLOTS * sum(size.slot)
    assert backend.allocated == 2 * pinned + size.scratch
    rounded = SLOTS * sum(pinned_bytes(nbytes) for nbytes in size.slot)
    host = max(BlockWorker.buffer_bytes(step) for step in plan.steps.values())
    assert size.nbytes == rounded + pinned + size.scratch + host


def test_nothing_is_allocated_but_scratch_and_slots(plan: Plan) -> None:
    backend = FakeBackend()
    on_ring(plan, backend)  # nine chunks through three slots
    slots = 2 * SLOTS * sum(budget.slot_bytes(plan, BLOCK))
    assert backend.allocated == slots + budget.card_scratch(plan, BLOCK)


@pytest.mark.parametrize(("nbytes", "taken"), [(0, 0), (1, 1), (3, 4), (4096, 4096), (4097, 8192)])
def test_pinned_memory_comes_in_powers_of_two(nbytes: int, taken: int) -> None:
    assert pinned_bytes(nbytes) == taken


def test_copies_and_small_tensors_stay_with_the_host(plan: Plan, tmp_path: Path) -> None:
    assert goes_to_card(plan.steps["w"], 2**16)
    assert not goes_to_card(plan.steps["w"], 2**16 - 1)
    assert not goes_to_card(plan.steps["w"], 0, smallest=0)
    assert not goes_to_card(plan.steps["n"], 2**20)


def test_a_plan_of_copies_needs_no_slot(tmp_path: Path) -> None:
    paths = models(tmp_path, [{"n": torch.arange(3)}, {"n": torch.arange(3)}])
    size = ring_size(2, None, plan_of(linear(paths)))
    assert sum(size.slot) == size.scratch == 0
