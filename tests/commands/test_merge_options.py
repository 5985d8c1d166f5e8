"""What each option of a merge does to the output, against numbers computed apart in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.commands.checkpoints import CONFIG, SHAPES, checkpoint, sidecar, tensor_digest, weights
from tests.commands.running import clmerge
from tests.commands.trees import snapshot

Tensors = dict[str, torch.Tensor]
EMBED, LAYER0, LAYER1, NORM = SHAPES
A, B, C = (weights(seed) for seed in (1, 2, 3))


def fisher_of(model: str) -> Tensors:
    return {k: v.double() for k, v in load_file(f"{model}/clmerge/fisher.safetensors").items()}


def merged(path: str = "merged/model.safetensors") -> Tensors:
    return load_file(path)


def check(found: Tensors, expected: Callable[[str], torch.Tensor]) -> None:
    """Within one unit in the last place of the inputs, whose size is about 1."""
    assert found.keys() == SHAPES.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected(name), rtol=2e-7, atol=3e-7)


def run(*line: str) -> None:
    result = clmerge(*line)
    assert result.code == 0, result.err


@pytest.fixture(autouse=True)
def _third(place: Path) -> None:
    sidecar(checkpoint(place / "c", 3), 3)


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


# Selection, dtype, files


def test_excluded_and_copied_tensors_come_from_the_first_input(place: Path) -> None:
    run("linear-merge", "a", "b", "--exclude", "*norm*", "--copy", "model.layers.1.*")
    found = merged()
    assert torch.equal(found[NORM], A[NORM])
    assert torch.equal(found[LAYER1], A[LAYER1])
    assert not torch.equal(found[LAYER0], A[LAYER0])
    made = json.loads(Path("merged/clmerge/manifest.json").read_text())
    actions = {name: tensor["action"] for name, tensor in made["tensors"].items()}
    assert actions == {EMBED: "merged", LAYER0: "merged", LAYER1: "copied", NORM: "copied"}


def test_include_merges_nothing_else(place: Path) -> None:
    result = clmerge("linear-merge", "a", "b", "--include", "*layers*", "--exclude", "*.0.*")
    assert "note: 3 tensors are copied from a, as selected" in result.err
    found = merged()
    assert [n for n in SHAPES if not torch.equal(found[n], A[n])] == [LAYER1]


def test_tensors_of_different_dtypes_are_promoted(place: Path) -> None:
    checkpoint(place / "half", weights(4, torch.float16))
    checkpoint(place / "brain", weights(5, torch.bfloat16))
    run("linear-merge", "half", "brain")
    assert {tensor.dtype for tensor in merged().values()} == {torch.float32}
    run("linear-merge", "brain", "brain", "-o", "same")
    assert {t.dtype for t in merged("same/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ("bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("F32", torch.float32),
        ("float64", torch.float64),
    ],
)
def test_dtype_is_the_outputs_and_the_config_says_so(
    place: Path, given: str, dtype: torch.dtype
) -> None:
    (place / "a/config.json").write_text(json.dumps({**CONFIG, "torch_dtype": "float32"}))
    run("linear-merge", "a", "b", "--dtype", given)
    assert {tensor.dtype for tensor in merged().values()} == {dtype}
    said = json.loads(Path("merged/config.json").read_text())
    assert said == {**CONFIG, "torch_dtype": str(dtype).removeprefix("torch.")}
    for name, tensor in merged().items():
        exact = (A[name].double() + B[name].double()) / 2
        least = max(torch.finfo(dtype).eps, 2**-23)  # float32 inputs are computed in float32
        assert float((tensor.double() - exact).abs().max()) < 2 * least


def test_shard_size_bounds_the_files(place: Path) -> None:
    run("linear-merge", "a", "b", "--shard-size", "1KB")
    files = sorted(Path("merged").glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    held = [name for file in files for name in load_file(file)]
    assert sorted(held) == sorted(SHAPES)
    for file in files:
        with safe_open(file, "pt") as stored:
            assert stored.metadata() == {"format": "pt"}


def test_a_name_that_ends_in_safetensors_is_one_file_with_its_folder_beside_it(
    place: Path,
) -> None:
    before = set(snapshot(place))
    run("linear-merge", "a", "b", "-o", "one.safetensors", "--shard-size", "600")
    new = sorted(path[len(str(place)) + 1 :] for path in set(snapshot(place)) - before)
    assert new == [
        "one.clmerge",
        "one.clmerge/divergence.json",
        "one.clmerge/manifest.json",
        "one.safetensors",
    ]
    run("linear-merge", "one.safetensors", "c", "-o", "two.safetensors")
    check(merged("two.safetensors"), lambda n: (A[n].double() / 2 + B[n].double() / 2 + C[n]) / 2)


def test_companions_are_carried_byte_for_byte_and_the_inputs_own_folder_is_not(
    place: Path,
) -> None:
    texts = {
        "tokenizer.json": "{}",
        "generation_config.json": '{"a":  1}',
        "chat_template.jinja": "{{ x }}",
        "vocab.txt": "one\n",
        "README.md": "a model",
        "LICENSE": "free",
        "modeling_own.py": "x = 1\n",
    }
    for name, text in texts.items():
        (place / "a" / name).write_text(text)
    (place / "a" / "optimizer.pt").write_text("not for a merge")
    (place / "b" / "b_only.json").write_text("{}")
    run("linear-merge", "a", "b")
    there = {path.name for path in Path("merged").iterdir()}
    assert there == {*texts, "config.json", "model.safetensors", "clmerge"}
    for name in [*texts, "config.json"]:
        assert (place / "merged" / name).read_bytes() == (place / "a" / name).read_bytes()
    assert not Path("merged/clmerge/fisher.safetensors").exists()


def test_without_a_report_there_are_no_verdict_and_no_divergence(place: Path) -> None:
    result = clmerge("linear-merge", "a", "b", "--no-report", "--json")
    assert result.document["verdict"] is None
    assert result.document["model"] is None
    assert not Path("merged/clmerge/divergence.json").exists()
    assert json.loads(Path("merged/clmerge/manifest.json").read_text())["verdict"] is None


# The record


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
def test_the_manifest_tells_how_the_output_was_made(place: Path, command: str) -> None:
    run(command, "a", "b", "--weights", "1,3")
    made = json.loads(Path("merged/clmerge/manifest.json").read_text())
    keys = (
        "command format inputs options outputs peak_memory_bytes seconds tensors verdict versions"
    )
    assert " ".join(made) == keys
    assert made["format"] == "clmerge.manifest/1"
    assert made["command"] == command
    assert made["options"]["weights"] == [0.25, 0.75]
    roles = [(source["path"], source["role"]) for source in made["inputs"]]
    assert roles[:2] == [("a", "input"), ("b", "input")]
    assert roles[2:] == [(f"{m}/clmerge/fisher.safetensors", "fisher") for m in "ab"]
    for source in [*made["inputs"], *made["outputs"]]:
        path = Path(source["path"])
        files = [path / "model.safetensors"] if path.is_dir() else [path]
        assert [f["name"] for f in source["files"]] == [file.name for file in files]
        assert [f["bytes"] for f in source["files"]] == [file.stat().st_size for file in files]
        assert len(source["weights_digest"]) == 64
    for name, tensor in merged().items():
        assert made["tensors"][name] == {
            "digest": tensor_digest(tensor),
            "dtype": "F32",
            "shape": list(tensor.shape),
            "action": "merged",
        }


def test_the_divergence_is_measured_on_the_written_weights(place: Path) -> None:
    run("fisher-merge", "a", "b")
    report = json.loads(Path("merged/clmerge/divergence.json").read_text())
    assert report["format"] == "clmerge.divergence/1"
    assert report["parents"] == ["a", "b"]
    found = merged()
    for parent, tensors in (("a", A), ("b", B)):
        fisher = fisher_of(parent)
        (row,) = (
            row for row in report["tensors"] if (row["name"], row["parent"]) == (LAYER0, parent)
        )
        m, p = found[LAYER0].double(), tensors[LAYER0].double()
        assert row["rel_l2"] == pytest.approx(float((m - p).norm() / p.norm()), rel=1e-9)
        assert row["max_abs"] == pytest.approx(float((m - p).abs().max()), rel=1e-9)
        expected = float((fisher[LAYER0] * (m - p).square()).sum() / 2)
        assert row["predicted_kl"] == pytest.approx(expected, rel=1e-9)
        whole = sum(float((fisher[n] * (found[n].double() - tensors[n]) ** 2).sum()) for n in found)
        (model,) = (row for row in report["model_by_parent"] if row["parent"] == parent)
        assert model["predicted_kl"] == pytest.approx(whole / 2, rel=1e-9)
    assert {row["layer"] for row in report["layers"]} == {
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
    }


# The verdict


@pytest.fixture
def lossy(place: Path) -> tuple[str, ...]:
    """A merge in bfloat16 that moves b's weights by less than rounding keeps."""
    ones = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    checkpoint(place / "d", ones)
    checkpoint(place / "e", {name: tensor + 2**-7 for name, tensor in ones.items()})
    return ("linear-merge", "d", "e", "--weights", "9,1")


