"""`ema-average`: from the snapshots of a finished run to a published model or adapter."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.continual.posthoc import combined
from mergekit_cl.continual.profiles import Fit
from mergekit_cl.continual.reach import fit_half_life, half_lives
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import InputError, MismatchError, OptionError
from mergekit_cl.manifest import FORMAT, describe_input, read_manifest, versions, write_json
from mergekit_cl.memory import peak_memory_bytes
from mergekit_cl.output.staging import Staging
from mergekit_cl.output.target import (
    check_apart,
    check_replaceable,
    check_room,
    is_single_file,
    side_folder,
)
from mergekit_cl.output.whole import published_whole
from mergekit_cl.report.progress import Advance, Start
from mergekit_cl.torch_threads import torch_threads
from mergekit_cl.tuning.earlier import base_of
from mergekit_cl.tuning.model import build_base, build_tuned
from mergekit_cl.tuning.reading import read_config
from mergekit_cl.tuning.rundir import RunFolder
from mergekit_cl.tuning.schema import Config
from mergekit_cl.tuning.snapshots import Stored, open_snapshots
from mergekit_cl.tuning.writing import SHARD_SIZE, stored_tensors, write_adapter, write_model
from mergekit_cl.tuning.written import describe_written

if TYPE_CHECKING:
    from torch import Tensor

COMMAND = "ema-average"
PIECE = 2**20
"""Elements summed at a time, in float64."""


@dataclass(frozen=True)
class AverageRequest:
    """Which average of which run, and where to. half_life: in steps, at the run's last one."""

    run: Path
    half_life: float
    target: Path
    shard_size: int = SHARD_SIZE
    threads: int | None = None
    force: bool = False
    restart: bool = False

    def options(self) -> dict[str, Any]:
        """What decides the bytes of the output."""
        return {"half_life": self.half_life, "shard_size": self.shard_size}


@dataclass(frozen=True)
class Source:
    """What an average is made of. base: the checkpoint that the run began with."""

    config: Config
    base: Checkpoint
    stored: list[Stored]
    fit: Fit

    @property
    def files(self) -> list[Checkpoint]:
        """The snapshots, each once, by step."""
        return list({one.profile.step: one.checkpoint for one in self.stored}.values())

    def describe(self) -> dict[str, Any]:
        """How the average was put together."""
        parts = zip(self.stored, self.fit.weights, strict=True)
        return {
            "step": self.stored[-1].profile.step,
            "residual": self.fit.residual,
            "half_lives": list(half_lives([one.profile for one in self.stored])),
            "parts": [
                {
                    "step": one.profile.step,
                    "sigma_rel": float(one.prefix.rstrip(":")),
                    "weight": weight,
                }
                for one, weight in parts
            ],
        }


@contextmanager
def source_of(request: AverageRequest, *, headers_only: bool = False) -> Iterator[Source]:
    """Open a run's snapshots, and the model that it began with.

    Raises InputError where there is no finished run or it kept no snapshots, OptionError for a
    half-life that cannot be made of them.
    """
    folder = RunFolder(request.run)
    _check_finished(folder)
    with ExitStack() as stack:
        stored = open_snapshots(folder.snapshots, stack)
        if not stored:
            raise InputError(
                "the run kept no snapshots that an average could be made of",
                detail=f"{folder.snapshots}: none",
                hint="train with ema.snapshot_every = 100, or another number of steps",
            )
        found = fit_half_life([one.profile for one in stored], request.half_life)
        config = read_config(folder.config)
        base = stack.enter_context(open_checkpoint(config.model, headers_only=headers_only))
        source = Source(config, base, stored, found)
        _check_target(request, source)
        yield source


def describe_average(request: AverageRequest, source: Source) -> dict[str, Any]:
    """What `--dry-run` prints."""
    read = sum(one.nbytes for one in source.files)
    written = _bytes_written(source)
    return {
        "command": COMMAND,
        "run": str(request.run),
        "output": str(request.target),
        "half_life": request.half_life,
        **source.describe(),
        "bytes_read": read + source.base.nbytes,
        "bytes_written": written,
        "memory_bytes": 4 * sum(one.numel for one in source.base.tensors.values()) + written,
    }


