"""Several protections as one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.continual.combining import add_protections, decay_protection
from mergekit_cl.continual.ewc import Protection, add_penalty_gradient, penalty_value
from mergekit_cl.errors import MismatchError
from tests.continual import toys


def gradient_of(seed: int, *protections: Protection) -> dict[str, torch.Tensor]:
    parameters = toys.parameters(seed, dtype=torch.float64)
    for protection in protections:
        add_penalty_gradient(parameters, protection, 1.5)
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}


@given(seed=st.integers(0, 2**32), tasks=st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_the_sum_pulls_as_all_tasks_together_everywhere(seed: int, tasks: int) -> None:
    each = [toys.protection(seed + k, dtype=torch.float64) for k in range(tasks)]
    one = each[0]
    for protection in each[1:]:
        one = add_protections(one, protection)
    expected, found = gradient_of(seed + 99, *each), gradient_of(seed + 99, one)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)


def test_the_sum_is_the_same_loss_up_to_a_constant() -> None:
    old, new = toys.protection(1, dtype=torch.float64), toys.protection(2, dtype=torch.float64)
    both = add_protections(old, new)
    offsets = []
    for seed in (5, 6, 7):
        parameters = toys.parameters(seed, dtype=torch.float64)
        separate = penalty_value(parameters, old, 2.0) + penalty_value(parameters, new, 2.0)
        offsets.append(float(separate - penalty_value(parameters, both, 2.0)))
    assert offsets == pytest.approx([offsets[0]] * 3, rel=1e-9)
    assert offsets[0] > 0


def test_what_one_task_alone_protects_keeps_its_anchor_to_the_bit() -> None:
    old = Protection({"w": torch.tensor([2.0, 0.0, 0.0])}, {"w": torch.tensor([0.1, 0.2, 0.3])})
    new = Protection({"w": torch.tensor([0.0, 3.0, 0.0])}, {"w": torch.tensor([0.7, 0.8, 0.9])})
    both = add_protections(old, new)
    assert torch.equal(both.fisher["w"], torch.tensor([2.0, 3.0, 0.0]))
    assert torch.equal(both.anchor["w"], torch.tensor([0.1, 0.8, 0.9]))


def test_online_keeps_the_newest_anchor_and_lets_the_old_fisher_fade() -> None:
    old, new = toys.protection(1), toys.protection(2)
    faded = decay_protection(old, new, 0.75)
    for name in old.fisher:
        assert torch.equal(faded.fisher[name], 0.75 * old.fisher[name] + new.fisher[name])
        assert torch.equal(faded.anchor[name], new.anchor[name])


def test_what_only_the_old_task_knew_fades_and_stays_at_its_anchor() -> None:
    old = Protection({"head": torch.ones(2)}, {"head": torch.full((2,), 5.0)})
    new = Protection({"body": torch.ones(2)}, {"body": torch.zeros(2)})
    faded = decay_protection(old, new, 0.5)
    assert torch.equal(faded.fisher["head"], torch.full((2,), 0.5))
    assert torch.equal(faded.anchor["head"], torch.full((2,), 5.0))
    assert torch.equal(faded.fisher["body"], torch.ones(2))


@pytest.mark.parametrize("grown_first", [False, True])
def test_rows_of_a_grown_vocabulary_are_taken_from_the_task_that_has_them(
    grown_first: bool,
) -> None:
    small = toys.protection(1, {"e": (3, 2)}, torch.float64)
    large = toys.protection(2, {"e": (5, 2)}, torch.float64)
    both = add_protections(*((large, small) if grown_first else (small, large)))
    assert torch.equal(both.fisher["e"][3:], large.fisher["e"][3:])
    assert torch.equal(both.anchor["e"][3:], large.anchor["e"][3:])
    assert torch.equal(both.fisher["e"][:3], small.fisher["e"] + large.fisher["e"][:3])


def test_other_shapes_are_refused_by_name() -> None:
    with pytest.raises(MismatchError) as caught:
        add_protections(toys.protection(1, {"e": (3, 2)}), toys.protection(2, {"e": (3, 4)}))
    assert "e: [3, 2] and [3, 4]" in str(caught.value.detail)
