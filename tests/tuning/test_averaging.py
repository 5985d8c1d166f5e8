"""Averages made after a run are those of its every step, by sums in float64 from the outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_models import tiny_bert_classifier, tiny_llama
from training_runs import (
    config_of,
    files_of,
    lines_of,
    trained,
    write_labelled,
    write_text,
)

from mergekit_cl.report.progress import no_progress
from mergekit_cl.tuning import tasks as tasks_module
from mergekit_cl.tuning.averaging import AverageRequest, run_average, source_of
from mergekit_cl.tuning.loop import take_step

Arrays = dict[str, np.ndarray[Any, Any]]
EMA = {"half_life": 3.0, "snapshot_every": 3}


def exponent(sigma_rel: float) -> float:
    """Where sqrt((g + 1) / ((g + 2)^2 (g + 3))), which falls with g, is sigma_rel."""
    low, high = 0.0, 1000.0
    while high - low > 1e-12 * high:
        g = (low + high) / 2
        longer = (g + 1) / ((g + 2) ** 2 * (g + 3)) > sigma_rel**2
        low, high = (g, high) if longer else (low, g)
    return low


GAMMAS = {"0.05": exponent(0.05), "0.1": exponent(0.1)}


def llama(root: Path, dtype: torch.dtype = torch.float32) -> dict[str, Path]:
    tiny_llama(root / "model", tied=True, dtype=dtype)
    return {name: write_text(root / f"{name}.jsonl", 60, k) for k, name in enumerate("ab")}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Arrays]:
    """The weights after every step of the runs that follow, in float64."""
    found: list[Arrays] = []

    def watched(config: Any, engine: Any, live: Any, *rest: Any) -> Any:
        stepped = take_step(config, engine, live, *rest)
        tensors = live.tuned.evolving().items()
        found.append({name: tensor.double().numpy().copy() for name, tensor in tensors})
        return stepped

    monkeypatch.setattr(tasks_module, "take_step", watched)
    return found


def average_of(seen: list[Arrays], gamma: float, step: int) -> Arrays:
    """sum_i ((i/t)^(gamma+1) - ((i-1)/t)^(gamma+1)) x_i over the first `step` steps."""
    weights = np.diff((np.arange(step + 1) / step) ** (gamma + 1))
    return {
        name: sum(w * one[name] for w, one in zip(weights, seen[:step], strict=True))
        for name in seen[0]
    }


def averaged(root: Path, half_life: float, *, run: str = "run", **more: Any) -> dict[str, Any]:
    request = AverageRequest(root / run, half_life, root / "averaged", **more)
    with source_of(request) as source:
        return run_average(request, source, no_progress)


def least_squares(steps: list[int], wanted: float) -> tuple[Any, float]:
    """Weights of both averages of each step, and the residual, on profiles sampled finely."""
    last = steps[-1]
    times = (np.arange(200_000) + 0.5) * last / 200_000

    def density(gamma: float, step: int) -> np.ndarray[Any, Any]:
        values = (gamma + 1) / step * np.minimum(times / step, 1) ** gamma
        return np.where(times <= step, values, 0.0)

    basis = np.stack([density(g, t) for t in steps for g in GAMMAS.values()], axis=1)
    moved, target = basis[:, :-1] - basis[:, -1:], density(wanted, last) - basis[:, -1]
    found = np.linalg.lstsq(moved, target, rcond=None)[0]
    weights = np.append(found, 1 - found.sum())
    left = np.linalg.norm(density(wanted, last) - basis @ weights)
    return weights, float(left / np.linalg.norm(density(wanted, last)))


def combination(seen: list[Arrays], steps: list[int], half_life: float) -> Arrays:
    """What these snapshots should give for a half-life at the last of them."""
    weights, _ = least_squares(steps, -1 / np.log2(1 - half_life / steps[-1]) - 1)
    stored = [average_of(seen, g, t) for t in steps for g in GAMMAS.values()]
    return {
        name: sum(w * one[name] for w, one in zip(weights, stored, strict=True)) for name in seen[0]
    }


def test_snapshots_hold_both_averages_of_every_step_so_far(
    tmp_path: Path, seen: list[Arrays]
) -> None:
    trained(config_of(tmp_path, tmp_path / "model", llama(tmp_path), ema=EMA, steps=5))
    assert len(seen) == 10
    files = sorted((tmp_path / "run/snapshots").iterdir())
    assert [int(path.stem) for path in files] == [3, 6, 9, 10]  # across tasks, and at the end
    for path in files:
        stored = load_file(path)
        for sigma, gamma in GAMMAS.items():
            expected = average_of(seen, gamma, int(path.stem))
            for name, values in expected.items():
                found = stored.pop(f"{sigma}:{name}")
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, values, rtol=2e-6, atol=2e-6, err_msg=name)
        assert not stored


@pytest.mark.parametrize("half_life", [1.5, 2.4])
def test_an_average_is_the_nearest_combination_and_near_the_one_kept_directly(
    tmp_path: Path, seen: list[Arrays], half_life: float
) -> None:
    ema = {**EMA, "publish": False}
    trained(config_of(tmp_path, tmp_path / "model", llama(tmp_path), ema=ema, steps=12))
    made = averaged(tmp_path, half_life)
    found = load_file(tmp_path / "averaged/model.safetensors")
    gamma = -1 / np.log2(1 - half_life / 24) - 1
    steps = list(range(3, 25, 3))
    _, residual = least_squares(steps, gamma)
    expected, direct = combination(seen, steps, half_life), average_of(seen, gamma, 24)
    assert made["average"]["residual"] == pytest.approx(residual, rel=0.02, abs=1e-5)
    assert made["average"]["step"] == 24
    moved = far = 0.0
    for name, values in direct.items():
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=2e-5, err_msg=name)
        moved += np.square(values - seen[-1][name]).sum()
        far += np.square(values - found[name]).sum()
    # The average is not the last step, and what was made is the average.
    assert far < 1e-3 * moved


def test_the_output_has_names_and_dtypes_of_the_file_rounded_once(
    tmp_path: Path, seen: list[Arrays]
) -> None:
    tasks = llama(tmp_path, torch.bfloat16)
    trained(config_of(tmp_path, tmp_path / "model", tasks, ema=EMA))
    averaged(tmp_path, 1.0)
    from safetensors.torch import load_file as load_torch

    base = load_torch(tmp_path / "model/model.safetensors")
    found = load_torch(tmp_path / "averaged/model.safetensors")
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        n: (t.dtype, t.shape) for n, t in base.items()
    }
    direct = average_of(seen, -1 / np.log2(1 - 1 / 12) - 1, 12)
    for name, values in direct.items():
        # One rounding to 8 bits, and what the combination is off by.
        np.testing.assert_allclose(found[name].double().numpy(), values, rtol=2**-8, atol=1e-3)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "averaged")
    assert model.dtype == torch.bfloat16
    made = json.loads((tmp_path / "averaged/clmerge/manifest.json").read_text())
    roles = [one["role"] for one in made["inputs"]]
    assert roles == ["base", *["snapshot"] * 4]


def test_of_an_adapter_the_factors_are_averaged_as_ema_does(
    tmp_path: Path, seen: list[Arrays]
) -> None:
    labels = ("negative", "neutral", "positive")
    tiny_bert_classifier(tmp_path / "model", labels=labels)
    tasks = {"a": write_labelled(tmp_path / "a.jsonl", 60, 0, labels)}
    lora = {"rank": 2, "modules_to_save": ["classifier"]}
    trained(config_of(tmp_path, tmp_path / "model", tasks, ema=EMA, lora=lora, steps=12))
    averaged(tmp_path, 1.5)
    files = [tmp_path / place for place in ("averaged", "run/adapter")]
    found, like = (load_file(place / "adapter_model.safetensors") for place in files)
    assert found.keys() == like.keys()
    settings = [json.loads((place / "adapter_config.json").read_text()) for place in files]
    assert settings[0] == settings[1]
    expected = combination(seen, [3, 6, 9, 12], 1.5)
    for name, values in expected.items():
        stored = name.replace(".modules_to_save", "").replace(".default", "")
        np.testing.assert_allclose(found[stored], values, rtol=1e-4, atol=2e-5, err_msg=name)
    assert max(np.abs(expected[name] - seen[-1][name]).max() for name in expected) > 1e-3


def test_the_same_average_again_is_up_to_date_and_another_needs_force(tmp_path: Path) -> None:
    trained(config_of(tmp_path, tmp_path / "model", llama(tmp_path), ema=EMA))
    assert averaged(tmp_path, 1.0)["state"] == "published"
    before = files_of(tmp_path / "averaged")
    assert averaged(tmp_path, 1.0)["state"] == "up to date"
    assert files_of(tmp_path / "averaged") == before
    made = averaged(tmp_path, 0.5, force=True)
    assert made["state"] == "published"
    assert made["options"]["half_life"] == 0.5
    after = files_of(tmp_path / "averaged")
    assert after["model.safetensors"] != before["model.safetensors"]


def test_a_run_that_goes_on_from_another_begins_its_averages_anew(
    tmp_path: Path, seen: list[Arrays]
) -> None:
    tasks = llama(tmp_path)
    how = {"ema": EMA, "steps": 4}
    trained(config_of(tmp_path, tmp_path / "model", {"a": tasks["a"]}, **how))
    del seen[:]
    second = config_of(
        tmp_path, tmp_path / "model", {"b": tasks["b"]}, **how, output=str(tmp_path / "two")
    )
    trained(second, continue_from=tmp_path / "run")
    files = sorted((tmp_path / "two/snapshots").iterdir())
    assert [int(path.stem) for path in files] == [3, 4]
    stored = load_file(files[-1])
    for name, values in average_of(seen, GAMMAS["0.1"], 4).items():
        np.testing.assert_allclose(stored[f"0.1:{name}"], values, rtol=2e-6, atol=2e-6)


def test_a_run_without_snapshots_is_the_same_run(tmp_path: Path) -> None:
    tasks = llama(tmp_path)
    trained(config_of(tmp_path, tmp_path / "model", tasks, ema=EMA))
    plain = config_of(
        tmp_path, tmp_path / "model", tasks, ema={"half_life": 3.0}, output=str(tmp_path / "plain")
    )
    trained(plain)
    assert not (tmp_path / "plain/snapshots").exists()
    assert lines_of(tmp_path / "plain/metrics.jsonl") == lines_of(tmp_path / "run/metrics.jsonl")
    one, other = (tmp_path / run / "model/model.safetensors" for run in ("run", "plain"))
    assert one.read_bytes() == other.read_bytes()
