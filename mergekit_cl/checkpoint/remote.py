"""Elements of tensors beyond this disk, by range requests of 8 MiB that run ahead of the reader."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING
from weakref import WeakSet

from mergekit_cl.checkpoint.arrays import as_tensor, empty, view
from mergekit_cl.checkpoint.dtypes import itemsize
from mergekit_cl.checkpoint.filesystem import RemoteFile

if TYPE_CHECKING:
    import torch

    from mergekit_cl.checkpoint.arrays import Array
    from mergekit_cl.checkpoint.header import TensorInfo

WINDOW = 8 * 2**20
WINDOWS_PER_THREAD = 3
"""One that is read, one that a block began in, one on its way."""

Fetch = Callable[[RemoteFile, int, int], bytes]
Key = tuple[str, int]


class Windows:
    """Pieces of remote files, each fetched once for all threads and dropped when it was read.

    fetch: (file, start, stop) -> bytes. Holds at most `WINDOWS_PER_THREAD` for each thread that
    reads. Windows lie at multiples of `size` bytes of the file, so that small neighbours share one.
    """

    def __init__(self, fetch: Fetch, size: int = WINDOW) -> None:
        self.size = size
        self._fetch = fetch
        self._held: OrderedDict[Key, Future[bytearray]] = OrderedDict()
        self._times: Counter[Key] = Counter()
        self._readers: WeakSet[threading.Thread] = WeakSet()
        self._lock = threading.Lock()

    def get(self, file: RemoteFile, number: int) -> bytearray:
        """One window; the next one is sent for if nobody has had it on this pass over the file."""
        with self._lock:
            self._readers.add(threading.current_thread())
            window, missing = self._claim(file, number)
            follows = (number + 1) * self.size < file.nbytes
            key = (file.name, number)
            if follows and self._times[file.name, number + 1] < self._times[key]:
                ahead, absent = self._claim(file, number + 1)
                if absent:
                    arguments = (file, number + 1, ahead)
                    threading.Thread(target=self._fill, args=arguments, daemon=True).start()
        if missing:
            self._fill(file, number, window)
        return window.result()

    def drop(self, file: RemoteFile, begin: int, end: int) -> None:
        """Forget the windows that lie wholly within these bytes of a file."""
        with self._lock:
            for number in range(-(-begin // self.size), end // self.size):
                self._held.pop((file.name, number), None)

    def clear(self) -> None:
        """Forget all windows."""
        with self._lock:
            self._held.clear()

    def _claim(self, file: RemoteFile, number: int) -> tuple[Future[bytearray], bool]:
        """A window's future, and whether the caller has to fill it."""
        key = (file.name, number)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key], False
        made = self._held[key] = Future()
        self._times[key] += 1
        readers = sum(thread.is_alive() for thread in self._readers)
        while len(self._held) > WINDOWS_PER_THREAD * readers:
            self._held.popitem(last=False)
        return made, True

    def _fill(self, file: RemoteFile, number: int, window: Future[bytearray]) -> None:
        start = number * self.size
        try:
            # A copy that may be written to: torch warns about views of bytes.
            window.set_result(
                bytearray(self._fetch(file, start, min(start + self.size, file.nbytes)))
            )
        except BaseException as error:
            with self._lock:
                self._held.pop((file.name, number), None)
            window.set_exception(error)


class RemoteReader:
    """One remote weight file; blocks that lie in one window are views of it."""

    def __init__(self, file: RemoteFile, windows: Windows) -> None:
        self.file = file
        self._windows = windows

    def read(self, tensor: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of a tensor, flat, in its stored dtype."""
        return as_tensor(self.block(tensor, start, stop), tensor.dtype)

    def block(self, tensor: TensorInfo, start: int, stop: int) -> Array:
        """The same as an array; raises InputError where the place fails."""
        if stop <= start:
            return empty(tensor.dtype, 0)
        item = itemsize(tensor.dtype)
        begin, end = tensor.offset + start * item, tensor.offset + stop * item
        found = self.bytes(begin, end)
        return view(found if begin % item == 0 else bytearray(found), tensor.dtype)

    def expect(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Nothing to do: windows run ahead of the reader."""

    def bytes(self, begin: int, end: int) -> memoryview:
        """Bytes `begin` to `end` of the file, of which there must be some."""
        size = self._windows.size
        first, last = begin // size, (end - 1) // size
        if first == last:
            window = self._windows.get(self.file, first)
            return memoryview(window)[begin - first * size : end - first * size]
        joined = bytearray(end - begin)
        for number in range(first, last + 1):
            window = self._windows.get(self.file, number)
            origin = number * size
            low, high = max(begin, origin), min(end, origin + len(window))
            joined[low - begin : high - begin] = memoryview(window)[low - origin : high - origin]
        return memoryview(joined)

    def release(self, tensor: TensorInfo, start: int, stop: int) -> None:
        """Say that these elements will not be read again soon."""
        item = itemsize(tensor.dtype)
        self._windows.drop(self.file, tensor.offset + start * item, tensor.offset + stop * item)

    def close(self) -> None:
        """Forget what is held."""
        self._windows.clear()
