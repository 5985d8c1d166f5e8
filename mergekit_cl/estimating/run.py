"""`clmerge fisher` step by step: rows, model, batches, sidecar. Read it top to bottom."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.checkpoint.dtypes import long_name, torch_dtype
from mergekit_cl.device import choose_device
from mergekit_cl.digest import weights_digest
from mergekit_cl.errors import ClmergeError, FormatError, Interrupted, OptionError, OutputError
from mergekit_cl.estimating.request import FisherOutcome, FisherRequest
from mergekit_cl.estimating.state import load_state, save_state
from mergekit_cl.estimating.store import store
from mergekit_cl.interrupts import deferred_interrupts
from mergekit_cl.manifest import versions
from mergekit_cl.output.staging import Staging
from mergekit_cl.output.target import check_room
from mergekit_cl.report.progress import Start
from mergekit_cl.sidecar import NAMES, Sidecar, open_sidecar
from mergekit_cl.uptodate import checkpoint_digests

if TYPE_CHECKING:
    from fisher.accumulator import Accumulator, Estimate
    from mergekit_cl.training.choose import Choice
    from mergekit_cl.training.encode import Encoded
    from mergekit_cl.training.model import BuiltModel

SECONDS_BETWEEN_SAVES = 30.0
EXACT_CLASSES = 64
Tell = Callable[[str], None]


def run_fisher(request: FisherRequest, progress: Start, tell: Tell) -> FisherOutcome:
    """Estimate a model's Fisher and publish its sidecar.

    progress: (title, total, unit) -> advance. tell: for what people should know on the way.
    Raises InputError, DataError or OptionError before anything is computed where that is possible.
    """
    from mergekit_cl.training.choose import choose
    from mergekit_cl.training.data import read_rows

    started = time.perf_counter()
    with open_checkpoint(request.model) as checkpoint:
        target = sidecar_target(checkpoint, request.target)
        rows = read_rows(
            request.data, text_field=request.text_field, label_field=request.label_field
        )
        choice = choose(rows, request.samples, request.seed)
        digests = checkpoint_digests(checkpoint)
        described = describe_run(request, checkpoint, choice, digests)
        existing = existing_sidecar(target)
        if existing is not None and _is_same(existing, described):
            return FisherOutcome(
                target, "up to date", existing.metadata, (), 0.0, existing.checkpoint.nbytes
            )
        _check_replaceable(target, existing, described["weights_digest"], request)
        built, encoded = _prepare(request, checkpoint, choice)
        batch_size = request.batch_size or _auto_batch_size(built, encoded)
        estimator = request.estimator or default_estimator(built.kind, checkpoint.config)
        check_room(target, checkpoint.nbytes)
        staging = _open_staging(target, {**described, "batch_size": batch_size}, request)
        try:
            accumulator = _accumulate(
                request, built, encoded, estimator, batch_size, staging, progress, tell
            )
            estimate = accumulator.result()
            metadata = _metadata(request, built, encoded, estimate, described)
            written = _publish(request, checkpoint, built, estimate, metadata, digests, staging)
        except Interrupted as error:
            error.hint = f"the same command continues; what is done is kept in {staging.place}"
            raise
        except ClmergeError:
            staging.discard()
            raise
        except OSError as error:
            raise OutputError(
                "writing failed",
                detail=f"{staging.place}: {error.strerror or error}",
                hint="mend that and give the same command again: what is done is kept",
            ) from error
        finally:
            staging.close()
        nbytes = sum(entry["count"] for entry in written["tensors"].values())
        return FisherOutcome(
            target,
            "published",
            written,
            _notes(request, choice, encoded, accumulator),
            time.perf_counter() - started,
            nbytes * (2 if request.store_dtype == "BF16" else 4),
        )


def sidecar_target(checkpoint: Checkpoint, given: Path | None) -> Path:
    """Where the sidecar goes; raises OutputError where the model's folder cannot be written."""
    target = given or checkpoint.side_folder / NAMES[0]
    if target.suffix != ".safetensors":
        raise OptionError(
            "a sidecar is a .safetensors file",
            detail=f"-o {target}",
            hint=f"-o {target}.safetensors",
        )
    folder = target.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise OutputError(
            "the model's folder cannot be written to",
            detail=str(target),
            hint=f"clmerge fisher {checkpoint.path} --data ... -o fisher.safetensors, "
            "then clmerge fisher-merge ... --fisher fisher.safetensors",
        )
    return target


