"""A merge from opened inputs to a published output: plan, stream, record, publish."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergekit_cl.architectures import compare_configs
from mergekit_cl.compiling import needs_torch
from mergekit_cl.completing import write_beside
from mergekit_cl.computing import Computing, Limits, choose_computing
from mergekit_cl.continuing import finished_tensors, open_carry
from mergekit_cl.decide.policy import DEFAULT, Policy
from mergekit_cl.divergence.apart import far_apart
from mergekit_cl.divergence.summary import Divergence, summarise, verdict_to_json
from mergekit_cl.errors import ClmergeError, Interrupted, OutputError
from mergekit_cl.freshness import StaleFisherCheck, check_recorded, check_twins, stale_sidecars
from mergekit_cl.identity import describe_run, is_next_update
from mergekit_cl.inplace import check_in_place
from mergekit_cl.layout import Shard
from mergekit_cl.manifest import read_manifest
from mergekit_cl.memory import peak_memory_bytes
from mergekit_cl.methods.linear import report_operands
from mergekit_cl.methods.method import Method
from mergekit_cl.native.kernel import can_compile
from mergekit_cl.output.shards import ShardFiles
from mergekit_cl.output.staging import Staging
from mergekit_cl.output.target import (
    check_apart,
    check_replaceable,
    check_room,
    is_single_file,
    side_folder,
)
from mergekit_cl.partial import WholeDigests
from mergekit_cl.plan import Operand, Plan, Selection, Step, plan_merge
from mergekit_cl.record import manifest, to_entry
from mergekit_cl.report.progress import Start
from mergekit_cl.results import TensorResult
from mergekit_cl.sidecar import parent_of
from mergekit_cl.stream import StreamOptions, run_stream
from mergekit_cl.unchanged import check_inputs, check_stamps, marks
from mergekit_cl.uptodate import recorded_run
from mergekit_cl.vocabulary import Vocab


@dataclass(frozen=True)
class OutputOptions:
    """Where a merge goes and how it runs; bytes and counts are plain integers.

    dtype: safetensors spelling, None keeps the inputs'. allow_stale: take Fisher sidecars of other
    weights. carry: keep what rounding takes from 16-bit outputs. in_place: the target is the first
    input, replaced whole. vocab: what vocabularies of different sizes come to. policy: what
    counts as lossy.
    """

    target: Path
    force: bool = False
    restart: bool = False
    dtype: str | None = None
    device: str = "auto"
    shard_size: int = 5 * 10**9
    memory: int | None = None
    threads: int | None = None
    selection: Selection = field(default_factory=Selection)
    report: bool = True
    strict: bool = False
    publish_anyway: bool = False
    allow_nonfinite: bool = False
    allow_stale: bool = False
    carry: bool = False
    in_place: bool = False
    vocab: Vocab = "error"
    policy: Policy = DEFAULT


@dataclass(frozen=True)
class MergeOutcome:
    """What a merge did; `divergence` is None without a report or when nothing had to be done.

    device: what computed it, and why that; None when nothing had to be done.
    """

    target: Path | str
    state: str  # "published", "refused" (lossy under --strict) or "up to date"
    manifest: Mapping[str, Any]
    divergence: Divergence | None
    notes: tuple[str, ...]
    seconds: float
    bytes_moved: int
    device: Mapping[str, str] | None = None

    @property
    def lossy(self) -> bool:
        """Whether the verdict is lossy."""
        return bool((self.manifest.get("verdict") or {}).get("lossy"))


def make_plan(method: Method, options: OutputOptions) -> Plan:
    """Decide everything that headers decide; refuses what can be refused without data."""
    apart = [source for _, source in method.sources()]
    if options.in_place:
        check_in_place(method.checkpoints[0])
        own = [method.checkpoints[0], *(carry.checkpoint for carry in method.carries if carry)]
        own += [sidecar.checkpoint for sidecar in method.sidecars[:1] if sidecar]
        places = {one.here.resolve() for one in own if one.here is not None}
        apart = [one for one in apart if one.here is None or one.here.resolve() not in places]
    check_apart(options.target, apart)
    notes = [*compare_configs(method.checkpoints), *method.notes]
    # One file was asked for: no limit on its size.
    shard_size = 2**63 if is_single_file(options.target) else options.shard_size
    keep_residuals = method.updates if options.carry else None
    if method.planner is not None:
        return method.planner(
            selection=options.selection,
            dtype=options.dtype,
            shard_size=shard_size,
            notes=notes,
            keep_residuals=keep_residuals,
            allow_nonfinite=options.allow_nonfinite,
        )
    assert method.recipe is not None

    def fishers(name: str, before: int) -> tuple[tuple[Operand, ...], tuple[int | None, ...]]:
        return report_operands(name, before, method.sidecars)

    return plan_merge(
        method.checkpoints,
        method.recipe,
        selection=options.selection,
        dtype=options.dtype,
        shard_size=shard_size,
        notes=notes,
        newest_integers=method.newest_integers,
        carries=method.carries,
        keep_residuals=keep_residuals,
        vocab=options.vocab,
        fishers=fishers if options.report else None,
    )


def describe_plan(method: Method, plan: Plan, options: OutputOptions) -> dict[str, Any]:
    """What `--dry-run` prints."""
    actions = [step.action for step in plan.steps.values()]
    how = _computing(method, plan, options)
    return {
        "command": method.command,
        "output": str(options.target),
        "tensors": {"merged": actions.count("merged"), "copied": actions.count("copied")},
        "files": [shard.file for shard in plan.layout.shards],
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "buffer_bytes": how.buffer_bytes,
        "workers": how.workers,
        "device": _told(how),
        "notes": list(plan.notes),
    }


def run_merge(method: Method, options: OutputOptions, progress: Start) -> MergeOutcome:
    """Merge, measure and publish; an identical finished run is only confirmed.

    Bad input leaves nothing behind; an interruption or a full disk leaves what the same command
    needs to continue.
    """
    started = time.perf_counter()
    plan = make_plan(method, options)
    compiled = can_compile()
    if needs_torch(plan, compiled=compiled, report=options.report):
        started += _load_torch()
    recorded = recorded_options(method, options)
    single = is_single_file(options.target)
    staging = Staging(options.target, side_folder=side_folder(options.target) if single else None)
    identity = describe_run(method, recorded, options.target)
    completed = staging.complete()
    if completed is not None:
        staging.discard()
    if not options.in_place:
        done = recorded_run(method, recorded, options.target)
    else:
        # It changes its own input: given again it is the next update, unless it was killed while
        # it was published.
        again = completed is not None and is_next_update(completed, identity, options.target)
        done = read_manifest(side_folder(options.target)) if again else None
    if done is not None:
        staging.clear(identity)
        spent = time.perf_counter() - started
        return MergeOutcome(options.target, "up to date", done, None, plan.notes, spent, 0)
    if not options.in_place:
        check_replaceable(options.target, force=options.force)
    check_room(options.target, plan.bytes_written + plan.beside_bytes, taken=staging.taken())
    with_what = _computing(method, plan, options)
    how = StreamOptions(
        with_what.device,
        with_what.workers,
        options.report,
        options.allow_nonfinite,
        with_what.ring,
        compiled,
    )
    staging.open(identity, restart=options.restart)
    try:
        whole = WholeDigests(plan)
        streamed = _stream(method, plan, options, how, staging, progress, whole)
        results = whole.complete_all(plan, streamed)
        stale = frozenset() if options.allow_stale else stale_sidecars(method, plan, results)
        notes = (*plan.notes, *_stale_notes(method, stale))
        divergence = None
        if options.report:
            divergence = _divergence(method, plan, results, stale, options.policy)
            notes += tuple(far_apart(divergence)) if method.recipe is not None else ()
        made = manifest(method, plan, results, recorded, str(options.target))
        check_inputs(method, plan, results)
        check_recorded(method, made)
        if method.updates:
            made["updates"] = method.updates
        if method.record is not None:
            made.update(method.record(plan, results))
        made["verdict"] = None if divergence is None else verdict_to_json(divergence)
        made["seconds"] = round(time.perf_counter() - started, 3)
        made["peak_memory_bytes"] = peak_memory_bytes()
        refused = options.strict and bool((made["verdict"] or {}).get("lossy"))
        if refused and not options.publish_anyway:
            staging.discard()
            state = "refused"
        else:
            notes += write_beside(method, plan, options, staging.out, results, made, divergence)
            staging.publish()
            state = "published"
    except Interrupted as error:
        staging.close()
        error.hint = f"the same command continues; what is done is kept in {staging.place}"
        raise
    except OSError as error:
        staging.close()
        raise OutputError(
            "writing failed",
            detail=f"{staging.place}: {error.strerror or error}",
            hint="mend that and give the same command again: what is done is kept",
        ) from error
    except ClmergeError:
        staging.discard()
        raise
    finally:
        staging.close()
    spent = time.perf_counter() - started
    moved = plan.bytes_read + plan.bytes_written
    told = _told(with_what)
    return MergeOutcome(options.target, state, made, divergence, notes, spent, moved, told)


def _load_torch() -> float:
    """Seconds it took, which are no part of a merge's speed."""
    started = time.perf_counter()
    import torch  # noqa: F401

    return time.perf_counter() - started


