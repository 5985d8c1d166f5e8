"""A merge in 16 bits is the exact result rounded once, and PEFT's is never nearer to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.exactly import fractions, nearest, nearest_all
from tests.lora.merging import merge
from tests.lora.peft_side import merged_by_peft, save_adapter, saved
from tests.lora.variants import named
from tests.lora.zoo import ZOO, Architecture, in_16_bits

DTYPES = (torch.bfloat16, torch.float16)
CASES = [
    *((one, "LoRA") for one in ZOO if one.name != "layers of torch"),
    *((one, "convolution") for one in ZOO if one.convolutions),
]


@given(st.lists(st.floats(-7e4, 7e4), min_size=1, max_size=20))
def test_rounding_all_at_once_is_rounding_each(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    for dtype in (*DTYPES, torch.float32):
        each = [nearest(value, dtype) for value in fractions(tensor)]
        assert nearest_all(tensor, dtype).tolist() == each


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "variant"), CASES, ids=lambda one: getattr(one, "name", one)
)
def test_ours_is_the_nearest_and_pefts_is_farther(
    tmp_path: Path, architecture: Architecture, variant: str
) -> None:
    settings = named()[variant].settings(architecture)
    assert settings is not None
    save_adapter(architecture.build(), tmp_path / "adapter", **settings[0])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: in_16_bits(t).float() for name, t in load_file(file).items()}, file)
    exact = merged_by_peft(architecture.build(), [tmp_path / "adapter"], tmp_path / "exact")
    base = saved(architecture.build(), tmp_path / "base")
    for dtype in DTYPES:
        narrow = {n: t.to(dtype) if t.is_floating_point() else t for n, t in base.items()}
        save_file(narrow, tmp_path / "base" / "model.safetensors", {"format": "pt"})
        merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / f"{dtype}")
        ours = load_file(tmp_path / f"{dtype}" / "model.safetensors")
        wide, narrowly = (
            merged_by_peft(
                architecture.build().to(dtype),
                [tmp_path / "adapter"],
                tmp_path / f"peft {dtype} {is_wide}",
                wide=is_wide,
            )
            for is_wide in (True, False)
        )
        changed = [name for name in ours if not torch.equal(ours[name], narrow[name])]
        assert changed
        for name in changed:
            assert torch.equal(ours[name].double(), nearest_all(exact[name], dtype)), name
        # Factors in float32 give sums that are nearly always rounded as the exact ones are.
        assert error(ours, exact, changed) <= error(wide, exact, changed)
        assert error(ours, exact, changed) < error(narrowly, exact, changed)


def error(found: dict[str, Tensor], exact: dict[str, Tensor], names: list[str]) -> float:
    return sum(float((found[n].double() - exact[n]).square().sum()) for n in names) ** 0.5
