"""Several processes on one Fisher: they share the rows, the first speaks and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from mergekit_cl import errors
from mergekit_cl.errors import ClmergeError, Interrupted, OptionError, OutputError
from mergekit_cl.launched import Launched, launched

if TYPE_CHECKING:
    from fisher.accumulator import Accumulator
    from fisher.meeting import Meeting

Item = TypeVar("Item")
Value = TypeVar("Value")


class Company:
    """This process among those of one run; alone where `meeting` is None."""

    def __init__(self, place: Launched, meeting: Meeting | None) -> None:
        self.place = place
        self._meeting = meeting

    @property
    def leads(self) -> bool:
        """Whether this process decides, writes and speaks."""
        return self.place.rank == 0

    def share(self, items: Sequence[Item]) -> tuple[Item, ...]:
        """This process's part of items that all have in the same order, dealt like cards."""
        return tuple(items[self.place.rank :: self.place.world])

    def exchange(self, said: Any = None) -> list[Any]:
        """What every process says, by rank, once all have come here.

        Raises the error of a process that failed instead.
        """
        if self._meeting is None:
            return [said]
        meeting = self._meeting
        return _translated(lambda: meeting.exchange(said))

    def check(self) -> None:
        """Raise the error of another process, if one failed."""
        if self._meeting is not None:
            _translated(self._meeting.check)

    def interrupted(self) -> int | None:
        """The signal that another process got, if one did; raises any other error of theirs."""
        try:
            self.check()
        except Interrupted as error:
            return error.signal_number
        return None

    def add_up(self, accumulator: Accumulator) -> None:
        """Put the sums of all processes in place of this one's."""
        if self._meeting is None:
            return
        from fisher.distributed import reduce_sums

        self.exchange()
        reduce_sums(accumulator)


@contextmanager
def company(device: str) -> Iterator[Company]:
    """Join the other processes, if a launcher started several; tell them of an error inside."""
    place = launched()
    if place.world == 1:
        yield Company(place, None)
        return
    meeting = _join(place, device)
    try:
        yield Company(place, meeting)
    except BaseException as error:
        _tell(meeting, error)
        raise
    import torch.distributed as dist

    meeting.exchange(None)  # nobody leaves while another still adds up
    dist.destroy_process_group()


def device_here(device: str) -> str:
    """The device of this process: several on one machine take a GPU each.

    Raises OptionError where one GPU is named for all of them.
    """
    import torch

    place = launched()
    if place.world == 1 or device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return device
    if device not in ("auto", "cuda"):
        raise OptionError(
            "several processes cannot share one GPU",
            detail=f"--device {device} with {place.world} processes",
            hint="--device cuda: each takes the GPU of its LOCAL_RANK",
        )
    return f"cuda:{place.local}"


def _join(place: Launched, device: str) -> Meeting:
    import torch

    from fisher.distributed import join

    named = device_here(device)
    if named.startswith("cuda") and place.local < torch.cuda.device_count():
        torch.cuda.set_device(place.local)
    try:
        return join(cuda=named.startswith("cuda"))
    # Whatever the network raises: timeouts and refused connections have many types.
    except (RuntimeError, OSError, ValueError) as error:
        raise OutputError(
            "the processes did not find each other",
            detail=f"process {place.rank} of {place.world}: {str(error).splitlines()[0]:.200}",
            hint="start all of them with torchrun, with one --rdzv-endpoint that all can reach; "
            "for one process alone, unset WORLD_SIZE",
        ) from error


def _translated(step: Callable[[], Value]) -> Value:
    from fisher.meeting import PeerError

    try:
        return step()
    except PeerError as error:
        raise _error_of(error.rank, error.said) from None


def _error_of(rank: int, said: dict[str, Any] | None) -> ClmergeError:
    """The error of another process, as it would have been told there."""
    if said is None:
        return ClmergeError(
            "a process ended without a word",
            detail=f"process {rank}",
            hint="look for it in the launcher's output: out of memory is likely",
        )
    if said["signal"] is not None:
        return Interrupted(said["signal"])
    found = getattr(errors, said["kind"])(said["message"], hint=said["hint"])
    found.detail = f"process {rank}: {said['detail'] or said['kind']}"
    return found  # type: ignore[no-any-return]


def _tell(meeting: Meeting, error: BaseException) -> None:
    said: dict[str, Any] = {"signal": None, "kind": "ClmergeError", "detail": None, "hint": None}
    if isinstance(error, Interrupted):
        said["signal"] = error.signal_number
    elif isinstance(error, ClmergeError):
        said |= {"kind": type(error).__name__, "message": error.message}
        said |= {"detail": error.detail, "hint": error.hint}
    else:
        said["message"] = f"unexpected {type(error).__name__}: {error}"
        said["hint"] = "the same command with --debug shows where; please report it"
    with suppress(RuntimeError):  # the store went with the process that kept it: all are ending
        meeting.fail(said)
