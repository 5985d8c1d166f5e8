"""Sidecars and their checkpoints as what training must hold back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fisher.sidecar import save
from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.continual.combining import add_protections, decay_protection
from mergekit_cl.continual.coverage import coverage
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import MismatchError
from mergekit_cl.sidecar import Sidecar, open_sidecar
from mergekit_cl.training.model import BuiltModel, build
from mergekit_cl.tuning.protecting import protection_from_sidecar, protection_from_sidecars
from tests.tiny_models import tiny_bert_classifier, tiny_gpt2, tiny_llama, tiny_mixtral

MODELS: dict[str, Callable[[Path], Any]] = {
    "llama": tiny_llama,
    "tied": lambda path: tiny_llama(path, tied=True),
    "bfloat16": lambda path: tiny_llama(path, dtype=torch.bfloat16),
    "gpt2": tiny_gpt2,
    "classifier": tiny_bert_classifier,
    "experts": tiny_mixtral,
}


def write_sidecar(
    model: Checkpoint, path: Path, *, seed: int = 0, estimator: str = "mc", leave: str = ""
) -> Sidecar:
    """A sidecar of random values for every weight of a checkpoint but one."""
    generator = torch.Generator().manual_seed(seed)
    digests = checkpoint_digests(model)
    names = [name for name, tensor in model.tensors.items() if tensor.is_float and name != leave]
    tensors = {name: torch.rand(model.tensors[name].shape, generator=generator) for name in names}
    described = {name: {"digest": digests[name]} for name in names}
    said = {"estimator": estimator, "unit": "per_example", "level": "example", "examples": 4}
    save(path, tensors, {**said, "tensors": described})
    return open_sidecar(path)


def prepared(tmp_path: Path, make: Callable[[Path], Any]) -> tuple[BuiltModel, Sidecar, Checkpoint]:
    make(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    return build(checkpoint), write_sidecar(checkpoint, tmp_path / "f.safetensors"), checkpoint


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_gets_the_fisher_and_the_weight_of_its_elements(
    kind: str, tmp_path: Path
) -> None:
    built, sidecar, checkpoint = prepared(tmp_path, MODELS[kind])
    protection = protection_from_sidecar(built, sidecar, checkpoint)
    parameters = dict(built.model.named_parameters())
    assert protection.fisher.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert torch.equal(protection.anchor[name], parameter), name
    by_file = dict(built.by_file(protection.fisher))
    assert by_file.keys() == sidecar.checkpoint.tensors.keys()
    for name, values in by_file.items():
        assert torch.equal(values, sidecar.checkpoint.tensor(name)), name
    assert coverage(parameters, protection).share == 1


def test_the_anchor_may_be_other_weights_than_the_model_starts_from(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "start", seed=1)
    tiny_llama(tmp_path / "earlier", seed=2)
    built = build(open_checkpoint(tmp_path / "start"))
    earlier = open_checkpoint(tmp_path / "earlier")
    sidecar = write_sidecar(earlier, tmp_path / "f.safetensors")
    protection = protection_from_sidecar(built, sidecar, earlier)
    for name, file in built.names.items():
        assert torch.equal(protection.anchor[name], earlier.tensor(file))


def test_a_model_that_has_grown_is_protected_where_it_was(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "small", seed=1, vocab_size=40)
    tiny_llama(tmp_path / "large", seed=1, vocab_size=43)
    small = open_checkpoint(tmp_path / "small")
    built = build(open_checkpoint(tmp_path / "large"))
    sidecar = write_sidecar(small, tmp_path / "f.safetensors")
    protection = protection_from_sidecar(built, sidecar, small)
    found = coverage(dict(built.model.named_parameters()), protection)
    assert found.grown == {"model.embed_tokens.weight": 3, "lm_head.weight": 3}


def test_a_sidecar_of_other_weights_is_refused_by_name(tmp_path: Path) -> None:
    built, sidecar, _ = prepared(tmp_path, tiny_llama)
    tiny_llama(tmp_path / "trained", seed=9)
    with pytest.raises(MismatchError, match="other weights") as caught:
        protection_from_sidecar(built, sidecar, open_checkpoint(tmp_path / "trained"))
    assert "has changed since" in str(caught.value.detail)


def test_an_anchor_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    built, sidecar, _ = prepared(tmp_path, tiny_llama)
    tiny_llama(tmp_path / "wide", intermediate_size=32)
    with pytest.raises(MismatchError, match="another anchor") as caught:
        protection_from_sidecar(built, sidecar, open_checkpoint(tmp_path / "wide"))
    assert "mlp" in str(caught.value.detail)


def test_what_the_model_has_no_parameter_for_is_told_as_absent(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "deep", layers=3)
    deep = open_checkpoint(tmp_path / "deep")
    tiny_llama(tmp_path / "model")
    built = build(open_checkpoint(tmp_path / "model"))
    sidecar = write_sidecar(deep, tmp_path / "f.safetensors", leave="lm_head.weight")
    protection = protection_from_sidecar(built, sidecar, deep)
    found = coverage(dict(built.model.named_parameters()), protection)
    assert "model.layers.2.mlp.up_proj.weight" in found.absent
    assert found.unprotected == ("lm_head.weight",)


def test_several_tasks_become_one_oldest_first(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "one", seed=1)
    tiny_llama(tmp_path / "two", seed=2)
    anchors = [open_checkpoint(tmp_path / name) for name in ("one", "two")]
    sidecars = [
        write_sidecar(anchor, tmp_path / f"{seed}.safetensors", seed=seed)
        for seed, anchor in enumerate(anchors)
    ]
    built = build(anchors[1])
    earlier = list(zip(sidecars, anchors, strict=True))
    old, new = (protection_from_sidecar(built, *pair) for pair in earlier)
    expected = {
        "sum": add_protections(old, new),
        "online": decay_protection(old, new, 0.5),
    }
    for mode, wanted in expected.items():
        found = protection_from_sidecars(built, earlier, mode=mode, gamma=0.5)  # type: ignore[arg-type]
        assert found is not None
        for name, values in wanted.fisher.items():
            assert torch.equal(found.fisher[name], values)
            assert torch.equal(found.anchor[name], wanted.anchor[name])
    assert protection_from_sidecars(built, []) is None


def test_sidecars_of_two_estimators_have_no_common_lambda(tmp_path: Path) -> None:
    built, sidecar, anchor = prepared(tmp_path, tiny_llama)
    other = write_sidecar(anchor, tmp_path / "o.safetensors", estimator="empirical")
    with pytest.raises(MismatchError, match="estimator"):
        protection_from_sidecars(built, [(sidecar, anchor), (other, anchor)])
