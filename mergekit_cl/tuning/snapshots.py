"""Snapshots of a run's power-function averages on the disk: `RUN/snapshots/00000100.safetensors`.

One file per snapshot holds both averages, `0.05:NAME` and `0.1:NAME` by their sigma_rel, in float32
under the names of what is trained. A file is whole or not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.continual.posthoc import PowerAverage
from mergekit_cl.continual.profiles import Profile, gamma_of
from mergekit_cl.errors import FormatError, OutputError
from mergekit_cl.output.durable import make_folders, sync
from mergekit_cl.output.tensors import save_tensors
from mergekit_cl.tuning.state import whole

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "clmerge.snapshot/1"
KEY = "clmerge.snapshot"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Stored:
    """One average of one snapshot: its profile, and the file that holds it under a prefix."""

    profile: Profile
    checkpoint: Checkpoint
    prefix: str

    @property
    def names(self) -> frozenset[str]:
        """Of its tensors."""
        found = (n for n in self.checkpoint.tensors if n.startswith(self.prefix))
        return frozenset(name.removeprefix(self.prefix) for name in found)


def write_snapshot(folder: Path, tracks: Sequence[PowerAverage], *, leads: bool) -> None:
    """Write the averages as they are, durably, in one step.

    leads: every process of a run calls this, one writes. Raises OutputError.
    """
    tensors: dict[str, Tensor] = {}
    for track in tracks:
        prefix = prefix_of(track.sigma_rel)
        tensors |= {prefix + name: whole(values) for name, values in track.tensors.items()}
    if not leads:
        return
    step = tracks[0].step
    said = {"format": FORMAT, "step": step, "sigma_rel": [track.sigma_rel for track in tracks]}
    path = folder / f"{step:08d}{SUFFIX}"
    fresh = path.with_name(f"{path.name}.new")
    try:
        make_folders(folder)
        save_tensors(fresh, tensors, {KEY: json.dumps(said)})
        sync(fresh)
        fresh.replace(path)
        sync(folder)
    except OSError as error:
        raise OutputError(
            "a snapshot of the averages cannot be written",
            detail=f"{path}: {error.strerror or error}",
            hint="mend that; the same command with --resume goes on from the last state",
        ) from error


def drop_later(folder: Path, step: int) -> None:
    """Remove the snapshots of steps after `step`, which were taken back, and unfinished ones."""
    for path in files_of(folder):
        if int(path.stem) > step:
            path.unlink()
    for unfinished in (f"*{SUFFIX}.new", ".tmp*"):  # the second are safetensors' own
        for path in folder.glob(unfinished):
            path.unlink()


def open_snapshots(folder: Path, stack: ExitStack) -> list[Stored]:
    """Every average of every snapshot, in the order of steps, from headers; closed by `stack`.

    Raises FormatError where a file is damaged, or is no snapshot of this version.
    """
    found: list[Stored] = []
    for path in files_of(folder):
        opened = stack.enter_context(open_checkpoint(path))
        step, lengths = _said(path, opened.metadata)
        for sigma_rel in lengths:
            found.append(Stored(Profile(gamma_of(sigma_rel), step), opened, prefix_of(sigma_rel)))
    if odd := [one for one in found if one.names != found[0].names]:
        raise FormatError(
            "a snapshot of the averages lacks tensors that others have",
            detail=str(odd[0].checkpoint.path),
        )
    return found


def files_of(folder: Path) -> list[Path]:
    """The files of whole snapshots, by step."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.stem.isdigit())


def prefix_of(sigma_rel: float) -> str:
    """What the names of an average's tensors begin with."""
    return f"{sigma_rel:g}:"


def _said(path: Path, metadata: Mapping[str, str]) -> tuple[int, list[float]]:
    try:
        said = json.loads(metadata[KEY])
        if said["format"] != FORMAT:
            raise ValueError(said["format"])
        step, lengths = int(said["step"]), [float(one) for one in said["sigma_rel"]]
        if step < 1 or not lengths:
            raise ValueError(f"step {step}, sigma_rel {lengths}")
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            "no snapshot of a run's averages",
            detail=f"{path}: {error!r:.160}",
            hint="files in RUN/snapshots are those that clmerge train wrote",
        ) from error
    return step, lengths