def _computing(method: Method, plan: Plan, options: OutputOptions) -> Computing:
    limits = Limits(options.device, options.threads, options.memory)
    averages = method.command == "linear-merge"
    return choose_computing(limits, plan, report=options.report, averages=averages)


def _told(how: Computing) -> dict[str, str]:
    return {"name": str(how.device), "reason": how.reason}


def _stream(
    method: Method,
    plan: Plan,
    options: OutputOptions,
    how: StreamOptions,
    staging: Staging,
    progress: Start,
    whole: WholeDigests,
) -> dict[str, TensorResult]:
    files = ShardFiles(staging.out, plan.layout)
    carry = open_carry(plan, staging.out / side_folder(options.target).name)
    lost = carry is not None and carry[1]  # then residuals of finished tensors would be missing
    finished = {} if lost else finished_tensors(method, plan, staging.journal, files)
    skipped = sum(
        operand.info.nbytes for name in finished for operand in plan.steps[name].operands
    ) + sum(s.header.file_bytes for s in plan.layout.shards if s.header.tensors[0].name in finished)
    check = StaleFisherCheck(method, allow=options.allow_stale)

    def check_tensor(step: Step, result: TensorResult) -> None:
        check_twins(step, result)
        check(step, result)

    advance = progress(method.command, plan.bytes_read + plan.bytes_written)
    if skipped:
        advance(skipped)

    def record(shard: Shard, results: Mapping[str, TensorResult]) -> None:
        check_stamps(method)
        staging.journal.append({**to_entry(shard.file, results), "inputs": marks(method)})

    return run_stream(
        plan,
        files,
        how,
        carry=None if carry is None else carry[0],
        finished=finished,
        on_tensor=lambda step, result: check_tensor(step, whole.complete(step, result)),
        on_shard=record,
        advance=advance,
    )


