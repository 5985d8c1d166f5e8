"""Which tensor of the checkpoint's file each parameter of a built model is.

transformers renames, ties, stacks and splits tensors while it loads. Names here are guesses until
the values agree: a parameter is matched to a tensor only if every bit of it is that tensor's, cast
to the parameter's dtype.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.training.fused import Fused, find_fused

if TYPE_CHECKING:
    from torch import Tensor, nn

PIECE = 2**22  # elements compared at a time: 16 MiB of float32
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_LEGACY = ((".weight", ".gamma"), (".bias", ".beta"))  # how TensorFlow's BERT named layer norms


# Causal masks, position numbers and rotary frequencies were once stored with the weights (GPT-2,
# GPT-NeoX, BERT, Llama); newer models compute them and have no buffer of that name.
_OLD_BUFFERS = re.compile(
    r"(^|\.)(attn|attention)\.(bias|masked_bias)$|(^|\.)position_ids$|\.inv_freq$"
)


@dataclass(frozen=True)
class NameMap:
    """How parameters and file tensors correspond.

    direct: {parameter: file tensor}, same shape. fused: parameters that hold several file tensors
    or parts of one. tied: {other name: the name its values are stored under}, file names where the
    file has one. missing: {file tensor: reason} where no parameter is it: `buffer` or
    `unsupported`. unmatched: parameters that are no tensor of the file.
    """

    direct: dict[str, str]
    fused: tuple[Fused, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()

    def files_of(self, parameter: str) -> tuple[str, ...]:
        """The file tensors a parameter has a part in; none for an unmatched one."""
        if parameter in self.direct:
            return (self.direct[parameter],)
        return next((fused.files for fused in self.fused if parameter in fused.parameters), ())

    def by_file(
        self, tensors: Mapping[str, Tensor], model: nn.Module
    ) -> Iterator[tuple[str, Tensor]]:
        """(file tensor, values) of values per parameter, such as a Fisher diagonal.

        Fused parameters are taken apart as their weights would be. Only what `tensors` holds is
        given; a fused group only where all of it is there.
        """
        for parameter, name in self.direct.items():
            if parameter in tensors:
                yield name, tensors[parameter]
        for fused in self.fused:
            if all(parameter in tensors for parameter in fused.parameters):
                yield from fused.take_apart(tensors, model)


def map_names(model: Any, checkpoint: Checkpoint) -> NameMap:
    """Match the parameters of a model on the CPU, as loaded, to the tensors of its checkpoint."""
    return join_names([match_names(model, checkpoint, tied_groups(model))], model, checkpoint)


def match_names(
    model: Any, checkpoint: Checkpoint, groups: Mapping[str, tuple[str, ...]]
) -> NameMap:
    """The same for some parameters, whose values alone are looked at; `missing` stays empty.

    groups: {parameter: all its names}, see `tied_groups`.
    """
    prefix = getattr(model, "base_model_prefix", "")
    direct: dict[str, str] = {}
    tied: dict[str, str] = {}
    for parameter, names in groups.items():
        values = model.get_parameter(parameter)
        found = [
            name
            for name in file_names(names, prefix, checkpoint)
            if same_values(values, checkpoint, name)
        ]
        if found:
            direct[parameter] = found[0]
            tied.update(dict.fromkeys(found[1:], found[0]))
            # A tensor of the file with other values is none of them, whatever the model ties.
            others = {file_name(name, prefix, checkpoint) for name in names}
            others -= checkpoint.tensors.keys()
            tied.update(dict.fromkeys(sorted(others), found[0]))
    unmatched = [name for name in groups if name not in direct]
    open_names = checkpoint.tensors.keys() - direct.values() - tied.keys()

    def is_stored(name: str, values: Tensor) -> str | None:
        stored = file_name(name, prefix, checkpoint)
        agrees = stored in open_names and same_values(values, checkpoint, stored)
        return stored if agrees else None

    fused = find_fused(model, unmatched, is_stored)
    matched = {parameter for group in fused for parameter in group.parameters}
    return NameMap(
        direct, fused, tied, unmatched=tuple(name for name in unmatched if name not in matched)
    )


def join_names(parts: Iterable[NameMap], model: Any, checkpoint: Checkpoint) -> NameMap:
    """The matches of all parameters, with what became of the other tensors of the file."""
    whole = NameMap({})
    for part in parts:
        whole = NameMap(
            {**whole.direct, **part.direct},
            (*whole.fused, *part.fused),
            {**whole.tied, **part.tied},
            unmatched=(*whole.unmatched, *part.unmatched),
        )
    tied = {**whole.tied, **checkpoint.aliases}
    accounted = {name for group in whole.fused for name in group.files}
    left = checkpoint.tensors.keys() - whole.direct.values() - tied.keys() - accounted
    missing = _missing(model, getattr(model, "base_model_prefix", ""), checkpoint, left)
    return NameMap(whole.direct, whole.fused, tied, missing, whole.unmatched)


def tied_groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """{parameter: all names it has in the model}, its first name first."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {group[0]: tuple(group) for group in names.values()}


def file_names(names: tuple[str, ...], prefix: str, checkpoint: Checkpoint) -> list[str]:
    """The tensors of the file that any of a parameter's names may stand for, likeliest first."""
    found = dict.fromkeys(
        checkpoint.aliases.get(spelling, spelling)
        for name in names
        for spelling in _spellings(name, prefix)
    )
    return [name for name in found if name in checkpoint.tensors]


def file_name(name: str, prefix: str, checkpoint: Checkpoint) -> str:
    """How the file spells a model's name; the name itself where the file has no such tensor."""
    return next(iter(file_names((name,), prefix, checkpoint)), name)


def _spellings(name: str, prefix: str) -> Iterator[str]:
    """The name, without and with the prefix of the base model, each in its old layer norm form."""
    forms = [name]
    if prefix:
        forms.append(name.removeprefix(f"{prefix}."))
        forms.append(f"{prefix}.{name}")
    for form in forms:
        yield form
        for new, old in _LEGACY:
            if form.endswith(new):
                yield form.removesuffix(new) + old


def same_values(values: Tensor, checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor of the file, cast to the dtype of `values`, has the same shape and bits."""
    info = checkpoint.tensors[name]
    if tuple(values.shape) != info.shape or not info.is_float:
        return False
    integer = _INTEGERS[values.element_size()]
    flat = values.detach().reshape(-1)
    for start in range(0, info.numel, PIECE):
        stop = min(start + PIECE, info.numel)
        stored = checkpoint.read(name, start, stop).to(values.dtype)
        if not torch.equal(stored.view(integer), flat[start:stop].view(integer)):
            return False
    return True


def _missing(
    model: nn.Module, prefix: str, checkpoint: Checkpoint, names: set[str]
) -> dict[str, str]:
    """Why these tensors of the file are no parameters, in file order."""
    buffers = {
        spelling for name, _ in model.named_buffers() for spelling in _spellings(name, prefix)
    }

    def reason(name: str) -> str:
        is_buffer = name in buffers or _OLD_BUFFERS.search(name) is not None
        return "buffer" if is_buffer or not checkpoint.tensors[name].is_float else "unsupported"

    return {name: reason(name) for name in checkpoint.tensors if name in names}
