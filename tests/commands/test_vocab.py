"""Vocabularies of different sizes: refused, cut to the rows all have, or kept as the first's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.checkpoints import CONFIG, checkpoint, sidecar, tensor_digest, weights
from tests.commands.models import run
from tests.commands.running import clmerge, refused
from tests.tiny_models import save_as_bin, tiny_llama

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
BIAS = "lm_head.bias"
RESIZED = (EMBEDDING, HEAD, BIAS)
ROWS = {"long": 20, "short": 12}
DTYPES = [torch.float32, torch.bfloat16]
ORDERS = [("long", "short"), ("short", "long")]


def model(place: Path, name: str, rows: int, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint whose vocabulary has `rows`, with a tokenizer that says whose it is."""
    generator = torch.Generator().manual_seed(100 + seed)
    shapes = {EMBEDDING: (rows, 8), HEAD: (rows, 8), BIAS: (rows,)}
    own = {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}
    config = {**CONFIG, "vocab_size": rows, "pad_token_id": rows - 1}
    path = checkpoint(place / name, {**weights(seed, dtype), **own}, config)
    (path / "tokenizer.json").write_text(f'"{name}"')
    (path / "added_tokens.json").write_text("{}") if name == "long" else None
    return path


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[torch.dtype], None]:
    monkeypatch.chdir(tmp_path)

    def make(dtype: torch.dtype) -> None:
        for seed, (name, rows) in enumerate(ROWS.items()):
            sidecar(model(tmp_path, name, rows, seed, dtype), seed)

    return make


def numbers(path: str | Path) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    stored = load_file(Path(path) / "model.safetensors")
    return {name: tensor.to(torch.float64).numpy() for name, tensor in stored.items()}


def bits(path: str | Path, name: str) -> torch.Tensor:
    """The bytes of each row."""
    tensor = load_file(Path(path) / "model.safetensors")[name]
    return tensor.reshape(len(tensor), -1).view(torch.uint8)


def said(path: str = "merged") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(path) / "clmerge/manifest.json").read_text())
    return found


def step_of(dtype: torch.dtype) -> float:
    return 2.0**-8 if dtype == torch.bfloat16 else 2.0**-23


def check_rows(
    first: str, vocab: str, dtype: torch.dtype, expected: dict[str, Any], at: str = "merged"
) -> None:
    """Merged rows are the expected ones, the rows behind them the first input's, bit for bit."""
    found = numbers(at)
    rows = ROWS[first] if vocab == "base" else min(ROWS.values())
    for name, value in found.items():
        assert value.shape[0] == (rows if name in RESIZED else len(expected[name])), name
        merged = value[: min(ROWS.values())] if name in RESIZED else value
        np.testing.assert_allclose(merged, expected[name], rtol=step_of(dtype), atol=1e-7)
        if name in RESIZED and rows > min(ROWS.values()):
            tail, own = bits(at, name)[min(ROWS.values()) :], bits(first, name)
            assert torch.equal(tail, own[min(ROWS.values()) :]), name


