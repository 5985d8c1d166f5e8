"""`clmerge verify` of what a merge leaves beside its weights: residuals and the report."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.commands.checkpoints import checkpoint, weights
from tests.commands.running import clmerge
from tests.commands.verifications import differences


def write_adapter(folder: Path) -> None:
    """Factors of both layers of the toy checkpoint."""
    factors = {}
    for layer in (0, 1):
        key = f"base_model.model.model.layers.{layer}.mlp.up_proj"
        factors[f"{key}.lora_A.weight"] = torch.full((1, 8), 0.1)
        factors[f"{key}.lora_B.weight"] = torch.full((16, 1), 0.2)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_residuals_of_other_weights_are_a_difference(place: Path) -> None:
    checkpoint(place / "h1", weights(1, torch.bfloat16))
    checkpoint(place / "h2", weights(2, torch.bfloat16))
    for name, share in (("carried", "1,1"), ("another", "1,3")):
        line = ("linear-merge", "h1", "h2", "--carry", "--weights", share, "-o", name)
        assert clmerge(*line).code == 0
    assert clmerge("verify", "carried").code == 0
    carry = place / "carried/clmerge/carry.safetensors"
    whole = carry.read_bytes()
    carry.write_bytes((place / "another/clmerge/carry.safetensors").read_bytes())
    assert differences(place / "carried") == {"carry_stale": ["carry.safetensors"]}
    carry.write_bytes(whole[:-1])
    assert differences(place / "carried") == {"carry_unreadable": ["carry.safetensors"]}


def test_a_report_of_another_merge_is_a_difference(place: Path) -> None:
    assert clmerge("linear-merge", "a", "b").code == 0
    report = place / "merged/clmerge/divergence.json"
    said = json.loads(report.read_text())
    report.write_text(json.dumps({**said, "verdict": {**said["verdict"], "lossy": True}}))
    assert differences(place / "merged") == {"divergence_verdict": ["divergence.json"]}
    report.write_text("{")
    assert differences(place / "merged") == {"divergence_unreadable": ["divergence.json"]}
    report.unlink()
    assert differences(place / "merged") == {"divergence_unreadable": ["divergence.json"]}


def test_bits_that_undo_a_merge_are_checked_and_described(place: Path) -> None:
    write_adapter(place / "adapter")
    for name in ("merged", "other"):
        line = ["lora-merge", "a", "adapter", "--undo", "xor", "-o", name]
        assert clmerge(*line, *(["--scale", "2"] if name == "other" else [])).code == 0
    assert clmerge("verify", "merged").code == 0
    undo = place / "merged/clmerge/undo.safetensors"
    told = clmerge("lora-merge", "a", "adapter", "-o", "third", "--json").document["undo"]
    assert (told["kind"], told["path"], told["bytes"]) == ("base", str(place / "a"), None)
    shown = clmerge("inspect", "merged").out
    assert "2 tensors, from" in shown
    assert "in undo.safetensors" in shown
    whole = undo.read_bytes()
    undo.write_bytes((place / "other/clmerge/undo.safetensors").read_bytes())
    assert differences(place / "merged") == {"undo_stale": ["undo.safetensors"]}
    damaged = bytearray(whole)
    damaged[-3] ^= 1
    undo.write_bytes(damaged)
    assert differences(place / "merged") == {"undo_changed": ["undo.safetensors"]}
    undo.write_bytes(whole[:-1])
    assert differences(place / "merged") == {"undo_unreadable": ["undo.safetensors"]}
    undo.unlink()
    assert differences(place / "merged") == {"undo_unreadable": ["undo.safetensors"]}


def test_an_extracted_adapter_is_verified_and_described(place: Path) -> None:
    assert clmerge("lora-extract", "b", "a", "--rank", "2", "-o", "low").code == 0
    assert clmerge("verify", "low").code == 0
    assert "clmerge lora-extract" in clmerge("inspect", "low").out
    file = place / "low/adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "changed" in differences(place / "low")
