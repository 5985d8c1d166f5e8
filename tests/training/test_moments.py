"""What Adam kept, read back to the bit under the model's names, or refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

import mergekit_cl.training.parameter_order
from mergekit_cl.errors import ClmergeError
from mergekit_cl.training.moments import Moment, moments, read_optimizer
from mergekit_cl.training.parameter_order import by_name
from tests.processes import together
from tests.tiny_models import tiny_bert_classifier, tiny_gpt2, tiny_llama, tiny_mixtral

TINY: dict[str, Callable[..., Any]] = {
    "llama": tiny_llama,
    "tied": lambda place: tiny_llama(place, tied=True),
    "gpt2": tiny_gpt2,
    "mixtral": tiny_mixtral,
    "bert": tiny_bert_classifier,
}


def model_of(kind: str, place: Path) -> Any:
    import transformers

    TINY[kind](place)
    name = "SequenceClassification" if kind == "bert" else "CausalLM"
    return getattr(transformers, f"AutoModelFor{name}").from_pretrained(place)


def trainers(model: nn.Module, place: Path) -> torch.optim.Optimizer:
    """The optimizer that the Trainer of the installed transformers makes."""
    import transformers

    arguments = transformers.TrainingArguments(
        output_dir=str(place / "run"), weight_decay=0.1, use_cpu=True, report_to=[]
    )
    trainer = transformers.Trainer(model=model, args=arguments)
    made: torch.optim.Optimizer = trainer.create_optimizer()
    return made


def step(optimizer: torch.optim.Optimizer, times: int = 3) -> None:
    torch.manual_seed(0)
    for _ in range(times):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()


def expected(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """From the optimizer in memory: v / (1 - beta2^step)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            correction = 1 - group["betas"][1] ** float(state["step"])
            found[names[id(parameter)]] = state["exp_avg_sq"] / correction
    return found


def read(path: Path, model: nn.Module) -> dict[str, Moment]:
    saved = read_optimizer(path)
    return by_name(saved, moments(saved, path), model, path)


