"""Compare a merge of two checkpoints with the same average computed by torch.

    python examples/published-pair/check.py A.pth B.pth MERGED.safetensors

Exits 1 and names the tensors where anything differs by more than a rounding.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file


def state_dict(path: str) -> dict[str, torch.Tensor]:
    """The weights in a training checkpoint; nothing else in it is unpickled."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # saved on a GPU
    weights: dict[str, torch.Tensor] = checkpoint["model"]["state_dict"]
    return weights


def main(first: str, second: str, merged: str) -> int:
    """Print how the three compare."""
    a, b, got = state_dict(first), state_dict(second), load_file(merged)
    if not a.keys() == b.keys() == got.keys():
        print(f"the names differ: {sorted(a.keys() ^ got.keys())}")
        return 1
    exact = {name: (a[name].double() + b[name].double()) / 2 for name in a}
    # a + (b - a) / 2 rounds twice in float32: the difference and the sum, each to within 2^-24 of
    # itself, together at most 2^-23 of the larger weight.
    wrong = [
        name
        for name, mean in exact.items()
        if bool(
            ((got[name] - mean).abs() > 2**-23 * torch.maximum(a[name].abs(), b[name].abs())).any()
        )
    ]
    same = sum(torch.equal(a[name], b[name]) for name in a)
    numel = sum(t.numel() for t in a.values())
    equal = sum(int((got[name] == mean.float()).sum()) for name, mean in exact.items())
    apart = sum(float((a[n] - b[n]).double().square().sum()) for n in a) ** 0.5
    size = sum(float(t.double().square().sum()) for t in a.values()) ** 0.5
    print(f"{len(a)} tensors, {numel} weights; {same} tensors are the same in both checkpoints")
    print(f"the fine-tune moved the weights by {apart / size:.3f} of their length")
    print(f"{equal / numel:.4%} of the merge equals the float64 mean rounded once, bit for bit")
    print(f"differ by more than a rounding: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
