"""Merge after merge: with `--carry` small updates add up, without it half of them is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_cl.errors import ClmergeError
from tests.exactly import fractions, nearest
from tests.lora.merging import merge

WEIGHTS = "model.safetensors"
NAMES = ("layers.0.q_proj", "layers.0.k_proj")
ROWS, COLUMNS, RANK = 64, 96, 4
RELATIVE = 1e-3


def write_base(folder: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {f"{name}.weight": (torch.randn(ROWS, COLUMNS) * 0.02).to(dtype) for name in NAMES}
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return tensors


def write_adapter(
    folder: Path, seed: int, names: Sequence[str] = NAMES, *, relative: float = RELATIVE
) -> dict[str, np.ndarray]:
    """An adapter whose update of each tensor has a norm relative to that of the base's."""
    random = torch.Generator().manual_seed(seed)
    factors, updates = {}, {}
    for name in names:
        down = torch.randn(RANK, COLUMNS, generator=random)
        up = torch.randn(ROWS, RANK, generator=random)
        up *= relative * 0.02 * (ROWS * COLUMNS) ** 0.5 / float((up @ down).norm())
        factors[f"base_model.model.{name}.lora_A.weight"] = down
        factors[f"base_model.model.{name}.lora_B.weight"] = up
        updates[f"{name}.weight"] = up.numpy().astype(np.float64) @ down.numpy().astype(np.float64)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(names)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return updates


def kept(found: Path, base: dict[str, torch.Tensor], updates: dict[str, np.ndarray]) -> float:
    """<d, e> / <d, d> over all tensors: d the summed update, e what the files hold of it."""
    weights = load_file(found / WEIGHTS)
    whole = sum(float((update**2).sum()) for update in updates.values())
    return (
        sum(
            float((update * (weights[name].double() - base[name].double()).numpy()).sum())
            for name, update in updates.items()
        )
        / whole
    )


def test_fifty_merges_of_a_thousandth_keep_the_summed_update_with_residuals_alone(
    tmp_path: Path,
) -> None:
    base = write_base(tmp_path / "base")
    adapters = [tmp_path / f"a{number}" for number in range(50)]
    total = {name: np.zeros((ROWS, COLUMNS)) for name in base}
    for number, adapter in enumerate(adapters):
        for name, update in write_adapter(adapter, number).items():
            total[name] += update
    shares, last = {}, {}
    for carry in (True, False):
        before = tmp_path / "base"
        for number, adapter in enumerate(adapters):
            after = tmp_path / f"m{number}-{carry}"
            merge(before, [adapter], after, carry=carry, report=False)
            before = after
        shares[carry] = kept(before, base, total)
        last[carry] = load_file(before / WEIGHTS)
    print(shares)  # noqa: T201
    assert shares[True] == pytest.approx(1, abs=0.01)
    assert 0.3 < shares[False] < 0.7
    merge(tmp_path / "base", adapters, tmp_path / "once", report=False)
    once = load_file(tmp_path / "once" / WEIGHTS)
    assert kept(tmp_path / "once", base, total) == pytest.approx(1, abs=0.01)
    # Residuals are float32: only next to a tie of bfloat16 may the last bit be another one.
    apart = sum(int((last[True][name] != once[name]).sum()) for name in once)
    assert apart <= 2 * ROWS * COLUMNS / 10_000


def test_several_adapters_are_added_with_one_rounding(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    scales = [1.0, -0.5, 2.0]
    adapters = [tmp_path / f"a{number}" for number in range(3)]
    exact = {name: tensor.double().numpy() for name, tensor in base.items()}
    for number, (adapter, scale) in enumerate(zip(adapters, scales, strict=True)):
        for name, update in write_adapter(adapter, number, relative=0.01).items():
            exact[name] = exact[name] + scale * update
    merge(tmp_path / "base", adapters, tmp_path / "once", scales)
    before = tmp_path / "base"
    for number, (adapter, scale) in enumerate(zip(adapters, scales, strict=True)):
        merge(before, [adapter], tmp_path / f"m{number}", [scale])
        before = tmp_path / f"m{number}"
    once, in_turn = load_file(tmp_path / "once" / WEIGHTS), load_file(before / WEIGHTS)
    for name, values in exact.items():
        whole = fractions(torch.from_numpy(values).flatten())
        expected = [nearest(value, torch.bfloat16) for value in whole]
        assert once[name].double().flatten().tolist() == expected
        assert in_turn[name].double().flatten().tolist() != expected


def test_residuals_of_tensors_that_a_merge_leaves_alone_are_kept_for_the_next(
    tmp_path: Path,
) -> None:
    base = write_base(tmp_path / "base")
    updates = write_adapter(tmp_path / "first", 1, NAMES[:1])
    write_adapter(tmp_path / "second", 2, NAMES[1:])
    third = write_adapter(tmp_path / "third", 3, NAMES[:1])
    before = tmp_path / "base"
    for name in ("first", "second", "third"):
        merge(before, [tmp_path / name], tmp_path / f"m-{name}", carry=True)
        before = tmp_path / f"m-{name}"
    first, second = (load_file(tmp_path / f"m-{name}" / WEIGHTS) for name in ("first", "second"))
    name = f"{NAMES[0]}.weight"
    assert torch.equal(first[name], second[name])
    exact = base[name].double().numpy() + updates[name] + third[name]
    found = load_file(before / WEIGHTS)[name].double().numpy()
    residual = load_file(before / "clmerge" / "carry.safetensors")[name].double().numpy()
    np.testing.assert_allclose(found + residual, exact, rtol=0, atol=1e-10)


def test_residuals_are_given_back_to_a_wider_output(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    updates = write_adapter(tmp_path / "one", 1)
    write_adapter(tmp_path / "two", 2, NAMES[1:])
    merge(tmp_path / "base", [tmp_path / "one"], tmp_path / "first", carry=True)
    merge(tmp_path / "first", [tmp_path / "two"], tmp_path / "wide", carry=True, dtype="F32")
    name = f"{NAMES[0]}.weight"
    found = load_file(tmp_path / "wide" / WEIGHTS)[name].double().numpy()
    np.testing.assert_allclose(found, base[name].double().numpy() + updates[name], rtol=1e-6)


def test_residuals_of_other_weights_are_refused(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "one", 1)
    merge(tmp_path / "base", [tmp_path / "one"], tmp_path / "first", carry=True)
    file = tmp_path / "first" / WEIGHTS
    weights = load_file(file)
    weights["layers.0.k_proj.weight"][0, 0] += 1
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ClmergeError, match="belong to other weights"):
        merge(tmp_path / "first", [tmp_path / "one"], tmp_path / "second", carry=True)
    assert not (tmp_path / "second").exists()
