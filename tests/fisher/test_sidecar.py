"""The sidecar format: what is stored comes back, with sums of what is stored."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from making import fisher_like, model_tensors, same_bits
from safetensors import safe_open
from safetensors.torch import save_file

from fisher.sidecar import (
    FORMAT,
    METADATA_KEY,
    SidecarError,
    decode_metadata,
    encode_metadata,
    load,
    save,
    statistics,
)

TENSORS = fisher_like(model_tensors(0), 1)
METADATA: dict[str, Any] = {
    "estimator": "mc",
    "unit": "per_example",
    "level": "sequence",
    "examples": 8,
    "tokens": 160,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_saved_is_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    save(tmp_path / "f.safetensors", stored, METADATA)
    tensors, metadata = load(tmp_path / "f.safetensors")
    assert set(tensors) == set(stored)
    assert all(same_bits(tensors[name], stored[name]) for name in stored)
    assert {key: metadata[key] for key in METADATA} == METADATA
    assert metadata["format"] == "clmerge.fisher/1"


def test_the_description_is_one_json_string_under_the_documented_key(tmp_path: Path) -> None:
    save(tmp_path / "f.safetensors", TENSORS, METADATA)
    with safe_open(tmp_path / "f.safetensors", framework="pt") as stored:
        found = json.loads(stored.metadata()["clmerge.fisher"])
    assert (METADATA_KEY, FORMAT) == ("clmerge.fisher", "clmerge.fisher/1")
    for name in TENSORS:
        assert found["tensors"][name]["kind"] == "diagonal"
        assert {"sum", "sum_squares", "max", "count", "zero_share"} <= set(found["tensors"][name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_statistics_are_exact_sums_of_the_stored_values(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand((300, 7), generator=generator) * 10).to(dtype)
    values[:30] = 0
    found = statistics(values)
    plain = values.double().reshape(-1).tolist()
    assert found["sum"] == pytest.approx(math.fsum(plain), rel=1e-12)
    assert found["sum_squares"] == pytest.approx(math.fsum(v * v for v in plain), rel=1e-12)
    assert (found["max"], found["count"]) == (max(plain), 2100)
    assert found["zero_share"] == plain.count(0.0) / 2100


def test_statistics_of_many_pieces_are_those_of_the_whole() -> None:
    values = torch.rand(2**20 + 5, generator=torch.Generator().manual_seed(1))
    values[-1] = 7
    found = statistics(values)
    assert found["count"] == 2**20 + 5
    assert found["max"] == 7
    assert found["sum"] == pytest.approx(values.double().sum().item(), rel=1e-12)


def test_squares_that_float32_loses_are_kept() -> None:
    found = statistics(torch.full((10,), 1e-30))
    assert found["sum_squares"] == pytest.approx(1e-59, rel=1e-6)


def test_statistics_of_nothing_are_zero() -> None:
    assert statistics(torch.empty(0, 3)) == {
        "sum": 0,
        "sum_squares": 0,
        "max": 0,
        "count": 0,
        "zero_share": 0,
    }


def test_what_is_known_of_a_tensor_is_kept_beside_its_sums(tmp_path: Path) -> None:
    known = {"tensors": {"lm_head.weight": {"digest": "abc", "standard_error": 0.5}}}
    save(tmp_path / "f.safetensors", TENSORS, {**METADATA, **known})
    _, metadata = load(tmp_path / "f.safetensors")
    described = metadata["tensors"]["lm_head.weight"]
    assert (described["digest"], described["standard_error"]) == ("abc", 0.5)
    assert described["count"] == TENSORS["lm_head.weight"].numel()


def test_views_are_stored_as_what_they_show(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T
    save(tmp_path / "f.safetensors", {"w": turned}, METADATA)
    assert torch.equal(load(tmp_path / "f.safetensors")[0]["w"], turned)


def test_equal_descriptions_are_equal_bytes() -> None:
    metadata = {**METADATA, "tensors": {}}
    backwards = dict(reversed(metadata.items()))
    assert encode_metadata(metadata) == encode_metadata(backwards)


def test_a_number_that_json_has_not_is_not_stored() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_metadata({**METADATA, "tensors": {}, "mean_nll": math.nan})


WHOLE = {"format": FORMAT, **METADATA, "tensors": {}}
BROKEN: dict[str, str] = {
    "not JSON": "{",
    "a list": "[]",
    "a number": "3",
    "another format": json.dumps({**WHOLE, "format": "clmerge.fisher/2"}),
    "no format": json.dumps({k: v for k, v in WHOLE.items() if k != "format"}),
    "tensors that are a list": json.dumps({**WHOLE, "tensors": []}),
    "a tensor that is a number": json.dumps({**WHOLE, "tensors": {"w": 3}}),
    "a sum that is text": json.dumps({**WHOLE, "tensors": {"w": {"sum": "x"}}}),
    "a sum that is no number": json.dumps({**WHOLE, "tensors": {"w": {"sum": math.nan}}}),
    "missing that is a list": json.dumps({**WHOLE, "missing": ["w"]}),
    "nesting without end": "[" * 100_000,
    **{
        f"no {key}": json.dumps({k: v for k, v in WHOLE.items() if k != key})
        for key in ("estimator", "unit", "level", "examples", "tensors")
    },
}


def test_a_whole_description_is_read() -> None:
    assert decode_metadata({METADATA_KEY: json.dumps(WHOLE)}, "x") == WHOLE


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_description_is_refused(case: str) -> None:
    with pytest.raises(SidecarError, match=r"x\.safetensors"):
        decode_metadata({METADATA_KEY: BROKEN[case]}, "x.safetensors")


def test_a_file_of_weights_is_no_sidecar(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(SidecarError, match="no Fisher sidecar"):
        load(tmp_path / "w.safetensors")