def test_a_lossy_merge_is_published_with_a_verdict_that_says_what_would_help(
    place: Path, lossy: tuple[str, ...]
) -> None:
    result = clmerge(*lossy)
    assert result.code == 0
    assert "verdict: lossy" in result.err
    assert "rounding kept 0% of the update from d (survival below 50%)" in result.err
    assert "try: write float32: --dtype float32" in result.err
    assert Path("merged/model.safetensors").is_file()


def test_strict_publishes_nothing_that_is_lossy(place: Path, lossy: tuple[str, ...]) -> None:
    before = snapshot(place)
    result = clmerge(*lossy, "--strict")
    assert result.code == 10
    assert "not published: --strict" in result.err
    assert snapshot(place) == before
    as_json = clmerge(*lossy, "--strict", "--json")
    assert as_json.code == 10
    assert as_json.document["state"] == "refused"
    assert as_json.document["verdict"]["lossy"] is True
    assert snapshot(place) == before


def test_publish_anyway_publishes_it_and_is_still_exit_10(
    place: Path, lossy: tuple[str, ...]
) -> None:
    line = (*lossy, "--strict", "--publish-anyway")
    assert clmerge(*line).code == 10
    assert Path("merged/model.safetensors").is_file()
    again = clmerge(*line)
    assert again.code == 10
    assert again.err == "merged is up to date\n"


