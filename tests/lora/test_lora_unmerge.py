"""`lora-unmerge` from the command line: the base bit for bit, by reference and by XOR; refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_cl.output import target
from tests.commands.running import clmerge, refused
from tests.lora.merging import digest, same
from tests.lora.peft_side import save_adapter, saved
from tests.lora.test_lora_merge import LINEARS, llama

WEIGHTS = "model.safetensors"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a bfloat16 base and an adapter on all linears."""
    saved(llama(torch.bfloat16), tmp_path / "base")
    save_adapter(llama(), tmp_path / "one", seed=1, r=4, lora_alpha=6, target_modules=LINEARS)
    return tmp_path


def merge(place: Path, *more: str) -> Path:
    result = clmerge("lora-merge", place / "base", place / "one", *more, "-o", place / "merged")
    assert result.code == 0, result.err
    return place / "merged"


@pytest.mark.parametrize("kind", ["base", "xor"])
@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_a_merge_taken_back_is_the_base(place: Path, kind: str, dtype: str | None) -> None:
    before = digest(place / "base")
    merged = merge(place, "--undo", kind, *(["--dtype", dtype] if dtype else []))
    assert digest(merged) != before
    if kind == "xor":
        (place / "base").rename(place / "gone")
    result = clmerge("lora-unmerge", merged, "-o", place / "back", "--json")
    assert result.code == 0, result
    assert result.document["weights_digest"] == before
    if kind == "xor":
        (place / "gone").rename(place / "base")
    assert same(place / "base", place / "back")
    assert not (place / "back" / "clmerge" / "undo.safetensors").exists()
    assert clmerge("verify", place / "back").code == 0
    again = clmerge("lora-unmerge", merged, "-o", place / "back")
    assert again.code == 0
    assert "up to date" in again.err


def test_the_base_is_found_where_it_was_moved(place: Path) -> None:
    merged = merge(place)
    (place / "base").rename(place / "moved")
    out = place / "back"
    refused("lora-unmerge", merged, "-o", out, unchanged=place, says=("--base PATH",))
    assert clmerge("lora-unmerge", merged, "--base", place / "moved", "-o", out).code == 0
    assert same(place / "moved", out)


@pytest.mark.parametrize("kind", ["base", "xor"])
def test_merged_tensors_that_changed_since_are_refused(place: Path, kind: str) -> None:
    merged = merge(place, "--undo", kind)
    weights = load_file(merged / WEIGHTS)
    weights["model.norm.weight"][0] += 1
    save_file(weights, merged / WEIGHTS, {"format": "pt"})
    refused(
        "lora-unmerge",
        merged,
        "-o",
        place / "back",
        unchanged=place,
        says=("1 tensors have changed since the merge", "model.norm.weight"),
    )


def test_another_base_is_refused_whatever_differs(place: Path) -> None:
    merged = merge(place)
    weights = load_file(place / "base" / WEIGHTS)
    changed = {**weights}
    name = "model.layers.0.self_attn.q_proj.weight"
    changed[name] = -weights[name]
    save_file(changed, place / "base" / WEIGHTS, {"format": "pt"})
    out, says = place / "back", ("this is not the base that was merged into", "q_proj")
    refused("lora-unmerge", merged, "-o", out, unchanged=place, says=says)
    del changed[name]
    save_file(changed, place / "base" / WEIGHTS, {"format": "pt"})
    refused("lora-unmerge", merged, "-o", out, unchanged=place, says=says)


def test_an_undo_file_that_is_damaged_or_gone_is_refused(place: Path) -> None:
    merged = merge(place, "--undo", "xor")
    path = merged / "clmerge" / "undo.safetensors"
    content = bytearray(path.read_bytes())
    content[-40] ^= 255
    path.write_bytes(content)
    out = place / "back"
    refused("lora-unmerge", merged, "-o", out, unchanged=place, says=("--base PATH",))
    path.unlink()
    refused("lora-unmerge", merged, "-o", out, unchanged=place, says=("is gone", "--base PATH"))
    assert clmerge("lora-unmerge", merged, "--base", place / "base", "-o", out).code == 0
    assert same(place / "base", out)


def test_what_no_merge_wrote_or_kept_nothing_is_refused(place: Path) -> None:
    out = place / "back"
    refused(
        "lora-unmerge", place / "base", "-o", out, unchanged=place, says=("nothing is recorded",)
    )
    merged = merge(place, "--undo", "none")
    says = ("--undo none", str(place / "base"))
    refused("lora-unmerge", merged, "-o", out, unchanged=place, says=says)
    assert "undo" not in json.loads((merged / "clmerge" / "manifest.json").read_text())


