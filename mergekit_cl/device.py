"""Which device a merge computes on."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_cl.errors import OptionError

if TYPE_CHECKING:
    import torch


def may_have_gpu() -> bool:
    """False where no driver of one is installed, which is known without loading torch."""
    if "torch" in sys.modules or Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def choose_device(name: str) -> torch.device:
    """The device a user named; `auto` is the CPU, until a caller knows better.

    Raises OptionError for a device that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(
            "no such device", detail=f"--device {name}", hint="use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise OptionError("only cpu and cuda are supported", detail=f"--device {name}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            "no such GPU here",
            detail=f"--device {name}: {torch.cuda.device_count()} GPUs are visible",
            hint="use --device cpu",
        )
    return device
