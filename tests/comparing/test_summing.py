"""Compiled code and torch sum blocks alike, and torch is loaded only where it is needed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from making import write_model

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.comparing.comparison import Comparison, Source
from mergekit_cl.comparing.summing import BlockSums

SIZE = 4099


def comparison(folder: Path, dtypes: list[torch.dtype], *, weighted: bool) -> Comparison:
    """One tensor against two parents, the first with a Fisher."""
    sources = []
    for seed, dtype in enumerate(dtypes):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(SIZE, generator=generator).to(dtype)
        values[:100] = 0.5  # as in all others
        path = write_model(folder / str(seed), {"w": values.abs() if seed == 3 else values})
        sources.append(Source(open_checkpoint(path), "w"))
    merged, first, second, fisher = sources
    return Comparison(merged, (first, second), (fisher if weighted else None, None))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.bfloat16] * 4,
        [torch.float16, torch.float32, torch.bfloat16, torch.float32],
        [torch.float32, torch.float32, torch.float64, torch.float32],
    ],
)
def test_a_compiler_changes_no_sum(
    tmp_path: Path, dtypes: list[torch.dtype], weighted: bool
) -> None:
    given = comparison(tmp_path, dtypes, weighted=weighted)
    blocks = [source.block(0, SIZE) for source in given.sources]
    slow, fast = (BlockSums(compiled)(given, blocks) for compiled in (False, True))
    assert len(slow) == len(fast) == 2
    for one, other in zip(slow, fast, strict=True):
        for expected, found in zip(astuple(one), astuple(other), strict=True):
            exact = expected is None or isinstance(expected, int)
            assert found == (expected if exact else pytest.approx(expected, rel=1e-9))
    assert SIZE // 2 < slow[0].changed <= SIZE - 100


@pytest.mark.parametrize("command", ["diff", "check"])
def test_models_that_compiled_code_knows_are_compared_without_torch(
    tmp_path: Path, command: str
) -> None:
    values = torch.linspace(-1, 1, 1000)
    for k, name in enumerate("ab"):
        write_model(tmp_path / name, {"w": (values + k / 1000).bfloat16()})
    code = (
        "import sys\n"
        "from mergekit_cl import cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('torch' in sys.modules, file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, command, str(tmp_path / "a"), str(tmp_path / "b"), "--quiet"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr.endswith("False\n"), ran.stderr