def shared(path: str | Path) -> dict[str, Any]:
    """A model's numbers, of its vocabulary only the rows that both have."""
    cut = min(ROWS.values())
    return {n: v[:cut] if n in RESIZED else v for n, v in numbers(path).items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", ["common", "base"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_linear_merge_averages_the_rows_that_both_have(
    both: Callable[[torch.dtype], None], order: tuple[str, str], vocab: str, dtype: torch.dtype
) -> None:
    both(dtype)
    run("linear-merge", *order, "--weights", "1,3", "--vocab", vocab)
    one, two = map(shared, order)
    expected = {name: 0.25 * one[name] + 0.75 * two[name] for name in one}
    check_rows(order[0], vocab, dtype, expected)
    assert said()["options"]["vocab"] == vocab


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", ["common", "base"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_fisher_merge_weighs_the_rows_that_both_have(
    both: Callable[[torch.dtype], None], order: tuple[str, str], vocab: str, dtype: torch.dtype
) -> None:
    both(dtype)
    run("fisher-merge", *order, "--vocab", vocab)
    sums: dict[str, Any] = {}
    total: dict[str, Any] = {}
    for path in order:
        stored = load_file(Path(path) / "clmerge/fisher.safetensors")
        fisher = {name: tensor.double().numpy() for name, tensor in stored.items()}
        scale = sum(f.sum() for f in fisher.values()) / sum(f.size for f in fisher.values())
        for name, value in shared(path).items():
            floored = np.maximum(fisher[name], 1e-6 * fisher[name].mean()) / scale
            kept = floored[: len(value)]
            sums[name] = sums.get(name, 0) + kept * value
            total[name] = total.get(name, 0) + kept
    expected = {name: sums[name] / total[name] for name in sums}
    # A float32 fold of two adds some roundings to the one of the output.
    found = numbers("merged")
    for name, value in expected.items():
        merged = found[name][: len(value)]
        np.testing.assert_allclose(merged, value, rtol=2 * step_of(dtype), atol=1e-6)
    if vocab == "base":
        cut = min(ROWS.values())
        for name in RESIZED:
            assert torch.equal(bits("merged", name)[cut:], bits(order[0], name)[cut:])
    assert len(found[HEAD]) == (ROWS[order[0]] if vocab == "base" else min(ROWS.values()))