def test_a_plan_reads_no_weights_and_writes_nothing(place: Path) -> None:
    merged = merge(place, "--undo", "xor")
    before = sorted(place.rglob("*"))
    result = clmerge("lora-unmerge", merged, "-o", place / "back", "--dry-run", "--json")
    assert result.code == 0
    assert result.document["tensors"]["copied"] == len(load_file(merged / WEIGHTS))
    assert sorted(place.rglob("*")) == before


def test_one_file_and_shards_are_taken_back_too(place: Path) -> None:
    before = digest(place / "base")
    command = ["lora-merge", place / "base", place / "one", "--undo", "xor"]
    assert clmerge(*command, "-o", place / "one.safetensors").code == 0
    assert clmerge(*command, "--shard-size", "4KB", "-o", place / "shards").code == 0
    (place / "base").rename(place / "gone")
    assert clmerge("lora-unmerge", place / "one.safetensors", "-o", place / "back1").code == 0
    back = place / "back2.safetensors"
    assert clmerge("lora-unmerge", place / "shards", "-o", back).code == 0
    assert digest(place / "back1") == digest(back) == before


@pytest.mark.parametrize(("relative", "most"), [(0.1, 0.6), (0.001, 0.2)])
def test_bits_to_undo_a_merge_are_small(tmp_path: Path, relative: float, most: float) -> None:
    torch.manual_seed(0)
    size, rank = 768, 16
    weight = torch.randn(size, size) * 0.02
    down, up = torch.randn(rank, size), torch.randn(size, rank)
    up *= relative * weight.norm() / (up @ down).norm()
    (tmp_path / "base").mkdir()
    (tmp_path / "one").mkdir()
    save_file({"layer.weight": weight.bfloat16()}, tmp_path / "base" / WEIGHTS)
    factors = {"layer.lora_A.weight": down, "layer.lora_B.weight": up}
    names = {f"base_model.model.{name}": one.contiguous() for name, one in factors.items()}
    save_file(names, tmp_path / "one" / "adapter_model.safetensors")
    config: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    config["target_modules"] = ["layer"]
    (tmp_path / "one" / "adapter_config.json").write_text(json.dumps(config))
    merged = merge(tmp_path, "--undo", "xor")
    made = json.loads((merged / "clmerge" / "manifest.json").read_text())["undo"]
    assert made["tensor_bytes"] == weight.numel() * 2
    assert made["bytes"] == (merged / "clmerge" / "undo.safetensors").stat().st_size
    print(f"{relative}: {made['bytes'] / made['tensor_bytes']:.3f}")  # noqa: T201
    assert made["bytes"] < most * made["tensor_bytes"]
    shutil.rmtree(tmp_path / "base")
    assert clmerge("lora-unmerge", merged, "-o", tmp_path / "back").code == 0
    assert torch.equal(load_file(tmp_path / "back" / WEIGHTS)["layer.weight"], weight.bfloat16())


def test_room_for_the_bits_is_asked_for_before_anything_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = merge(place)
    written = (merged / WEIGHTS).stat().st_size
    shutil.rmtree(merged)
    free = SimpleNamespace(free=written + target.SPARE_BYTES + 100)
    monkeypatch.setattr(target.shutil, "disk_usage", lambda folder: free)
    command = ["lora-merge", place / "base", place / "one", "-o", place / "merged"]
    refused(*command, "--undo", "xor", unchanged=place, says=("no room on the disk",))
    assert clmerge(*command, "--undo", "base").code == 0


def random_merge(place: Path, seed: int) -> tuple[Path, Path]:
    """A base and an adapter of random shapes, dtypes and ranks; some tensors stay as they are."""
    random = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=random))

    dtypes = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    base, factors = {}, {}
    for number in range(1 + below(4)):
        rows, columns, rank = 1 + below(40), 1 + below(40), 1 + below(6)
        weight = torch.randn(rows, columns, generator=random) * 10.0 ** -below(4)
        base[f"m{number}.weight"] = weight.to(dtypes[below(4)])
        if below(3):
            size = 10.0 ** -below(6)
            down = torch.randn(rank, columns, generator=random)
            up = torch.randn(rows, rank, generator=random) * size
            factors[f"base_model.model.m{number}.lora_A.weight"] = down
            factors[f"base_model.model.m{number}.lora_B.weight"] = up
    base["m0.bias"] = torch.randn(3, generator=random)
    base["steps"] = torch.tensor(below(1000))
    if not factors:
        rows, columns = base["m0.weight"].shape
        factors["base_model.model.m0.lora_A.weight"] = torch.ones(1, columns)
        factors["base_model.model.m0.lora_B.weight"] = torch.ones(rows, 1)
    ranks = {n.split(".")[2]: len(one) for n, one in factors.items() if "lora_A" in n}
    for folder in ("base", "one"):
        (place / folder).mkdir(parents=True)
    save_file(base, place / "base" / WEIGHTS, {"format": "pt"})
    (place / "base" / "config.json").write_text(json.dumps({"seed": seed, "dtype": "float32"}))
    save_file(factors, place / "one" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1 + below(9), "rank_pattern": ranks}
    config["target_modules"] = sorted(ranks)
    (place / "one" / "adapter_config.json").write_text(json.dumps(config))
    return place / "base", place / "one"


