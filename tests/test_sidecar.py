"""Sidecars as merges use them: found, held against their model, compared, turned into scales."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import fisher_like, model_tensors, write_model, write_pickle, write_sidecar
from safetensors.torch import save_file

import fisher.sidecar
from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import ClmergeError, FormatError, InputError, MismatchError
from mergekit_cl.sidecar import (
    Sidecar,
    check_comparable,
    common_tensors,
    complete_statistics,
    find_sidecar,
    model_scale,
    open_sidecar,
    scales,
    sidecar_of,
)

TENSORS = model_tensors(0)
FISHERS = {name: f for name, f in fisher_like(TENSORS, 1).items() if f.numel()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", TENSORS)


def opened(folder: Path, diagonal: dict[str, torch.Tensor], **metadata: Any) -> Sidecar:
    """A model of just these tensors with these Fishers."""
    weights = {name: torch.zeros(f.shape) for name, f in diagonal.items()}
    return open_sidecar(write_sidecar(write_model(folder, weights), diagonal, **metadata))


def test_a_sidecar_is_found_in_the_models_own_folder(model: Path) -> None:
    assert find_sidecar(open_checkpoint(model)) is None
    path = write_sidecar(model, FISHERS)
    assert find_sidecar(open_checkpoint(model)) == path == model / "clmerge/fisher.safetensors"
    assert sidecar_of(open_checkpoint(model), None).checkpoint.path == path


def test_the_sidecar_of_a_single_file_lies_beside_it(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "x.pt", dict(TENSORS))
    write_sidecar(path, FISHERS)
    assert sidecar_of(open_checkpoint(path), None).checkpoint.path == (
        tmp_path / "x.clmerge/fisher.safetensors"
    )


def test_a_sharded_sidecar_is_found_and_read(model: Path) -> None:
    whole = write_sidecar(model, FISHERS)
    tensors, _ = fisher.sidecar.load(whole)
    metadata = open_checkpoint(whole).metadata
    whole.unlink()
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        save_file({name: tensor}, whole.with_name(f"fisher-{i}.safetensors"), dict(metadata))
        weight_map[name] = f"fisher-{i}.safetensors"
    index = whole.with_name("fisher.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": weight_map}))
    found = sidecar_of(open_checkpoint(model), None)
    assert set(found.checkpoint.tensors) == set(FISHERS)


def test_a_model_without_one_is_told_how_to_make_it(model: Path) -> None:
    with pytest.raises(InputError) as caught:
        sidecar_of(open_checkpoint(model), None)
    assert f"clmerge fisher {model} --data" in (caught.value.hint or "")


def test_the_one_given_goes_before_the_one_in_the_folder(model: Path, tmp_path: Path) -> None:
    given = write_sidecar(model, FISHERS, examples=99).rename(tmp_path / "given.safetensors")
    write_sidecar(model, FISHERS, examples=1)
    assert sidecar_of(open_checkpoint(model), given).metadata["examples"] == 99


def test_weights_given_as_a_sidecar_are_refused(model: Path) -> None:
    with pytest.raises(FormatError, match="no Fisher sidecar"):
        sidecar_of(open_checkpoint(model), model / "model.safetensors")


@pytest.mark.parametrize(
    "wrong",
    [
        {"another.name": torch.ones(16)},
        {"lm_head.weight": torch.ones(16, 37)},
        {"lm_head.weight": torch.ones(37 * 16)},
        {"lm_head.weight": torch.ones((37, 16), dtype=torch.int32)},
    ],
    ids=["name", "turned", "flat", "integers"],
)
def test_a_sidecar_of_another_model_is_refused(model: Path, wrong: Any) -> None:
    path = write_sidecar(model, {**FISHERS, **wrong})
    with pytest.raises(MismatchError) as caught:
        sidecar_of(open_checkpoint(model), None)
    assert next(iter(wrong)) in (caught.value.detail or "")
    assert str(path) in (caught.value.detail or "")


@pytest.mark.parametrize("key", ["estimator", "unit", "level"])
def test_sidecars_that_differ_in_what_they_measure_do_not_compare(tmp_path: Path, key: str) -> None:
    one = opened(tmp_path / "a", {"w": torch.ones(2)})
    other = opened(tmp_path / "b", {"w": torch.ones(2)}, **{key: "another"})
    check_comparable([one, one])
    with pytest.raises(MismatchError, match=key):
        check_comparable([one, other])


def test_only_tensors_of_all_sidecars_are_common(tmp_path: Path) -> None:
    one = opened(tmp_path / "a", {name: torch.ones(2) for name in "xyz"})
    other = opened(tmp_path / "b", {name: torch.ones(2) for name in "zx"})
    assert sorted(common_tensors([one, other])) == ["x", "z"]


def test_a_scale_is_the_mean_or_the_root_mean_square_over_all_tensors(tmp_path: Path) -> None:
    diagonal = {"x": torch.tensor([1.0, 2.0, 3.0]), "y": torch.tensor([10.0])}
    sidecar = opened(tmp_path / "a", diagonal)
    assert model_scale(sidecar, ["x", "y"], "trace") == pytest.approx(16 / 4)
    assert model_scale(sidecar, ["x", "y"], "l2") == pytest.approx(math.sqrt(114 / 4))
    assert model_scale(sidecar, ["x", "y"], "none") == 1
    assert model_scale(sidecar, ["x"], "trace") == pytest.approx(2)


def test_tensors_that_another_sidecar_lacks_do_not_enter_a_scale(tmp_path: Path) -> None:
    one = opened(tmp_path / "a", {"x": torch.full((4,), 2.0), "only": torch.full((4,), 1e6)})
    other = opened(tmp_path / "b", {"x": torch.full((4,), 8.0)})
    found = scales([one, other], [0.3, 0.7], "trace", 1e-6)
    assert set(found) == {"x"}
    first, second = found["x"]
    assert first.factor == pytest.approx(0.3 / 2)
    assert second.factor == pytest.approx(0.7 / 8)


def test_the_floor_is_relative_to_the_tensors_mean_or_else_the_models(tmp_path: Path) -> None:
    diagonal = {"x": torch.full((3,), 4e-12), "zero": torch.zeros(3)}
    sidecar = opened(tmp_path / "a", diagonal)
    found = scales([sidecar], [1.0], "trace", 1e-6)
    assert found["x"][0].floor == pytest.approx(4e-18)
    assert found["zero"][0].floor == pytest.approx(2e-18)  # the model's mean is 2e-12


@pytest.mark.parametrize("normalize", ["trace", "l2"])
def test_the_share_of_a_model_does_not_depend_on_the_unit_of_its_fisher(
    tmp_path: Path, normalize: Any
) -> None:
    diagonal = {"x": torch.tensor([1.0, 5.0]), "y": torch.tensor([2.0])}
    smaller = {name: f * 2.0**-30 for name, f in diagonal.items()}
    one = scales([opened(tmp_path / "a", diagonal)], [1.0], normalize, 1e-6)
    other = scales([opened(tmp_path / "b", smaller)], [1.0], normalize, 1e-6)
    for name in diagonal:
        assert other[name][0].factor * 2.0**-30 == one[name][0].factor
        assert other[name][0].floor == one[name][0].floor * 2.0**-30


def test_a_sidecar_without_sums_is_read_once_to_make_them(tmp_path: Path) -> None:
    diagonal = {"x": torch.rand(50), "y": torch.rand(3)}
    complete = opened(tmp_path / "a", diagonal)
    assert complete_statistics(complete) == (complete, False)
    for lost in ("sum", "sum_squares", "max", "count"):
        described = {
            name: {k: v for k, v in entry.items() if k != lost}
            for name, entry in complete.metadata["tensors"].items()
        }
        bare = Sidecar(complete.checkpoint, {**complete.metadata, "tensors": described})
        filled, was_read = complete_statistics(bare)
        assert was_read
        assert filled.metadata["tensors"] == complete.metadata["tensors"]


def test_a_sidecar_of_zeros_says_nothing_and_is_refused(tmp_path: Path) -> None:
    zeros = opened(tmp_path / "a", {"x": torch.zeros(4)})
    for normalize in ("trace", "l2"):
        with pytest.raises(InputError, match="says nothing"):
            model_scale(zeros, ["x"], normalize)  # type: ignore[arg-type]


def test_why_a_tensor_has_no_fisher_is_known(tmp_path: Path) -> None:
    sidecar = opened(tmp_path / "a", {"x": torch.ones(1)}, missing={"y": "frozen"})
    assert sidecar.reason_missing("y") == "frozen"
    assert sidecar.reason_missing("z") == "not listed"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["tensors", "missing", "estimator", "tokens", "examples", "calibration"]),
    JSON,
    st.sampled_from([None, "w", "sum", "digest"]),
)
def test_a_description_of_rubbish_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any, inside: str | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "rubbish"
    path = write_sidecar(write_model(folder, {"w": torch.ones(2)}), {"w": torch.ones(2)})
    tensors, metadata = fisher.sidecar.load(path)
    if key == "tensors" and inside:
        entry = value if inside == "w" else {**metadata["tensors"]["w"], inside: value}
        metadata["tensors"]["w"] = entry
    else:
        metadata[key] = value
    save_file(tensors, path, {"clmerge.fisher": json.dumps(metadata)})
    try:
        sidecar = sidecar_of(open_checkpoint(folder), None)
        full, _ = complete_statistics(sidecar)
        scales([full], [1.0], "trace", 1e-6)
        assert full.digest("w") is None or isinstance(full.digest("w"), str)
        full.reason_missing("w")
    except ClmergeError:
        return
