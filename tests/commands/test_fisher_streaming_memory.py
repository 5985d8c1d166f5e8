"""How much memory `--stream-layers` takes, measured from outside of the process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.commands.models import said_by
from tests.tiny_models import VOCAB_SIZE, tiny_tokenizer

LAYERS = 8
CHILD = """
import sys
import transformers.models.llama.modeling_llama, safetensors.torch
import fisher.streamed, fisher.accumulator
from mergekit_cl.cli import main
print("ready", flush=True)
sys.stdin.readline()
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 8 layers, 20 MB each in float32, stored in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("memory") / "model"
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=512,
        intermediate_size=2580,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    net = LlamaForCausalLM(config).to(torch.bfloat16)
    sizes = [sum(p.numel() * 4 for p in layer.parameters()) for layer in net.model.layers]
    assert all(20e6 <= size < 21e6 for size in sizes)
    net.save_pretrained(place)
    tiny_tokenizer(place)
    (place.parent / "rows.jsonl").write_text('{"text": "one two three"}\n{"text": "four five"}\n')
    return place


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory that a process holds; 0 when it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def taken(model: Path, out: str, *more: str) -> int:
    """The most that a run holds beyond what python and its libraries do before it begins."""
    rows = model.parent / "rows.jsonl"
    line = ["fisher", str(model), "--data", str(rows), "-o", str(model.parent / out), *more]
    running = subprocess.Popen(
        [sys.executable, "-c", CHILD, *line, "--device", "cpu", "--threads", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    before = peak = anonymous(running.pid)
    running.stdin.write("\n")
    running.stdin.flush()
    while running.poll() is None:
        peak = max(peak, anonymous(running.pid))
        time.sleep(0.002)
    assert running.returncode == 0, running.communicate()
    running.communicate()
    return peak - before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_streaming_stays_below_what_the_whole_model_s_weights_take(model: Path) -> None:
    weights = LAYERS * 20_000_000
    streamed = taken(model, "streamed.safetensors", "--stream-layers")
    whole = taken(model, "whole.safetensors")
    assert streamed < 0.75 * weights
    assert whole > 1.75 * weights  # weights and sums: the bound above tells the two apart
    one, other = (said_by(model.parent / f"{n}.safetensors") for n in ("streamed", "whole"))
    assert one["mean_nll"] == pytest.approx(other["mean_nll"], rel=1e-5)
