"""Llama-shaped bf16 checkpoints of any size, for speed and memory; with Fisher sidecars.

    python benchmarks/synthetic.py OUT --layers 22 --seed 1

22 layers are 1.1 billion parameters, 2.2 GB. Weights are random bf16 near 0; a second seed gives
an unrelated model of the same shape. Memory stays near one tensor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, MLP, KEYS, VOCABULARY = 2048, 5632, 256, 32000


def config(layers: int) -> dict[str, object]:
    """config.json of the model, for what builds it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    }


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for i in range(layers):
        layer = f"model.layers.{i}."
        yield layer + "self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield layer + "self_attn.k_proj.weight", (KEYS, HIDDEN)
        yield layer + "self_attn.v_proj.weight", (KEYS, HIDDEN)
        yield layer + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield layer + "mlp.gate_proj.weight", (MLP, HIDDEN)
        yield layer + "mlp.up_proj.weight", (MLP, HIDDEN)
        yield layer + "mlp.down_proj.weight", (HIDDEN, MLP)
        yield layer + "input_layernorm.weight", (HIDDEN,)
        yield layer + "post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def write_model(out: Path, layers: int, seed: int) -> None:
    """A checkpoint folder of files of about 1 GB, unless it is there already."""
    if (out / "model.safetensors.index.json").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(2**24).normal_(0, 0.02, generator=generator).to(torch.bfloat16)
    groups: list[dict[str, torch.Tensor]] = [{}]
    weight_map: dict[str, str] = {}
    total = 0

    def flush(number: int) -> None:
        file = f"model-{number:05d}.safetensors"
        save_file(groups[-1], out / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(groups[-1], file))

    for number, (name, shape) in enumerate(shapes(layers)):
        count = torch.Size(shape).numel()
        # Different stretches of one long noise: as incompressible as fresh noise, much faster.
        start = (number * 7919) % 2**20
        repeated = noise[start:].repeat(-(-count // (noise.numel() - start)))[:count]
        if sum(t.nbytes for t in groups[-1].values()) + repeated.nbytes > 10**9:
            flush(len(groups))
            groups.append({})
            groups[-2] = {}
        groups[-1][name] = repeated.reshape(shape).clone()
        total += repeated.nbytes
    flush(len(groups))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))


def write_sidecar(model: Path, seed: int) -> None:
    """A Fisher sidecar of the model's shapes, heavy-tailed as real ones are, without digests."""
    from fisher.sidecar import save
    from mergekit_cl.checkpoint import open_checkpoint

    target = model / "clmerge" / "fisher.safetensors"
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.randn(2**24, generator=generator) * 3 - 15).exp().to(torch.bfloat16)
    tensors = {}
    with open_checkpoint(model) as checkpoint:
        for number, tensor in enumerate(checkpoint.tensors.values()):
            start = (number * 7919) % 2**20
            count = tensor.numel
            repeated = noise[start:].repeat(-(-count // (noise.numel() - start)))[:count]
            tensors[tensor.name] = repeated.reshape(tensor.shape)
    described = {"estimator": "mc", "unit": "per_example", "level": "sequence", "examples": 256}
    save(target, tensors, described)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_model(given.out, given.layers, given.seed)
    write_sidecar(given.out, given.seed)
