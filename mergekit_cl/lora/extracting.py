"""`lora-extract` from two checkpoints to a published adapter, one tensor at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.compatible import check_mergeable, check_same_tensors
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import ClmergeError, MismatchError, OutputError
from mergekit_cl.lora.adapter import CONFIG, PREFIX
from mergekit_cl.lora.adapterfile import AdapterFile
from mergekit_cl.lora.difference import Candidate, candidates, difference_of
from mergekit_cl.lora.extract import Factors, factors_of
from mergekit_cl.lora.forms import stores_transposed
from mergekit_cl.manifest import FORMAT, describe_input, read_manifest, versions, write_json
from mergekit_cl.output.staging import Staging
from mergekit_cl.output.target import check_apart, check_replaceable, side_folder
from mergekit_cl.plan import Selection
from mergekit_cl.report.progress import Start

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
FACTORS = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
}


@dataclass(frozen=True)
class ExtractRequest:
    """What to extract, and where to.

    rank: of each pair of factors, or energy: the share of each difference's square to keep.
    embeddings: factor those too. save_rest: keep changed norms and the like whole.
    """

    tuned: Checkpoint
    base: Checkpoint
    target: Path
    rank: int | None
    energy: float | None
    embeddings: bool = False
    save_rest: bool = False
    selection: Selection = field(default_factory=Selection)
    force: bool = False
    restart: bool = False

    def options(self) -> dict[str, Any]:
        """What decides the bytes of the adapter."""
        return {
            "rank": self.rank,
            "energy": self.energy,
            "embeddings": self.embeddings,
            "save_rest": self.save_rest,
            "include": list(self.selection.include),
            "exclude": list(self.selection.exclude),
        }


class Extracted(NamedTuple):
    """One tensor that changed. rank: None where it is saved whole or left out, which `kept` says.

    norm: Frobenius norm of the difference. error: of what the adapter does not hold of it.
    """

    name: str
    kept: str  # "factors", "whole" or "left out"
    rank: int | None
    norm: float
    error: float


def check_extract(request: ExtractRequest) -> list[Candidate]:
    """What headers decide: the tensors that may differ; raises what they can refuse."""
    pair = [request.tuned, request.base]
    check_apart(request.target, pair)
    check_mergeable(pair)
    check_same_tensors(pair)
    request.selection.check(request.base)
    return candidates(request.base)


def run_extract(request: ExtractRequest, progress: Start) -> dict[str, Any]:
    """Extract and publish; returns the manifest, with `state` "published" or "up to date"."""
    started = time.perf_counter()
    found = check_extract(request)
    inputs = []
    digests = []
    for role, one in (("tuned", request.tuned), ("base", request.base)):
        digests.append(checkpoint_digests(one))
        inputs.append(describe_input(one, role, digests[-1]))
    staging = Staging(request.target)
    if staging.complete() is not None:
        staging.discard()
    done = read_manifest(side_folder(request.target))
    if done is not None and _is_same(done, request, inputs):
        return {**done, "state": "up to date"}
    check_replaceable(request.target, force=request.force)
    identity = {"command": "lora-extract", "options": request.options(), "inputs": inputs}
    staging.open(identity, restart=request.restart)
    try:
        changed = [c for c in found if digests[0][c.name] != digests[1][c.name]]
        extracted = _write(request, changed, staging.out, progress)
        made = {
            "format": FORMAT,
            "command": "lora-extract",
            "options": request.options(),
            "inputs": inputs,
            **_describe(staging.out / WEIGHTS, str(request.target)),
            "extracted": [one._asdict() for one in extracted],
            "versions": versions(),
            "seconds": round(time.perf_counter() - started, 3),
        }
        write_json(staging.out / "clmerge" / "manifest.json", made)
        staging.publish()
    except ClmergeError:
        staging.discard()
        raise
    except OSError as error:
        staging.discard()
        raise OutputError(
            "writing failed", detail=f"{staging.place}: {error.strerror or error}"
        ) from error
    finally:
        staging.close()
    return {**made, "state": "published"}


def _describe(weights: Path, target: str) -> dict[str, Any]:
    """The adapter's tensors as a manifest lists them."""
    with open_checkpoint(weights) as opened:
        digests = checkpoint_digests(opened)
        return {
            "outputs": [{**describe_input(opened, "output", digests), "path": target}],
            "tensors": {
                name: {
                    "digest": digests[name],
                    "dtype": info.dtype,
                    "shape": list(info.shape),
                    "action": "merged" if "lora_" in name else "copied",
                }
                for name, info in opened.tensors.items()
            },
        }


