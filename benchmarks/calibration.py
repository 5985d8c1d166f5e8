"""How far are calibrated predictions off: a merge's predicted loss beside the measured one.

    make demo                                      (makes the models, ten minutes)
    python benchmarks/calibration.py --work DIR [--demo demo] [--samples 64]

Each specialist of examples/quickstart is calibrated against its base, as a user would, and then by
the same command against the plain average of the two and against the other specialist: what is
measured there is what `calibration * predicted` of the base stands for. Rows are those that the
specialist was trained on, cut at 128 tokens. All in nats per token.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MODELS = ("king-james", "german")


def measure(demo: Path, work: Path, name: str, other: str, samples: int) -> dict[str, Any]:
    """The `calibrated` entry of a model's sidecar against another model, made where it is not."""
    out = work / f"{name}-to-{other}-{samples}.safetensors"
    rows = demo / "text" / name / "train.jsonl"
    line = ["fisher", str(demo / name), "--base", str(demo / other), "--data", str(rows)]
    line += ["--samples", str(samples), "--max-length", "128", "-o", str(out), "--quiet", "--json"]
    ran = subprocess.run(
        [sys.executable, "-m", "mergekit_cl", *line], check=True, stdout=subprocess.PIPE
    )
    found: dict[str, Any] = json.loads(ran.stdout)["calibrated"]
    return found


def main(demo: Path, work: Path, samples: int) -> None:
    """Print one row per specialist and other model."""
    from benchmarks.samples import machine

    for name in ("base", "linear", *MODELS):
        if not (demo / name / "model.safetensors").exists():
            raise SystemExit(f"error: {demo / name} is not there\n  try: make demo")
    work.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}; {samples} rows\n")
    print("| model | to | measured | diagonal alone | calibrated | off by |")
    print("|---|---|---|---|---|---|")
    for name in MODELS:
        others = ("base", "linear", next(other for other in MODELS if other != name))
        calibration = 0.0
        for other in others:
            found = measure(demo, work, name, other, samples)
            measured, alone = found["measured_per_token"], found["predicted_per_token"]
            calibration = calibration or measured / alone
            guess = calibration * alone
            numbers = f"{measured:.4f} | {alone:.5f} | {guess:.4f} | x {measured / guess:.2f}"
            print(f"| {name} | {other} | {numbers} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--demo", type=Path, default=Path("demo"))
    parser.add_argument("--work", type=Path, required=True, help="a folder for sidecars, 2 GB")
    parser.add_argument("--samples", type=int, default=64)
    given = parser.parse_args()
    main(given.demo, given.work, given.samples)
