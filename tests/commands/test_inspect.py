"""`clmerge inspect`: what lies at a path is told rightly, from headers alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands.checkpoints import CONFIG, SHAPES, checkpoint, sharded, sidecar, weights
from tests.commands.inspections import MANIFEST, adapter, config, lines, told
from tests.commands.running import clmerge
from tests.commands.trees import snapshot
from tests.pages import quoted, section, table

PARAMETERS = sum(math.prod(shape) for shape in SHAPES.values())


# Checkpoints


def test_a_checkpoint_is_counted_from_its_headers(tmp_path: Path) -> None:
    tensors = weights(0)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(16, 8).to(torch.bfloat16)
    tensors["model.steps"] = torch.tensor(3)
    folder = checkpoint(tmp_path / "m", tensors)
    found = told(folder)
    assert (found["kind"], found["path"]) == ("checkpoint", str(folder))
    size = (folder / "model.safetensors").stat().st_size
    file = {"name": "model.safetensors", "format": "safetensors", "bytes": size}
    assert (found["files"], found["bytes"]) == ([file], size)
    assert found["parameters"] == sum(t.numel() for t in tensors.values())
    assert found["tensor_bytes"] == sum(t.nbytes for t in tensors.values())
    assert found["dtypes"] == [
        {"dtype": "F32", "tensors": 3, "parameters": 232, "bytes": 928},
        {"dtype": "BF16", "tensors": 1, "parameters": 128, "bytes": 256},
        {"dtype": "I64", "tensors": 1, "parameters": 1, "bytes": 8},
    ]
    listed = {t["name"]: (t["dtype"], tuple(t["shape"]), t["file"]) for t in found["tensors"]}
    spelled = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    assert listed == {
        name: (spelled[t.dtype], tuple(t.shape), "model.safetensors") for name, t in tensors.items()
    }
    assert [t["bytes"] for t in found["largest"]] == [512, 384, 256, 32, 8]
    assert (found["metadata"], found["config"]) == ({"format": "pt"}, CONFIG)
    assert (found["made"], found["fisher"], found["notes"]) == (None, None, [])


def test_the_text_says_the_same_for_people(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", 0)
    config(folder, architectures=["ToyForCausalLM"], num_hidden_layers=2)
    shown = clmerge("inspect", folder).out
    assert shown.splitlines()[0] == f"{folder}: checkpoint"
    found = lines(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert found["files"] == [f"1 safetensors file, {size / 1000:.2f} KB: model.safetensors"]
    assert found["parameters"] == [f"{PARAMETERS} in 4 tensors"]
    assert found["dtypes"] == ["F32 4 tensors 1.44 KB"]
    assert found["architecture"] == ["ToyForCausalLM (toy)"]
    assert found["layers"] == ["2"]
    assert found["largest"][0] == "model.layers.0.mlp.up_proj.weight F32 [16, 8] 512 B"
    assert found["metadata"] == ["format: pt"]


def test_every_kind_of_storing_is_the_same_model(tmp_path: Path) -> None:
    tensors = weights(0)
    names = list(tensors)
    files = {name: f"model-0000{1 + (k > 1)}-of-00002.safetensors" for k, name in enumerate(names)}
    sharded(tmp_path / "shards", tensors, files)
    checkpoint(tmp_path / "one", tensors)
    torch.save(tensors, tmp_path / "x.bin")
    torch.save({"model": tensors}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for path in ("shards", "shards/model.safetensors.index.json", "one", "x.bin", "old.pt"):
        found = told(tmp_path / path)
        assert found["kind"] == "checkpoint"
        assert found["parameters"] == PARAMETERS
        assert {t["name"]: tuple(t["shape"]) for t in found["tensors"]} == SHAPES
        assert found["files"][0]["format"] == (
            "torch" if path in ("x.bin", "old.pt") else "safetensors"
        )
    by_file = {t["name"]: t["file"] for t in told(tmp_path / "shards")["tensors"]}
    assert by_file == files
    assert lines(tmp_path / "shards")["files"][0].startswith("2 safetensors files, ")


def test_all_tensors_are_listed_when_they_are_asked_for(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", 0)
    without, listed = (clmerge("inspect", folder, *more).out for more in ([], ["--tensors"]))
    assert listed.startswith(without)
    rows = [re.sub(" +", " ", line) for line in listed.removeprefix(without).strip().split("\n")]
    assert sorted(rows) == sorted(
        f"{name} F32 [{', '.join(map(str, shape))}] model.safetensors"
        for name, shape in SHAPES.items()
    )


def head(tmp_path: Path, tensors: Mapping[str, torch.Tensor], **said: Any) -> str | None:
    folder = checkpoint(tmp_path / "h", tensors)
    config(folder, **said)
    return lines(folder).get("head", [None])[0]


LM = ["ToyForCausalLM"]
EMBED = {"model.embed_tokens.weight": torch.ones(3, 2)}
HEAD = {"lm_head.weight": torch.ones(3, 2)}


@pytest.mark.parametrize(
    ("tensors", "said", "expected"),
    [
        ({**EMBED, **HEAD}, {"architectures": LM, "tie_word_embeddings": False}, "lm_head.weight"),
        ({**EMBED, **HEAD}, {"architectures": LM}, "lm_head.weight"),
        (
            {**EMBED, **HEAD},
            {"architectures": LM, "tie_word_embeddings": True},
            "lm_head.weight, though config.json ties it",
        ),
        (
            EMBED,
            {"architectures": LM, "tie_word_embeddings": True},
            "tied to the embedding, not stored",
        ),
        (
            EMBED,
            {"text_config": {"tie_word_embeddings": True}},
            "tied to the embedding, not stored",
        ),
        (EMBED, {"architectures": LM}, None),
        (
            {**EMBED, "classifier.weight": torch.ones(2, 2)},
            {"architectures": ["ToyForSequenceClassification"], "tie_word_embeddings": True},
            "classifier.weight",
        ),
        ({**EMBED, "my_lm_head.weight": torch.ones(1)}, {"architectures": LM}, None),
    ],
)
def test_where_the_head_is(
    tmp_path: Path, tensors: Mapping[str, torch.Tensor], said: dict[str, Any], expected: str | None
) -> None:
    assert head(tmp_path, tensors, **said) == expected


def test_a_head_tied_in_a_torch_file_is_found(tmp_path: Path) -> None:
    shared = torch.ones(3, 2)
    torch.save({"embed.weight": shared, "lm_head.weight": shared}, tmp_path / "x.bin")
    assert lines(tmp_path / "x.bin")["head"] == ["tied: lm_head.weight is embed.weight"]
    assert told(tmp_path / "x.bin")["aliases"] == {"lm_head.weight": "embed.weight"}


def test_layers_are_counted_by_names_and_both_counts_are_told(tmp_path: Path) -> None:
    experts = {f"model.layers.{i}.experts.{e}.w": torch.ones(1) for i in range(3) for e in range(9)}
    folder = checkpoint(tmp_path / "m", {**experts, "model.norm.weight": torch.ones(1)})
    config(folder, num_hidden_layers=4)
    assert lines(folder)["layers"] == ["4 by config.json, 3 by the tensors' names"]
    (folder / "config.json").unlink()
    assert lines(folder)["layers"] == ["3"]
    assert lines(folder)["architecture"] == ["unknown: no config.json says"]


def test_infinities_in_a_config_are_plain_json(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", 0)
    (folder / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "x": NaN}')
    found = told(folder)["config"]
    assert found == {"time_step_limit": [0.0, "inf"], "x": "nan"}


# Outputs of ours


@pytest.fixture
def merged(place: Path) -> Path:
    assert clmerge("fisher-merge", "a", "b", "--weights", "1,3", "-q").code == 0
    return place / "merged"


def test_an_output_tells_how_it_was_made(merged: Path) -> None:
    made = json.loads((merged / MANIFEST).read_text())
    found = told(merged)
    assert found["kind"] == "checkpoint"
    assert {k: v for k, v in found["made"].items() if k not in ("manifest", "actions")} == {
        k: v for k, v in made.items() if k != "tensors"
    }
    assert found["made"]["actions"] == {"merged": 4}
    shown = lines(merged)
    assert shown["made by"] == ["clmerge fisher-merge"]
    a, b = (source["weights_digest"] for source in made["inputs"] if source["role"] == "input")
    assert shown["from"][:2] == [f"input a ({a[:15]}…)", f"input b ({b[:15]}…)"]
    assert "weights=[0.25, 0.75]" in shown["options"]
    assert shown["weights"] == [made["outputs"][0]["weights_digest"]]
    assert shown["verdict"][0] == "ok"


@pytest.mark.parametrize("at", ["clmerge", MANIFEST])
def test_a_manifest_speaks_for_weights_that_are_not_there(merged: Path, at: str) -> None:
    whole = told(merged)
    (merged / "model.safetensors").unlink()
    found = told(merged / at)
    assert found["kind"] == "manifest"
    for key in ("parameters", "dtypes", "files", "made"):
        assert _plain(found[key]) == _plain(whole[key]), key
    assert {t["name"]: t["shape"] for t in found["tensors"]} == {
        t["name"]: t["shape"] for t in whole["tensors"]
    }


def _plain(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "manifest"} if isinstance(value, dict) else value


def test_what_lies_beside_weights_and_is_broken_is_a_note(merged: Path) -> None:
    (merged / MANIFEST).write_text("{")
    (merged / "clmerge/fisher.safetensors").write_bytes(b"")
    notes = told(merged)["notes"]
    assert len(notes) == 2
    assert "the manifest is not JSON" in notes[0]
    assert "too short to be a safetensors file" in notes[1]
    assert len(lines(merged)["note"]) == 2


# Sidecars


def test_a_sidecar_tells_what_was_estimated_and_where(place: Path) -> None:
    checkpoint(place / "c", 3)
    names = list(SHAPES)
    missing = {names[0]: "frozen", names[3]: "excluded"}
    path = sidecar(place / "c", leave_out=missing, weights_digest="ab" * 32, mean_nll=2.5, draws=3)
    total = sum(float(t.double().sum()) for t in load_file(path).values())
    for at in (path, place / "c/clmerge"):
        found = told(at)
        assert found["kind"] == "fisher"
        assert found["fisher"]["trace"] == pytest.approx(total, rel=1e-12)
        assert found["fisher"]["beside"] == str(place / "c")
        assert found["fisher"]["missing_by_reason"] == {"frozen": 1, "excluded": 1}
        assert found["statistics"].keys() == {names[1], names[2]}
        assert found["parameters"] == 256
        shown = lines(at)
        assert shown["Fisher"] == ["mc, 3 draws, per sequence"]
        assert shown["rows"] == ["10, 70 tokens"]
        assert shown["mean nll"] == ["2.5 nats per token"]
        assert shown["trace"] == [f"{total:.4g}"]
        assert shown["taken at"] == ["weights " + "ab" * 32]
        assert shown["without"] == ["1 frozen, 1 excluded"]
    assert told("c")["fisher"]["examples"] == 10
    assert lines("c")["rows"] == ["10, 70 tokens"]


def test_a_sidecar_without_sums_has_no_trace(place: Path) -> None:
    checkpoint(place / "c", 3)
    assert told(sidecar(place / "c", sums=False))["fisher"]["trace"] is None
    assert lines("c/clmerge/fisher.safetensors")["trace"] == ["unknown: sums are not stored"]


def test_the_sidecar_of_a_single_file_names_it(place: Path) -> None:
    Path("a/model.safetensors").rename("x.safetensors")
    Path("a/clmerge").rename("x.clmerge")
    assert told("x.clmerge")["fisher"]["beside"] == str(place / "x.safetensors")
    assert told("x.safetensors")["fisher"]["sidecar"] == "x.clmerge/fisher.safetensors"
    Path("x.clmerge/fisher.safetensors").rename("alone.safetensors")
    assert told("alone.safetensors")["fisher"]["beside"] is None


# Adapters


@pytest.mark.parametrize("at", ["", "adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_tells_ranks_scale_and_base(tmp_path: Path, at: str) -> None:
    path = adapter(tmp_path / "x") / at
    found = told(path)
    assert found["kind"] == "adapter"
    assert found["adapter"]["pairs"] == 3
    assert found["adapter"]["ranks"] == {"4": 2, "8": 1}
    assert found["adapter"]["others"] == 1
    assert found["adapter"]["scale"] == 4.0
    shown = lines(path)
    assert shown["adapter"] == ["LORA"]
    assert shown["base"] == ["org/base"]
    assert shown["pairs"] == ["3: 2 of rank 4, 1 of rank 8"]
    assert shown["targets"] == ["q_proj, up_proj, v_proj"]
    assert shown["scale"] == ["4"]


def test_the_scale_follows_the_variant_and_is_not_told_where_modules_differ(tmp_path: Path) -> None:
    assert told(adapter(tmp_path / "rs", use_rslora=True))["adapter"]["scale"] == 8.0
    assert lines(tmp_path / "rs")["variant"] == ["use_rslora"]
    patterned = adapter(tmp_path / "p", alpha_pattern={"v_proj": 2})
    assert told(patterned)["adapter"]["scale"] is None
    assert "scale" not in lines(patterned)


def test_an_adapter_file_without_its_config_is_still_one(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "x")
    (folder / "adapter_config.json").unlink()
    found = told(folder)
    assert (found["kind"], found["adapter"]["r"]) == ("adapter", None)
    assert found["adapter"]["ranks"] == {"4": 2, "8": 1}


def test_a_model_beside_an_adapter_is_what_the_folder_is(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "x")
    save_file(weights(0), folder / "model.safetensors")
    assert told(folder)["kind"] == "checkpoint"


# Documents


def test_the_documents_have_the_documented_keys(merged: Path, place: Path) -> None:
    documented = table(section("commands.md", "JSON on stdout"), "of")
    always = _keys(documented["`inspect`, always"])
    for of, path in (
        ("a checkpoint", merged),
        ("an adapter", adapter(place / "adapter")),
        ("a sidecar", place / "a/clmerge/fisher.safetensors"),
        ("a manifest", merged / MANIFEST),
    ):
        besides = _keys(documented[f"`inspect` of {of}, besides"])
        assert sorted(told(path)) == sorted([*always, *besides]), of


def _keys(cell: str) -> list[str]:
    return quoted(re.sub(r"\([^)]*\)", "", cell))


def test_nothing_is_written(place: Path) -> None:
    before = snapshot(place)
    told("a")
    assert snapshot(place) == before
