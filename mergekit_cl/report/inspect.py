"""What `clmerge inspect` found, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_cl.inspecting.plain import mapping, mappings, number
from mergekit_cl.report.amounts import duration, size
from mergekit_cl.report.text import columns, print_lines, shown

WIDE = 120  # characters of a foreign value
MANY = 12  # entries of a foreign list
KINDS = {
    "checkpoint": "checkpoint",
    "adapter": "adapter",
    "fisher": "Fisher sidecar",
    "manifest": "manifest of a checkpoint",
}

Row = tuple[str, str]


def print_inspection(found: Mapping[str, Any], *, tensors: bool) -> None:
    """Print everything on stdout but the list of tensors, which `tensors` adds."""
    rows: list[Row] = [
        ("", f"{shown(found['path'])}: {KINDS[found['kind']]}"),
        ("files", _files(found)),
        ("parameters", f"{found['parameters']:,} in {len(found['tensors']):,} tensors"),
        *_dtypes(found["dtypes"]),
    ]
    if "architecture" in found:
        rows += _architecture(found["architecture"])
    if "adapter" in found:
        rows += _adapter(found["adapter"])
    if found.get("fisher"):
        rows += _fisher(found["fisher"])
    if found.get("made"):
        rows += _made(found["made"])
    rows += _largest(found["largest"])
    rows += [("metadata", f"{shown(k, 40)}: {shown(v, WIDE)}") for k, v in _few(found["metadata"])]
    rows += [("note", shown(note, 2 * WIDE)) for note in found["notes"]]
    lines = _aligned(rows)
    if tensors:
        lines += ["", *columns([_tensor(entry) for entry in found["tensors"]])]
    print_lines(lines)


def _aligned(rows: list[Row]) -> list[str]:
    """Labels in a column, each told once; a row without one stands at the margin."""
    width = max(len(label) for label, _ in rows)
    lines, last = [], ""
    for label, text in rows:
        if not label:
            lines.append(text)
        else:
            lines.append(f"  {'' if label == last else label:<{width}}  {text}".rstrip())
        last = label
    return lines


def _files(found: Mapping[str, Any]) -> str:
    files = found["files"]
    formats = sorted({file["format"] for file in files})
    named = f": {shown(files[0]['name'], WIDE)}" if len(files) == 1 else ""
    what = f"{len(files)} {'/'.join(formats)} file{'' if len(files) == 1 else 's'}"
    return f"{what}, {size(found['bytes'])}{named}"


def _dtypes(dtypes: list[dict[str, Any]]) -> list[Row]:
    cells = [(shown(d["dtype"]), f"{d['tensors']:,}", "tensors", size(d["bytes"])) for d in dtypes]
    lines = columns(cells, right=frozenset({1, 3}))
    return [("dtypes", line) for line in lines]


def _architecture(found: Mapping[str, Any]) -> list[Row]:
    classes = ", ".join(shown(name, WIDE) for name in found["classes"][:MANY])
    model_type = found["model_type"]
    named = f"{classes} ({shown(model_type, WIDE)})" if classes and model_type else classes
    rows = [("architecture", named or shown(model_type or "unknown: no config.json says", WIDE))]
    said, counted = found["layers"], found["layers_in_names"]
    if said is not None or counted is not None:
        layers = str(said if said is not None else counted)
        if said is not None and counted is not None and said != counted:
            layers = f"{said} by config.json, {counted} by the tensors' names"
        rows.append(("layers", layers))
    head = _head(found["head"])
    return [*rows, *([("head", head)] if head else [])]


def _head(head: Mapping[str, Any]) -> str | None:
    if head["to"] is not None:
        return f"tied: {shown(head['name'], WIDE)} is {shown(head['to'], WIDE)}"
    if head["stored"]:
        also = ", though config.json ties it" if head["tied"] else ""
        return f"{shown(head['name'], WIDE)}{also}"
    return "tied to the embedding, not stored" if head["tied"] else None


def _adapter(found: Mapping[str, Any]) -> list[Row]:
    ranks = ", ".join(f"{n} of rank {shown(rank)}" for rank, n in _few(found["ranks"]))
    scale = number(found["scale"])
    rows: list[tuple[str, Any]] = [
        ("adapter", found["peft_type"]),
        ("base", found["base_model_name_or_path"]),
        ("task", found["task_type"]),
        ("rank", found["r"]),
        ("alpha", found["lora_alpha"]),
        ("scale", None if scale is None else f"{scale:.6g}"),
        ("targets", _listed(found["target_modules"])),
        ("saved whole", _listed(found["modules_to_save"])),
        ("bias", None if found["bias"] == "none" else found["bias"]),
        ("pairs", f"{found['pairs']:,}: {ranks}" if found["pairs"] else None),
        ("others", f"{found['others']:,} tensors besides" if found["others"] else None),
    ]
    kinds = [key for key in ("use_rslora", "use_dora") if found[key] is True]
    rows.append(("variant", ", ".join(kinds) or None))
    return [(label, shown(value, WIDE)) for label, value in rows if value is not None]


def _fisher(found: Mapping[str, Any]) -> list[Row]:
    draws = found.get("draws")
    estimator = shown(found.get("estimator"), WIDE)
    with_draws = f"{estimator}, {shown(draws, 20)} draws" if draws not in (None, 1) else estimator
    trace, nll = number(found["trace"]), number(found.get("mean_nll"))
    rows = [
        ("Fisher", f"{with_draws}, per {shown(found.get('level'), WIDE)}"),
        ("rows", f"{shown(found.get('examples'), 20)}, {shown(found.get('tokens'), 20)} tokens"),
    ]
    if nll is not None:
        rows.append(("mean nll", f"{nll:.4g} nats per {_counted(found.get('level'))}"))
    error = number(found.get("trace_standard_error"))
    sure = f" ±{error / trace:.1%}" if trace and error is not None else ""
    known = "unknown: sums are not stored" if trace is None else f"{trace:.4g}{sure}"
    rows.append(("trace", known))
    if (calibration := number(found.get("calibration"))) is not None:
        rows.append(("calibration", f"{calibration:.3g}: measured over predicted divergence"))
    beside = found.get("beside")
    rows.append(("lies with", shown(beside, WIDE) if beside else "no model"))
    digest = found.get("weights_digest")
    rows.append(("taken at", f"weights {shown(digest, WIDE)}" if digest else "unknown weights"))
    reasons = [f"{n:,} {shown(reason, 40)}" for reason, n in _few(found["missing_by_reason"])]
    return rows + ([("without", ", ".join(reasons))] if reasons else [])


def _counted(level: Any) -> str:
    """What a loss is a mean over: a classifier's rows have one label each."""
    return "token" if level == "sequence" else "label"


