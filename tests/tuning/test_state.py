"""A state that is loaded is the one that was saved, in every byte of it."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from buffers import plain
from tiny_models import tiny_bert_classifier, tiny_llama
from training_runs import files_of, in_fork

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.continual.average import WeightAverage
from mergekit_cl.continual.buffer import Buffer
from mergekit_cl.continual.buffertext import encode
from mergekit_cl.continual.ewc import Protection
from mergekit_cl.continual.posthoc import tracks_of
from mergekit_cl.errors import FormatError, MismatchError, OutputError
from mergekit_cl.training.architecture import Task
from mergekit_cl.training.model import BuiltModel
from mergekit_cl.training.names import NameMap
from mergekit_cl.tuning.live import Live
from mergekit_cl.tuning.model import Tuned, build_base, build_tuned
from mergekit_cl.tuning.optimizer import make_optimizer
from mergekit_cl.tuning.schema import Config, Optimizer
from mergekit_cl.tuning.state import load_state, pointer, save_state

KIND: Task = "causal-lm"


class Normalised(torch.nn.Module):
    """A layer with batch statistics and a counter, which no gradient moves."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(self.inside(x))
        return found


def with_batch_norm(root: Path) -> Tuned:
    torch.manual_seed(0)
    module = Normalised()
    built = BuiltModel(module, KIND, NameMap({}), torch.float32, None)
    return Tuned(built, module, None, {}, False)


def whole(root: Path) -> Tuned:
    tiny_llama(root / "model", tied=True)
    return tuned_from(root, {})


def adapter(root: Path) -> Tuned:
    tiny_bert_classifier(root / "model")
    return tuned_from(root, {"lora": {"rank": 2, "modules_to_save": ["classifier"]}})


def tuned_from(root: Path, settings: dict[str, Any]) -> Tuned:
    values = {"model": str(root / "model"), "task": [{"name": "a", "data": ["x"]}], **settings}
    with open_checkpoint(root / "model") as checkpoint:
        return build_tuned(Config.model_validate(values), checkpoint, build_base(checkpoint))


MODELS = [whole, adapter, with_batch_norm]


def live_of(tuned: Tuned) -> Live:
    live = Live(tuned, make_optimizer(Optimizer(weight_decay=0.1), tuned.trained()))
    live.average = WeightAverage(tuned, half_life=2.0, warmup=True)
    live.tracks = tracks_of(tuned)
    live.buffer = Buffer(5, 0)
    weights = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    live.protection = Protection({n: w.abs() for n, w in weights.items()}, weights)
    return live