def run_average(request: AverageRequest, source: Source, progress: Start) -> dict[str, Any]:
    """Make the average and publish it; gives the manifest, `state` "published" or "up to date".

    Raises MismatchError where the model that the run began with has changed.
    """
    started = time.perf_counter()
    before = checkpoint_digests(source.base)
    base = describe_input(source.base, "base", before)
    if base["weights_digest"] != base_of(RunFolder(request.run)):
        raise MismatchError(
            "the model that the run began with has changed",
            detail=f"{source.base.path}: weights {base['weights_digest'][:16]}",
            hint="put it back as it was: what training left alone is taken from it",
        )
    snapshots = [describe_input(one, "snapshot", checkpoint_digests(one)) for one in source.files]
    inputs = [base, *snapshots]
    staging = Staging(request.target)
    if staging.complete() is not None:
        staging.discard()
    identity = {"command": COMMAND, "options": request.options(), "inputs": inputs}
    done = read_manifest(side_folder(request.target))
    if done is not None and _is_same(done, request, inputs):
        staging.clear(identity)
        return {**done, "state": "up to date"}
    check_replaceable(request.target, force=request.force)
    check_room(request.target, _bytes_written(source))
    staging.open(identity, restart=request.restart)
    with published_whole(staging):
        with torch_threads(request.threads):
            _write(request, source, staging.out, progress)
        made = {
            "format": FORMAT,
            **identity,
            "average": source.describe(),
            **describe_written(staging.out, request.target, before),
            "versions": versions(),
            "seconds": round(time.perf_counter() - started, 3),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        write_json(staging.out / "clmerge" / "manifest.json", made)
    return {**made, "state": "published"}


def _check_finished(folder: RunFolder) -> None:
    record = folder.read_record()
    if record is None:
        raise InputError(
            "there is no run to make an average of",
            detail=f"{folder.root}: no run.json of clmerge",
            hint="give the folder that clmerge train wrote",
        )
    if record["state"] != "finished":
        raise InputError(
            "the run is not finished",
            detail=str(folder.root),
            hint=f"clmerge train --resume {folder.root}",
        )


def _check_target(request: AverageRequest, source: Source) -> None:
    if is_single_file(request.target):
        raise OptionError(
            "an average is written as a folder that transformers or peft loads",
            detail=f"-o {request.target}",
            hint=f"-o {request.target.with_suffix('')}",
        )
    check_apart(request.target, [source.base, *source.files])


def _is_same(
    done: Mapping[str, Any], request: AverageRequest, inputs: list[dict[str, Any]]
) -> bool:
    def told(sources: list[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
        return [(one.get("role"), one.get("weights_digest")) for one in sources]

    same = done["command"] == COMMAND and done["options"] == request.options()
    files = done["outputs"][0]["files"]
    whole = all((request.target / file["name"]).is_file() for file in files)
    return same and whole and told(done["inputs"]) == told([*inputs])


def _write(request: AverageRequest, source: Source, out: Path, progress: Start) -> None:
    """Put the average into the run's model, and write that as training would have."""
    tuned = build_tuned(source.config, source.base, build_base(source.base))
    evolving = tuned.evolving()
    if evolving.keys() != source.stored[-1].names:
        odd = sorted(evolving.keys() ^ source.stored[-1].names)
        raise MismatchError(
            "the snapshots are of another model or adapter than the run's config",
            detail=f"{request.run}: {odd[0]} is in one of them only",
        )
    advance = progress(COMMAND, sum(one.nbytes for one in source.files))
    with torch.no_grad():
        for name, tensor in evolving.items():
            tensor.copy_(_average(source, name, tensor, advance))
    if tuned.adapted:
        write_adapter(out, tuned, source.base)
        return
    tensors = stored_tensors(tuned, source.base)
    write_model(out, tensors, source.base, shard_size=request.shard_size)


def _average(source: Source, name: str, like: Tensor, advance: Advance) -> Tensor:
    """One tensor of the average; of integers, such as a counter, the newest."""
    *_, newest = source.stored
    info = newest.checkpoint.tensors[newest.prefix + name]
    if info.shape != tuple(like.shape):
        raise MismatchError(
            "a snapshot has another shape than the run's model",
            detail=f"{name}: {list(info.shape)} and {list(like.shape)}",
        )
    if not like.is_floating_point():
        return newest.checkpoint.tensor(newest.prefix + name)
    found = torch.empty(info.numel)
    for start in range(0, info.numel, PIECE):
        stop = min(start + PIECE, info.numel)
        pieces = (one.checkpoint.read(one.prefix + name, start, stop) for one in source.stored)
        found[start:stop] = combined(zip(source.fit.weights, pieces, strict=True))
        for one in source.stored:
            one.checkpoint.release(one.prefix + name, start, stop)
        advance(4 * (stop - start) * len(source.stored))
    return found.view(info.shape)


def _bytes_written(source: Source) -> int:
    """Bytes of the model that is written, or of the adapter: one average of one snapshot."""
    if source.config.lora is None:
        return source.base.nbytes
    newest = source.stored[-1]
    return sum(newest.checkpoint.tensors[newest.prefix + name].nbytes for name in newest.names)