def describe_run(
    request: FisherRequest, checkpoint: Checkpoint, choice: Choice, digests: dict[str, str]
) -> dict[str, Any]:
    """Everything that decides the sidecar's values; equal for equal results on one machine."""
    from mergekit_cl.training.data import data_digest

    entries = [(t.name, t.dtype, t.shape, digests[t.name]) for t in checkpoint.tensors.values()]
    adapter = None
    if request.adapter is not None:
        with open_checkpoint(_adapter_weights(request.adapter)) as opened:
            named = checkpoint_digests(opened)
            adapter = weights_digest(
                [(t.name, t.dtype, t.shape, named[t.name]) for t in opened.tensors.values()]
            )
    return {
        "weights_digest": weights_digest(entries),
        "data_digest": data_digest(row.id for row in choice.rows),
        "options": {
            "adapter": adapter,
            "estimator": request.estimator,
            "draws": request.draws,
            "max_length": request.max_length,
            "seed": request.seed,
            "batch_size": request.batch_size,
            "store_dtype": long_name(request.store_dtype),
            "compute_dtype": long_name(request.compute_dtype),
            "include": list(request.selection.include),
            "exclude": list(request.selection.exclude),
        },
    }


def existing_sidecar(target: Path) -> Sidecar | None:
    """The sidecar already at a place, whole or sharded; None where there is none that opens."""
    for path in (target, target.with_name(target.name + ".index.json")):
        if path.is_file():
            try:
                return open_sidecar(path)
            except FormatError:
                return None
    return None


def default_estimator(kind: str, config: dict[str, Any] | None) -> str:
    """`exact` for classifiers of at most 64 classes, else `mc`."""
    from mergekit_cl.training.labels import class_names

    if kind == "classifier" and len(class_names(config or {})) <= EXACT_CLASSES:
        return "exact"
    return "mc"


def _prepare(
    request: FisherRequest, checkpoint: Checkpoint, choice: Choice
) -> tuple[BuiltModel, Encoded]:
    import torch

    from mergekit_cl.training.encode import encode
    from mergekit_cl.training.model import build
    from mergekit_cl.training.tokenizer import load_tokenizer, pad_id

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    device = choose_device(request.device)
    if request.device == "auto" and torch.cuda.is_available():
        device = torch.device("cuda")
    _check_memory(request, checkpoint)
    tokenizer = load_tokenizer(checkpoint.root)
    config = checkpoint.config or {}
    built = build(
        checkpoint,
        adapter=request.adapter,
        dtype=torch_dtype(request.compute_dtype),
        device=device,
        pad_id=pad_id(tokenizer, config),
    )
    encoded = encode(
        choice.rows, tokenizer, task=built.kind, config=config, max_length=request.max_length
    )
    return built, encoded


def _accumulate(
    request: FisherRequest,
    built: BuiltModel,
    encoded: Encoded,
    estimator: str,
    batch_size: int,
    staging: Staging,
    progress: Start,
    tell: Tell,
) -> Accumulator:
    """Every batch into the sums, from where an interrupted run stopped."""
    from fisher.accumulator import Accumulator
    from fisher.errors import FisherError
    from mergekit_cl.report.amounts import duration

    def counts(parameter: str) -> bool:
        return any(name in request.selection for name in built.files_of(parameter))

    saved = staging.place / "state.safetensors"
    try:
        accumulator = Accumulator(
            built.model, estimator=estimator, draws=request.draws, seed=request.seed, include=counts
        )
        done = load_state(saved, accumulator)
        advance = progress("fisher", len(encoded.rows), "rows")
        advance(accumulator.examples)
        began = told = time.perf_counter()
        for number, batch in enumerate(encoded.batches(batch_size, start=done), done + 1):
            with deferred_interrupts() as caught:
                accumulator.add(batch)
                advance(len(batch))
                now = time.perf_counter()
                if number == done + 1:
                    left = len(encoded.rows) - accumulator.examples
                    expected = duration((now - began) / len(batch) * left)
                    tell(f"about {expected} left for {left} rows, judged by the first batch")
                if caught() or now - told > SECONDS_BETWEEN_SAVES:
                    save_state(saved, accumulator, number)
                    told = time.perf_counter()
                if (number_caught := caught()) is not None:
                    raise Interrupted(number_caught)
    except FisherError as error:
        raise OptionError(
            str(error), detail=str(request.model), hint="clmerge fisher --help"
        ) from error
    return accumulator