def _divergence(
    method: Method,
    plan: Plan,
    results: Mapping[str, TensorResult],
    stale: frozenset[int],
    policy: Policy,
) -> Divergence:
    parents = []
    for k, (checkpoint, sidecar) in enumerate(
        zip(method.checkpoints, method.sidecars, strict=True)
    ):
        parents.append(parent_of(str(checkpoint.path), None if k in stale else sidecar))
    merged = {name: results[name].sums for name, step in plan.steps.items() if step.parents}
    found = summarise(merged, parents, policy=policy, carried=plan.carry is not None)
    return replace(found, sweep=method.sweep)


def _stale_notes(method: Method, stale: frozenset[int]) -> list[str]:
    return [
        f"the Fisher sidecar of {method.checkpoints[k].path} was taken at other weights: "
        "it predicts nothing (clmerge fisher makes a new one)"
        for k in sorted(stale)
    ]


def recorded_options(method: Method, options: OutputOptions) -> dict[str, Any]:
    """Options that decide the bytes of the output and its companions."""
    return {
        **method.options,
        "dtype": options.dtype,
        "shard_size": None if is_single_file(options.target) else options.shard_size,
        "include": list(options.selection.include),
        "exclude": list(options.selection.exclude),
        "report": options.report,
        "allow_nonfinite": options.allow_nonfinite,
        "allow_stale_fisher": options.allow_stale,
        "carry": options.carry,
        "vocab": options.vocab,
        "policy": options.policy.to_json(),
    }
