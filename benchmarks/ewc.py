"""What EWC adds to a training step, beside the ways it is usually written.

    python benchmarks/ewc.py [--layers 12] [--rows 8] [--tokens 128] [--runs 7] [--device cuda]

A step is forward, backward and AdamW's update of a Llama-shaped model in float32, at the defaults
of 98 million weights. What a penalty adds is timed alone, in turns, with the gradients of the task
in place; a figure is the smallest of `--runs`. Memory is the most it adds to what a step holds
anyway: weights, gradients, moments, Fisher and anchor. Floor: the bytes that must move (weights,
Fisher, anchor, gradients in; gradients out) at the bandwidth of a long copy on this machine.

    coupled     add_penalty_gradient: lambda F (theta - anchor) into the gradients
    proximal    proximal_step: the implicit step after AdamW's, which also reads its moments
    in the loss lambda/2 sum F (theta - anchor)^2 as a part of the loss, differentiated by autograd
    per task    the same once for each earlier task, as Avalanche's EWCPlugin does in its default
                mode; ours holds any number of tasks as one
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from measuring import Peak, machine, table

from mergekit_cl.continual.ewc import Protection, add_penalty_gradient
from mergekit_cl.continual.proximal import proximal_step

STRENGTH = 10.0
TASKS = 3


def make_model(layers: int, tokens: int, device: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=tokens,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(device).train()


def in_the_loss(parameters: dict[str, torch.Tensor], protection: Protection, tasks: int) -> None:
    """The penalty as autograd differentiates it, accumulated into the gradients."""
    penalty = torch.zeros((), device=next(iter(parameters.values())).device)
    for _ in range(tasks):
        for name, parameter in parameters.items():
            moved = parameter - protection.anchor[name]
            penalty = penalty + (protection.fisher[name] * moved.pow(2)).sum()
    (STRENGTH / 2 * penalty).backward()


def bandwidth(device: str, threads_bytes: int = 2**28) -> float:
    """Bytes per second that a long copy reads and writes, the best of several."""
    source = torch.ones(threads_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = min(timed(lambda: target.copy_(source), device)[0] for _ in range(7))
    return 2 * threads_bytes / seconds


def timed(work: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds, and the bytes that were held meanwhile and not before."""
    wait(device)
    if device == "cpu":
        with Peak() as peak:
            started = time.perf_counter()
            work()
            seconds = time.perf_counter() - started
        return seconds, peak.largest - peak.before
    torch.cuda.reset_peak_memory_stats()
    before, started = torch.cuda.memory_allocated(), time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() - before


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def measure(given: argparse.Namespace) -> None:
    model = make_model(given.layers, given.tokens, given.device)
    parameters = dict(model.named_parameters())
    count = sum(parameter.numel() for parameter in parameters.values())
    anchor = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    fisher = {name: torch.rand_like(tensor) * 1e-6 for name, tensor in anchor.items()}
    protection = Protection(fisher, anchor)
    ids = torch.randint(3, 16000, (given.rows, given.tokens), device=given.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    ways: dict[str, Callable[[], object]] = {
        "step": step,
        "coupled": lambda: add_penalty_gradient(parameters, protection, STRENGTH),
        "proximal": lambda: proximal_step(optimizer, parameters, protection, STRENGTH),
        "in the loss": lambda: in_the_loss(parameters, protection, 1),
        f"per task, {TASKS} tasks": lambda: in_the_loss(parameters, protection, TASKS),
    }
    for work in ways.values():  # caches, allocators, moments
        work()
    best = dict.fromkeys(ways, float("inf"))
    memory = dict.fromkeys(ways, 0)
    for _ in range(given.runs):
        for name, work in ways.items():
            seconds, added = timed(work, given.device)
            best[name] = min(best[name], seconds)
            memory[name] = max(memory[name], added)
    speed = bandwidth(given.device)
    floor = 5 * 4 * count / speed
    where = machine() if given.device == "cpu" else torch.cuda.get_device_name()
    print(f"{where}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{count / 1e6:.1f} M weights, {given.rows} rows of {given.tokens} tokens")
    print(f"a copy moves {speed / 1e9:.1f} GB/s; floor {floor * 1e3:.0f} ms\n")
    rows = []
    for name, seconds in best.items():
        share = "" if name == "step" else f"{seconds / best['step']:.1%}"
        over = "" if name == "step" else f"{seconds / floor:.1f}"
        rows.append([name, f"{seconds * 1e3:.0f}", share, over, f"{memory[name] / 1e6:.0f}"])
    print(table(["", "ms", "of a step", "times the floor", "MB it adds"], rows))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--layers", type=int, default=12)
    arguments.add_argument("--rows", type=int, default=8)
    arguments.add_argument("--tokens", type=int, default=128)
    arguments.add_argument("--runs", type=int, default=7)
    arguments.add_argument("--device", default="cpu")
    measure(arguments.parse_args())


if __name__ == "__main__":
    main()
