"""`--base`: what the Fisher predicts between a model and its base beside what it really is.

A second pass over the same rows, after the sums are done: the base takes their room in memory.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.checkpoint.dtypes import torch_dtype
from mergekit_cl.errors import DataError, Interrupted, MismatchError
from mergekit_cl.estimating.company import Company
from mergekit_cl.estimating.request import FisherRequest
from mergekit_cl.interrupts import deferred_interrupts
from mergekit_cl.report.progress import Start

if TYPE_CHECKING:
    from fisher.accumulator import Estimate
    from fisher.calibration import Measured
    from mergekit_cl.training.architecture import Task
    from mergekit_cl.training.encode import Encoded
    from mergekit_cl.training.model import BuiltModel


def measure(
    request: FisherRequest,
    base: Checkpoint,
    built: BuiltModel,
    rows: Encoded,
    batch_size: int,
    among: Company,
    progress: Start,
) -> tuple[Measured, BuiltModel]:
    """KL(model || base) over `rows`, shared among all processes; gives the base's model, too."""
    from fisher.calibration import Measured, divergences, together
    from fisher.errors import FisherError
    from mergekit_cl.training.model import build

    other = build(
        base,
        task=built.kind,
        dtype=torch_dtype(request.compute_dtype),
        device=next(built.model.parameters()).device,
        pad_id=rows.pad_id,
    )
    mine = replace(rows, rows=among.share(rows.rows))
    advance = progress("divergence from the base", len(mine.rows), "rows")
    measured = Measured()
    try:
        for batch in mine.batches(batch_size):
            with deferred_interrupts() as caught:
                measured.add(batch, divergences(built.model, other.model, batch))
                advance(len(batch))
                if (signal := caught() or among.interrupted()) is not None:
                    raise Interrupted(signal)
    except FisherError as error:
        raise DataError(str(error), detail=f"{request.model} and --base {request.base}") from error
    return together([Measured(**part) for part in among.exchange(asdict(measured))]), other


def describe(
    measured: Measured, other: BuiltModel, estimate: Estimate, built: BuiltModel
) -> dict[str, Any]:
    """The keys `calibration` and `calibrated` of docs/sidecar.md.

    `calibration` is null where nothing was predicted.
    """
    from fisher.calibration import predicted

    expected = predicted(estimate.diagonal, built.model, other.model)
    per_token = measured.examples / measured.tokens
    return {
        "calibration": measured.mean / expected if expected > 0 else None,
        "calibrated": {
            "measured": measured.mean,
            "measured_per_token": measured.mean * per_token,
            "measured_standard_error": measured.standard_error,
            "predicted": expected,
            "predicted_per_token": expected * per_token,
            "examples": measured.examples,
            "tokens": measured.tokens,
        },
    }


def check_base(model: Checkpoint, base: Checkpoint) -> None:
    """Refuse, before anything is computed, a base that the model cannot be compared with.

    From headers and config.json; raises MismatchError.
    """
    mine, theirs = model.config or {}, base.config or {}
    for key in ("model_type", "architectures", "vocab_size"):
        _same(model, base, key, mine.get(key), theirs.get(key))
    shapes, others = ({n: list(t.shape) for n, t in c.tensors.items()} for c in (model, base))
    for name in [*shapes, *others]:
        _same(model, base, name, shapes.get(name, "nothing"), others.get(name, "nothing"))


def check_meaning(model: Checkpoint, base: Checkpoint, kind: Task, encoded: Encoded) -> None:
    """Refuse a base to which the rows' tokens, or the classes, mean something else.

    A base without a tokenizer passes; so does one that differs in tokens no row has.
    """
    from mergekit_cl.training.labels import class_names
    from mergekit_cl.training.tokenizer import FILES, load_tokenizer

    if kind == "classifier":
        mine, theirs = (class_names(checkpoint.config or {}) for checkpoint in (model, base))
        _same(model, base, "classes", mine, theirs)
    if not any((base.root / name).is_file() for name in FILES):
        return
    used = sorted({token for row in encoded.rows for token in row.ids})
    names = (load_tokenizer(place.root).convert_ids_to_tokens(used) for place in (model, base))
    for token, one, two in zip(used, *names, strict=True):
        _same(model, base, f"token {token}", one, two)


def _same(model: Checkpoint, base: Checkpoint, what: str, mine: Any, theirs: Any) -> None:
    if mine != theirs:
        raise MismatchError(
            "the base is another kind of model, so the two cannot be compared",
            detail=f"{what}: {model.path} has {mine}, --base {base.path} has {theirs}",
            hint="give the model that this one was fine-tuned from",
        )