def _metadata(
    request: FisherRequest,
    built: BuiltModel,
    encoded: Encoded,
    estimate: Estimate,
    described: dict[str, Any],
) -> dict[str, Any]:
    missing = dict(built.missing)
    for parameter, reason in estimate.missing.items():
        missing.update(dict.fromkeys(built.files_of(parameter), reason))
    return {
        **described,
        "estimator": estimate.estimator,
        "draws": estimate.draws,
        "level": "sequence" if built.kind == "causal-lm" else "example",
        "unit": "per_example",
        "examples": estimate.examples,
        "tokens": estimate.tokens,
        "max_length": encoded.max_length,
        "seed": request.seed,
        "mean_nll": estimate.mean_nll,
        "missing": missing,
        "tied": dict(built.tied),
        "calibration": None,
        "compute_dtype": long_name(request.compute_dtype),
        "versions": versions(),
    }


def _publish(
    request: FisherRequest,
    checkpoint: Checkpoint,
    built: BuiltModel,
    estimate: Estimate,
    metadata: dict[str, Any],
    digests: dict[str, str],
    staging: Staging,
) -> dict[str, Any]:
    errors = _standard_errors(built, estimate)
    described = {
        name: {"digest": digests[name], "standard_error": errors.get(name)}
        for name in checkpoint.tensors
    }
    diagonal = (
        (name, values)
        for name, values in built.by_file(estimate.diagonal)
        if name in request.selection
    )
    target = staging.target
    layout, whole = store(
        staging.out,
        checkpoint,
        diagonal,
        metadata,
        described,
        dtype=request.store_dtype,
        stem=target.name.removesuffix(".safetensors"),
        shard_size=request.shard_size,
    )
    names = [shard.file for shard in layout.shards]
    names += [layout.index_name] if layout.index is not None else []
    staging.publish_over(target.parent, tuple(names))
    other = target.name if layout.index is not None else layout.index_name
    (target.parent / other).unlink(missing_ok=True)
    return whole


def _standard_errors(built: BuiltModel, estimate: Estimate) -> dict[str, float | None]:
    """By file tensor, where a parameter is one whole tensor of the file; else unknown."""
    return {
        built.names[parameter]: error
        for parameter, error in estimate.standard_error.items()
        if parameter in built.names
    }


def _open_staging(target: Path, identity: dict[str, Any], request: FisherRequest) -> Staging:
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Staging(target, side_folder=target.parent)
    staging.open({"command": "fisher", **identity}, restart=request.restart)
    return staging


def _check_replaceable(
    target: Path, existing: Sidecar | None, digest: str, request: FisherRequest
) -> None:
    """A sidecar of weights that are no longer there may go; anything else needs --force."""
    if not target.exists() or request.force:
        return
    if existing is not None and existing.metadata.get("weights_digest") != digest:
        return
    raise OutputError(
        "the sidecar exists and was made with other options or data",
        detail=str(target),
        hint="add --force to replace it, or choose another -o",
    )


def _is_same(existing: Sidecar, described: dict[str, Any]) -> bool:
    return all(existing.metadata.get(key) == value for key, value in described.items())


def _check_memory(request: FisherRequest, checkpoint: Checkpoint) -> None:
    needed = memory_needed(request, checkpoint)
    if request.memory is not None and needed > request.memory:
        raise OptionError(
            "the memory limit is below what the weights and their Fisher take",
            detail=f"--memory {request.memory}: {needed} bytes are needed",
            hint="give more, or --compute-dtype bfloat16",
        )


def memory_needed(request: FisherRequest, checkpoint: Checkpoint) -> int:
    """Bytes of weights and float32 sums; activations come on top."""
    weights = sum(tensor.numel for tensor in checkpoint.tensors.values())
    return weights * (torch_dtype(request.compute_dtype).itemsize + 4)


def _auto_batch_size(built: BuiltModel, encoded: Encoded) -> int:
    from mergekit_cl.training.encode import auto_batch_size

    return auto_batch_size(built.parameters, encoded.longest)


def _adapter_weights(folder: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise OptionError(
        "the folder holds no adapter",
        detail=f"--adapter {folder}: no adapter_model.safetensors",
        hint="give the directory that PEFT's save_pretrained wrote",
    )


def _notes(
    request: FisherRequest, choice: Choice, encoded: Encoded, accumulator: Accumulator
) -> tuple[str, ...]:
    notes = []
    if len(choice.rows) < request.samples:
        notes.append(f"only {len(choice.rows)} different rows, {request.samples} were asked for")
    if encoded.truncated:
        notes.append(f"{encoded.truncated} rows were cut at {encoded.max_length} tokens")
    if encoded.dropped:
        notes.append(f"{encoded.dropped} rows have no token to predict and were left out")
    if accumulator.single_because is not None:
        notes.append(f"rows were taken one at a time: {accumulator.single_because}")
    return tuple(notes)
