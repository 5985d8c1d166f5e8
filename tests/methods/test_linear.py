"""linear-merge from checkpoint folders: means, sums, differences from a base, any mix of dtypes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from exactly import fractions, spacing
from making import (
    Tensors,
    linear,
    merge,
    model_tensors,
    weight_bytes,
    write_model,
    write_pickle,
    write_sharded,
)

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import MismatchError, NonFiniteError, OptionError


def models(folder: Path, count: int) -> list[Path]:
    return [write_model(folder / str(k), model_tensors(k)) for k in range(count)]


def merged(target: Path) -> Tensors:
    with open_checkpoint(target) as checkpoint:
        return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


def test_every_tensor_is_the_weighted_mean(tmp_path: Path) -> None:
    inputs = models(tmp_path, 3)
    merge(linear(inputs, weights=(1, 2, 5)), tmp_path / "out")
    shares = [Fraction(w, 8) for w in (1, 2, 5)]
    for name, tensor in merged(tmp_path / "out").items():
        inputs_of = [fractions(model_tensors(k)[name].reshape(-1)) for k in range(3)]
        columns = zip(*inputs_of, strict=True)
        for found, column in zip(fractions(tensor.reshape(-1)), columns, strict=True):
            exact = sum(s * x for s, x in zip(shares, column, strict=True))
            assert abs(found - exact) <= spacing(max(map(abs, column)), torch.bfloat16)


def test_without_weights_it_is_the_plain_mean(tmp_path: Path) -> None:
    inputs = models(tmp_path, 2)
    merge(linear(inputs), tmp_path / "plain")
    merge(linear(inputs, weights=(7, 7)), tmp_path / "equal")
    assert weight_bytes(tmp_path / "plain") == weight_bytes(tmp_path / "equal")


def test_a_model_merged_with_itself_is_itself(tmp_path: Path) -> None:
    (model,) = models(tmp_path, 1)
    merge(linear([model, model, model], weights=(1, 2, 3)), tmp_path / "out")
    assert weight_bytes(tmp_path / "out") == weight_bytes(model)


def test_the_file_is_the_one_the_library_would_write(tmp_path: Path) -> None:
    (model,) = models(tmp_path, 1)
    merge(linear([model, model]), tmp_path / "out")
    found = (tmp_path / "out/model.safetensors").read_bytes()
    assert found == (model / "model.safetensors").read_bytes()


def test_neither_sharding_nor_format_of_the_inputs_changes_a_byte(tmp_path: Path) -> None:
    inputs = models(tmp_path, 2)
    one, other = model_tensors(0), model_tensors(1)
    names = list(one)
    sharded = write_sharded(
        tmp_path / "shards", [{n: one[n] for n in names[3:]}, {n: one[n] for n in names[:3]}]
    )
    pickled = write_pickle(tmp_path / "pickle/pytorch_model.bin", dict(other)).parent
    first = merge(linear(inputs, weights=(1, 2)), tmp_path / "x")
    second = merge(linear([sharded, pickled], weights=(1, 2)), tmp_path / "y")
    assert weight_bytes(tmp_path / "x") == weight_bytes(tmp_path / "y")
    for kind in ("inputs", "outputs"):
        digests = [[e["weights_digest"] for e in o.manifest[kind]] for o in (first, second)]
        assert digests[0] == digests[1]


def test_different_dtypes_give_the_promoted_one(tmp_path: Path) -> None:
    write_model(tmp_path / "a", {"w": torch.tensor([1.0, 2.0]).bfloat16()})
    write_model(tmp_path / "b", {"w": torch.tensor([0.3, 0.6]).half()})
    merge(linear([tmp_path / "a", tmp_path / "b"], weights=(1, 3)), tmp_path / "out")
    (found,) = merged(tmp_path / "out").values()
    assert found.dtype == torch.float32
    exact = 0.25 * torch.tensor([1.0, 2.0]) + 0.75 * torch.tensor([0.3, 0.6]).half().float()
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=0)


def test_float64_inputs_are_merged_in_float64(tmp_path: Path) -> None:
    values = [torch.randn(500, dtype=torch.float64) for _ in range(2)]
    inputs = [write_model(tmp_path / str(k), {"w": v}) for k, v in enumerate(values)]
    merge(linear(inputs, weights=(1, 2)), tmp_path / "out")
    (found,) = merged(tmp_path / "out").values()
    exact = values[0] / 3 + values[1] * 2 / 3
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-14)


def test_a_plain_sum_takes_weights_as_given(tmp_path: Path) -> None:
    inputs = [write_model(tmp_path / str(k), {"w": torch.full((3,), 2.0**k)}) for k in range(3)]
    merge(linear(inputs, weights=(1, -1, 0.5), normalize=False), tmp_path / "out")
    assert merged(tmp_path / "out")["w"].tolist() == [1 - 2 + 2] * 3


def test_with_a_base_weights_apply_to_differences(tmp_path: Path) -> None:
    tensors = [torch.tensor([1.0, 4.0]), torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])]
    *inputs, base = (write_model(tmp_path / str(k), {"w": t}) for k, t in enumerate(tensors))
    method = linear(inputs, weights=(0.5, 0.25), normalize=False, base=base)
    merge(method, tmp_path / "out")
    # base + 0.5 (a - base) + 0.25 (b - base)
    assert merged(tmp_path / "out")["w"].tolist() == [1 + 0 + 0.5, 2 + 1 + 0.5]


def test_normalised_weights_make_the_base_cancel(tmp_path: Path) -> None:
    inputs = models(tmp_path, 3)
    merge(linear(inputs[:2], weights=(1, 2), base=inputs[2]), tmp_path / "based")
    merge(linear(inputs[:2], weights=(1, 2)), tmp_path / "free")
    assert weight_bytes(tmp_path / "based") == weight_bytes(tmp_path / "free")


def test_a_base_of_other_tensors_is_refused(tmp_path: Path) -> None:
    inputs = models(tmp_path, 2)
    base = write_model(tmp_path / "base", {**model_tensors(0), "lm_head.weight": torch.ones(3)})
    with pytest.raises(MismatchError) as caught:
        merge(linear(inputs, weights=(1, 1), normalize=False, base=base), tmp_path / "out")
    assert "lm_head.weight" in (caught.value.detail or "")


def test_nan_in_the_base_is_named(tmp_path: Path) -> None:
    inputs = models(tmp_path, 2)
    poisoned = model_tensors(2)
    poisoned["lm_head.weight"][0, 0] = float("nan")
    base = write_model(tmp_path / "base", poisoned)
    with pytest.raises(NonFiniteError) as caught:
        merge(linear(inputs, weights=(1, 1), normalize=False, base=base), tmp_path / "out")
    assert f"{base}: lm_head.weight" in (caught.value.detail or "")


def test_the_number_of_weights_is_checked(tmp_path: Path) -> None:
    inputs = models(tmp_path, 2)
    with pytest.raises(OptionError):
        linear(inputs, weights=(1, 2, 3))
