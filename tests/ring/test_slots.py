"""Every wait of the ring is needed: a device that forgets one makes wrong bytes."""

from __future__ import annotations

import pytest
import torch
from fake_device import Asked, FakeBackend, NoQuestions, Wait
from making import linear
from ring_cases import models, noise, on_cpu, on_ring, plan_of

from mergekit_cl.block import BLOCK
from mergekit_cl.plan import Plan
from mergekit_cl.ring.carving import ALIGNMENT, Carving, aligned
from mergekit_cl.ring.slots import Slot, SlotBytes, Streams

WAITS: list[Wait] = [
    ("host", "into"),  # before a pinned slot is filled again
    ("into", "compute"),  # before the card's copy of it is written over
    ("compute", "into"),  # before the inputs are used
    ("out", "compute"),  # before the output is copied back
    ("host", "out"),  # before it is read
]
SLOW = 0.02


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Eight whole chunks, so that every slot is used more than twice."""
    folder = tmp_path_factory.mktemp("inputs")
    tensors = [{"w": noise(8 * BLOCK, torch.bfloat16, seed)} for seed in (1, 2)]
    return plan_of(linear(models(folder, tensors), weights=(0.3, 0.7)))


@pytest.mark.parametrize("slow", ["into", "compute", "out"])
def test_a_slowed_stream_changes_nothing(plan: Plan, slow: str) -> None:
    assert on_ring(plan, FakeBackend({slow: SLOW}))[1:] == on_cpu(plan)[1:]


@pytest.mark.parametrize("wait", WAITS, ids=" for ".join)
def test_a_wait_that_is_forgotten_is_seen(plan: Plan, wait: Wait) -> None:
    backend = FakeBackend({wait[1]: SLOW}, frozenset({wait}))
    assert on_ring(plan, backend, report=False, allow=True).written != on_cpu(plan).written


def slot_on(backend: FakeBackend) -> Slot:
    streams = Streams(*(backend.stream(name) for name in ("into", "compute", "out")))
    return Slot(backend, streams, SlotBytes(8, 8, 8))


def test_an_output_that_nobody_took_is_never_written_over() -> None:
    backend = FakeBackend()
    slot = slot_on(backend)
    with pytest.raises(RuntimeError, match="before it was sent"):
        slot.merge(lambda: None, 8, 8)
    slot.refill().fill_(1)
    slot.send(8)
    slot.merge(lambda: slot.output.there.copy_(slot.inputs.there), 8, 8)
    assert slot.is_pending
    with pytest.raises(RuntimeError, match="before it was taken"):
        slot.merge(lambda: None, 8, 8)
    output, _ = slot.take()
    assert output.tolist() == [1] * 8
    with pytest.raises(RuntimeError, match="nothing was merged"):
        slot.take()
    backend.close()


def test_inputs_may_be_sent_again_while_their_output_waits() -> None:
    backend = FakeBackend()
    slot = slot_on(backend)
    slot.refill().fill_(1)
    slot.send(8)
    slot.merge(lambda: slot.output.there.copy_(slot.inputs.there), 8, 8)
    slot.refill().fill_(2)
    slot.send(8)
    assert slot.take()[0].tolist() == [1] * 8
    slot.merge(lambda: slot.output.there.copy_(slot.inputs.there), 8, 8)
    assert slot.take()[0].tolist() == [2] * 8
    backend.close()


def test_the_fake_notices_questions() -> None:
    values = torch.ones(4)
    with NoQuestions():
        (values + 1).count_nonzero()
        for question in (values.sum().item, values.nonzero, lambda: values.equal(values)):
            with pytest.raises(Asked):
                question()


def test_pieces_of_a_buffer_are_aligned_and_end_with_it() -> None:
    carving = Carving(torch.zeros(3 * ALIGNMENT, dtype=torch.uint8))
    one = carving.take(torch.float32, 3)
    other = carving.take(torch.float64, 2)
    assert other.data_ptr() - one.data_ptr() == ALIGNMENT == aligned(12)
    other.fill_(1.5)
    assert (one.tolist(), other.tolist()) == ([0.0] * 3, [1.5] * 2)
    with pytest.raises(ValueError, match="after"):
        carving.take(torch.uint8, ALIGNMENT + 1)
