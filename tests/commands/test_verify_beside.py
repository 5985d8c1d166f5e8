"""`clmerge verify` of what a merge leaves beside its weights: residuals and the report."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.commands.checkpoints import checkpoint, weights
from tests.commands.running import clmerge
from tests.commands.verifications import differences


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
