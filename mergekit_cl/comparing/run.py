"""A comparison from paths to a report: pair, read, take what was recorded, measure, judge."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.comparing.baseline import split
from mergekit_cl.comparing.made import find_made, is_of, with_recorded
from mergekit_cl.comparing.pairing import Pairing, check_selection, pair
from mergekit_cl.comparing.parents import (
    comparisons_of,
    digests_of,
    is_stale,
    open_sidecars,
    path_in,
    sums_of,
)
from mergekit_cl.comparing.reading import choose_workers, read_all
from mergekit_cl.comparing.report import Overlap, Report, Request
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.divergence.summary import Divergence, summarise
from mergekit_cl.divergence.verdict import Finding, broken, conclude
from mergekit_cl.report.progress import Start
from mergekit_cl.sidecar import Sidecar, parent_of

if TYPE_CHECKING:
    from mergekit_cl.comparing.measured import Measured


def compare(request: Request, progress: Start) -> Report:
    """Compare a checkpoint with its parents.

    Raises InputError for what cannot be read, MismatchError where nothing is in common or a sidecar
    belongs to another model, NonFiniteError, and OptionError for what was asked wrongly.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        merged = stack.enter_context(open_checkpoint(request.merged))
        parents = [stack.enter_context(open_checkpoint(path)) for path in request.parents]
        check_selection(request.selection, [merged, *parents])
        pairings = [pair(merged, parent, request.selection) for parent in parents]
        sidecars = open_sidecars(parents, request.fishers, stack)
        base = None if request.base is None else stack.enter_context(open_checkpoint(request.base))
        comparisons = comparisons_of(merged, parents, pairings, sidecars, base)
        nbytes = sum(comparison.nbytes for comparison in comparisons)
        read = read_all(
            comparisons,
            workers=choose_workers(comparisons, request.threads, request.memory),
            allow_nonfinite=request.allow_nonfinite,
            advance=progress("compare", nbytes),
        )
        digests = digests_of(pairings, read)
        stale = [is_stale(one, found) for one, found in zip(sidecars, digests, strict=True)]
        fresh = [None if old else one for one, old in zip(sidecars, stale, strict=True)]
        found = summarise(
            sums_of(pairings, read),
            [parent_of(str(parent.path), one) for parent, one in zip(parents, fresh, strict=True)],
        )
        made = find_made(merged)
        if made is not None and is_of(made, merged, {n: one.digest for n, one in read.items()}):
            paths = [path_in(made, p, d) for p, d in zip(parents, digests, strict=True)]
            found = with_recorded(found, made, paths)
            carried = made.carried
        else:
            carried = False
        described = {name: (one.dtype, one.shape) for name, one in merged.tensors.items()}
        overlaps = tuple(map(_overlap, [merged] * len(parents), parents, pairings))
        measured = _measure(request, merged, parents, progress)
    found = _with_model_values(found, overlaps, measured)
    failing = broken(
        found.model, found.tensors, found.layers, policy=request.policy, carried=carried
    )
    known: tuple[Finding, ...] = ()
    if request.baseline is not None:
        names = [parent.path for parent in found.parents]
        failing, known = split(failing, request.baseline, names, request.policy.tolerance)
    return Report(
        merged=str(merged.path),
        divergence=replace(found, verdict=conclude(failing)),
        overlaps=overlaps,
        findings=failing,
        known=known,
        policy=request.policy,
        baseline=None if request.baseline is None else request.baseline.path,
        measured=measured,
        notes=tuple(_notes(parents, sidecars, stale, measured)),
        nbytes=nbytes,
        seconds=time.perf_counter() - started,
        described=described,
    )


def _overlap(merged: Checkpoint, parent: Checkpoint, pairing: Pairing) -> Overlap:
    differing: tuple[str, ...] = ()
    if pairing.others:
        ours = checkpoint_digests(merged, names=set(pairing.others))
        theirs = checkpoint_digests(parent, names=set(pairing.others.values()))
        differing = tuple(
            name
            for name, other in pairing.others.items()
            if ours[name] != theirs[other]
            or merged.tensors[name].dtype != parent.tensors[other].dtype
        )
    return Overlap(str(parent.path), pairing, differing)


def _measure(
    request: Request, merged: Checkpoint, parents: Sequence[Checkpoint], progress: Start
) -> Measured | None:
    if request.data is None:
        return None
    import torch

    from mergekit_cl.comparing.measuring import measure

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    return measure(merged, parents, request.data, request.device, progress)


def _with_model_values(
    divergence: Divergence, overlaps: Sequence[Overlap], measured: Measured | None
) -> Divergence:
    rises = [
        None if measured is None or (rise := measured.parents[k].rise) is None else rise.value
        for k in range(len(overlaps))
    ]
    model = tuple(
        replace(one, loss_rise=rise, missing=len(overlap.pairing.only_parent))
        for one, rise, overlap in zip(divergence.model, rises, overlaps, strict=True)
    )
    return replace(divergence, model=model)


def _notes(
    parents: Sequence[Checkpoint],
    sidecars: Sequence[Sidecar | None],
    stale: Sequence[bool],
    measured: Measured | None,
) -> Iterator[str]:
    for parent, sidecar, old in zip(parents, sidecars, stale, strict=True):
        if sidecar is not None and old:
            yield (
                f"the Fisher sidecar of {parent.path} was taken at other weights: it predicts "
                "nothing (clmerge fisher makes a new one)"
            )
    if measured is not None and measured.truncated:
        yield f"{measured.truncated} rows were cut"
