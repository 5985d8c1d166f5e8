"""A sweep through compiled kernels sums the same merges as one through the reference formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mergekit_cl.sweep.evaluate
import mergekit_cl.sweep.run
from mergekit_cl.merge.compiled import BlockKernel, Scratch, block_kernel
from mergekit_cl.merge.formula import Formula
from tests.commands.checkpoints import checkpoint, sidecar, weights
from tests.commands.running import clmerge
from tests.commands.toys import LAYER0, NORM


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiled_kernels_predict_what_the_formulas_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        tensors = weights(seed, dtype)
        fisher = {key: torch.rand(t.shape).to(dtype) for key, t in tensors.items() if key != NORM}
        fisher[LAYER0].view(-1)[::3] = 0  # where both are 0 the fallback decides
        left_out = {NORM: "buffer"}
        sidecar(checkpoint(tmp_path / name, tensors), values=fisher, leave_out=left_out)

    compiled: list[Formula] = []

    def counted(formulas: list[Formula], scratch: Scratch) -> BlockKernel:
        compiled.extend(formulas)
        return block_kernel(formulas, scratch)

    monkeypatch.setattr(mergekit_cl.sweep.evaluate, "block_kernel", counted)

    def predicted(can_compile: bool) -> Any:
        monkeypatch.setattr(mergekit_cl.sweep.run, "can_compile", lambda: can_compile)
        result = clmerge("fisher-merge", "a", "b", "--sweep", "5", "--json")
        assert result.code == 0, result
        return result.document["sweep"]

    slow = predicted(False)
    assert not compiled
    fast = predicted(True)
    assert compiled
    assert fast["best"] == slow["best"]
    for parent in "ab":
        there, here = slow["predicted_kl"][parent], fast["predicted_kl"][parent]
        np.testing.assert_allclose(here, there, rtol=1e-9)
        assert max(there) > 0
