"""How much memory `clmerge fisher --stream-layers` holds, and how long it takes.

    python benchmarks/streaming.py --work DIR [--model MODEL] [--rows 2] [--length 128] [--whole]

Without --model a Llama of 1.1 billion parameters, 2.2 GB in bf16, is made in DIR once. Rows are
made-up words of a made-up tokenizer. Memory is the largest anonymous resident set of the process
(RssAnon of /proc/self/status, looked at every 10 ms), imports and all: mapped weight files are not
in it, the system can drop them at any time. --whole also runs without --stream-layers, and prints
the largest relative L2 distance of any tensor between the two sidecars (stored in float32).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Peak

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def child(line: list[str], result: Path) -> None:
    """Run clmerge in this process beside a sampler; write what it took."""
    from mergekit_cl.cli import main

    began = time.perf_counter()
    code: object = 0
    with Peak() as peak:
        try:
            main(line)
        except SystemExit as error:
            code = error.code
    said = {"peak": peak.largest, "seconds": time.perf_counter() - began, "code": code or 0}
    result.write_text(json.dumps(said))


def prepare(work: Path, model: Path | None, rows: int, length: int) -> Path:
    """A folder with the weights (links), a config, a tokenizer that knows as many words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    if model is None:
        from benchmarks.synthetic import write_model

        model = work / "weights"
        write_model(model, 22, 1)
        config = {**CONFIG, "num_hidden_layers": 22}
        (model / "config.json").write_text(json.dumps(config))
    place = work / "model"
    place.mkdir(parents=True, exist_ok=True)
    for file in (*model.glob("*.safetensors"), *model.glob("*.json")):
        if not (place / file.name).exists():
            (place / file.name).symlink_to(file.absolute())
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    words = {"<unk>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, size)}}
    core = Tokenizer(WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<pad>")
    tokenizer.save_pretrained(place)
    text = [
        " ".join(f"w{2 + (7919 * i + row) % (size - 2)}" for i in range(length))
        for row in range(rows)
    ]
    (work / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in text))
    return place


def run(work: Path, place: Path, out: Path, *more: str) -> dict[str, float]:
    line = ["fisher", str(place), "--data", str(work / "rows.jsonl"), "-o", str(out), "--force"]
    line += ["--restart", "--store-dtype", "float32", *more]
    result = work / "result.json"
    subprocess.run(
        [sys.executable, __file__, "--child", str(result), *line],
        check=True,
    )
    said: dict[str, float] = json.loads(result.read_text())
    if said["code"]:
        raise SystemExit(f"clmerge {' '.join(line)} exited {said['code']}")
    return said


def distance(one: Path, other: Path) -> float:
    from safetensors import safe_open

    largest = 0.0
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        for name in b.keys():  # noqa: SIM118
            x, y = a.get_tensor(name), b.get_tensor(name)
            largest = max(largest, float((x - y).norm() / y.norm().clamp(min=1e-30)))
    return largest


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[3:], Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    place = prepare(given.work, given.model, given.rows, given.length)
    print(
        f"{given.rows} rows of {given.length} tokens, OMP_NUM_THREADS="
        f"{os.environ.get('OMP_NUM_THREADS', 'unset')}"
    )
    print("| run | peak anonymous | seconds |\n|---|---|---|")
    kinds = {"--stream-layers": ("--stream-layers",)} | ({"whole": ()} if given.whole else {})
    for name, more in kinds.items():
        said = run(given.work, place, given.work / f"{name.strip('-')}.safetensors", *more)
        print(f"| {name} | {said['peak'] / 1e9:.2f} GB | {said['seconds']:.0f} |", flush=True)
    if given.whole:
        files = [given.work / f"{name.strip('-')}.safetensors" for name in kinds]
        print(f"largest relative L2 distance of a tensor: {distance(*files):.1e}")


if __name__ == "__main__":
    main()