def test_strict_lets_a_good_merge_through(place: Path, lossy: tuple[str, ...]) -> None:
    assert clmerge(*lossy, "--dtype", "float32", "--strict").code == 0
    assert clmerge("linear-merge", "a", "b", "--strict", "-o", "other").code == 0


def test_the_end_of_a_merge_names_verdict_layers_place_and_cost(place: Path) -> None:
    lines = clmerge("fisher-merge", "a", "b").err.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("layer "))
    assert " ".join(lines[heading].split()) == "layer from rel_l2 predicted_kl survival changed"
    assert lines[-3:-1] == ["verdict: ok", "output: merged"]
    assert "B/s read and written, peak memory " in lines[-1]
    told = [line.split() for line in lines[heading + 1 : -3]]
    assert {row[0] for row in told} == {
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
    }
    report = json.loads(Path("merged/clmerge/divergence.json").read_text())
    measured = {(row["layer"], row["parent"]): row for row in report["layers"]}
    worst = max(measured, key=lambda key: measured[key]["rel_l2"])
    assert tuple(told[0][:2]) == worst
    for layer, parent, rel_l2, predicted, survival, _ in told:
        row = measured[layer, parent]
        assert (rel_l2, predicted) == (f"{row['rel_l2']:.3g}", f"{row['predicted_kl']:.3g}")
        assert survival == "-"  # float32: rounding lost nothing to speak of
