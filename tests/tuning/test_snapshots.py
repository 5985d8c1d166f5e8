"""Snapshots lie whole on the disk, and those that were taken back go."""

from __future__ import annotations

import resource
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import in_fork

from mergekit_cl.continual.posthoc import tracks_of
from mergekit_cl.continual.profiles import gamma_of
from mergekit_cl.errors import FormatError, MismatchError, OutputError
from mergekit_cl.tuning.snapshots import drop_later, files_of, open_snapshots, write_snapshot


def written(folder: Path, steps: int) -> torch.nn.Module:
    """A snapshot after every step of a layer with batch statistics."""
    model = torch.nn.BatchNorm1d(3)
    tracks = tracks_of(model)
    for step in range(steps):
        with torch.no_grad():
            model.weight.add_(step + 1)
        model(torch.full((2, 3), float(step)))
        for track in tracks:
            track.update(model)
        write_snapshot(folder, tracks, leads=True)
    return model


def test_each_average_of_each_snapshot_is_found_with_its_profile(tmp_path: Path) -> None:
    model = written(tmp_path, 3)
    with ExitStack() as stack:
        found = open_snapshots(tmp_path, stack)
        assert [one.profile.step for one in found] == [1, 1, 2, 2, 3, 3]
        assert [one.profile.gamma for one in found] == [gamma_of(0.05), gamma_of(0.10)] * 3
        assert {one.names for one in found} == {frozenset(model.state_dict())}
        counter = found[-1].checkpoint.tensor("0.1:num_batches_tracked")
        assert (counter.dtype, int(counter)) == (torch.int64, 3)


def test_later_snapshots_and_unfinished_ones_go(tmp_path: Path) -> None:
    written(tmp_path, 4)
    kept = tmp_path / "00000002.safetensors"
    before = kept.read_bytes()
    for name in ("00000003.safetensors.new", ".tmpA1b2C3"):
        (tmp_path / name).write_bytes(b"half")
    drop_later(tmp_path, 2)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "00000001.safetensors", kept]
    assert kept.read_bytes() == before
    drop_later(tmp_path / "nowhere", 2)


def test_only_the_process_that_leads_writes(tmp_path: Path) -> None:
    write_snapshot(tmp_path, tracks_of(torch.nn.Linear(2, 2)), leads=False)
    assert files_of(tmp_path) == []


def test_a_half_written_one_is_never_seen(tmp_path: Path) -> None:
    written(tmp_path, 1)
    (tmp_path / "00000002.safetensors.new").write_bytes(b"half")
    assert files_of(tmp_path) == [tmp_path / "00000001.safetensors"]
    assert "0.05:weight" in load_file(files_of(tmp_path)[0])


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "snapshots").write_text("a file")
    with pytest.raises(OutputError, match="a snapshot of the averages cannot be written"):
        write_snapshot(tmp_path / "snapshots", tracks_of(torch.nn.Linear(2, 2)), leads=True)


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path) -> None:
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(OutputError, match="a snapshot of the averages cannot be written"):
            write_snapshot(tmp_path, tracks_of(torch.nn.Linear(40, 40)), leads=True)

    assert in_fork(limited) == 0
    assert files_of(tmp_path) == []


def test_what_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "00000001.safetensors")
    with ExitStack() as stack, pytest.raises(FormatError, match="no snapshot"):
        open_snapshots(tmp_path, stack)


def test_an_average_goes_on_from_its_state_to_the_bit_and_from_no_other() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    one, other = tracks_of(model)

    def step() -> None:
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))

    for _ in range(3):
        step()
        one.update(model)
    state = one.state_dict()
    state = {**state, "tensors": {name: t.clone() for name, t in state["tensors"].items()}}
    fresh, _ = tracks_of(model)
    fresh.load_state_dict(state)
    step()
    for average in (one, fresh):
        average.update(model)
    assert torch.equal(one.tensors["weight"], fresh.tensors["weight"])
    assert fresh.step == 4
    with pytest.raises(MismatchError, match="another length"):
        other.load_state_dict(state)
    with pytest.raises(MismatchError, match="same tensors"):
        tracks_of(torch.nn.Linear(4, 2))[0].load_state_dict(state)
