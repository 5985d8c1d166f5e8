"""`lora-merge`: adapters into a base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mergekit_cl.carry import find_carry
from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.digest import weights_digest
from mergekit_cl.errors import OptionError
from mergekit_cl.lora.adapter import Adapter
from mergekit_cl.lora.edits import Bias, Edit, LowRank
from mergekit_cl.lora.keymap import KeyMap
from mergekit_cl.lora.planning import Edited, by_tensor, plan_lora
from mergekit_cl.lora.refusals import check_base, check_config, informative
from mergekit_cl.lora.resolve import edits_of
from mergekit_cl.lora.tied import settle, tied_head, virtual, without_copies
from mergekit_cl.lora.undo import Undo, undo_record
from mergekit_cl.lora.undofile import FILE as UNDO_FILE
from mergekit_cl.lora.undofile import write_undo
from mergekit_cl.lora.vocabulary import new_vocabulary
from mergekit_cl.manifest import read_manifest
from mergekit_cl.methods.method import Method
from mergekit_cl.plan import Plan
from mergekit_cl.results import TensorResult


def lora_method(
    base: Checkpoint,
    adapters: Sequence[Adapter],
    *,
    scales: Sequence[float] | None,
    undo: Undo,
    allow_other_base: bool,
    carry: bool,
) -> Method:
    """Merge adapters into `base` at once, with one rounding.

    scales: one per adapter, on top of its own. undo: what the record holds to get the base back.
    Raises InputError and MismatchError for what cannot be merged, OptionError for other numbers of
    scales.
    """
    check_base(base)
    for adapter in adapters:
        check_config(adapter)
    resolved = _resolve_scales(scales, len(adapters))
    tied = tied_head(base)
    keys = KeyMap(base, virtual(base, tied))
    edits = [
        (adapter, without_copies(base, adapter, edits_of(adapter, base, keys, scale=scale), _equal))
        for adapter, scale in zip(adapters, resolved, strict=True)
    ]
    for (adapter, own), scale in zip(edits, resolved, strict=True):
        odd = [edit for edit in own if not isinstance(edit, (LowRank, Bias))]
        if scale != 1.0 and odd:
            raise OptionError(
                "a scale is defined for plain low-rank updates alone",
                detail=f"{adapter.path}: {odd[0].name}: {type(odd[0]).__name__.lower()}",
                hint="give this adapter the scale 1",
            )
    settled = settle(tied, edits, _equal)
    edited = by_tensor(settled.edits)
    rows = new_vocabulary(base, edited, settled.materialised)
    config: dict[str, object] = {} if rows is None else {"vocab_size": rows}
    if settled.unties:
        config["tie_word_embeddings"] = False
    own_carry = find_carry(base) if carry else None
    options = {
        "scales": list(resolved),
        "undo": undo,
        "allow_other_base": allow_other_base,
        "adapters": [
            {"config_digest": adapter.digest, "informative": informative(adapter.config)}
            for adapter in adapters
        ],
    }
    return Method(
        "lora-merge",
        options,
        [base],
        None,
        [None],
        notes=[
            *(note for adapter in adapters for note in _notes(adapter, base)),
            *(
                f"{head} was {anchor}; it is a tensor of its own now"
                for head, anchor in settled.materialised.items()
            ),
        ],
        carries=[own_carry],
        adapters=[adapter.checkpoint for adapter in adapters],
        planner=partial(
            plan_lora,
            base,
            edited,
            carry=own_carry,
            keeps_bits=undo == "xor",
            materialised=settled.materialised,
            config=config,
            tokenizer=None if rows is None else adapters[-1].path,
        ),
        base_digest=None if allow_other_base else _recorded_base(adapters),
        record=partial(_record, edited),
        beside=None if undo == "none" else partial(_beside, base, undo),
    )


def _equal(adapter: Adapter, first: str, second: str) -> bool:
    import torch

    one, other = (adapter.checkpoint.read(adapter.tensors[n].name) for n in (first, second))
    return torch.equal(one, other)


def _resolve_scales(given: Sequence[float] | None, count: int) -> tuple[float, ...]:
    scales = tuple(given) if given is not None else (1.0,) * count
    if len(scales) != count:
        raise OptionError(
            f"{count} adapters need {count} scales",
            detail=f"--scale {','.join(map(str, scales))}",
            hint="give one scale per adapter, in their order",
        )
    return scales


def _notes(adapter: Adapter, base: Checkpoint) -> list[str]:
    """PEFT stores the place that the base had in training: another one proves nothing."""
    trained = adapter.config.get("base_model_name_or_path")
    if not trained or str(trained).rstrip("/").rpartition("/")[2] == base.root.name:
        return []
    return [f"{adapter.path} says it was trained on {trained!s:.200}"]


def _recorded_base(adapters: Sequence[Adapter]) -> str | None:
    """The digest of the base that an adapter's own record names."""
    for adapter in adapters:
        made = read_manifest(adapter.path / "clmerge")
        for source in (made or {}).get("inputs", ()):
            if source.get("role") == "base" and source.get("weights_digest"):
                return str(source["weights_digest"])
    return None


def _record(
    edited: Mapping[str, Edited],
    plan: Plan,
    results: Mapping[str, TensorResult],
) -> dict[str, Any]:
    """What the manifest says of the edits."""
    rules = {}
    for name, one in edited.items():
        changes: list[tuple[Adapter, Edit]] = [(c.adapter, c.edit) for c in one.changes]
        if one.replaced is not None:
            changes.insert(0, one.replaced)
        # Experts in one stack are edited one by one, by one rule.
        told = dict.fromkeys((str(a.path), type(e).__name__.lower(), e.rule) for a, e in changes)
        rules[name] = [{"adapter": path, "edit": kind, "rule": rule} for path, kind, rule in told]
    made: dict[str, Any] = {"edits": {n: r for n, r in rules.items() if n in plan.steps}}
    return made


def _beside(
    base: Checkpoint,
    undo: Undo,
    out: Path,
    side: Path,
    plan: Plan,
    results: Mapping[str, TensorResult],
) -> dict[str, Any]:
    """What an unmerge needs: where the base is and its digests, and with "xor" its bits."""
    made = undo_record(undo, base, plan, results, out)
    if undo == "xor":
        entries = [(n, step.dtype, step.shape, results[n].digest) for n, step in plan.steps.items()]
        names, files = list(made["tensors"]), {name: base.root / name for name in made["files"]}
        digest = weights_digest(entries)
        with open_checkpoint(out) as merged:
            side.mkdir(exist_ok=True)
            path = side / UNDO_FILE
            written = write_undo(path, base, merged, names, files, weights_digest=digest)
        made["bytes"], made["digest"] = written
        made["tensor_bytes"] = sum(base.tensors[name].nbytes for name in names)
    return {"undo": made}
