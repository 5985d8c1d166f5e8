"""Whether a checkpoint still is what was recorded of it: by its manifest, by its Fisher sidecar.

Every tensor is read and digested. Damage that keeps a file from being opened is a difference like
any other where the manifest lists the file: the rest is still checked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.checkpoint.places import locate
from mergekit_cl.checkpoint.urls import as_typed, shown
from mergekit_cl.differing import (
    Difference,
    ReadWeights,
    compare_files,
    compare_sidecar,
    compare_tensors,
    sidecar_digests,
)
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import InputError
from mergekit_cl.manifest import describe_input
from mergekit_cl.recorded import Recorded, find_manifest, read_recorded
from mergekit_cl.report.progress import Start
from mergekit_cl.sidecar import NAMES, find_sidecar, open_sidecar
from mergekit_cl.verifying_beside import ReadBeside, compare_carry, compare_divergence, compare_undo


@dataclass(frozen=True)
class Verification:
    """What was compared and what differs.

    made_by: the command in the manifest. sidecar: the Fisher sidecar, if one lies there.
    weights_digest: of what was read, None where not all of it could be.
    """

    path: str
    made_by: str | None
    sidecar: str | None
    tensors: int
    files: int
    nbytes: int
    weights_digest: str | None
    differences: tuple[Difference, ...]
    seconds: float


def verify(path: str | Path, progress: Start, *, threads: int | None = None) -> Verification:
    """Compare a checkpoint with the records in its side folder.

    threads: default one per core. Raises InputError where there is no checkpoint or no record of
    it, FormatError for a record that cannot be understood.
    """
    started = time.perf_counter()
    told = shown(as_typed(path))
    with ExitStack() as stack:
        opened = _open(path, stack)
        whole = isinstance(opened, Checkpoint)
        side_folder = opened.side_folder if isinstance(opened, Checkpoint) else _side_folder(path)
        manifest = find_manifest(side_folder)
        recorded = None if manifest is None else read_recorded(manifest)
        differences: list[Difference] = []
        if isinstance(opened, Checkpoint):
            parts = [opened]
            sidecar = find_sidecar(opened)
        elif recorded is None:
            raise opened
        else:
            parts, differences = _open_parts(Path(path), recorded, opened, stack)
            whole = recorded.is_adapter and not differences
            places = (side_folder / name for name in NAMES)
            sidecar = next((place for place in places if place.is_file()), None)
            if recorded.is_adapter:
                sidecar = None  # it is that of the model with the adapter in it
        if recorded is None and sidecar is None:
            raise _nothing_recorded(told, str(side_folder))
        read = _read(parts, progress, threads, whole=whole)
        if recorded is not None:
            differences += [*compare_files(recorded, read), *compare_tensors(recorded, read)]
            beside = opened.read_beside if isinstance(opened, Checkpoint) else _reader(side_folder)
            differences += compare_divergence(beside, recorded)
        if isinstance(opened, Checkpoint):
            differences += compare_carry(opened, read)
            if recorded is not None:
                differences += compare_undo(opened, recorded, read)
        if sidecar is not None:
            differences += _compare_sidecar(sidecar, read, alone=recorded is None)
    return Verification(
        path=told,
        made_by=None if recorded is None else recorded.command,
        sidecar=None if sidecar is None else shown(str(sidecar)),
        tensors=len(read.tensors),
        files=len(read.files),
        nbytes=read.nbytes,
        weights_digest=read.weights_digest,
        differences=tuple(differences),
        seconds=time.perf_counter() - started,
    )


def _open(path: str | Path, stack: ExitStack) -> Checkpoint | InputError:
    try:
        return stack.enter_context(open_checkpoint(path))
    except InputError as error:
        return error


def _side_folder(path: str | Path) -> Path:
    """Where the record of a checkpoint lies that cannot be opened."""
    folder = Path(path)
    return folder / "clmerge" if folder.is_dir() else locate(path).side_folder


def _reader(side_folder: Path) -> ReadBeside:
    """As `Checkpoint.read_beside`, of a checkpoint on this disk that cannot be opened."""

    def read(name: str) -> bytes | None:
        path = side_folder / name
        return path.read_bytes() if path.is_file() else None

    return read


def _open_parts(
    path: Path, recorded: Recorded, error: InputError, stack: ExitStack
) -> tuple[list[Checkpoint], list[Difference]]:
    """Those of the recorded files that can be opened, and why the others, or the whole, cannot."""
    root = path if path.is_dir() else path.parent
    parts: list[Checkpoint] = []
    differences: list[Difference] = []
    for name, (nbytes, _) in recorded.files.items():
        file = root / name
        if not file.is_file():
            differences.append(Difference("file_missing", name))
            continue
        part = _open(file, stack)
        if isinstance(part, Checkpoint):
            parts.append(part)
            continue
        if (size := file.stat().st_size) != nbytes:
            differences.append(Difference("file_size", name, nbytes, size))
        differences.append(Difference("file_unreadable", name, None, part.message))
    # An adapter is its one file; of a checkpoint every file is fine, but not what joins them.
    if not differences and not recorded.is_adapter:
        said = f"{error.message} ({error.detail})" if error.detail else error.message
        differences.append(Difference("file_unreadable", path.name, None, said))
    return parts, differences


def _read(
    parts: Sequence[Checkpoint], progress: Start, threads: int | None, *, whole: bool
) -> ReadWeights:
    nbytes = sum(part.nbytes for part in parts)
    advance = progress("verify", nbytes)
    digests: dict[str, str] = {}
    for part in parts:
        digests.update(checkpoint_digests(part, threads=threads, advance=advance))
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    described = [file for part in parts for file in describe_input(part, "output", None)["files"]]
    files = {file["name"]: (file["bytes"], file["digest"]) for file in described}
    return ReadWeights(tensors, digests, files, nbytes, whole)


def _compare_sidecar(path: str | Path, read: ReadWeights, *, alone: bool) -> list[Difference]:
    """alone: nothing else was recorded, so that a sidecar which says nothing is an error."""
    told = shown(str(path))
    name = told.rpartition("/")[2]
    try:
        sidecar = open_sidecar(path)
    except InputError as error:
        if alone:
            raise
        return [Difference("fisher_unreadable", name, None, error.message)]
    sidecar.checkpoint.close()
    expected, whole = sidecar_digests(sidecar.metadata)
    if alone and not expected and whole is None:
        raise _nothing_recorded(told, told)
    return list(compare_sidecar(name, expected, whole, read))


def _nothing_recorded(path: str, looked_at: str) -> InputError:
    return InputError(
        "there is nothing to verify against",
        detail=f"{path}: {looked_at} holds no digests of it",
        hint="clmerge fisher MODEL --data FILE records the weights it was taken at; "
        "every merge records its output",
    )
