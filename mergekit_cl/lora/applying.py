"""The kernel of one edited tensor: its edits in order on each block, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mergekit_cl.lora import kernels
from mergekit_cl.lora.adapter import Adapter
from mergekit_cl.lora.edits import Bias, Dora, LowRank, Rows
from mergekit_cl.lora.factors import KEPT, Kept, panel_bytes, panel_of, read_stored
from mergekit_cl.lora.kernels import Panel, Window
from mergekit_cl.merge.kernel import Kernel, Merged

if TYPE_CHECKING:
    import torch

Change = LowRank | Dora | Bias | Rows
AddPanel = Callable[["torch.Tensor", int, Panel], None]
"""(block, its first element, panel): adds the panel to the block."""
Read = Callable[[int, int], "torch.Tensor"]
"""(first element, end) -> the unmerged tensor's elements in float64."""

NORM_BLOCK = 2**17
"""Elements per step of a norm: it must not depend on how the merge is cut."""


class Applied(NamedTuple):
    """An edit and the adapter that it is from."""

    adapter: Adapter
    edit: Change


def kernel_bytes(shape: tuple[int, ...], edits: Sequence[Applied]) -> int:
    """Memory that applying edits takes besides a kernel's scratch."""
    sizes = [0]
    norms = 0
    for _, edit in edits:
        if isinstance(edit, LowRank):
            sizes.append(panel_bytes(edit))
        elif isinstance(edit, Dora):
            sizes.append(panel_bytes(edit.update))
            norms += 2 * 8 * (max(edit.update.rows, edit.update.columns) + 3 * NORM_BLOCK)
        else:
            rows = len(edit.indices) if isinstance(edit, Rows) else 1
            sizes.append(2 * 8 * rows * math.prod(shape[1:] if isinstance(edit, Rows) else shape))
    # The factors of experts are made one expert after the other.
    return norms + min(sum(sizes), KEPT + 2 * max(sizes))


def _add_panel(
    scratch: Sequence[torch.Tensor], block: torch.Tensor, start: int, panel: Panel
) -> None:
    kernels.add_panel(block, start, panel, scratch)


class Applying:
    """Edits of one tensor.

    shape: of it. read: its unmerged elements, which norms are taken of. kept: where factors stay
    between blocks.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        edits: Sequence[Applied],
        read: Read,
        kept: Kept,
        *,
        allow_nonfinite: bool,
    ) -> None:
        self._rows = shape[0] if shape else 1
        self._numel = math.prod(shape)
        self._edits = edits
        self._read = read
        self._kept = kept
        self._allow_nonfinite = allow_nonfinite

    def kernel_of(self, start: int) -> Kernel:
        """The kernel for blocks that begin at an element."""

        def kernel(operands: Sequence[torch.Tensor], scratch: Sequence[torch.Tensor]) -> Merged:
            out, *rest = scratch
            out.copy_(operands[0])
            return self._merged(out, start, partial(_add_panel, rest), None)

        return kernel

    def compiled_of(self, start: int) -> Kernel:
        """The same with the same bits, for blocks on the CPU, which it overwrites."""
        from mergekit_cl.lora.compiled import add_panel

        def kernel(operands: Sequence[torch.Tensor], scratch: Sequence[torch.Tensor]) -> Merged:
            return self._merged(operands[0], start, add_panel, add_panel)

        return kernel

    def _merged(
        self, out: torch.Tensor, start: int, add: AddPanel, compiled: AddPanel | None
    ) -> Merged:
        for number in range(len(self._edits)):
            self._apply(number, out, start, add, compiled)
        return Merged(out)

    def _apply(
        self,
        number: int,
        out: torch.Tensor,
        start: int,
        add: AddPanel,
        compiled: AddPanel | None,
    ) -> None:
        edit = self._edits[number].edit
        if isinstance(edit, LowRank):
            window = Window(edit.begin, edit.rows, edit.columns)
            if any(kernels.pieces(window, start, start + out.numel())):
                add(out, start, self._panel(number, edit, out.device))
        elif isinstance(edit, Dora):
            panel = self._panel(number, edit.update, out.device)
            add(out, start, panel)
            (factors,) = self._held(
                number, "norm", out.device, lambda: self._ratio(number, edit, compiled)
            )
            scaled = kernels.scale_rows if edit.per == "row" else kernels.scale_columns
            scaled(out, start, panel.window, factors)
        elif isinstance(edit, Bias):
            (values,) = self._held(number, "bias", out.device, lambda: (self._stored(number),))
            out.add_(values[start : start + out.numel()], alpha=edit.scale)
        else:
            (values,) = self._held(number, "rows", out.device, lambda: (self._stored(number),))
            window = Window(0, self._rows, self._numel // self._rows)
            kernels.set_rows(out, start, window, edit.indices, values)

    def _panel(self, number: int, edit: LowRank, device: torch.device) -> Panel:
        adapter = self._edits[number].adapter

        def make() -> tuple[torch.Tensor, ...]:
            panel = panel_of(adapter, edit, allow_nonfinite=self._allow_nonfinite)
            return panel.left, panel.right

        left, right = self._held(number, "panel", device, make)
        return Panel(Window(edit.begin, edit.rows, edit.columns), left, right)

    def _ratio(self, number: int, edit: Dora, add: AddPanel | None) -> tuple[torch.Tensor, ...]:
        """magnitude / norm(V), per row or column; V is the base's own update.

        add: what adds panels to blocks on the CPU, where that is compiled.
        """
        import torch

        magnitude = read_stored(
            self._edits[number].adapter, edit.magnitude, allow_nonfinite=self._allow_nonfinite
        ).flatten()
        panel = self._panel(number, edit.update, torch.device("cpu"))
        sums = torch.zeros_like(magnitude)
        if add is None:
            size = min(NORM_BLOCK, self._numel)
            add = partial(_add_panel, [torch.empty(size, dtype=torch.float64) for _ in range(2)])
        for start in range(0, self._numel, NORM_BLOCK):
            block = self._read(start, min(start + NORM_BLOCK, self._numel))
            add(block, start, panel)
            kernels.add_squares(sums, block, start, panel.window, by_row=edit.per == "row")
        return (magnitude.div_(sums.sqrt_()),)

    def _stored(self, number: int) -> torch.Tensor:
        adapter, edit = self._edits[number]
        assert isinstance(edit, (Bias, Rows))
        return read_stored(adapter, edit.tensor, allow_nonfinite=self._allow_nonfinite)

    def _held(
        self,
        number: int,
        what: str,
        device: torch.device,
        make: Callable[[], tuple[torch.Tensor, ...]],
    ) -> tuple[torch.Tensor, ...]:
        key = (id(self), number, what, str(device))
        return self._kept.get(key, lambda: tuple(tensor.to(device) for tensor in make()))
