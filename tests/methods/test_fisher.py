"""fisher-merge from checkpoint folders and sidecars: shares, scales, fallbacks, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from making import (
    Tensors,
    by_fisher,
    fisher_like,
    merge,
    model_tensors,
    weight_bytes,
    write_model,
    write_sidecar,
)

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import InputError, MismatchError, NonFiniteError, OptionError
from mergekit_cl.plan import Selection

NORMALIZED = pytest.mark.parametrize("normalize", ["trace", "l2"])


def model(folder: Path, k: int, fishers: Tensors | None = None, **metadata: Any) -> Path:
    tensors = {name: t.float() for name, t in model_tensors(k).items()}
    path = write_model(folder / str(k), tensors)
    write_sidecar(path, fisher_like(tensors, k) if fishers is None else fishers, **metadata)
    return path


def one(folder: Path, name: str, values: list[float], fisher: list[float], **more: Any) -> Path:
    """A model of one tensor."""
    path = write_model(folder / name, {"w": torch.tensor(values)})
    write_sidecar(path, {"w": torch.tensor(fisher)}, **more)
    return path


def merged(target: Path) -> Tensors:
    with open_checkpoint(target) as checkpoint:
        return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


@pytest.mark.parametrize("normalize", ["trace", "l2", "none"])
@pytest.mark.parametrize("count", [2, 3])
def test_every_tensor_is_the_fisher_weighted_mean(
    tmp_path: Path, count: int, normalize: str
) -> None:
    inputs = [model(tmp_path, k) for k in range(count)]
    weights = [0.2, 0.5, 0.3][:count]
    merge(by_fisher(inputs, weights=weights, normalize=normalize), tmp_path / "out")
    tensors = [{n: t.float().double() for n, t in model_tensors(k).items()} for k in range(count)]
    fishers = [{n: f.double() for n, f in fisher_like(tensors[k], k).items()} for k in range(count)]
    for name, found in merged(tmp_path / "out").items():
        top: Any = 0
        bottom: Any = 0
        for k in range(count):
            everything = torch.cat([f.reshape(-1) for f in fishers[k].values()])
            mean = everything.mean()
            scale = {"trace": mean, "l2": (everything**2).mean().sqrt(), "none": 1}[normalize]
            own = fishers[k][name].mean() if fishers[k][name].numel() else mean
            share = weights[k] * fishers[k][name].clamp(min=1e-6 * own) / scale
            top, bottom = top + share * tensors[k][name], bottom + share
        torch.testing.assert_close(found.double(), top / bottom, rtol=1e-5, atol=1e-7)


@NORMALIZED
def test_a_models_unit_of_fisher_changes_no_bit(tmp_path: Path, normalize: str) -> None:
    outputs = []
    for factor in (1.0, 2.0**-30):  # a power of two, about 1e-9: rounding stays the same
        folder = tmp_path / str(factor)
        inputs = [model(folder, 0), model(folder, 1)]
        own = fisher_like(model_tensors(1), 1)
        write_sidecar(inputs[1], {name: f * factor for name, f in own.items()})
        merge(by_fisher(inputs, normalize=normalize), folder / "out")
        outputs.append(weight_bytes(folder / "out"))
    assert outputs[0] == outputs[1]


@NORMALIZED
def test_a_fisher_a_thousand_million_times_smaller_changes_only_rounding(
    tmp_path: Path, normalize: str
) -> None:
    found = []
    for factor in (1.0, 1e-9):
        folder = tmp_path / str(factor)
        inputs = [model(folder, 0), model(folder, 1)]
        own = fisher_like(model_tensors(1), 1)
        write_sidecar(inputs[1], {name: f * factor for name, f in own.items()})
        merge(by_fisher(inputs, normalize=normalize), folder / "out")
        found.append(merged(folder / "out"))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-5, atol=1e-6)


def test_without_normalising_the_unit_decides(tmp_path: Path) -> None:
    a = one(tmp_path, "a", [0.0], [1.0])
    b = one(tmp_path, "b", [1.0], [1e-3])
    merge(by_fisher([a, b], normalize="none"), tmp_path / "none")
    merge(by_fisher([a, b], normalize="trace"), tmp_path / "trace")
    assert merged(tmp_path / "none")["w"].item() == pytest.approx(1e-3 / 1.001)
    assert merged(tmp_path / "trace")["w"].item() == 0.5


def test_small_fishers_decide_because_the_floor_is_relative(tmp_path: Path) -> None:
    # An absolute floor of 1e-6, as published, makes this merge the plain average: 0.5 everywhere.
    a = one(tmp_path, "a", [0.0, 0.0], [1e-11, 1e-13])
    b = one(tmp_path, "b", [1.0, 1.0], [1e-13, 1e-11])
    merge(by_fisher([a, b], normalize="none"), tmp_path / "out")
    assert merged(tmp_path / "out")["w"].tolist() == pytest.approx([1 / 101, 100 / 101])


@pytest.mark.parametrize(
    ("fallback", "expected"), [("linear", 1 * 0.25 + 5 * 0.75), ("first", 1.0), ("base", 9.0)]
)
def test_where_nobody_measured_anything_the_fallback_decides(
    tmp_path: Path, fallback: Any, expected: float
) -> None:
    a = one(tmp_path, "a", [1.0, 1.0], [0.0, 1.0])
    b = one(tmp_path, "b", [5.0, 5.0], [0.0, 1.0])
    base = write_model(tmp_path / "base", {"w": torch.full((2,), 9.0)})
    method = by_fisher(
        [a, b], weights=(1, 3), fallback=fallback, base=base if fallback == "base" else None
    )
    outcome = merge(method, tmp_path / "out")
    assert merged(tmp_path / "out")["w"].tolist() == [expected, 4.0]
    assert outcome.divergence is not None
    assert [row.metrics["fallback"] for row in outcome.divergence.tensors] == [0.5, 0.5]


def test_a_model_of_weight_zero_is_as_good_as_absent(tmp_path: Path) -> None:
    inputs = [model(tmp_path, k) for k in range(3)]
    merge(by_fisher(inputs, weights=(0.3, 0.0, 0.7)), tmp_path / "with")
    merge(by_fisher([inputs[0], inputs[2]], weights=(0.3, 0.7)), tmp_path / "without")
    assert weight_bytes(tmp_path / "with") == weight_bytes(tmp_path / "without")


def test_equal_fishers_give_the_linear_merge(tmp_path: Path) -> None:
    from making import linear

    tensors = model_tensors(0)
    same = {name: torch.full(t.shape, 0.125) for name, t in tensors.items()}
    inputs = [model(tmp_path, k, same) for k in range(2)]
    merge(by_fisher(inputs, weights=(1, 3)), tmp_path / "fisher", dtype="BF16")
    merge(linear(inputs, weights=(1, 3)), tmp_path / "linear", dtype="BF16")
    assert weight_bytes(tmp_path / "fisher") == weight_bytes(tmp_path / "linear")


def test_negative_weights_are_refused(tmp_path: Path) -> None:
    inputs = [model(tmp_path, k) for k in range(2)]
    with pytest.raises(OptionError, match="0 or more"):
        by_fisher(inputs, weights=(1.5, -0.5))


@pytest.mark.parametrize("option", [{"fallback": "base"}, {"on_missing": "base"}])
def test_falling_back_to_a_base_needs_one(tmp_path: Path, option: dict[str, Any]) -> None:
    inputs = [model(tmp_path, k) for k in range(2)]
    with pytest.raises(OptionError, match="base"):
        by_fisher(inputs, **option)


@pytest.mark.parametrize("key", ["estimator", "unit", "level"])
def test_sidecars_of_different_kinds_are_refused_or_recorded(tmp_path: Path, key: str) -> None:
    inputs = [model(tmp_path, 0), model(tmp_path, 1, **{key: "another"})]
    with pytest.raises(MismatchError, match=key):
        by_fisher(inputs)
    allowed = by_fisher(inputs, allow_mixed=True)
    alike = by_fisher([inputs[0], model(tmp_path, 1)], allow_mixed=True)
    assert dict(allowed.options) != dict(alike.options)


def without(name: str, k: int) -> Tensors:
    return {n: f for n, f in fisher_like(model_tensors(k), k).items() if n != name}


def test_a_tensor_without_fisher_is_refused_by_name_and_reason(tmp_path: Path) -> None:
    name = "lm_head.weight"
    inputs = [model(tmp_path, 0), model(tmp_path, 1, without(name, 1), missing={name: "frozen"})]
    with pytest.raises(MismatchError) as caught:
        by_fisher(inputs)
    assert f"{name}: frozen in {inputs[1]}" in (caught.value.detail or "")


@pytest.mark.parametrize(("on_missing", "expected"), [("linear", 0.25), ("base", 7.0)])
def test_a_tensor_without_fisher_follows_the_option(
    tmp_path: Path, on_missing: str, expected: float
) -> None:
    for k, name in enumerate("ab"):
        path = write_model(tmp_path / name, {"w": torch.full((3,), float(k)), "v": torch.ones(1)})
        write_sidecar(path, {"v": torch.ones(1)}, missing={"w": "excluded"})
    base = write_model(tmp_path / "base", {"w": torch.full((3,), 7.0), "v": torch.zeros(1)})
    method = by_fisher(
        [tmp_path / "a", tmp_path / "b"],
        weights=(3, 1),
        on_missing=on_missing,
        base=base if on_missing == "base" else None,
    )
    outcome = merge(method, tmp_path / "out")
    assert merged(tmp_path / "out")["w"].tolist() == [expected] * 3
    assert any("without Fisher" in note and "w" in note for note in outcome.notes)


def test_a_buffer_merges_linearly_with_a_note(tmp_path: Path) -> None:
    name = "model.layers.1.scale"
    inputs = [model(tmp_path, k, without(name, k), missing={name: "buffer"}) for k in range(2)]
    outcome = merge(by_fisher(inputs, weights=(1, 3)), tmp_path / "out")
    values = [model_tensors(k)[name].float() for k in range(2)]
    found = merged(tmp_path / "out")[name]
    torch.testing.assert_close(found, 0.25 * values[0] + 0.75 * values[1])
    assert any("buffer" in note for note in outcome.notes)


def test_a_tensor_that_is_not_merged_needs_no_fisher(tmp_path: Path) -> None:
    name = "lm_head.weight"
    inputs = [model(tmp_path, 0), model(tmp_path, 1, without(name, 1))]
    chosen = Selection(exclude=(name,))
    merge(by_fisher(inputs, selection=chosen), tmp_path / "out", selection=chosen)
    assert weight_bytes(tmp_path / "out")[name] == weight_bytes(inputs[0])[name]


def test_a_sidecar_without_sums_is_read_once_and_that_is_said(tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file

    import fisher.sidecar

    inputs = [model(tmp_path, k) for k in range(2)]
    merge(by_fisher(inputs), tmp_path / "complete")
    for path in inputs:
        place = path / "clmerge/fisher.safetensors"
        tensors, metadata = fisher.sidecar.load(place)
        for entry in metadata["tensors"].values():
            del entry["sum"], entry["max"]
        save_file(tensors, place, {"clmerge.fisher": json.dumps(metadata)})
    outcome = merge(by_fisher(inputs), tmp_path / "bare")
    assert weight_bytes(tmp_path / "bare") == weight_bytes(tmp_path / "complete")
    assert sum("read once more" in note for note in outcome.notes) == 2


def test_a_model_without_a_sidecar_is_refused(tmp_path: Path) -> None:
    bare = write_model(tmp_path / "bare", model_tensors(0))
    with pytest.raises(InputError, match="no Fisher sidecar"):
        by_fisher([model(tmp_path, 0), bare])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_fisher_that_is_no_number_is_refused_by_name(tmp_path: Path, bad: float) -> None:
    inputs = [model(tmp_path, 0), model(tmp_path, 1)]
    place = inputs[1] / "clmerge/fisher.safetensors"
    data = bytearray(place.read_bytes())
    data[-4:] = torch.tensor([bad]).numpy().tobytes()
    place.write_bytes(data)
    with pytest.raises(NonFiniteError) as caught:
        merge(by_fisher(inputs), tmp_path / "out")
    assert str(place) in (caught.value.detail or "")


@pytest.mark.parametrize(
    ("estimator", "known"), [("mc", True), ("exact", True), ("empirical", False), ("adam", False)]
)
def test_only_fishers_in_nats_predict_a_divergence(
    tmp_path: Path, estimator: str, known: bool
) -> None:
    inputs = [model(tmp_path, k, estimator=estimator) for k in range(2)]
    outcome = merge(by_fisher(inputs), tmp_path / "out")
    assert outcome.divergence is not None
    for parent in outcome.divergence.model:
        assert (parent.metrics["predicted_kl"] is not None) is known