@pytest.mark.parametrize("vocab", ["common", "base"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_an_average_moves_the_rows_that_the_state_shares(
    both: Callable[[torch.dtype], None], order: tuple[str, str], vocab: str
) -> None:
    both(torch.float32)
    run("ema-merge", *order, "--decay", "0.75", "--no-carry", "--vocab", vocab, "-o", "next")
    one, two = map(shared, order)
    expected = {name: 0.75 * one[name] + 0.25 * two[name] for name in one}
    check_rows(order[0], vocab, torch.float32, expected, "next")


def test_differences_from_a_longer_base_are_those_of_the_common_rows(
    both: Callable[[torch.dtype], None], tmp_path: Path
) -> None:
    both(torch.float32)
    model(tmp_path, "base", 30, 7)
    line = ("--weights", "1,0.5", "--no-normalize", "--base", "base")
    run("linear-merge", "long", "short", *line, "--vocab", "base")
    long, short, base = shared("long"), shared("short"), shared("base")
    expected = {n: base[n] + (long[n] - base[n]) + 0.5 * (short[n] - base[n]) for n in base}
    found = numbers("merged")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][: len(value)], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("vocab", ["common", "base"])
def test_tensors_that_are_not_selected_keep_the_rows_of_the_first(
    both: Callable[[torch.dtype], None], vocab: str
) -> None:
    both(torch.bfloat16)
    run("linear-merge", "long", "short", "--vocab", vocab, "--copy", "lm_head.*")
    rows = ROWS["long" if vocab == "base" else "short"]
    for name in (HEAD, BIAS):
        assert torch.equal(bits("merged", name), bits("long", name)[:rows])


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_common_rows_bring_the_smallest_inputs_tokenizer_and_size(
    both: Callable[[torch.dtype], None], order: tuple[str, str]
) -> None:
    both(torch.float32)
    notes = run("linear-merge", *order, "--vocab", "common")["notes"]
    assert any("3 vocabulary tensors are cut to the 12 rows" in note for note in notes)
    config = json.loads(Path("merged/config.json").read_text())
    assert config == json.loads(Path("short/config.json").read_text())
    assert Path("merged/tokenizer.json").read_text() == '"short"'
    assert not Path("merged/added_tokens.json").exists()


def test_a_config_is_edited_where_its_size_stands_and_nowhere_else(
    both: Callable[[torch.dtype], None],
) -> None:
    both(torch.float32)
    odd = '{"model_type":  "toy", "num_hidden_layers": 2,\n\n   "vocab_size" : 20}\n'
    Path("long/config.json").write_text(odd)
    run("linear-merge", "long", "short", "--vocab", "common")
    assert Path("merged/config.json").read_text() == odd.replace("20", "12")


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_the_rows_of_the_first_come_with_its_tokenizer_and_config(
    both: Callable[[torch.dtype], None], order: tuple[str, str]
) -> None:
    both(torch.float32)
    run("linear-merge", *order, "--vocab", "base")
    for name in ("config.json", "tokenizer.json"):
        assert Path("merged", name).read_bytes() == Path(order[0], name).read_bytes()


def test_a_state_cut_in_place_keeps_its_other_files(both: Callable[[torch.dtype], None]) -> None:
    both(torch.float32)
    Path("long/notes.md").write_text("mine")
    line = ("--decay", "0.5", "--no-carry", "--vocab", "common", "--in-place", "--no-report")
    run("ema-merge", "long", "short", *line)
    assert Path("long/notes.md").read_text() == "mine"
    assert Path("long/tokenizer.json").read_text() == '"short"'
    assert Path("short/tokenizer.json").read_text() == '"short"'
    assert not Path("long/added_tokens.json").exists()
    assert len(numbers("long")[HEAD]) == 12


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocab", ["common", "base"])
@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")], ids="-".join)
@pytest.mark.parametrize("saved", ["safetensors", "bin"])
def test_transformers_loads_the_merge(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tied: bool,
    vocab: str,
    order: tuple[str, str],
    saved: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"a": 40, "b": 47}
    for seed, (name, rows) in enumerate(sizes.items()):
        path = tmp_path / (name if saved == "safetensors" else f"{name}-first")
        own = tiny_llama(path, tied=tied, seed=seed, vocab_size=rows, pad_token_id=rows - 1)
        if saved == "bin":
            save_as_bin(own, tmp_path / name)
    run("linear-merge", *order, "--vocab", vocab)
    found, told = type(own).from_pretrained("merged", output_loading_info=True)
    assert not any(told.values()), told
    rows = sizes[order[0]] if vocab == "base" else 40
    assert found.config.vocab_size == rows
    models = [type(own).from_pretrained(name).state_dict() for name in order]
    for name, merged in found.state_dict().items():
        least = min(len(one[name]) for one in models)
        mean = (models[0][name][:least] + models[1][name][:least]) / 2
        torch.testing.assert_close(merged[:least], mean)
        assert torch.equal(merged[least:], models[0][name][least : len(merged)])


@pytest.mark.parametrize("command", ["linear-merge", "fisher-merge"])
@pytest.mark.parametrize("vocab", ["common", "base"])
def test_a_finished_merge_is_up_to_date_until_a_row_beyond_it_changes(
    both: Callable[[torch.dtype], None], command: str, vocab: str
) -> None:
    both(torch.float32)
    line = (command, "long", "short", "--vocab", vocab)
    made = run(*line)
    assert run(*line)["state"] == "up to date"
    assert clmerge("verify", "merged").code == 0
    for entry in said()["inputs"]:
        assert entry["weights_digest"] is not None
    tensors = load_file("long/model.safetensors")
    recorded = json.loads(Path("merged/clmerge/manifest.json").read_text())["tensors"]
    assert recorded[HEAD]["digest"] == tensor_digest(load_file("merged/model.safetensors")[HEAD])
    tensors[HEAD][-1] += 1  # the last row: no part of what is merged
    save_file(tensors, "long/model.safetensors", metadata={"format": "pt"})
    if command == "linear-merge":
        changed = run(*line, "--force")
        assert changed["state"] == "published"
        assert (changed["weights_digest"] == made["weights_digest"]) == (vocab == "common")
    else:
        says = ("taken at other weights", HEAD)
        refused(*line, "--force", unchanged=Path("long"), says=says)


def test_the_divergence_counts_merged_rows_alone(both: Callable[[torch.dtype], None]) -> None:
    both(torch.float32)
    found = {}
    for vocab in ("common", "base"):
        run("linear-merge", "long", "short", "--vocab", vocab, "-o", vocab)
        found[vocab] = json.loads(Path(vocab, "clmerge/divergence.json").read_text())
    assert found["common"]["model_by_parent"] == found["base"]["model_by_parent"]
    assert found["common"]["tensors"] == found["base"]["tensors"]


@pytest.mark.parametrize("cut", [131072 - 40, 131072, 131072 + 40, 2**22, 2**22 + 24])
def test_blocks_and_digest_pieces_end_where_merging_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {"a": (cut + 2**17 + 8) // 8, "b": cut // 8}
    for seed, (name, count) in enumerate(rows.items()):
        generator = torch.Generator().manual_seed(seed)
        checkpoint(tmp_path / name, {EMBEDDING: torch.randn(count, 8, generator=generator)})
    run("linear-merge", "a", "b", "--vocab", "base", "--threads", "2")
    a, b, found = (load_file(f"{n}/model.safetensors")[EMBEDDING] for n in ("a", "b", "merged"))
    assert torch.equal(found[len(b) :], a[len(b) :])
    torch.testing.assert_close(found[: len(b)], (a[: len(b)] + b) / 2)
    assert said()["tensors"][EMBEDDING]["digest"] == tensor_digest(found)
    assert run("linear-merge", "a", "b", "--vocab", "base")["state"] == "up to date"


def test_the_hint_names_the_option_where_it_would_help(
    both: Callable[[torch.dtype], None], tmp_path: Path
) -> None:
    both(torch.float32)
    says = (*RESIZED, "[20, 8]", "[12, 8]", "try: --vocab common")
    refused("linear-merge", "long", "short", unchanged=tmp_path, says=says)
    other = {**load_file("short/model.safetensors"), "model.norm.weight": torch.ones(9)}
    checkpoint(tmp_path / "other", other)
    for vocab in ("error", "common", "base"):
        line = ("linear-merge", "long", "other", "--vocab", vocab)
        says = ("model.norm.weight", "[9]", "try: merge checkpoints of one architecture")
        refused(*line, unchanged=tmp_path, says=says)


def test_an_input_whose_embedding_and_head_differ_in_rows_is_refused(
    both: Callable[[torch.dtype], None], tmp_path: Path
) -> None:
    both(torch.float32)
    odd = {**load_file("short/model.safetensors"), HEAD: torch.ones(13, 8)}
    checkpoint(tmp_path / "odd", odd)
    says = ("several sizes", "odd", f"{EMBEDDING}: 12 rows", f"{HEAD}: 13 rows")
    refused("linear-merge", "long", "odd", "--vocab", "common", unchanged=tmp_path, says=says)


@pytest.mark.parametrize("gives_size", [True, False])
def test_an_ambiguous_name_is_the_vocabularys_where_the_config_gives_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gives_size: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in ROWS.items():
        config = {**CONFIG, **({"vocab_size": rows} if gives_size else {})}
        checkpoint(tmp_path / name, {"output.weight": torch.full((rows, 4), float(rows))}, config)
    result = clmerge("linear-merge", "long", "short", "--vocab", "common")
    assert result.code == (0 if gives_size else 1), result
    if gives_size:
        assert (numbers("merged")["output.weight"] == np.full((12, 4), 16.0)).all()


@pytest.mark.parametrize("command", ["linear-merge", "ema-merge"])
def test_residuals_of_different_vocabularies_are_refused(
    both: Callable[[torch.dtype], None], tmp_path: Path, command: str
) -> None:
    both(torch.bfloat16)
    more = ("--carry",) if command == "linear-merge" else ("--decay", "0.5", "-o", "next")
    line = (command, "long", "short", "--vocab", "base", *more)
    refused(*line, unchanged=tmp_path, says=("--carry with --vocab base", "--no-carry"), code=2)


def test_equal_vocabularies_merge_as_without_the_option(place: Path) -> None:
    made = [
        run("linear-merge", "a", "b", "--carry", "--vocab", vocab, "-o", vocab)["weights_digest"]
        for vocab in ("error", "common", "base")
    ]
    assert len(set(made)) == 1
    assert not any("vocabulary" in note for note in run("linear-merge", "a", "b")["notes"])