def move(live: Live, seed: int) -> None:
    """A step of everything."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(live.tuned.module, Normalised):
        live.tuned.module.train()
        live.tuned.module(torch.randn(8, 4, generator=generator))
    for parameter in live.tuned.trained().values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    live.optimizer.step()
    assert live.average is not None
    assert live.buffer is not None
    live.average.update(live.tuned)
    for track in live.tracks:
        track.update(live.tuned)
    live.buffer.add(*plain(seed, "a", seed))
    now = live.position
    live.position = replace(now, step=now.step + 1, steps=now.steps + 1, consumed=now.consumed + 8)
    live.realised = live.realised.plus(6, 2, 60, 20)
    live.history.alarms.append({"row": seed})


def bytes_of(live: Live) -> dict[str, Any]:
    """Everything that a rejection takes back."""
    assert live.average is not None
    assert live.buffer is not None
    assert live.protection is not None
    tensors = {f"model {n}": t for n, t in live.tuned.module.state_dict().items()}
    tensors |= {f"average {n}": t for n, t in live.average.tensors.items()}
    for track in live.tracks:
        tensors |= {f"track {track.sigma_rel} {n}": t for n, t in track.tensors.items()}
    tensors |= {f"fisher {n}": t for n, t in live.protection.fisher.items()}
    tensors |= {f"anchor {n}": t for n, t in live.protection.anchor.items()}
    for name, parameter in live.tuned.trained().items():
        state = live.optimizer.state.get(parameter, {})
        tensors |= {f"optimizer {name} {key}": value for key, value in state.items()}
    found: dict[str, Any] = {
        name: (t.dtype, t.shape, t.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
        for name, t in tensors.items()
    }
    buffer = encode(live.buffer)
    return {
        **found,
        "updates": live.average.updates,
        "tracks": [track.step for track in live.tracks],
        "buffer": (buffer.rows, buffer.manifest),
        "position": live.position,
        "realised": live.realised,
    }


@pytest.mark.parametrize("make", MODELS)
def test_everything_comes_back_byte_for_byte_and_goes_on_the_same(
    tmp_path: Path, make: Callable[[Path], Tuned]
) -> None:
    live = live_of(make(tmp_path))
    move(live, 1)
    move(live, 2)
    save_state(tmp_path / "state", live, lines=0, accepted=True)
    before, files = bytes_of(live), files_of(tmp_path / "state")
    move(live, 3)
    after = bytes_of(live)
    assert all(before[key] != after[key] for key in ("position", "realised", "buffer", "updates"))
    save_state(tmp_path / "state", live, lines=7, accepted=False)
    assert pointer(tmp_path / "state") == {"current": "00000002", "accepted": "00000001"}

    assert load_state(tmp_path / "state", live, generation="accepted", rollback=True) == 0
    assert bytes_of(live) == before
    assert [one["row"] for one in live.history.alarms] == [1, 2, 3]  # seen is seen

    live.history.alarms.pop()
    save_state(tmp_path / "other", live, lines=0, accepted=True)
    assert files_of(tmp_path / "other") == files
    move(live, 3)
    assert bytes_of(live) == after


@pytest.mark.parametrize("make", MODELS)
def test_a_new_process_is_brought_to_the_same_state(
    tmp_path: Path, make: Callable[[Path], Tuned]
) -> None:
    live = live_of(make(tmp_path))
    for seed in (1, 2, 3):
        move(live, seed)
    save_state(tmp_path / "state", live, lines=5, accepted=False)
    expected = bytes_of(live)
    fresh = live_of(make(tmp_path))
    assert bytes_of(fresh) != expected
    assert load_state(tmp_path / "state", fresh) == 5
    assert bytes_of(fresh) == expected
    assert fresh.history == live.history


def test_a_disk_that_takes_no_more_is_told_and_the_state_before_stays(tmp_path: Path) -> None:
    live = live_of(whole(tmp_path))
    save_state(tmp_path / "state", live, lines=0, accepted=True)
    before = pointer(tmp_path / "state")

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(OutputError, match="the state of the run cannot be written"):
            save_state(tmp_path / "state", live, lines=0, accepted=True)

    assert in_fork(limited) == 0
    assert pointer(tmp_path / "state") == before
    load_state(tmp_path / "state", live)


def test_generations_that_nobody_needs_go_and_unchanged_files_are_linked(tmp_path: Path) -> None:
    live = live_of(whole(tmp_path))
    place = tmp_path / "state"
    for number in range(4):
        move(live, number)
        save_state(place, live, lines=0, accepted=number == 0)
    assert sorted(path.name for path in place.iterdir()) == ["00000001", "00000004", "current.json"]
    one, other = place / "00000001", place / "00000004"
    assert one.joinpath("protection.safetensors").samefile(other / "protection.safetensors")
    assert not one.joinpath("weights.safetensors").samefile(other / "weights.safetensors")
    live.protected += 1
    save_state(place, live, lines=0, accepted=False)
    assert not one.joinpath("protection.safetensors").samefile(
        place / "00000005/protection.safetensors"
    )


def test_half_a_generation_is_never_looked_at(tmp_path: Path) -> None:
    live = live_of(whole(tmp_path))
    move(live, 1)
    save_state(tmp_path / "state", live, lines=0, accepted=True)
    expected = bytes_of(live)
    shutil.copytree(tmp_path / "state/00000001", tmp_path / "state/fresh")
    (tmp_path / "state/fresh/weights.safetensors").write_bytes(b"half")
    shutil.copytree(tmp_path / "state/fresh", tmp_path / "state/00000002")
    move(live, 2)
    load_state(tmp_path / "state", live)
    assert bytes_of(live) == expected
    save_state(tmp_path / "state", live, lines=0, accepted=True)
    load_state(tmp_path / "state", live)
    assert bytes_of(live) == expected


def test_a_damaged_state_and_one_of_another_model_are_refused(tmp_path: Path) -> None:
    live = live_of(whole(tmp_path))
    save_state(tmp_path / "state", live, lines=0, accepted=True)
    with pytest.raises(MismatchError, match="another model"):
        load_state(tmp_path / "state", live_of(with_batch_norm(tmp_path)))
    (tmp_path / "state/00000001/state.json").write_text("{}")
    with pytest.raises(FormatError):
        load_state(tmp_path / "state", live)
    (tmp_path / "state/current.json").write_text(json.dumps({"format": "clmerge.state/9"}))
    with pytest.raises(FormatError):
        load_state(tmp_path / "state", live)
