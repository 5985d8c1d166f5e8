"""Weights, bases, Fishers, floors and fallbacks, against numbers computed apart in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands.checkpoints import SHAPES, sidecar
from tests.commands.toys import (
    EMBED,
    LAYER0,
    LAYER1,
    NORM,
    A,
    B,
    C,
    check,
    fisher_of,
    merged,
    run,
)

pytestmark = pytest.mark.usefixtures("three")

# Linear


def test_the_default_is_the_plain_mean(place: Path) -> None:
    run("linear-merge", "a", "b", "c")
    check(merged(), lambda n: (A[n].double() + B[n].double() + C[n].double()) / 3)


def test_weights_are_divided_by_their_sum(place: Path) -> None:
    run("linear-merge", "a", "b", "c", "--weights", "2,1,-1")
    check(merged(), lambda n: (2 * A[n].double() + B[n].double() - C[n].double()) / 2)


def test_no_normalize_takes_weights_as_they_are(place: Path) -> None:
    run("linear-merge", "a", "b", "--weights", "0.5,0.25", "--no-normalize")
    check(merged(), lambda n: 0.5 * A[n].double() + 0.25 * B[n].double())


def test_with_a_base_they_apply_to_the_differences_from_it(place: Path) -> None:
    run("linear-merge", "a", "b", "--weights", "1,0.5", "--no-normalize", "--base", "c")
    check(
        merged(),
        lambda n: C[n].double() + (A[n] - C[n].double()) + 0.5 * (B[n] - C[n].double()),
    )


def test_normalised_weights_let_a_base_cancel(place: Path) -> None:
    run("linear-merge", "a", "b", "--weights", "1,3", "-o", "without")
    run("linear-merge", "a", "b", "--weights", "1,3", "--base", "c", "-o", "with")
    with_base, without = merged("with/model.safetensors"), merged("without/model.safetensors")
    assert all(torch.equal(with_base[name], without[name]) for name in SHAPES)


# Fisher


def weighted(models: str, factors: list[float], floors: list[float] | None = None) -> Callable:  # type: ignore[type-arg]
    """sum_k f_k F_k x_k / sum_k f_k F_k, the Fishers at least their floors."""
    inputs = [{"a": A, "b": B, "c": C}[name] for name in models]
    fishers = [fisher_of(name) for name in models]
    least = floors or [0.0] * len(models)

    def expected(name: str) -> torch.Tensor:
        gains = [
            factor * fisher[name].clamp(min=low)
            for factor, fisher, low in zip(factors, fishers, least, strict=True)
        ]
        total = sum(g * x[name].double() for g, x in zip(gains, inputs, strict=True))
        return total / sum(gains)  # type: ignore[no-any-return]

    return expected


def mean_of(model: str) -> float:
    values = torch.cat([v.flatten() for v in fisher_of(model).values()])
    return float(values.mean())


def rms_of(model: str) -> float:
    values = torch.cat([v.flatten() for v in fisher_of(model).values()])
    return float(values.square().mean().sqrt())


def test_the_default_divides_each_fisher_by_its_mean(place: Path) -> None:
    sidecar(place / "b", values={k: v * 50 for k, v in load_file(FISHER_OF_B).items()})
    run("fisher-merge", "a", "b", "c")
    check(merged(), weighted("abc", [1 / mean_of(m) for m in "abc"]))


FISHER_OF_B = "b/clmerge/fisher.safetensors"


def test_normalize_l2_divides_by_the_root_mean_square(place: Path) -> None:
    run("fisher-merge", "a", "b", "--normalize", "l2")
    check(merged(), weighted("ab", [1 / rms_of(m) for m in "ab"]))


def test_normalize_none_takes_fishers_as_they_are(place: Path) -> None:
    sidecar(place / "b", values={k: v * 50 for k, v in load_file(FISHER_OF_B).items()})
    run("fisher-merge", "a", "b", "--normalize", "none")
    check(merged(), weighted("ab", [1.0, 1.0]))


def test_weights_multiply_the_fishers(place: Path) -> None:
    run("fisher-merge", "a", "b", "--weights", "1,7")
    check(merged(), weighted("ab", [1 / mean_of("a"), 7 / mean_of("b")]))


def test_fisher_names_a_sidecar_per_input_in_order(place: Path) -> None:
    swapped = [f"{m}/clmerge/fisher.safetensors" for m in "ba"]
    line = ["fisher-merge", "a", "b", "--normalize", "none", "--allow-stale-fisher"]
    run(*line, "--fisher", swapped[0], "--fisher", swapped[1])
    fa, fb = fisher_of("a"), fisher_of("b")
    check(
        merged(),
        lambda n: (fb[n] * A[n].double() + fa[n] * B[n].double()) / (fa[n] + fb[n]),
    )


def test_the_floor_is_relative_to_the_tensors_mean(place: Path) -> None:
    small = {k: v * 1e-12 for k, v in load_file(FISHER_OF_B).items()}
    sidecar(place / "b", values=small)
    run("fisher-merge", "a", "b", "--floor", "0.5")
    fa, fb = fisher_of("a"), fisher_of("b")
    scale = {m: 1 / mean_of(m) for m in "ab"}

    def expected(name: str) -> torch.Tensor:
        ga = scale["a"] * fa[name].clamp(min=0.5 * float(fa[name].mean()))
        gb = scale["b"] * fb[name].clamp(min=0.5 * float(fb[name].mean()))
        return (ga * A[name].double() + gb * B[name].double()) / (ga + gb)

    check(merged(), expected)


@pytest.fixture
def _with_zeros(place: Path) -> None:
    """Both Fishers are 0 in the first rows of a layer; a's alone also in the next ones."""
    for model in "ab":
        values = load_file(f"{model}/clmerge/fisher.safetensors")
        values[LAYER0][:4] = 0
        if model == "a":
            values[LAYER0][4:8] = 0
        sidecar(place / model, values=values)


@pytest.mark.usefixtures("_with_zeros")
@pytest.mark.parametrize("fallback", ["linear", "base", "first"])
def test_the_fallback_decides_only_where_every_fisher_is_exactly_0(
    place: Path, fallback: str
) -> None:
    run("fisher-merge", "a", "b", "--weights", "1,3", "--fallback", fallback, "--base", "c")
    found = merged()[LAYER0].double()
    linear = (A[LAYER0].double() + 3 * B[LAYER0].double()) / 4
    expected = {"linear": linear, "base": C[LAYER0].double(), "first": A[LAYER0].double()}
    torch.testing.assert_close(found[:4], expected[fallback][:4], rtol=2e-7, atol=3e-7)
    # Where only a's is 0 it is floored, not absent: the result is b's to a millionth or so.
    torch.testing.assert_close(found[4:8], B[LAYER0].double()[4:8], rtol=0, atol=1e-4)
    assert not torch.equal(found[4:8], B[LAYER0].double()[4:8])
    report = json.loads(Path("merged/clmerge/divergence.json").read_text())
    shares = {t["name"]: t["fallback"] for t in report["tensors"]}
    assert shares == {EMBED: 0, LAYER0: 4 / 16, LAYER1: 0, NORM: 0}