def check(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    found, wanted = read(path, model), expected(model, optimizer)
    assert found.keys() == wanted.keys()
    for name, moment in found.items():
        assert torch.equal(moment.corrected(), wanted[name]), name


@pytest.mark.parametrize("kind", TINY)
def test_the_trainer_s_optimizer_is_read_under_the_model_s_names(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path / "m")
    optimizer = trainers(model, tmp_path)
    step(optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    check(tmp_path / "optimizer.pt", model, optimizer)


def test_one_group_named_groups_and_several_beta2_are_read(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path / "m")
    named = list(model.named_parameters())
    groups = [
        {"params": named[5:], "betas": (0.9, 0.95)},
        {"params": named[:5], "betas": (0.9, 0.98)},
    ]
    plain = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for number, optimizer in enumerate((plain, torch.optim.Adam(groups, amsgrad=True))):
        step(optimizer)
        path = tmp_path / f"{number}.pt"
        torch.save({"optimizer": optimizer.state_dict(), "epoch": 3}, path)
        check(path, model, optimizer)


@pytest.mark.parametrize("flat", [False, True])
def test_a_distributed_checkpoint_is_read_under_the_model_s_names(
    tmp_path: Path, flat: bool
) -> None:
    model = model_of("tied", tmp_path / "m")
    optimizer = torch.optim.AdamW(
        [{"params": [p], "betas": (0.9, 0.9 + 0.002 * n)} for n, p in enumerate(model.parameters())]
        if not flat
        else model.parameters()
    )
    step(optimizer)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = {
        "model": model.state_dict(),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }
    _save(state, tmp_path / "saved")
    check(tmp_path / "saved", model, optimizer)


def test_a_distributed_checkpoint_of_numbered_states_is_read_too(tmp_path: Path) -> None:
    model = model_of("gpt2", tmp_path / "m")
    optimizer = trainers(model, tmp_path)
    step(optimizer)
    _save({"optim": optimizer.state_dict()}, tmp_path / "saved")
    check(tmp_path / "saved", model, optimizer)


def _save(state: dict[str, Any], place: Path) -> None:
    with pytest.warns(UserWarning, match="single process"):
        checkpoint.save(state, checkpoint_id=place, no_dist=True)


def test_a_parameter_that_was_never_moved_has_no_moment(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path / "m")
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in list(model.parameters())[2:]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    names = [name for name, _ in model.named_parameters()]
    assert list(read(tmp_path / "optimizer.pt", model)) == names[2:]


def refusal(path: Path, model: nn.Module) -> str:
    with pytest.raises(ClmergeError) as caught:
        read(path, model)
    return f"{caught.value.message}\n{caught.value.detail}\n{caught.value.hint}"


def test_another_model_s_optimizer_is_refused(tmp_path: Path) -> None:
    model, other = model_of("llama", tmp_path / "m"), model_of("gpt2", tmp_path / "o")
    optimizer = trainers(other, tmp_path)
    step(optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert "are not the model's, by number and shape" in refusal(tmp_path / "optimizer.pt", model)
    _save({"optimizer": get_optimizer_state_dict(other, optimizer)}, tmp_path / "saved")
    assert "trained another model" in refusal(tmp_path / "saved", model)


def test_an_order_that_could_be_two_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    orders = [[["0.weight", "1.weight"]], [["1.weight", "0.weight"]]]
    monkeypatch.setattr(mergekit_cl.training.parameter_order, "_orders", lambda _: orders)
    optimizer = torch.optim.AdamW(model.parameters())
    step(optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    said = refusal(tmp_path / "optimizer.pt", model)
    assert "two orders of the model's fit" in said
    assert "parameter 0 is 0.weight or 1.weight" in said


def _train_in_shards(rank: int, place: Path) -> dict[str, torch.Tensor]:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    checkpoint.save(state, checkpoint_id=place)
    whole = {}
    for name, parameter in model.named_parameters():
        values = optimizer.state[parameter]["exp_avg_sq"]
        assert isinstance(values, DTensor)
        whole[name] = values.full_tensor() / (1 - 0.999**2)
    return whole


@pytest.mark.long
def test_the_shards_that_fsdp2_saves_are_put_together(tmp_path: Path) -> None:
    wanted, _ = together(2, _train_in_shards, tmp_path, tmp_path / "saved")
    found = read(tmp_path / "saved", nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)))
    assert found.keys() == wanted.keys()
    for name, moment in found.items():
        assert torch.equal(moment.corrected(), wanted[name]), name


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "sgd": ({"momentum_buffer": torch.ones(2)}, "the momentum of SGD"),
    "adafactor": ({"step": 1, "exp_avg_sq_row": torch.ones(2)}, "Adafactor"),
    "bitsandbytes": (
        {"step": 1, "state1": torch.ones(2), "state2": torch.ones(2), "absmax1": torch.ones(2)},
        "8-bit states of bitsandbytes",
    ),
    "quantised": ({"step": 1, "exp_avg_sq": torch.ones(2, dtype=torch.uint8)}, "torch.uint8"),
    "unknown": ({"exp_avg": torch.ones(2)}, "parameter 0 has exp_avg"),
    "negative": ({"step": 1, "exp_avg_sq": -torch.ones(2)}, "negative"),
    "no step": ({"step": 0, "exp_avg_sq": torch.ones(2)}, "step 0"),
    "nothing": ({}, "was a step taken?"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_adam_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    entry, says = OTHERS[kind]
    content = {"state": {0: entry}, "param_groups": [{"params": [0], "betas": (0.9, 0.99)}]}
    torch.save(content, tmp_path / "optimizer.pt")
    assert says in refusal(tmp_path / "optimizer.pt", nn.Linear(2, 1, bias=False))


def test_a_file_that_is_no_optimizer_or_is_cut_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt")
    assert "holds no optimizer" in refusal(tmp_path / "weights.pt", model)
    assert "holds no optimizer" in refusal(tmp_path, model)
    assert "no such file" in refusal(tmp_path / "none.pt", model)
    optimizer = torch.optim.AdamW(model.parameters())
    step(optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    whole = (tmp_path / "optimizer.pt").read_bytes()
    (tmp_path / "optimizer.pt").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refusal(tmp_path / "optimizer.pt", model)


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_no_pickle_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 1)
    torch.save({"state": {0: {"exp_avg_sq": Bomb()}}, "param_groups": []}, "optimizer.pt")
    assert "more than weights" in refusal(tmp_path / "optimizer.pt", model)

    optimizer = torch.optim.AdamW(model.parameters())
    step(optimizer)
    state = get_optimizer_state_dict(model, optimizer)
    state["param_groups"][0]["betas"] = Bomb()
    _save({"optimizer": state}, tmp_path / "values")
    refusal(tmp_path / "values", model)

    _save({"optimizer": get_optimizer_state_dict(model, optimizer)}, tmp_path / "metadata")
    (tmp_path / "metadata" / ".metadata").write_bytes(pickle.dumps(Bomb()))
    assert "more than a description" in refusal(tmp_path / "metadata", model)
    assert not Path("exploded").exists()


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(20, 10)
    optimizer = torch.optim.AdamW(model.parameters())
    step(optimizer)
    _save({"optimizer": get_optimizer_state_dict(model, optimizer)}, tmp_path / "saved")
    shard = tmp_path / "saved" / "__0_0.distcp"
    whole, description = shard.read_bytes(), (tmp_path / "saved/.metadata").read_bytes()
    for content in (whole[: len(whole) // 2], b"", bytes(len(whole))):
        shard.write_bytes(content)
        assert "truncated" in refusal(tmp_path / "saved", model)
    shard.write_bytes(whole)
    (tmp_path / "saved/.metadata").write_bytes(description[:-100])
    assert "truncated" in refusal(tmp_path / "saved", model)
    elsewhere = description.replace(b"__0_0.distcp", b"../_0.distcp")
    (tmp_path / "saved/.metadata").write_bytes(elsewhere)
    assert "a file elsewhere" in refusal(tmp_path / "saved", model)
    shard.unlink()
    (tmp_path / "saved/.metadata").write_bytes(description)
    assert "truncated" in refusal(tmp_path / "saved", model)
