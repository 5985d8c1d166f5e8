"""Fisher sidecars as merges use them: found beside a model, checked, compared, turned to scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fisher.sidecar import STATISTICS, SidecarError, decode_metadata, statistics
from mergekit_cl.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from mergekit_cl.divergence.summary import Parent
from mergekit_cl.errors import FormatError, InputError, MismatchError
from mergekit_cl.merge.fisher import Scale
from mergekit_cl.ties import Ties

Normalize = Literal["trace", "l2", "none"]
NAMES = ("fisher.safetensors", "fisher.safetensors.index.json")


@dataclass(frozen=True)
class Sidecar:
    """Stored Fisher values and what is known of them (docs/sidecar.md).

    names: {name of a tied tensor in a merge: the name it has here}, where they differ.
    """

    checkpoint: Checkpoint
    metadata: dict[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def covered(self) -> list[str]:
        """The tensors that have a Fisher, by their names in a merge."""
        called = {own: name for name, own in self.names.items()}
        return [called.get(own, own) for own in self.checkpoint.tensors]

    def tensor(self, name: str) -> TensorInfo | None:
        """Where the Fisher of a tensor is, or None."""
        return self.checkpoint.tensors.get(self.names.get(name, name))

    def described(self, name: str) -> dict[str, Any]:
        """What the metadata says of a tensor; empty where that is nothing."""
        found: dict[str, Any] = self.metadata["tensors"].get(self.names.get(name, name), {})
        return found

    def digest(self, name: str) -> str | None:
        """Digest of the weight this tensor's Fisher was taken at."""
        found: str | None = self.described(name).get("digest")
        return found

    def reason_missing(self, name: str) -> str:
        """Why a tensor has no Fisher: buffer, frozen, excluded, unsupported, or 'not listed'."""
        found: str = self.metadata.get("missing", {}).get(name, "not listed")
        return found


def find_sidecar(model: Checkpoint) -> str | Path | None:
    """The sidecar in a model's own folder, if there is one."""
    places = (model.beside(name) for name in NAMES)
    return next((place for place in places if place is not None), None)


def open_sidecar(path: str | Path) -> Sidecar:
    """Open a sidecar from its headers.

    Raises FormatError where the file is no sidecar.
    """
    checkpoint = open_checkpoint(path)
    try:
        return Sidecar(checkpoint, decode_metadata(checkpoint.metadata, str(checkpoint.path)))
    except SidecarError as error:
        raise FormatError(
            "the file is no Fisher sidecar",
            detail=str(error),
            hint="make one: clmerge fisher MODEL --data FILE",
        ) from error


def sidecar_of(model: Checkpoint, given: str | Path | None) -> Sidecar:
    """The sidecar given for a model, else the one in its folder.

    Raises InputError naming the command that makes one; MismatchError where names or shapes are
    not the model's.
    """
    path = given or find_sidecar(model)
    if path is None:
        raise InputError(
            "a model has no Fisher sidecar",
            detail=f"{model.path}: no {model.side_place}/{NAMES[0]}",
            hint=f"clmerge fisher {model.path} --data FILE"
            + ("" if model.here else " -o x.safetensors, then --fisher x.safetensors here"),
        )
    sidecar = open_sidecar(path)
    for name, tensor in sidecar.checkpoint.tensors.items():
        weight = model.tensors.get(name)
        if weight is None or weight.shape != tensor.shape or not tensor.is_float:
            have = "nothing" if weight is None else f"{weight.dtype} {list(weight.shape)}"
            raise MismatchError(
                "a Fisher sidecar belongs to another model",
                detail=f"{sidecar.checkpoint.path}: {name} is {tensor.dtype} "
                f"{list(tensor.shape)}, "
                f"{model.path} has {have}",
                hint=f"clmerge fisher {model.path} --data FILE",
            )
    return sidecar


def sidecars_for_report(models: Sequence[Checkpoint], *, wanted: bool) -> list[Sidecar | None]:
    """The sidecar beside each model, None where it has none or none is wanted."""
    return [sidecar_of(m, None) if wanted and find_sidecar(m) else None for m in models]


