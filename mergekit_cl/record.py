"""Results of a stream to and from JSON: the journal's lines and the manifest's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.divergence.sums import Sums, values_of
from mergekit_cl.layout import Layout
from mergekit_cl.manifest import FORMAT, describe_input, describe_output, versions
from mergekit_cl.methods.method import Method
from mergekit_cl.plan import Plan
from mergekit_cl.results import TensorResult


def to_entry(shard: str, results: Mapping[str, TensorResult]) -> dict[str, Any]:
    """The journal line of a finished shard."""
    tensors = {
        name: {
            "digest": result.digest,
            "operand_digests": result.operand_digests,
            "sums": [values_of(sums) for sums in result.sums],
        }
        for name, result in results.items()
    }
    return {"shard": shard, "tensors": tensors}


def from_entries(entries: list[dict[str, Any]], layout: Layout) -> dict[str, TensorResult]:
    """The results of every finished shard of a layout."""
    shards = {shard.file for shard in layout.shards}
    return {
        name: TensorResult(
            result["digest"],
            tuple(result["operand_digests"]),
            tuple(Sums(*sums) for sums in result["sums"]),
        )
        for entry in entries
        if entry["shard"] in shards
        for name, result in entry["tensors"].items()
    }


def input_digests(
    method: Method, plan: Plan, results: Mapping[str, TensorResult]
) -> list[dict[str, str]]:
    """Digests of every tensor of each source; one that was read in part is read once more."""
    found: dict[int, dict[str, str]] = {id(source): {} for _, source in method.sources()}
    for name, step in plan.steps.items():
        for operand, digest in zip(step.operands, results[name].operand_digests, strict=True):
            found[id(operand.checkpoint)][operand.info.name] = digest
    return [
        found[id(source)]
        if found[id(source)].keys() == source.tensors.keys()
        else checkpoint_digests(source)
        for _, source in method.sources()
    ]


def manifest(
    method: Method,
    plan: Plan,
    results: Mapping[str, TensorResult],
    options: Mapping[str, Any],
    target: str,
) -> dict[str, Any]:
    """Everything of the manifest but the verdict and what the run cost."""
    sources = zip(method.sources(), input_digests(method, plan, results), strict=True)
    return {
        "format": FORMAT,
        "command": method.command,
        "options": dict(options),
        "inputs": [describe_input(source, role, digests) for (role, source), digests in sources],
        "outputs": [
            describe_output(plan.layout, {n: r.digest for n, r in results.items()}, target)
        ],
        "tensors": {
            name: {
                "digest": results[name].digest,
                "dtype": step.dtype,
                "shape": list(step.shape),
                "action": step.action,
            }
            for name, step in plan.steps.items()
        },
        "versions": versions(),
    }
