import torch

from examples.evaluate import score_batch
from examples.quickstart.texts import ROW, rows_of
from examples.rows import split, spread


def test_rows_hold_every_word_in_order_and_are_of_one_length_but_for_a_word() -> None:
    text = "  ".join(f"w{i}" for i in range(2000))
    rows = [row["text"] for row in rows_of(text)]
    assert text.split()[: len(" ".join(rows).split())] == " ".join(rows).split()
    assert all(ROW - 1 <= len(row) < ROW + 6 for row in rows)


def test_training_and_held_out_rows_are_disjoint_pieces() -> None:
    train, held_out = split(list(range(10)))
    assert (train, held_out) == ([0, 1, 2, 3, 4, 5, 6, 7], [8, 9])


def test_spreading_takes_rows_at_even_distances_and_all_where_there_are_few() -> None:
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert spread([1, 2], 5) == [1, 2]


def test_a_text_scores_the_nats_of_its_own_tokens_and_no_padding() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 7)
    labels = torch.tensor([[1, 2, 3, 4], [5, 6, -100, -100]])
    sums, units = score_batch(logits, labels)
    p = logits.double().softmax(-1)
    first = -(p[0, 0, 2].log() + p[0, 1, 3].log() + p[0, 2, 4].log())
    torch.testing.assert_close(torch.tensor(sums[0]).double(), first, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(sums[1]).double(), -p[1, 0, 6].log(), rtol=1e-6, atol=0)
    assert units == [3, 1]


def test_a_class_scores_one_where_the_largest_logit_is_right() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    assert score_batch(logits, torch.tensor([1, 1, 1])) == ([1.0, 0.0, 1.0], [1, 1, 1])
