"""Range requests ahead of the reader: large, each once, never more held than allowed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_cl.checkpoint.filesystem import RemoteFile
from mergekit_cl.checkpoint.header import TensorInfo
from mergekit_cl.checkpoint.remote import WINDOW, WINDOWS_PER_THREAD, RemoteReader, Windows
from mergekit_cl.errors import InputError

SIZE = 1000  # bytes of a window here
CONTENT = bytes(torch.randint(0, 256, (25_003,), dtype=torch.uint8).tolist())
FILE = RemoteFile("x", "memory://x", len(CONTENT), "")


class Source:
    """Hands out parts of `CONTENT` and remembers which."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.spans: list[tuple[int, int]] = []
        self.seconds = seconds
        self.fails_at: int | None = None

    def __call__(self, file: RemoteFile, start: int, stop: int) -> bytes:
        self.spans.append((start, stop))
        time.sleep(self.seconds)
        if self.fails_at is not None and start >= self.fails_at:
            raise InputError("the place cannot be read", detail=str(file))
        return CONTENT[start:stop]

    @property
    def transferred(self) -> int:
        return sum(stop - start for start, stop in self.spans)


def reader(source: Source, size: int = SIZE) -> RemoteReader:
    return RemoteReader(FILE, Windows(source, size))


def settled(source: Source) -> list[tuple[int, int]]:
    """The spans once no request is under way."""
    seen = -1
    while len(source.spans) != seen:
        seen = len(source.spans)
        time.sleep(0.01)
    return sorted(source.spans)


def test_requests_are_of_8_mib_at_least() -> None:
    assert WINDOW >= 8 * 2**20


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_part_of_a_tensor_is_that_part(data: st.DataObject) -> None:
    dtype, name, item = data.draw(
        st.sampled_from([(torch.uint8, "U8", 1), (torch.int16, "I16", 2), (torch.int64, "I64", 8)])
    )
    offset = data.draw(st.integers(0, 2000))
    numel = data.draw(st.integers(0, (len(CONTENT) - offset) // item))
    tensor = TensorInfo("t", name, (numel,), offset)
    expected = torch.frombuffer(bytearray(CONTENT + bytes(8)), dtype=torch.uint8)[offset:]
    expected = expected[: numel * item].clone().view(dtype)
    read = reader(Source())
    for _ in range(5):
        start, stop = sorted((data.draw(st.integers(0, numel)), data.draw(st.integers(0, numel))))
        assert torch.equal(read.read(tensor, start, stop), expected[start:stop])
        if data.draw(st.booleans()):
            read.release(tensor, start, stop)


def test_reading_in_order_fetches_every_byte_once() -> None:
    source = Source()
    read = reader(source)
    tensor = TensorInfo("t", "U8", (len(CONTENT),), 0)
    for start in range(0, len(CONTENT), 130):
        stop = min(start + 130, len(CONTENT))
        assert bytes(read.read(tensor, start, stop).tolist()) == CONTENT[start:stop]
        read.release(tensor, start, stop)
    spans = settled(source)
    assert source.transferred == len(CONTENT)
    assert [start for start, _ in spans] == list(range(0, len(CONTENT), SIZE))


def test_small_neighbours_share_one_request() -> None:
    source = Source()
    read = reader(source)
    for k in range(200):
        read.read(TensorInfo(f"t{k}", "F32", (1,), 4 * k), 0, 1)
    assert settled(source) == [(0, 1000), (1000, 2000)]  # the one they lie in, the one ahead


def test_the_next_window_is_sent_for_before_it_is_asked_for() -> None:
    source = Source()
    reader(source).read(TensorInfo("t", "U8", (10,), 3500), 0, 10)
    assert settled(source) == [(3000, 4000), (4000, 5000)]


def test_nothing_is_sent_for_beyond_the_end() -> None:
    source = Source()
    reader(source).read(TensorInfo("t", "U8", (3,), 25_000), 0, 3)
    assert settled(source) == [(25_000, 25_003)]


def test_reading_again_reads_ahead_again() -> None:
    source = Source()
    read = reader(source)
    tensor = TensorInfo("t", "U8", (len(CONTENT),), 0)
    for _ in range(2):
        for start in range(0, 25_000, 500):
            read.read(tensor, start, start + 500)
            read.release(tensor, start, start + 500)
            settled(source)
    assert source.transferred <= 2 * len(CONTENT) + SIZE


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_workers_on_different_parts_fetch_little_twice_and_hold_little(threads: int) -> None:
    source = Source(seconds=0.0005)
    windows = Windows(source, SIZE)
    read = RemoteReader(FILE, windows)
    tensor = TensorInfo("t", "U8", (len(CONTENT),), 0)
    spans = iter(range(0, len(CONTENT), 3000))
    lock = threading.Lock()
    most = 0

    def work() -> None:
        nonlocal most
        while True:
            with lock:
                begin = next(spans, None)
            if begin is None:
                return
            end = min(begin + 3000, len(CONTENT))
            for start in range(begin, end, 170):
                stop = min(start + 170, end)
                assert bytes(read.read(tensor, start, stop).tolist()) == CONTENT[start:stop]
                most = max(most, len(windows._held))
            read.release(tensor, begin, end)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()
    settled(source)
    assert most <= WINDOWS_PER_THREAD * threads
    # At most the window ahead of each worker's last one was sent for in vain.
    assert source.transferred <= len(CONTENT) + 2 * threads * SIZE


def test_two_threads_that_want_one_window_fetch_it_once() -> None:
    source = Source(seconds=0.05)
    read = reader(source)
    tensor = TensorInfo("t", "U8", (900,), 100)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: read.read(tensor, k, k + 5).tolist(), range(4)))
    assert found == [list(CONTENT[100 + k : 105 + k]) for k in range(4)]
    assert settled(source).count((0, 1000)) == 1


def test_a_request_that_fails_is_an_error_where_it_is_read_and_can_be_made_again() -> None:
    source = Source()
    source.fails_at = 2000
    read = reader(source)
    tensor = TensorInfo("t", "U8", (len(CONTENT),), 0)
    assert read.read(tensor, 0, 2000).numel() == 2000  # the one ahead fails unseen
    settled(source)
    with pytest.raises(InputError):
        read.read(tensor, 1500, 2500)
    source.fails_at = None
    assert bytes(read.read(tensor, 1500, 2500).tolist()) == CONTENT[1500:2500]


def test_a_view_lives_on_when_its_window_is_dropped() -> None:
    read = reader(Source())
    tensor = TensorInfo("t", "U8", (len(CONTENT),), 0)
    view = read.read(tensor, 0, 500)
    read.release(tensor, 0, len(CONTENT))
    read.close()
    assert bytes(view.tolist()) == CONTENT[:500]