def _undo(undo: Mapping[str, Any]) -> str:
    """How `lora-unmerge` gets the base back."""
    count = len(mapping(undo.get("tensors")))
    if undo.get("kind") == "xor":
        held = number(undo.get("bytes"))
        return f"{count:,} tensors, from {size(held) if held else 'bits'} in undo.safetensors"
    return f"{count:,} tensors, from {shown(undo.get('path'), WIDE)}"


def _made(made: Mapping[str, Any]) -> list[Row]:
    options = mapping(made.get("options"))
    # What is not set, or set to no, says little.
    options = {k: v for k, v in options.items() if v is not False and v not in (None, [], {})}
    given = [f"{shown(k, 40)}={shown(v, 60)}" for k, v in _few(options)]
    rows = [("made by", f"clmerge {shown(made.get('command'), WIDE)}")]
    for source in mappings(made.get("inputs"))[:MANY]:
        digest = source.get("weights_digest")
        said = f" ({shown(digest, 16)})" if digest else ""
        rows.append(
            ("from", f"{shown(source.get('role'), 20)} {shown(source.get('path'), WIDE)}{said}")
        )
    rows += [("options", option) for option in given]
    rows.append(("tensors", ", ".join(f"{n:,} {shown(a, 20)}" for a, n in _few(made["actions"]))))
    for output in mappings(made.get("outputs"))[:1]:
        rows.append(("weights", shown(output.get("weights_digest"), WIDE)))
    if undo := mapping(made.get("undo")):
        rows.append(("undo", _undo(undo)))
    verdict = mapping(made.get("verdict"))
    if verdict:
        rows.append(("verdict", "lossy" if verdict.get("lossy") else "ok"))
        reasons = verdict.get("reasons")
        listed = reasons[:MANY] if isinstance(reasons, list) else []
        rows += [("verdict", shown(reason, WIDE)) for reason in listed]
    seconds = number(made.get("seconds"))
    return rows + ([] if seconds is None else [("took", duration(seconds))])


def _largest(entries: list[dict[str, Any]]) -> list[Row]:
    cells = [(*_tensor(entry)[:3], size(entry["bytes"])) for entry in entries]
    return [("largest", line) for line in columns(cells, right=frozenset({3}))]


def _tensor(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    shape = f"[{', '.join(map(str, entry['shape']))}]"
    return shown(entry["name"]), shown(entry["dtype"]), shape, shown(entry["file"])


def _listed(value: Any) -> str | None:
    if isinstance(value, list):
        more = f", and {len(value) - MANY} more" if len(value) > MANY else ""
        return ", ".join(str(item) for item in sorted(map(str, value))[:MANY]) + more or None
    return None if value is None else str(value)


def _few(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(value.items())[:MANY]
