"""The base as a checkpoint, read out of a merged one and its undo file."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from mergekit_cl.checkpoint.arrays import as_array
from mergekit_cl.checkpoint.dtypes import BITS, itemsize, torch_dtype
from mergekit_cl.checkpoint.place import Place
from mergekit_cl.checkpoint.readers import Opened
from mergekit_cl.errors import FormatError, InputError, MismatchError
from mergekit_cl.lora.planes import FRAME, LENGTH, lengths, unpack
from mergekit_cl.lora.undofile import COMPANION, FILE, FORMAT, KEY, TENSOR, bytes_of
from mergekit_cl.recorded import RecordedTensor

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array


class Planes:
    """Hands out elements of the base: planes of the undo file, over merged bits where they are XOR.

    stored: {tensor: "xor" or "whole"}.
    """

    def __init__(self, undo: Checkpoint, merged: Checkpoint, stored: Mapping[str, str]) -> None:
        self._undo = undo
        self._merged = merged
        self._stored = stored
        self._lock = threading.Lock()
        self._ends: dict[str, list[int]] = {}

    def read(self, tensor: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop`, flat, in the base's dtype."""
        import numpy as np
        import torch

        if start == stop:  # no bytes have no dtype to be seen as
            return torch.empty(0, dtype=torch_dtype(tensor.dtype))
        planes = itemsize(tensor.dtype)
        found = np.empty((stop - start) * planes, dtype=np.uint8)
        filled = 0
        for number in range(start // FRAME, -(-stop // FRAME)):
            begin = number * FRAME
            end = min(begin + FRAME, tensor.numel)
            bits = self._frame(tensor, number, end - begin)
            if self._stored[tensor.name] == "xor":
                bits ^= bytes_of(self._merged, tensor.name, begin, end)
            own = bits[(max(start, begin) - begin) * planes : (min(stop, end) - begin) * planes]
            found[filled : filled + len(own)] = own
            filled += len(own)
        return torch.from_numpy(found).view(torch_dtype(tensor.dtype))

    def block(self, tensor: TensorInfo, start: int, stop: int) -> Array:
        """The same as an array."""
        return as_array(self.read(tensor, start, stop))

    def expect(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Nothing to do: the frames are read when they are unpacked."""

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Give back the file."""
        self._undo.close()

    def _frame(self, tensor: TensorInfo, number: int, count: int) -> Any:
        ends = self._frames(tensor)
        if number + 1 >= len(ends):
            raise _damaged(self._undo, tensor.name, "it ends too soon")
        packed = self._undo.tensors[TENSOR + tensor.name]
        stored = self._undo.block(packed, ends[number], ends[number + 1])
        try:
            return unpack(stored.tobytes(), itemsize(tensor.dtype), count)
        except ValueError as error:
            raise _damaged(self._undo, tensor.name, str(error)) from error

    def _frames(self, tensor: TensorInfo) -> list[int]:
        """Where each frame of a tensor begins, and the last one ends."""
        with self._lock:
            if tensor.name in self._ends:
                return self._ends[tensor.name]
            key, planes = TENSOR + tensor.name, itemsize(tensor.dtype)
            packed = self._undo.tensors[key]
            total = packed.numel
            ends = [0]
            while ends[-1] < total:
                head = self._undo.block(packed, ends[-1], min(ends[-1] + LENGTH * planes, total))
                try:
                    size = sum(lengths(head.tobytes(), planes))
                except ValueError as error:
                    raise _damaged(self._undo, tensor.name, str(error)) from error
                ends.append(ends[-1] + LENGTH * planes + size)
            if ends[-1] != total:
                raise _damaged(self._undo, tensor.name, "it ends inside a frame")
            self._ends[tensor.name] = ends
            return ends


def open_restored(
    merged: Checkpoint, tensors: Mapping[str, RecordedTensor], weights_digest: str
) -> Checkpoint:
    """The tensors of the base that a merge changed, from the undo file beside it.

    tensors: what the manifest says they were. weights_digest: of the merged weights, by it. Raises
    InputError where the file is missing, FormatError or MismatchError where it is another thing.
    """
    undo = open_undo(merged)
    try:
        said = json.loads(undo.metadata[KEY])
        if said["format"] != FORMAT:
            raise ValueError(said["format"])
        stored = {str(name): str(how) for name, how in said["stored"].items()}
        owner = said["weights_digest"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            "the file holds nothing that this version can undo a merge with",
            detail=f"{undo.path}: {error!s:.80}",
        ) from error
    if owner != weights_digest:
        raise MismatchError(
            "the undo file belongs to another merge",
            detail=f"{undo.path}: made for weights {owner!s:.16}, these are {weights_digest:.16}",
            hint="bring back the file that this merge wrote, or give --base PATH",
        )
    for name in tensors:
        if name not in stored or TENSOR + name not in undo.tensors:
            raise _damaged(undo, name, "it is not there")
        if stored[name] == "xor" and (name not in merged.tensors):
            raise _damaged(undo, name, "the merged checkpoint lacks it")
    infos = []
    for name, one in tensors.items():
        if one.dtype not in BITS or not itemsize(one.dtype):
            raise _damaged(undo, name, f"dtype {one.dtype!s:.20}")
        infos.append(TensorInfo(name, one.dtype, one.shape, 0))
    place = Place(merged.root, tuple(undo.files), None, merged.side_folder, folder=False)
    opened = Opened(undo.files[0], Planes(undo, merged, stored), tuple(infos))
    return Checkpoint(undo.path, place, [opened])


def open_undo(merged: Checkpoint) -> Checkpoint:
    """The undo file beside a merged checkpoint."""
    path = merged.beside(FILE)
    if path is None:
        raise InputError(
            "the file that undoes the merge is gone",
            detail=f"{merged.side_place}: no {FILE}",
            hint="bring it back, or give --base PATH",
        )
    return open_checkpoint(path)


def companion(undo: Checkpoint, name: str) -> bytes:
    """A companion's content in the base; raises FormatError where it is not there."""
    if COMPANION + name not in undo.tensors:
        raise _damaged(undo, name, "it is not there")
    return bytes(undo.read(COMPANION + name).numpy().tobytes())


def _damaged(undo: Checkpoint, name: str, why: str) -> FormatError:
    return FormatError(
        "the undo file is damaged",
        detail=f"{undo.path}: {name}: {why}",
        hint="bring back the file that the merge wrote, or give --base PATH",
    )