def _is_same(
    done: Mapping[str, Any], request: ExtractRequest, inputs: list[dict[str, Any]]
) -> bool:
    def told(sources: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
        return [(one.get("role"), one.get("weights_digest")) for one in sources]

    same = done["command"] == "lora-extract" and done["options"] == request.options()
    whole = all((request.target / name).is_file() for name in (CONFIG, WEIGHTS))
    return same and whole and told(done["inputs"]) == told(inputs)


def _write(
    request: ExtractRequest, changed: list[Candidate], out: Path, progress: Start
) -> list[Extracted]:
    factored = {c.name: c for c in changed if _is_factored(c, request)}
    targets = {c.module for c in factored.values()}
    # A module that is factored cannot be saved whole too: its bias stays out.
    rest = [c for c in changed if c.name not in factored and c.name in request.selection]
    saved = {c.module for c in rest if request.save_rest and c.module not in targets | {""}}
    whole = {c.name: c for c in candidates(request.base) if c.module in saved}
    tensors = [(PREFIX + name, c.info.dtype, len(c.info.shape)) for name, c in whole.items()]
    keys: dict[str, tuple[Candidate, int]] = {}
    for c in factored.values():
        for side, factor in enumerate(FACTORS[c.role]):
            keys[f"{PREFIX}{c.module}.{factor}"] = (c, side)
            tensors.append((f"{PREFIX}{c.module}.{factor}", "F32", 2))
    advance = progress("lora-extract", sum(2 * c.info.nbytes for c in changed))
    extracted: list[Extracted] = []
    made: dict[str, Factors] = {}
    with AdapterFile(out / WEIGHTS, tensors) as file:
        for key in file.order:
            if key not in keys:
                name = key.removeprefix(PREFIX)
                file.append(key, whole[name].info.shape, _bytes(request.tuned.read(name)))
                continue
            candidate, side = keys[key]
            if candidate.name not in made:
                made[candidate.name] = _factors(request, candidate)
            one = made[candidate.name]
            matrix = one.up if side else one.down
            file.append(key, tuple(matrix.shape), _bytes(matrix.flatten()))
            if side:
                del made[candidate.name]
                rank = one.down.shape[0]
                extracted.append(Extracted(candidate.name, "factors", rank, one.norm, one.error))
                advance(2 * candidate.info.nbytes)
        file.finish()
    for c in changed:
        if c.name not in factored:
            norm = float(difference_of(request.tuned, request.base, c.name).double().norm())
            kept = c.name in whole
            error = 0.0 if kept else norm
            extracted.append(Extracted(c.name, "whole" if kept else "left out", None, norm, error))
            advance(2 * c.info.nbytes)
    if not factored and not whole:
        raise MismatchError(
            "there is nothing to extract",
            detail=f"{request.tuned.path} and {request.base.path}: "
            f"{len(changed)} tensors differ, none that an adapter could hold as asked",
            hint="--embeddings and --save-rest take more" if changed else None,
        )
    ranks = {factored[e.name].module: e.rank for e in extracted if e.rank is not None}
    write_json(out / CONFIG, _config(request, ranks, sorted(saved)))
    return extracted


def _is_factored(candidate: Candidate, request: ExtractRequest) -> bool:
    roles = ("linear", "embedding") if request.embeddings else ("linear",)
    return candidate.role in roles and candidate.name in request.selection


def _factors(request: ExtractRequest, candidate: Candidate) -> Factors:
    difference = difference_of(request.tuned, request.base, candidate.name)
    if candidate.role == "embedding" or _is_transposed(request, candidate.module):
        difference = difference.T.contiguous()
    return factors_of(difference, rank=request.rank, energy=request.energy)


def _is_transposed(request: ExtractRequest, module: str) -> bool:
    return stores_transposed(request.base.config, {}, module)


def _config(
    request: ExtractRequest, ranks: Mapping[str, int | None], saved: list[str]
) -> dict[str, Any]:
    """adapter_config.json: alpha is the rank, so that the factors' product is the update."""
    known = [rank for rank in ranks.values() if rank is not None]
    usual = max(set(known), key=lambda rank: (known.count(rank), rank)) if known else 1
    odd = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": str(request.base.path),
        "task_type": None,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(_is_transposed(request, module) for module in ranks),
        "target_modules": sorted(ranks) or [],
        "modules_to_save": saved or None,
    }


def totals(tensors: Sequence[Mapping[str, Any]]) -> float:
    """Relative Frobenius error of an update over these tensors; 0 where none changed."""
    norm = math.fsum(one["norm"] ** 2 for one in tensors)
    return math.sqrt(math.fsum(one["error"] ** 2 for one in tensors) / norm) if norm else 0.0


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    found: memoryview = tensor.contiguous().view(torch.uint8).numpy().data
    return found
