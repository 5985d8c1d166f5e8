"""A parameter is a tensor of the file only if its bits say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.training import names
from mergekit_cl.training.load import load_model
from mergekit_cl.training.names import map_names, same_values, tied_groups
from tests.tiny_models import tiny_llama


def stored(path: Path, values: torch.Tensor) -> Path:
    save_file({"w": values}, path / "w.safetensors")
    return path / "w.safetensors"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_are_compared_after_the_cast_that_loading_makes(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    values = torch.tensor([1 / 3, float("nan"), -0.0, 7.0], dtype=torch.float64)
    with open_checkpoint(stored(tmp_path, values)) as checkpoint:
        assert same_values(values.to(dtype), checkpoint, "w")


@pytest.mark.parametrize("index", [0, 4, 7])
def test_one_other_bit_in_any_piece_is_another_tensor(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "PIECE", 3)
    values = torch.zeros(2, 4)
    with open_checkpoint(stored(tmp_path, values)) as checkpoint:
        assert same_values(values, checkpoint, "w")
        other = values.clone()
        other.view(-1)[index] = -0.0
        assert not same_values(other, checkpoint, "w")


def test_another_shape_or_an_integer_is_another_tensor(tmp_path: Path) -> None:
    with open_checkpoint(stored(tmp_path, torch.zeros(2, 4))) as checkpoint:
        assert not same_values(torch.zeros(4, 2), checkpoint, "w")
    with open_checkpoint(stored(tmp_path, torch.zeros(2, dtype=torch.int32))) as checkpoint:
        assert not same_values(torch.zeros(2), checkpoint, "w")


def test_a_parameter_that_was_changed_while_loading_has_no_name(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        model = load_model(checkpoint, "LlamaForCausalLM", torch.float32)
        name = "model.layers.1.self_attn.q_proj.weight"  # square, so only its values can tell
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.T.contiguous()
        found = map_names(model, checkpoint)
    assert found.unmatched == (name,)
    assert found.missing == {name: "unsupported"}
    assert found.files_of(name) == ()
    assert len(found.direct) == 20


def test_tied_parameters_are_one_group_under_their_first_name(tmp_path: Path) -> None:
    groups = tied_groups(tiny_llama(tmp_path, tied=True))
    assert groups["model.embed_tokens.weight"] == ("model.embed_tokens.weight", "lm_head.weight")
    assert sum(len(group) for group in groups.values()) == len(groups) + 1
