"""Devices and processes, by accelerate: where the model lies, how gradients meet, who speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergekit_cl.errors import OptionError
from mergekit_cl.launched import launched
from mergekit_cl.tuning.schema import Config

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Engine:
    """One process among those of a run.

    module: what is called to train, once it is prepared. sharded: each process holds a part of
    every weight (FSDP2). tracked: whether trackers listen.
    """

    accelerator: Any
    precision: str = "float32"
    module: Any = None
    tracked: bool = False
    sharded: bool = False

    @property
    def rank(self) -> int:
        """This process's number."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    def prepare(self, module: nn.Module) -> None:
        """Place the model, and let its gradients meet where there are several processes."""
        if self.sharded:
            shard(module.to(self.device))
            self.module = module
        else:
            self.module = self.accelerator.prepare(module)

    def computing(self) -> AbstractContextManager[Any]:
        """Within, products are taken in the precision that was asked for."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one part of a batch."""
        self.accelerator.backward(loss)

    @contextmanager
    def apart(self, *, last: bool) -> Iterator[None]:
        """Around a part's forward and backward: only after the last one do gradients meet."""
        if self.sharded:
            self.module.set_requires_gradient_sync(last)
            yield
        elif last:
            yield
        else:
            with self.accelerator.no_sync(self.module):
                yield

    def settle(self) -> None:
        """Let go of whole weights that were put together to compute with, and not given back."""
        if self.sharded:
            from torch.distributed.fsdp import FSDPModule

            for part in self.module.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()

    def total(self, values: list[float]) -> list[float]:
        """Sums over all processes; a collective."""
        if self.world == 1:
            return values
        here = torch.tensor(values, dtype=torch.float64, device=self.device)
        return [float(value) for value in self.accelerator.reduce(here, "sum")]

    def total_of_shards(self, values: list[float]) -> list[float]:
        """Sums over the parts of weights that processes hold; as they are where each holds all."""
        return self.total(values) if self.sharded else values

    def begin_tracking(self, settings: Mapping[str, Any]) -> None:
        """Tell the trackers, if there are any, what is trained; raises OptionError if one fails."""
        if not self.tracked:
            return
        plain = {key: str(value) for key, value in settings.items()}
        try:
            self.accelerator.init_trackers("clmerge", config=plain)
        except Exception as error:  # a service's own: it may not know us, or not be reached
            names = ", ".join(tracker.name for tracker in self.accelerator.trackers)
            self.end_tracking()
            raise OptionError(
                "a tracker cannot begin",
                detail=f"trackers: {names}: {error!r:.160}",
                hint="mend that, or leave it out and --resume: metrics.jsonl has everything",
            ) from error

    def track(self, numbers: Mapping[str, float], count: int) -> None:
        """Pass numbers on to the trackers, if there are any. count: must never fall."""
        if self.tracked:
            self.accelerator.log(dict(numbers), step=count)

    def end_tracking(self) -> None:
        """Let the trackers go; one that never began has nothing to end."""
        while self.accelerator.trackers:
            tracker = self.accelerator.trackers.pop()
            with suppress(Exception):
                tracker.finish()

    def exchange(self, said: Any) -> list[Any]:
        """What every process says, by rank; a collective."""
        if self.world == 1:
            return [said]
        from accelerate.utils import gather_object

        found: list[Any] = gather_object([said])
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()


def check_trackers(names: Sequence[str]) -> None:
    """Raise OptionError for a tracker whose package is not installed: it would be left out."""
    for name in names:
        if find_spec(name) is None:
            raise OptionError(
                "a tracker is not installed",
                detail=f"trackers: {name}",
                hint=f"pip install {name}, or leave it out: metrics.jsonl has everything",
            )


def shard(module: nn.Module) -> None:
    """Divide every weight among the processes (FSDP2), layer by layer, in place."""
    from torch.distributed.fsdp import fully_shard

    for part in module.modules():
        if isinstance(part, torch.nn.ModuleList):
            for layer in part:
                if next(layer.parameters(), None) is not None:
                    fully_shard(layer)
    fully_shard(module)


@contextmanager
def together(several: bool) -> Iterator[None]:
    """Within, the processes that a launcher started stay joined, whatever engines come and go.

    several: whether more than one run comes. A group that is left and joined again would look for
    the others where they were the first time: the launcher's store still has those addresses.
    """
    from accelerate.state import AcceleratorState, PartialState

    if not several or launched().world == 1 or torch.distributed.is_initialized():
        yield
        return
    PartialState(cpu=not torch.cuda.is_available())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(True)


@contextmanager
def engine(config: Config, folder: Path, *, unused: bool = False) -> Iterator[Engine]:
    """Join the processes of this run, if a launcher started several, and leave them again.

    unused: whether some weights get no gradient, which processes must then look for at every step.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    stays = launched().world > 1 and torch.distributed.is_initialized()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        log_with=list(config.trackers) or None,
        project_dir=str(folder),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
    )
    sharded = config.shard and accelerator.num_processes > 1
    tracked = bool(config.trackers)
    joined = Engine(accelerator, config.optimizer.precision, tracked=tracked, sharded=sharded)
    try:
        yield joined
    finally:
        # What lets gradients meet goes before the group it meets in: if it were the group's last
        # holder, it would wait for the group's threads while they wait for the interpreter.
        joined.module = None
        accelerator.free_memory()
        joined.end_tracking()
        if not stays:
            accelerator.end_training()
        # It is kept as one for the whole program, which may train again.
        AcceleratorState._reset_state(True)
