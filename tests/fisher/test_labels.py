"""Labels: drawn from the model, keyed by the row, and only where there is a loss."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from fisher.batch import IGNORE, UNKNOWN, Batch
from fisher.errors import BatchError, EstimatorError
from fisher.labels import empirical, exact, mc
from fisher.random import uniforms

WORD = 2**64 - 1


def philox_block(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x64-10 as its authors print it (Salmon et al. 2011), in Python integers."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = (p1 >> 64) ^ b ^ k0, p1 & WORD, (p0 >> 64) ^ d ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return [a, b, c, d]


def test_uniforms_are_the_published_generator_word_for_word() -> None:
    digest = hashlib.blake2b(b"row", digest_size=8).digest()
    key = [7, int.from_bytes(digest, "little")]
    words = philox_block([1, 3, 0, 0], key) + philox_block([2, 3, 0, 0], key)
    assert uniforms(7, "row", 3, 7).tolist() == [(word >> 11) / 2**53 for word in words[:7]]


def test_uniforms_of_another_row_draw_or_seed_are_others() -> None:
    base = uniforms(0, "a", 0, 50)
    for other in (uniforms(0, "b", 0, 50), uniforms(0, "a", 1, 50), uniforms(1, "a", 0, 50)):
        assert not np.intersect1d(base, other).size


def test_the_drawn_classes_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(400, 50, 4)
    labels = torch.zeros(400, 50, dtype=torch.int64)
    (drawn,) = mc(logits, labels, tuple(map(str, range(400))), seed=5)
    share = np.bincount(drawn.flatten().numpy(), minlength=4) / drawn.numel()
    weights = [math.exp(score) for score in (0.0, 1.0, 2.0, -1.0)]
    expected = np.array(weights) / sum(weights)
    error = np.sqrt(expected * (1 - expected) / drawn.numel())
    assert (np.abs(share - expected) < 4 * error).all()


def test_a_draw_is_the_first_class_whose_cumulative_probability_exceeds_the_uniform() -> None:
    logits = torch.randn(3, 6, 11, generator=torch.Generator().manual_seed(1))
    drawn = mc(logits, torch.zeros(3, 6, dtype=torch.int64), ("x", "y", "z"), seed=2, draws=2)
    for row, name in enumerate(("x", "y", "z")):
        for draw in range(2):
            uniform = uniforms(2, name, draw, 6)
            for position in range(6):
                scores = logits[row, position].double().numpy()
                cumulative = np.cumsum(np.exp(scores) / np.exp(scores).sum())
                expected = int((cumulative <= uniform[position]).sum())
                assert drawn[draw][row, position] == expected


def test_positions_without_a_loss_draw_no_label() -> None:
    labels = torch.tensor([[IGNORE, 4, UNKNOWN, IGNORE], [0, IGNORE, IGNORE, IGNORE]])
    (drawn,) = mc(torch.randn(2, 4, 9), labels, ("a", "b"), seed=0)
    assert torch.equal(drawn == IGNORE, labels == IGNORE)
    assert bool((drawn[labels != IGNORE] >= 0).all())


def test_a_draw_depends_on_neither_batch_nor_order_nor_padding() -> None:
    logits = torch.randn(2, 3, 50)
    labels = torch.zeros(2, 3, dtype=torch.int64)
    (together,) = mc(logits, labels, ("a", "b"), seed=9)
    (swapped,) = mc(logits.flip(0), labels, ("b", "a"), seed=9)
    assert torch.equal(swapped.flip(0), together)
    for side in ("left", "right"):
        padding = (2, 0) if side == "left" else (0, 2)
        wide = torch.nn.functional.pad(logits[:1], (0, 0, *padding), value=3.0)
        (alone,) = mc(
            wide, torch.nn.functional.pad(labels[:1], padding, value=IGNORE), ("a",), seed=9
        )
        assert torch.equal(alone[alone != IGNORE], together[0])


def test_a_class_of_probability_zero_is_never_drawn() -> None:
    logits = torch.full((1, 2000, 5), -torch.inf)
    logits[..., 2] = 0.0
    (drawn,) = mc(logits, torch.zeros(1, 2000, dtype=torch.int64), ("a",), seed=0)
    assert bool((drawn == 2).all())


def test_a_vocabulary_larger_than_a_chunk_is_drawn_from_too() -> None:
    logits = torch.zeros(1, 2, 2**18 + 5)
    (drawn,) = mc(logits, torch.zeros(1, 2, dtype=torch.int64), ("a",), seed=3)
    expected = uniforms(3, "a", 0, 2) * (2**18 + 5)
    assert drawn[0].tolist() == expected.astype(int).tolist()


def test_exact_names_every_class_with_its_probability() -> None:
    logits = torch.randn(4, 3)
    pairs = exact(logits, torch.tensor([0, 1, UNKNOWN, 2]))
    weights = np.exp(logits.double().numpy())
    weights /= weights.sum(axis=1, keepdims=True)
    assert [index for index, _ in pairs] == [0, 1, 2]
    for index, probability in pairs:
        np.testing.assert_allclose(probability.numpy(), weights[:, index], rtol=1e-14)


def test_exact_refuses_many_classes_and_sequences() -> None:
    with pytest.raises(EstimatorError, match="65, the limit is 64"):
        exact(torch.zeros(1, 65), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(EstimatorError, match="one label per row"):
        exact(torch.zeros(1, 3, 5), torch.zeros(1, 3, dtype=torch.int64))


def test_empirical_needs_true_labels() -> None:
    labels = torch.tensor([[1, IGNORE]])
    assert empirical(labels) is labels
    with pytest.raises(EstimatorError, match="true label"):
        empirical(torch.tensor([[1, UNKNOWN]]))


def test_a_batch_that_does_not_fit_together_is_refused() -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(BatchError, match=r"input_ids has shape \(2, 3\)"):
        Batch({"input_ids": ids}, torch.zeros(1, 3, dtype=torch.int64), ("a",))
    with pytest.raises(BatchError, match="row b has no position"):
        Batch({"input_ids": ids}, torch.tensor([[1, 2, 3], [IGNORE] * 3]), ("a", "b"))


def test_drawing_leaves_the_logits_as_they_are_in_any_precision() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        logits = torch.randn(2, 3, 8).to(dtype)
        before = logits.clone()
        mc(logits, torch.zeros(2, 3, dtype=torch.int64), ("a", "b"), seed=0)
        assert torch.equal(logits, before)
