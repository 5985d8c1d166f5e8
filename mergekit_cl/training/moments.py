"""The second moments of a saved Adam, by the names of the model it trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint.unpickle import load
from mergekit_cl.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

NESTED = ("optimizer", "optim", "optimizer_state_dict", "optimizer_state")
_GROUP = re.compile(r"(?:^|.*\.)param_groups\.(?P<name>.+)\.(?P<what>betas|params)$")
_PARTS = ("state", "param_groups")
_WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module)\.")
_OTHERS = {
    "absmax1": "8-bit states of bitsandbytes",
    "qmap1": "8-bit states of bitsandbytes",
    "state2": "states of bitsandbytes",
    "exp_avg_sq_row": "the factored moments of Adafactor",
    "momentum_buffer": "the momentum of SGD",
    "exp_inf": "the infinity norms of Adamax",
    "square_avg": "the averages of RMSprop",
}
_ENTRY = re.compile(
    rf"(?:^|.*\.)state\.(?P<name>.+)\.(?P<what>exp_avg_sq|step|{'|'.join(_OTHERS)})$"
)


@dataclass(frozen=True)
class Saved:
    """What an optimizer saved: state per parameter, and groups of parameters.

    Parameters go by number (torch's `optimizer.pt`) or by name (distributed checkpoints).
    """

    state: Mapping[int | str, Mapping[str, Any]]
    groups: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Moment:
    """One parameter's running mean of squared batch gradients, after `step` steps with `beta2`."""

    values: Tensor
    step: float
    beta2: float

    def corrected(self) -> Tensor:
        """`v / (1 - beta2^step)`, in float32 at least."""
        import torch

        wide = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        corrected: Tensor = wide / (1 - self.beta2**self.step)
        return corrected


def read_optimizer(path: Path) -> Saved:
    """An `optimizer.pt` of torch or transformers, or a folder of torch.distributed.checkpoint.

    Raises InputError (FormatError for damage) for what holds no optimizer.
    """
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise InputError("no such file or directory", detail=f"--optimizer {path}")
    found = load(path)
    for key in NESTED:
        if isinstance(found, dict) and "state" not in found and key in found:
            found = found[key]
    state, groups = (found.get(k) if isinstance(found, dict) else None for k in _PARTS)
    if not isinstance(state, dict) or not isinstance(groups, list):
        raise _no_optimizer(path, "no `state` and `param_groups`")
    return Saved(state, tuple(group for group in groups if isinstance(group, dict)))


def moments(saved: Saved, where: Path) -> dict[int | str, Moment]:
    """The second moments by number or name; raises InputError for another optimizer than Adam."""
    beta2s = {
        key: group["betas"][1]
        for group in saved.groups
        if isinstance(group.get("betas"), (tuple, list)) and len(group["betas"]) == 2
        for key in group.get("params", ())
    }
    found: dict[int | str, Moment] = {}
    for key, entry in saved.state.items():
        if not isinstance(entry, Mapping) or not entry:
            continue
        _refuse_others(entry, key, where)
        if key not in beta2s:
            raise _no_optimizer(where, f"parameter {key} is in no group with `betas`")
        step, beta2 = float(entry["step"]), float(beta2s[key])
        if not (step >= 1 and 0 <= beta2 < 1):
            raise _no_optimizer(where, f"parameter {key} has step {step:g} and beta2 {beta2:g}")
        found[key] = Moment(entry["exp_avg_sq"], step, beta2)
    if not found:
        raise _no_optimizer(where, "no parameter has a state: was a step taken?")
    return found


def _refuse_others(entry: Mapping[str, Any], key: int | str, where: Path) -> None:
    for name, what in _OTHERS.items():
        if name in entry:
            raise _no_adam(where, f"{what} (`{name}` of parameter {key})")
    if "exp_avg_sq" not in entry or "step" not in entry:
        raise _no_adam(where, f"parameter {key} has {', '.join(map(str, entry))}")
    values = entry["exp_avg_sq"]
    if not hasattr(values, "is_floating_point") or not values.is_floating_point():
        kind = getattr(values, "dtype", type(values).__name__)
        raise _no_adam(where, f"quantised states: `exp_avg_sq` of parameter {key} is {kind}")
    if values.numel() and not bool((values >= 0).all()):
        raise InputError(
            "a second moment is negative or not a number",
            detail=f"{where}: `exp_avg_sq` of parameter {key}",
            hint="the training diverged or the file is damaged; take an earlier checkpoint",
        )


def _from_folder(path: Path) -> Saved:
    from mergekit_cl.checkpoint.distributed import is_distributed, read_distributed

    if not is_distributed(path):
        raise _no_optimizer(path, "no `.metadata` of torch.distributed.checkpoint")
    found = read_distributed(path, lambda key: bool(_ENTRY.match(key) or _GROUP.match(key)))
    state: dict[int | str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        if (group := _GROUP.match(key)) is not None:
            groups.setdefault(group["name"], {})[group["what"]] = value
        elif (entry := _ENTRY.match(key)) is not None:
            state.setdefault(_key(entry["name"]), {})[entry["what"]] = value
    # Groups are numbered and list their parameters, or each parameter is a group by itself.
    whole = tuple(
        {**group, "params": [_key(str(p)) for p in group.get("params", [name])]}
        for name, group in groups.items()
    )
    return Saved(state, whole)


def _key(name: str) -> int | str:
    return int(name) if name.isdigit() else _WRAPPERS.sub("", name)


def plain_name(name: str) -> str:
    """A parameter's name without what compiling and FSDP put into it."""
    return _WRAPPERS.sub("", name)


def _no_optimizer(path: Path, what: str) -> InputError:
    return InputError(
        "the file holds no optimizer that can be read",
        detail=f"{path}: {what}",
        hint="give the optimizer.pt beside a Trainer's checkpoint, torch.save(opt.state_dict()), "
        "or a folder of torch.distributed.checkpoint",
    )


def _no_adam(path: Path, what: str) -> InputError:
    return InputError(
        "the optimizer keeps no second moments as Adam does",
        detail=f"{path}: {what}",
        hint="clmerge fisher MODEL --data FILE measures the Fisher instead",
    )
