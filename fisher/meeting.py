"""Small messages between processes, so that nobody waits for one that has failed.

A collective operation hangs where one process never joins it. So processes first meet here, through
the launcher's key-value store, and enter a collective only when all are known to be well.
"""

from __future__ import annotations

import json
import time
from typing import Any, Protocol

from fisher.errors import FisherError

SILENCE = 1800.0
"""Seconds without a sign of life after which a process counts as dead; loading may take long."""

PATIENCE = 600.0
"""Seconds that a failed process stays, so that the first one can say why before all are ended."""

_PAUSES = (0.005, 0.1)


class Store(Protocol):
    """What is used of `torch.distributed.Store`."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...
    def add(self, key: str, amount: int, /) -> int: ...
    def check(self, keys: list[str], /) -> bool: ...


class PeerError(FisherError):
    """Another process failed; `said` is what it gave to `Meeting.fail`, None where it is silent."""

    def __init__(self, rank: int, said: Any) -> None:
        what = "failed" if said is not None else f"gave no sign of life for {SILENCE:.0f} s"
        super().__init__(f"process {rank} {what}")
        self.rank = rank
        self.said = said


class Meeting:
    """Processes 0 to world - 1, of which this is `rank`; each calls `exchange` equally often."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world
        self._store = store
        self._round = 0

    def exchange(self, said: Any) -> list[Any]:
        """What every process said (a value for JSON), by rank, once all have; raises PeerError."""
        self._round += 1
        self._store.set(f"{self._round}/{self.rank}", json.dumps(said))
        return [self._hear(f"{self._round}/{rank}", rank) for rank in range(self.world)]

    def check(self) -> None:
        """Give a sign of life; raises PeerError where another process has failed."""
        self._store.add(f"alive/{self.rank}", 1)
        if self._store.check(["failed"]):
            rank, said = json.loads(self._store.get("failed"))
            if rank != self.rank:
                if self.rank == 0:
                    self._store.set("heard", "")
                raise PeerError(rank, said)

    def fail(self, said: Any) -> None:
        """Tell the others why this process ends; the first to fail is the one that is heard.

        Another process than 0 returns when process 0 knows: launchers end all when one is gone.
        """
        first = self._store.add("failures", 1) == 1
        if self.rank == 0:
            self._store.set("heard", "")
        if not first:
            return
        self._store.set("failed", json.dumps([self.rank, said]))
        end = time.monotonic() + PATIENCE
        while self.rank and not self._store.check(["heard"]) and time.monotonic() < end:
            time.sleep(_PAUSES[1])

    def _hear(self, key: str, rank: int) -> Any:
        pause, signs, since = _PAUSES[0], -1, time.monotonic()
        while not self._store.check([key]):
            self.check()
            seen = self._store.add(f"alive/{rank}", 0)
            if seen != signs:
                signs, since = seen, time.monotonic()
            elif time.monotonic() - since > SILENCE:
                raise PeerError(rank, None)
            time.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])
        return json.loads(self._store.get(key))