@pytest.mark.parametrize(
    "seeds", [range(10), pytest.param(range(10, 100), marks=pytest.mark.long)], ids=["10", "90"]
)
def test_random_merges_are_taken_back(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        place = tmp_path / str(seed)
        base, adapter = random_merge(place, seed)
        retyped = ["--dtype", "bfloat16"] if seed % 3 == 0 else []
        for kind in ("base", "xor"):
            command = ["lora-merge", base, adapter, "--undo", kind, *retyped, "-q"]
            assert clmerge(*command, "-o", place / f"merged-{kind}").code == 0
            result = clmerge(
                "lora-unmerge", place / f"merged-{kind}", "-o", place / f"back-{kind}", "-q"
            )
            assert result.code == 0, (seed, result.err)
            assert same(base, place / f"back-{kind}"), seed


@pytest.mark.parametrize("kind", ["base", "xor"])
def test_what_changed_since_keeps_its_change_and_loses_the_update(place: Path, kind: str) -> None:
    merged = merge(place, "--undo", kind)
    weights, base = load_file(merged / WEIGHTS), load_file(place / "base" / WEIGHTS)
    name, norm = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    shift = torch.zeros_like(weights[name])
    shift[0, 0] = 64.0
    weights[name] += shift
    weights[norm][0] = 3.0
    save_file(weights, merged / WEIGHTS, {"format": "pt"})
    result = clmerge("lora-unmerge", merged, "--approximate", "-o", place / "back")
    assert result.code == 0, result.err
    found = load_file(place / "back" / WEIGHTS)
    assert all(torch.equal(found[n], base[n]) for n in base if n not in (name, norm))
    assert torch.equal(found[norm], weights[norm])
    apart = (found[name] - base[name]).double()
    assert float(apart[0, 0]) == pytest.approx(64.0, rel=0.01)
    apart[0, 0] = 0
    assert float(apart.norm()) < 0.02 * float(base[name].double().norm())
    drift = json.loads((place / "back" / "clmerge" / "manifest.json").read_text())["drift"]
    assert drift.keys() == {name, norm}
    if kind == "xor":
        assert set(drift.values()) == {None}
        assert "unknown" in result.err
    else:
        for one in (name, norm):
            away = (found[one].double() - base[one].double()).norm() / base[one].double().norm()
            assert drift[one] == pytest.approx(float(away), rel=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": LINEARS, "use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["norm", "lm_head"]},
        {"target_modules": ["v_proj"], "trainable_token_indices": {"embed_tokens": [1, 5]}},
    ],
    ids=["dora", "embedding and whole modules", "token rows"],
)
@pytest.mark.parametrize("kind", ["base", "xor"])
def test_what_is_no_plain_sum_is_taken_back_too(
    place: Path, config: dict[str, Any], kind: str
) -> None:
    shutil.rmtree(place / "one")
    save_adapter(llama(), place / "one", seed=1, r=4, lora_alpha=6, **config)
    merged = merge(place, "--undo", kind)
    assert clmerge("lora-unmerge", merged, "-o", place / "back").code == 0
    assert same(place / "base", place / "back")


def test_a_resized_vocabulary_is_taken_back_with_its_config(place: Path) -> None:
    shutil.rmtree(place / "one")
    larger = llama()
    larger.resize_token_embeddings(48)
    save_adapter(larger, place / "one", r=4, target_modules=["q_proj"])
    factors = load_file(place / "one" / "adapter_model.safetensors")
    for name in ("model.embed_tokens", "lm_head"):
        factors[f"base_model.model.{name}.weight"] = torch.randn(48, 24)
    save_file(factors, place / "one" / "adapter_model.safetensors", {"format": "pt"})
    merged = merge(place, "--undo", "xor")
    assert json.loads((merged / "config.json").read_text())["vocab_size"] == 48
    assert json.loads((place / "base" / "config.json").read_text())["vocab_size"] == 40
    (place / "base").rename(place / "gone")
    assert clmerge("lora-unmerge", merged, "-o", place / "back").code == 0
    assert same(place / "gone", place / "back")
