"""On a GPU a merge writes the CPU's bytes. Skipped, with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.commands.checkpoints import checkpoint, weights
from tests.commands.running import clmerge

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "line",
    [
        ("linear-merge", "a", "b", "--weights", "0.3,0.7"),
        ("linear-merge", "a", "b", "c"),
        ("fisher-merge", "a", "b"),
        ("fisher-merge", "a", "b", "c", "--weights", "0.2,0.5,0.3"),
        ("ema-merge", "a", "b", "c", "--decay", "0.99"),
    ],
    ids=" ".join,
)
def test_bytes_do_not_depend_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, line: tuple[str, ...]
) -> None:
    from fisher import save

    monkeypatch.chdir(tmp_path)
    said = {"estimator": "mc", "unit": "per_example", "level": "sequence", "examples": 1}
    for seed, name in enumerate("abc"):
        checkpoint(tmp_path / name, weights(seed, dtype))
        (tmp_path / name / "clmerge").mkdir()
        squares = {key: value.float().square() for key, value in weights(seed + 9).items()}
        save(tmp_path / name / "clmerge" / "fisher.safetensors", squares, said)
    for device in ("cpu", "cuda"):
        result = clmerge(*line, "--device", device, "-o", device)
        assert result.code == 0, result.err
    one, other = (tmp_path / device / "model.safetensors" for device in ("cpu", "cuda"))
    assert one.read_bytes() == other.read_bytes()
