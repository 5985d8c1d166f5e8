"""`lora-extract` from two checkpoints to a published adapter, one tensor at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mergekit_cl.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.checkpoint.dtypes import torch_dtype
from mergekit_cl.compatible import check_mergeable, check_same_tensors
from mergekit_cl.device import choose_device
from mergekit_cl.digesting import checkpoint_digests
from mergekit_cl.errors import MismatchError, OptionError
from mergekit_cl.lora.adapter import CONFIG, PREFIX
from mergekit_cl.lora.adapterfile import AdapterFile
from mergekit_cl.lora.difference import Candidate, candidates, difference_of, wide_bytes
from mergekit_cl.lora.extract import Factors, extract_bytes, factors_of, frobenius
from mergekit_cl.lora.forms import stores_transposed
from mergekit_cl.lora.holding import Held, Kept, Wanted, hold
from mergekit_cl.manifest import FORMAT, describe_input, read_manifest, versions, write_json
from mergekit_cl.memory import peak_memory_bytes
from mergekit_cl.output.staging import Staging
from mergekit_cl.output.target import check_apart, check_replaceable, side_folder
from mergekit_cl.output.whole import published_whole
from mergekit_cl.report.progress import Start
from mergekit_cl.torch_threads import torch_threads

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
FACTORS = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "convolution": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
}


@dataclass(frozen=True)
class ExtractRequest:
    """What to extract, and where to.

    rank: of each pair of factors, or energy: the share of each difference's square to keep. dtype:
    of the factors, as safetensors spells it. device: by name. memory: bytes that may be used.
    """

    tuned: Checkpoint
    base: Checkpoint
    target: Path
    rank: int | None
    energy: float | None
    wanted: Wanted
    dtype: str = "F32"
    device: str = "auto"
    memory: int | None = None
    threads: int | None = None
    force: bool = False
    restart: bool = False

    def options(self) -> dict[str, Any]:
        """What decides the bytes of the adapter."""
        return {
            "rank": self.rank,
            "energy": self.energy,
            "embeddings": self.wanted.embeddings,
            "convolutions": self.wanted.convolutions,
            "save_rest": self.wanted.save_rest,
            "include": list(self.wanted.selection.include),
            "exclude": list(self.wanted.selection.exclude),
            "dtype": self.dtype,
            "device": self.place().type,
        }

    def place(self) -> torch.device:
        """Where differences are decomposed: `auto` is a GPU if there is one."""
        import torch

        if self.device == "auto" and torch.cuda.is_available():
            return torch.device("cuda")
        return choose_device(self.device)


class Extracted(NamedTuple):
    """One tensor that changed. rank: None where it is saved whole or left out, which `kept` says.

    norm: Frobenius norm of the difference. error: of what the adapter does not hold of it. why: it
    is left out.
    """

    name: str
    kept: Kept
    rank: int | None
    norm: float
    error: float
    why: str | None = None


def check_extract(request: ExtractRequest) -> list[Candidate]:
    """What headers decide: the tensors that may differ; raises what they can refuse."""
    pair = [request.tuned, request.base]
    check_apart(request.target, pair)
    check_mergeable(pair)
    check_same_tensors(pair)
    request.wanted.selection.check(request.base)
    found = candidates(request.base)
    needed = memory_needed(request, found)
    if request.memory is not None and request.memory < needed:
        raise OptionError(
            "the memory limit is too small for the largest weight",
            detail=f"--memory {request.memory}: {needed} bytes are needed",
            hint=f"--memory {-(-needed // 2**20)}MiB, or --exclude it",
        )
    return found


def memory_needed(request: ExtractRequest, found: Sequence[Candidate]) -> int:
    """Bytes that the largest weight takes that may have to be factored."""
    wanted = request.wanted
    return max(
        (
            extract_bytes(
                c.info.shape[0],
                c.info.numel // c.info.shape[0],
                wide_bytes(c.info),
                request.rank,
            )
            for c in found
            if c.role in wanted.roles and c.name in wanted.selection
        ),
        default=0,
    )


def describe_extract(request: ExtractRequest, found: Sequence[Candidate]) -> dict[str, Any]:
    """What `--dry-run` prints: which weights may be factored, if they differ at all."""
    held = hold(found, request.wanted)
    factored = sum(one.kept == "factors" for one in held)
    return {
        "command": "lora-extract",
        "output": str(request.target),
        "factored": factored,
        "others": len(held) - factored,
        "bytes_read": 2 * request.base.nbytes,
        "buffer_bytes": memory_needed(request, found),
        "device": request.place().type,
    }


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
    identity = {"command": "lora-extract", "options": request.options(), "inputs": inputs}
    done = read_manifest(side_folder(request.target))
    if done is not None and _is_same(done, request, inputs):
        staging.clear(identity)
        return {**done, "state": "up to date"}
    check_replaceable(request.target, force=request.force)
    staging.open(identity, restart=request.restart)
    with published_whole(staging):
        changed = [c for c in found if digests[0][c.name] != digests[1][c.name]]
        with torch_threads(request.threads):
            extracted = _write(request, hold(changed, request.wanted), staging.out, progress)
        made = {
            "format": FORMAT,
            "command": "lora-extract",
            "options": request.options(),
            "inputs": inputs,
            **_describe(staging.out / WEIGHTS, str(request.target)),
            "extracted": [one._asdict() for one in extracted],
            "versions": versions(),
            "seconds": round(time.perf_counter() - started, 3),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        write_json(staging.out / "clmerge" / "manifest.json", made)
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
    request: ExtractRequest, held: Sequence[Held], out: Path, progress: Start
) -> list[Extracted]:
    factored = {h.candidate.name: h.candidate for h in held if h.kept == "factors"}
    saved = {h.candidate.module for h in held if h.kept == "whole"}
    whole = {c.name: c for c in candidates(request.base) if c.module in saved}
    if not factored and not whole:
        raise MismatchError(
            "there is nothing to extract",
            detail=f"{request.tuned.path} and {request.base.path}: "
            f"{len(held)} tensors differ, none that an adapter could hold as asked",
            hint="--embeddings, --convolutions and --save-rest take more" if held else None,
        )
    tensors = [(PREFIX + name, c.info.dtype, len(c.info.shape)) for name, c in whole.items()]
    keys: dict[str, tuple[Candidate, int]] = {}
    for c in factored.values():
        for side, factor in enumerate(FACTORS[c.role]):
            keys[f"{PREFIX}{c.module}.{factor}"] = (c, side)
            tensors.append((f"{PREFIX}{c.module}.{factor}", request.dtype, len(c.info.shape)))
    advance = progress("lora-extract", sum(2 * h.candidate.info.nbytes for h in held))
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
            shape = _factor_shape(candidate, tuple(matrix.shape), side)
            file.append(key, shape, _bytes(matrix.flatten()))
            if side:
                del made[candidate.name]
                rank = one.down.shape[0]
                extracted.append(Extracted(candidate.name, "factors", rank, one.norm, one.error))
                advance(2 * candidate.info.nbytes)
        file.finish()
    for candidate, kept, why in held:
        if kept != "factors":
            norm = frobenius(difference_of(request.tuned, request.base, candidate.name))
            error = 0.0 if kept == "whole" else norm
            extracted.append(Extracted(candidate.name, kept, None, norm, error, why))
            advance(2 * candidate.info.nbytes)
    ranks = {factored[e.name].module: e.rank for e in extracted if e.rank is not None}
    write_json(out / CONFIG, _config(request, ranks, sorted(saved)))
    return extracted


def _factor_shape(candidate: Candidate, shape: tuple[int, ...], side: int) -> tuple[int, ...]:
    """As PEFT stores it: the first convolution is as wide as the layer's, the second is of 1."""
    if candidate.role != "convolution":
        return shape
    behind = candidate.info.shape[1:]
    return (*shape, *(1 for _ in behind[1:])) if side else (shape[0], *behind)


def _factors(request: ExtractRequest, candidate: Candidate) -> Factors:
    found = difference_of(request.tuned, request.base, candidate.name).flatten(1)
    if candidate.role == "embedding" or _is_transposed(request, candidate.module):
        found = found.T.contiguous()
    return factors_of(
        found.to(request.place()),
        rank=request.rank,
        energy=request.energy,
        dtype=torch_dtype(request.dtype),
    )


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
