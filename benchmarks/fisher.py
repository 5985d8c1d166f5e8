"""What a diagonal Fisher costs, as multiples of one forward and backward pass of the same batches.

    python benchmarks/fisher.py [--tokens 64 512] [--batch 8] [--runs 5]
    python benchmarks/fisher.py --device cuda      a model of 1 B parameters in bfloat16

Floor: forward, summed loss, backward into `.grad`. Contestants take turns in one process, after a
warm-up; a figure is the smallest of `--runs`. Peers are measured where they import: data and labels
are the same for all (the true ones), and each peer's diagonal is compared with ours on the
parameters it covers. What a peer cannot run is listed with its own reason. Peers, in an environment
of their own with torch, transformers and this repository on PYTHONPATH:

    pip install torch==2.13.0 transformers==5.23.0 psutil
    pip install --no-deps kronfluence==1.0.1 backpack-for-pytorch==1.7.1 nngeometry==0.4 \
        einops einconv opt-einsum unfoldNd accelerate tqdm

Where ours differs from the floor, for W numbers of weights and B examples: the products of the
weights as B short ones instead of a long one (4 % more at 64 tokens, nothing at 512); two passes
over B x W numbers in the cache, for the squares and for each example's trace (together 15 to 20 %
of those products at 64 tokens, an eighth of that at 512); a softmax in float64; Python around each
operation and layer, some milliseconds a batch whatever its size. Tried and no better: batched
products, smaller blocks. Spared: `.grad` is never written.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from fisher_peers import PEERS, Task, loss_of
from torch import nn

from benchmarks.measuring import machine, table
from fisher.accumulator import Accumulator
from fisher.batch import Batch

FLOOR, OURS = "forward + backward", "clmerge fisher"
SIZES = {
    "cpu": {
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "cuda": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}


def make_task(device: str, batch: int, tokens: int) -> Task:
    """A Llama-shaped model with random weights, and one batch of random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[device], max_position_embeddings=tokens, use_cache=False)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype).eval()
    ids = torch.randint(3, int(SIZES[device]["vocab_size"]), (batch, tokens), device=device)
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    return Task(model, ids, labels)


def make_plain_task(device: str, batch: int) -> Task:
    """A classifier of torch's own layers, one position per row: what every peer has rules for."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(1024, 1024), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(1024, 10)).to(device).eval()
    inputs = torch.randn(batch, 1024, device=device)
    return Task(model, inputs, torch.arange(batch, device=device) % 10)


def ours(
    task: Task, estimator: str = "empirical", include: Callable[[str], bool] | None = None
) -> tuple[Callable[[], None], Callable[[], dict[str, torch.Tensor]]]:
    """`fisher`'s accumulator, one batch at a time."""
    names = tuple(map(str, range(len(task.inputs))))
    key = "input_ids" if hasattr(task.model, "config") else "input"
    batch = Batch({key: task.inputs}, task.labels, names)
    accumulator = Accumulator(task.model, estimator=estimator, include=include)
    return lambda: accumulator.add(batch), lambda: accumulator.result().diagonal


def linear_alone(task: Task) -> Callable[[str], bool]:
    """Whether a name is of a linear layer: all that some peers cover."""
    modules = task.model.named_modules()
    linear = {name for name, module in modules if isinstance(module, nn.Linear)}
    return lambda name: name.rpartition(".")[0] in linear


def floor(task: Task) -> Callable[[], None]:
    """One training step without its step."""

    def step() -> None:
        task.model.zero_grad(set_to_none=True)
        loss_of(task.logits(task.model, task.inputs), task.labels).backward()

    return step


def seconds(step: Callable[[], None], device: str) -> float:
    """One run, device and all."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    """The largest relative L2 distance, and how many of the parameters are covered."""
    worst = max(
        float((found[n].double() - expected[n].double()).norm() / expected[n].double().norm())
        for n in found
    )
    share = sum(expected[n].numel() for n in found) / sum(t.numel() for t in expected.values())
    return f"{worst:.0e} on {share:.0%}"


def compare(make: Callable[[], Task], device: str, runs: int) -> list[list[str]]:
    """The rows of one table."""
    task = make()
    add, result = ours(task)
    steps: dict[str, Callable[[], Any]] = {
        FLOOR: floor(task),
        OURS: add,
        f"{OURS}, labels drawn (mc)": ours(task, "mc")[0],
        f"{OURS}, linear layers alone": ours(task, include=linear_alone(task))[0],
    }
    refusals: dict[str, str] = {}
    agreements: dict[str, str] = {}
    for name, prepare in PEERS.items():
        try:
            peer = prepare(make())
            found = peer.once()
        except Exception as error:
            said = str(error).strip() or "no reason given"
            refusals[name] = f"{type(error).__name__}: {said.splitlines()[0][:120]}"
            continue
        steps[name] = peer.once
        add()
        agreements[name] = distance(found, result())
    best = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    for _ in range(runs):
        for name, step in steps.items():
            best[name] = min(best[name], seconds(step, device))
    base = best[FLOOR]
    rows = [
        [name, f"{1000 * value:.0f}", f"{value / base:.2f}", agreements.get(name, "")]
        for name, value in sorted(best.items(), key=lambda item: item[1])
    ]
    rows += [[name, "", "does not cover", reason] for name, reason in refusals.items()]
    if device == "cuda" and hasattr(task.model, "config"):
        rows.append(_of_the_card(task, best[OURS]))
    return rows


def _of_the_card(task: Task, taken: float) -> list[str]:
    """Tokens per second, and the share of the card's own matrix rate that this makes."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    b = torch.empty_like(a)
    torch.mm(a, a, out=b)
    rate = 2 * 8192**3 / min(seconds(lambda: torch.mm(a, a, out=b), "cuda") for _ in range(10))
    parameters = sum(p.numel() for p in task.model.parameters())
    work = 6 * parameters * task.inputs.numel()
    speed = f"{task.inputs.numel() / taken:.0f} tokens/s"
    said = f"{speed}, {work / taken / rate:.0%} of {rate / 1e12:.0f}"
    return ["the card", "", "", f"{said} Tflop/s"]


def where(device: str) -> str:
    """Where this ran."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    device, batch = options.device, options.batch
    print(where(device))
    for tokens in options.tokens:
        show(
            f"Llama-shaped, {batch} rows of {tokens} tokens",
            partial(make_task, device, batch, tokens),
            device,
            options.runs,
        )
    show(
        "five linear layers, 64 rows of one position",
        partial(make_plain_task, device, 64),
        device,
        options.runs,
    )


def show(title: str, make: Callable[[], Task], device: str, runs: int) -> None:
    """Print one table."""
    rows = compare(make, device, runs)
    count = sum(p.numel() for p in make().model.parameters()) / 1e6
    print(f"\n{title}, {count:.1f} M parameters\n")
    agrees = "agrees with ours to, on this share of the parameters"
    print(table(["", "ms", "times the floor", agrees], rows), flush=True)


if __name__ == "__main__":
    main()
