"""The state of a run on the disk: written and read in one way, whatever for.

    state/current.json   {"format", "current": "00000007", "accepted": "00000005"}
    state/00000007/      weights, optimizer, average, tracks, protection (safetensors), buffer,
                         state.json, history.json, losses.json

A generation is written whole beside the others before `current.json`, replaced in one step, names
it; so a kill at any instant leaves one. `accepted` is what a rejected update goes back to.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergekit_cl.continual.buffertext import MANIFEST, ROWS, encode
from mergekit_cl.continual.ewc import Protection
from mergekit_cl.continual.mixing import Realised
from mergekit_cl.errors import FormatError, MismatchError, OutputError
from mergekit_cl.output.durable import sync, sync_tree, write_durably
from mergekit_cl.output.tensors import save_tensors
from mergekit_cl.training.bufferfile import load_buffer
from mergekit_cl.tuning.live import History, Live, Record
from mergekit_cl.tuning.model import file_name
from mergekit_cl.tuning.optimizer import optimizer_tensors, restore_optimizer
from mergekit_cl.tuning.position import Position

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "clmerge.state/1"
ANOTHER = "another version of clmerge may have written it: go on with that one, or begin anew"
POINTER = "current.json"
FRESH = "fresh"
KEPT = {"protection.safetensors": "protected", "losses.json": "revision"}
"""Large files that seldom change, and the number that says so: an unchanged one is linked from the
generation before, not written again."""


def save_state(folder: Path, live: Live, *, lines: int, accepted: bool, leads: bool = True) -> None:
    """Write a new generation and make it the current one.

    lines: length of metrics.jsonl, which is on the disk already. accepted: whether a rejection goes
    back to it. leads: every process of a run calls this, one writes. Raises OutputError.
    """
    tensors = _tensors(live)
    if not leads:
        return
    try:
        before = pointer(folder)
        name = f"{max((int(one) for one in before.values()), default=0) + 1:08d}"
        _write(folder / FRESH, tensors, live, lines, folder / before.get("current", FRESH))
        if (folder / name).exists():  # written by a process that died before it said so
            shutil.rmtree(folder / name)
        (folder / FRESH).rename(folder / name)
        sync(folder)
        now = {"current": name, "accepted": name if accepted else before.get("accepted", name)}
        write_durably(folder / POINTER, json.dumps({"format": FORMAT, **now}).encode())
        for old in folder.iterdir():
            if old.is_dir() and old.name not in now.values():
                shutil.rmtree(old)
    except OSError as error:
        raise OutputError(
            "the state of the run cannot be written",
            detail=f"{folder}: {error.strerror or error}",
            hint="mend that; the same command with --resume goes on from the state before",
        ) from error


def load_state(
    folder: Path, live: Live, *, generation: str = "current", rollback: bool = False
) -> int:
    """Bring `live` to a generation, to the bit; returns the length of metrics.jsonl then.

    rollback: what was seen and decided since stays known: `history`, `record` and `stream` are left
    as they are. Raises FormatError where a file is missing or not of this model.
    """
    place = folder / pointer(folder)[generation]
    try:
        values = json.loads((place / "state.json").read_bytes())
        _restore(live, place, values)
        if not rollback:
            _remember(live, place)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            "the state of the run cannot be read", detail=f"{place}: {error!r:.200}", hint=ANOTHER
        ) from error
    length: int = values["lines"]
    return length


def pointer(folder: Path) -> dict[str, str]:
    """Names of the generations there are: {"current", "accepted"}; empty where there is none.

    Raises FormatError for a state that this version cannot read.
    """
    try:
        found = json.loads((folder / POINTER).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FormatError("no state of a run", detail=f"{folder / POINTER}: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FormatError(
            "no state of a run", detail=f"{folder / POINTER}: wanted {FORMAT}", hint=ANOTHER
        )
    return {key: str(found[key]) for key in ("current", "accepted")}


def protected_tasks(folder: Path) -> int:
    """How many tasks the protection of the current state speaks of; 0 where there is none."""
    now = pointer(folder)
    return int(_numbers(folder / now["current"]).get("protected", 0)) if now else 0


def _tensors(live: Live) -> dict[str, dict[str, Tensor]]:
    """{file: {name: values}}; of sharded tensors the whole, for which all processes meet."""
    files: dict[str, dict[str, Tensor]] = {
        "weights.safetensors": live.tuned.evolving(),
        "optimizer.safetensors": optimizer_tensors(live.optimizer, live.tuned.trained()),
    }
    if live.average is not None:
        files["average.safetensors"] = live.average.state_dict()["tensors"]
    if live.tracks:
        files["tracks.safetensors"] = {
            f"{number}:{name}": values
            for number, track in enumerate(live.tracks)
            for name, values in track.tensors.items()
        }
    if live.protection is not None:
        fisher, anchor = live.protection.fisher, live.protection.anchor
        files["protection.safetensors"] = {
            **{f"fisher:{name}": values for name, values in fisher.items()},
            **{f"anchor:{name}": values for name, values in anchor.items()},
        }
    return {
        file: {name: whole(values) for name, values in tensors.items()}
        for file, tensors in files.items()
    }


def whole(values: Tensor) -> Tensor:
    """A tensor as it is written: all of it, on the CPU, contiguous."""
    full: Any = values.full_tensor() if hasattr(values, "full_tensor") else values
    found: Tensor = full.detach().cpu().contiguous()
    return found


def like(values: Tensor, live: Tensor) -> Tensor:
    """A tensor from a file, cut and placed as `live` is."""
    if hasattr(live, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = live
        return distribute_tensor(values, sharded.device_mesh, sharded.placements)
    return values.to(live.device)


def _write(
    place: Path, tensors: dict[str, dict[str, Tensor]], live: Live, lines: int, before: Path
) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    numbers = {"protected": live.protected, "revision": live.record.revision}
    known = _numbers(before)
    linked = {
        file
        for file, number in KEPT.items()
        if known.get(number) == numbers[number] and (before / file).is_file()
    }
    for file, content in tensors.items():
        if file not in linked:
            save_tensors(place / file, content)
    for file in linked:
        os.link(before / file, place / file)
    if live.buffer is not None:
        texts = encode(live.buffer)
        (place / ROWS).write_bytes(texts.rows)
        (place / MANIFEST).write_bytes(texts.manifest)
    average = None
    if live.average is not None:
        average = {k: v for k, v in live.average.state_dict().items() if k != "tensors"}
    state = {
        "position": live.position.to_json(),
        "realised": asdict(live.realised),
        **numbers,
        "fishers": live.fishers,
        "average": average,
        "tracks": [{"sigma_rel": one.sigma_rel, "step": one.step} for one in live.tracks],
        "lines": lines,
    }
    stream = None if live.stream is None else live.stream.to_json()
    history = {**asdict(live.history), "stream": stream}
    texts_of: dict[str, Any] = {"state.json": state, "history.json": history}
    if "losses.json" not in linked:
        texts_of["losses.json"] = live.record.to_json()
    for name, values in texts_of.items():
        (place / name).write_text(json.dumps(values, sort_keys=True, allow_nan=False) + "\n")
    sync_tree(place)


def _numbers(place: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((place / "state.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def _remember(live: Live, place: Path) -> None:
    """What a rejection would not take back."""
    history = json.loads((place / "history.json").read_bytes())
    stream = history.pop("stream")
    live.history = History(**history)
    live.record = Record.from_json(json.loads((place / "losses.json").read_bytes()))
    if live.stream is not None and stream is not None:
        live.stream.restore(stream)


def _restore(live: Live, place: Path, values: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    def read(file: str) -> dict[str, Tensor]:
        return load_file(str(place / file))

    evolving, stored = live.tuned.evolving(), read("weights.safetensors")
    if wrong := sorted(evolving.keys() ^ stored.keys()):
        raise MismatchError(
            "the state holds the weights of another model or adapter",
            detail=f"{place}: {wrong[0]} is in one of them only",
            hint="model and lora must be as they were",
        )
    for name, tensor in evolving.items():
        if stored[name].shape != tensor.shape:
            shapes = f"{list(stored[name].shape)} there, {list(tensor.shape)} here"
            raise MismatchError(
                "the state holds the weights of another model or adapter",
                detail=f"{place}: {name} is {shapes}",
                hint="model and lora must be as they were, the vocabulary too",
            )
    with torch.no_grad():
        for name, tensor in evolving.items():
            tensor.copy_(like(stored[name], tensor))
    parameters = live.tuned.trained()
    moments = {
        key: value if value.dim() == 0 else like(value, parameters[key.rpartition(":")[0]])
        for key, value in read("optimizer.safetensors").items()
    }
    restore_optimizer(live.optimizer, parameters, moments)
    if live.average is not None and values["average"] is not None:
        own = live.average.tensors
        held = {name: like(one, own[name]) for name, one in read("average.safetensors").items()}
        live.average.load_state_dict({**values["average"], "tensors": held})
    _restore_tracks(live, place, values["tracks"])
    live.protection, live.protected = None, values["protected"]
    live.fishers = tuple((estimator, unit) for estimator, unit in values["fishers"])
    if (place / "protection.safetensors").is_file():
        live.protection = placed(_protection(read("protection.safetensors")), live)
    if (place / ROWS).is_file():
        live.buffer = load_buffer(place)
    live.position = Position(**values["position"])
    live.realised = Realised(**values["realised"])


def _restore_tracks(live: Live, place: Path, stored: list[dict[str, Any]]) -> None:
    from safetensors.torch import load_file

    if not live.tracks or not stored:
        return
    tensors = load_file(str(place / "tracks.safetensors"))
    for number, (track, numbers) in enumerate(zip(live.tracks, stored, strict=True)):
        held = {name: like(tensors[f"{number}:{name}"], own) for name, own in track.tensors.items()}
        track.load_state_dict({**numbers, "tensors": held})


def placed(protection: Protection, live: Live) -> Protection:
    """A protection where the parameters lie, cut as they are."""
    there = {file_name(name): p for name, p in live.tuned.module.named_parameters()}

    def put(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: like(one, there[n]) if n in there else one for n, one in tensors.items()}

    return Protection(put(protection.fisher), put(protection.anchor))


def _protection(stored: dict[str, Tensor]) -> Protection:
    parts: dict[str, dict[str, Tensor]] = {"fisher": {}, "anchor": {}}
    for key, values in stored.items():
        kind, _, name = key.partition(":")
        parts[kind][name] = values
    return Protection(parts["fisher"], parts["anchor"])
