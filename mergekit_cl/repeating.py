"""The command line that makes a checkpoint again, from its manifest."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from mergekit_cl.merge.linear import normalized

DENOMINATOR = 1000


def command_again(manifest: Mapping[str, Any]) -> str | None:
    """A line for a shell whose weights have the same bytes, or None where there is no such line.

    Without -o, what costs or judges alone, and the report. Paths are those that were given.
    """
    command, options = manifest["command"], manifest["options"]
    own = _OWN.get(command)
    words = None if own is None else own(options)
    if words is None:
        return None
    models = [_place(one) for one in manifest["inputs"] if one["role"] in ("input", "adapter")]
    words += _sources(manifest["inputs"], models) if command != "ema-merge" else []
    return shlex.join(["clmerge", command, *models, *words, *_shared(command, options)])


def as_typed(weights: Sequence[float]) -> list[float]:
    """Short numbers whose normalised values are exactly these weights; [] for equal ones."""
    if tuple(weights) == normalized([1.0] * len(weights)):
        return []
    near = [Fraction(weight).limit_denominator(DENOMINATOR) for weight in weights]
    whole = math.lcm(*(one.denominator for one in near))
    found = [list(weights)]
    for candidate in ([float(one) for one in near], [float(one * whole) for one in near]):
        if sum(candidate) and normalized(candidate) == tuple(weights):
            found.append(candidate)
    return min(found, key=lambda one: len(_joined(one)))


def _linear(options: Mapping[str, Any]) -> list[str] | None:
    if not options["normalize"]:
        return ["--weights", _joined(options["weights"]), "--no-normalize"]
    weights = as_typed(options["weights"])
    return ["--weights", _joined(weights)] if weights else []


def _fisher(options: Mapping[str, Any]) -> list[str] | None:
    weights = as_typed(options["weights"])
    words = ["--weights", _joined(weights)] if weights else []
    for key, default in (("normalize", "trace"), ("floor", 1e-6), ("fallback", "linear")):
        if options[key] != default:
            words += [f"--{key}", f"{options[key]}"]
    if options["on_missing_fisher"] != "error":
        words += ["--on-missing-fisher", options["on_missing_fisher"]]
    if any(len(set(options[key])) > 1 for key in ("estimators", "units", "levels")):
        words.append("--allow-mixed-fisher")
    return words


def _ema(options: Mapping[str, Any]) -> list[str] | None:
    decays = set(options["decays"])
    return ["--decay", f"{decays.pop()}"] if len(decays) == 1 else None


def _lora(options: Mapping[str, Any]) -> list[str] | None:
    words = [] if set(options["scales"]) == {1.0} else ["--scale", _joined(options["scales"])]
    if options["undo"] != "base":
        words += ["--undo", options["undo"]]
    return [*words, "--allow-other-base"] if options["allow_other_base"] else words


_OWN = {"lora-merge": _lora, "linear-merge": _linear, "fisher-merge": _fisher, "ema-merge": _ema}


def _shared(command: str, options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    if options["dtype"] is not None:
        words += ["--dtype", _DTYPES.get(options["dtype"], options["dtype"])]
    for key in ("include", "exclude"):
        for pattern in options[key]:
            words += [f"--{key}", pattern]
    if options["vocab"] != "error":
        words += ["--vocab", options["vocab"]]
    if options["carry"] != (command == "ema-merge"):
        words.append("--carry" if options["carry"] else "--no-carry")
    for key in ("allow_nonfinite", "allow_stale_fisher"):
        if options[key]:
            words.append(f"--{key.replace('_', '-')}")
    return words


_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def _sources(inputs: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[str]:
    fishers = [_place(one) for one in inputs if one["role"] == "fisher"]
    words = [word for one in inputs if one["role"] == "base" for word in ("--base", _place(one))]
    if len(fishers) == len(models) and not all(map(_is_beside, fishers, models)):
        words += [word for path in fishers for word in ("--fisher", path)]
    return words


def _is_beside(fisher: str, model: str) -> bool:
    return fisher.startswith(
        (f"{model}/clmerge/", f"{model.removesuffix('.safetensors')}.clmerge/")
    )


def _place(source: Mapping[str, Any]) -> str:
    path: str = source["path"]
    if source["role"] == "adapter":  # its weights are recorded, its folder is typed
        path = path.rpartition("/adapter_model.")[0] or path
    revision = source.get("revision")
    return f"{path.partition('@')[0]}@{revision}" if revision else path


def _joined(weights: Sequence[float]) -> str:
    return ",".join(
        f"{weight:g}" if float(f"{weight:g}") == weight else f"{weight}" for weight in weights
    )