def parent_of(path: str, sidecar: Sidecar | None) -> Parent:
    """A parent as divergence knows it; sidecar: None where there is none to believe."""
    said = {} if sidecar is None else sidecar.metadata
    tokens, examples = said.get("tokens"), said.get("examples")
    return Parent(
        path,
        tokens / examples if tokens and examples else None,
        said.get("calibration"),
        said.get("estimator") in ("mc", "exact"),
    )


def check_comparable(sidecars: Sequence[Sidecar]) -> None:
    """Raise MismatchError unless all share estimator, unit and level."""
    for key in ("estimator", "unit", "level"):
        found = {str(sidecar.metadata[key]) for sidecar in sidecars}
        if len(found) > 1:
            listed = ", ".join(f"{s.checkpoint.path}: {s.metadata[key]}" for s in sidecars)
            raise MismatchError(
                f"the Fisher sidecars differ in {key}, so their numbers do not compare",
                detail=listed,
                hint=f"compute them alike, or give --allow-mixed-fisher ({key} is then recorded)",
            )


def common_tensors(sidecars: Sequence[Sidecar]) -> list[str]:
    """Tensors that every sidecar holds, in the first one's order."""
    return [
        name
        for name in sidecars[0].covered
        if all(other.tensor(name) is not None for other in sidecars[1:])
    ]


def under_names_of_merge(sidecar: Sidecar, ties: Ties) -> Sidecar:
    """The sidecar of a model that stores a tied tensor under another name than the merge does."""
    names = {}
    for name in set(ties.canonical.values()) - sidecar.checkpoint.tensors.keys():
        held = ties.held(sidecar.checkpoint, name)
        if held is not None:
            names[name] = held.name
    return replace(sidecar, names=names) if names else sidecar


def complete_statistics(sidecar: Sidecar) -> tuple[Sidecar, bool]:
    """The sidecar with sums for every tensor, and whether they had to be read from its values."""
    described = sidecar.metadata["tensors"]
    lacking = [
        name
        for name in sidecar.checkpoint.tensors
        if any(key not in described.get(name, {}) for key in STATISTICS)
    ]
    if not lacking:
        return sidecar, False
    filled = {
        name: {**described.get(name, {}), **statistics(sidecar.checkpoint.read(name))}
        for name in lacking
    }
    metadata = {**sidecar.metadata, "tensors": {**described, **filled}}
    return replace(sidecar, metadata=metadata), True


def model_scale(sidecar: Sidecar, names: Iterable[str], normalize: Normalize) -> float:
    """s_k: mean (`trace`) or root mean square (`l2`) of the stored Fisher over `names`, or 1.

    From the float64 sums in the metadata. Raises InputError where every value is 0.
    """
    if normalize == "none":
        return 1.0
    total, count = _sum_and_count(sidecar, names, "sum" if normalize == "trace" else "sum_squares")
    scale = total / count if count else 0.0
    if not scale > 0 or not math.isfinite(scale):
        raise InputError(
            "a Fisher sidecar says nothing: its values sum to 0 or are not finite",
            detail=str(sidecar.checkpoint.path),
            hint="compute it again on rows that carry a loss",
        )
    return scale if normalize == "trace" else math.sqrt(scale)


def scales(
    sidecars: Sequence[Sidecar], weights: Sequence[float], normalize: Normalize, floor: float
) -> dict[str, tuple[Scale, ...]]:
    """For every common tensor, each input's weight, factor c_k / s_k and floor eps * m_k.

    floor: relative to the tensor's mean Fisher, or the model's where the tensor's is 0.
    """
    names = common_tensors(sidecars)
    overall = [model_scale(sidecar, names, normalize) for sidecar in sidecars]
    means = [model_scale(sidecar, names, "trace") for sidecar in sidecars]
    found = {}
    for name in names:
        per_input = []
        for sidecar, weight, scale, mean in zip(sidecars, weights, overall, means, strict=True):
            total, count = _sum_and_count(sidecar, [name], "sum")
            own = total / count if count and total > 0 else mean
            per_input.append(Scale(weight, weight / scale, floor * own))
        found[name] = tuple(per_input)
    return found


def _sum_and_count(sidecar: Sidecar, names: Iterable[str], key: str) -> tuple[float, int]:
    listed = [sidecar.described(name) for name in names]
    return math.fsum(entry[key] for entry in listed), sum(entry["count"] for entry in listed)
