"""What is built from a checkpoint, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_cl.checkpoint import open_checkpoint
from mergekit_cl.errors import ClmergeError, InputError, MismatchError
from mergekit_cl.training.model import BuiltModel, build
from tests.tiny_models import (
    save_as_bin,
    tiny_bert_classifier,
    tiny_gpt2,
    tiny_llama,
    tiny_mixtral,
    tiny_qwen3_moe,
)

FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (tiny_llama, {}),
    "llama tied": (tiny_llama, {"tied": True}),
    "llama bf16 in shards": (tiny_llama, {"dtype": torch.bfloat16, "shard_size": "8KB"}),
    "gpt2": (tiny_gpt2, {}),
    "bert": (tiny_bert_classifier, {}),
    "bert fp16": (tiny_bert_classifier, {"dtype": torch.float16}),
    "mixtral": (tiny_mixtral, {}),
    "mixtral bf16": (tiny_mixtral, {"dtype": torch.bfloat16}),
    "qwen3 moe": (tiny_qwen3_moe, {}),
}


def built(path: Path, **options: Any) -> BuiltModel:
    with open_checkpoint(path) as checkpoint:
        return build(checkpoint, **options)


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(path: Path, change: Any) -> None:
    file = path / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def refusal(path: Path, **options: Any) -> ClmergeError:
    with pytest.raises(ClmergeError) as caught:
        built(path, **options)
    return caught.value


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_the_file_comes_back_under_its_name_and_value(
    family: str, tmp_path: Path
) -> None:
    make, options = FAMILIES[family]
    make(tmp_path, **options)
    model = built(tmp_path)
    parameters = dict(model.model.named_parameters())
    by_file = dict(model.by_file({name: p.detach() for name, p in parameters.items()}))
    stored: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        stored.update(load_file(file))
    assert by_file.keys() == stored.keys()
    assert all(torch.equal(by_file[name], stored[name].float()) for name in stored)
    assert model.missing == {}
    assert model.map.unmatched == ()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "mixtral"])
def test_what_belongs_to_elements_goes_back_to_the_elements_of_the_file(
    family: str, tmp_path: Path
) -> None:
    make, options = FAMILIES[family]
    make(tmp_path, **options)
    model = built(tmp_path)
    squares = {name: p.detach() ** 2 for name, p in model.model.named_parameters()}
    stored = load_file(tmp_path / "model.safetensors")
    for name, values in model.by_file(squares):
        assert torch.equal(values, stored[name] ** 2), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_built_model_computes_what_the_saved_one_does(family: str, tmp_path: Path) -> None:
    make, options = FAMILIES[family]
    saved = make(tmp_path, **options).float()
    ids = torch.tensor([[4, 6, 10, 14, 4, 18, 49]])
    with torch.no_grad():
        expected = saved(input_ids=ids).logits
        actual = built(tmp_path).model(input_ids=ids).logits
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_bin_checkpoint_gives_the_same_model_as_a_safetensors_one(tmp_path: Path) -> None:
    saved = tiny_llama(tmp_path / "safetensors", tied=True)
    save_as_bin(saved, tmp_path / "bin")
    first, second = built(tmp_path / "safetensors"), built(tmp_path / "bin")
    for (name, a), (other, b) in zip(
        first.model.named_parameters(), second.model.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    assert second.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert dict(first.names) == dict(second.names)


def test_a_single_file_is_built_with_the_config_beside_it(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    model = built(tmp_path / "weights.safetensors")
    assert len(model.names) == 21


def test_a_file_that_stores_tied_weights_twice_keeps_one_name(tmp_path: Path) -> None:
    tiny_llama(tmp_path, tied=True)
    edit_weights(
        tmp_path, lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()}
    )
    model = built(tmp_path)
    assert model.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in model.names.values()
    assert model.missing == {}


def test_a_file_that_stores_tied_weights_under_the_head_keeps_that_name(tmp_path: Path) -> None:
    tiny_llama(tmp_path, tied=True)

    def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
        return weights

    edit_weights(tmp_path, rename)
    model = built(tmp_path)
    assert model.names["model.embed_tokens.weight"] == "lm_head.weight"
    assert model.tied == {"model.embed_tokens.weight": "lm_head.weight"}


def test_weights_that_config_ties_but_the_file_has_different_stay_apart(tmp_path: Path) -> None:
    tiny_llama(tmp_path, tied=True)
    edit_weights(tmp_path, lambda w: {**w, "lm_head.weight": -w["model.embed_tokens.weight"]})
    model = built(tmp_path)
    assert model.tied == {}
    assert model.names["lm_head.weight"] == "lm_head.weight"


def test_names_without_the_prefix_of_the_base_model_are_kept(tmp_path: Path) -> None:
    tiny_gpt2(tmp_path)
    edit_weights(tmp_path, lambda w: {k.removeprefix("transformer."): v for k, v in w.items()})
    model = built(tmp_path)
    assert model.names["transformer.h.0.attn.c_attn.weight"] == "h.0.attn.c_attn.weight"
    assert set(model.names.values()) == set(load_file(tmp_path / "model.safetensors"))


def test_the_old_names_of_layer_norms_are_kept(tmp_path: Path) -> None:
    tiny_bert_classifier(tmp_path)

    def old(name: str) -> str:
        if "LayerNorm" not in name:
            return name
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )

    edit_weights(tmp_path, lambda w: {old(k): v for k, v in w.items()})
    model = built(tmp_path)
    name = "bert.embeddings.LayerNorm.weight"
    assert model.names[name] == "bert.embeddings.LayerNorm.gamma"
    assert set(model.names.values()) == set(load_file(tmp_path / "model.safetensors"))


def test_masks_and_positions_in_old_files_are_buffers(tmp_path: Path) -> None:
    tiny_gpt2(tmp_path / "gpt2")
    mask = torch.ones(1, 1, 128, 128).tril()
    edit_weights(tmp_path / "gpt2", lambda w: {**w, "transformer.h.0.attn.bias": mask})
    assert built(tmp_path / "gpt2").missing == {"transformer.h.0.attn.bias": "buffer"}
    tiny_bert_classifier(tmp_path / "bert")
    positions = torch.arange(64)[None]
    edit_weights(tmp_path / "bert", lambda w: {**w, "bert.embeddings.position_ids": positions})
    assert built(tmp_path / "bert").missing == {"bert.embeddings.position_ids": "buffer"}


def test_a_rotary_frequency_that_the_file_still_holds_is_a_buffer(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(tmp_path, lambda w: {**w, name: torch.ones(2)})
    assert built(tmp_path).missing == {name: "buffer"}


def test_a_tensor_the_model_has_no_use_for_is_unsupported(tmp_path: Path) -> None:
    tiny_bert_classifier(tmp_path)
    edit_weights(tmp_path, lambda w: {**w, "cls.predictions.bias": torch.ones(3)})
    assert built(tmp_path).missing == {"cls.predictions.bias": "unsupported"}


def test_a_classifier_without_its_head_is_refused(tmp_path: Path) -> None:
    tiny_bert_classifier(tmp_path)
    edit_weights(
        tmp_path, lambda w: {k: v for k, v in w.items() if not k.startswith("classifier.")}
    )
    error = refusal(tmp_path)
    assert isinstance(error, InputError)
    assert "classifier.bias, classifier.weight" in (error.detail or "")
    assert "random" in (error.hint or "")


def test_a_missing_layer_is_refused_although_the_file_has_other_tensors(tmp_path: Path) -> None:
    tiny_llama(tmp_path)

    def misspell(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["model.norm.wait"] = weights.pop("model.norm.weight")
        return weights

    edit_weights(tmp_path, misspell)
    assert "model.norm.weight" in (refusal(tmp_path).detail or "")


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    tiny_mixtral(tmp_path)
    gone = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    edit_weights(tmp_path, lambda w: {k: v for k, v in w.items() if k != gone})
    assert isinstance(refusal(tmp_path), ClmergeError)


def test_shapes_that_config_contradicts_are_refused(tmp_path: Path) -> None:
    tiny_bert_classifier(tmp_path)
    edit_config(tmp_path, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    error = refusal(tmp_path)
    assert isinstance(error, MismatchError)
    assert "classifier" in (error.detail or "")
    assert "(3" in (error.detail or "")
    assert "(2" in (error.detail or "")


def test_a_checkpoint_without_config_is_told_what_it_needs(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    (tmp_path / "config.json").unlink()
    error = refusal(tmp_path)
    assert "config.json" in error.message
    assert str(tmp_path) in (error.hint or "")


@pytest.mark.parametrize("architectures", [["BertForMaskedLM"], ["T5ForConditionalGeneration"], []])
def test_other_kinds_of_models_are_refused_with_those_supported(
    architectures: list[str], tmp_path: Path
) -> None:
    tiny_bert_classifier(tmp_path)
    edit_config(tmp_path, architectures=architectures)
    error = refusal(tmp_path)
    assert "sequence classifiers" in (error.hint or "")


def test_a_task_replaces_an_architecture_that_config_does_not_name(tmp_path: Path) -> None:
    tiny_bert_classifier(tmp_path)
    edit_config(tmp_path, architectures=None)
    assert built(tmp_path, task="classifier").kind == "classifier"


def test_quantised_weights_are_refused_by_the_name_of_their_method(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "gptq" in (refusal(tmp_path).detail or "")


def test_eight_bit_floats_are_refused_by_tensor(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(tmp_path, lambda w: {**w, name: w[name].to(torch.float8_e4m3fn)})
    error = refusal(tmp_path)
    assert "quantised" in error.message
    assert name in (error.detail or "")


@pytest.mark.parametrize(
    "changes",
    [
        {"problem_type": "regression"},
        {"problem_type": "multi_label_classification"},
        {"id2label": {"0": "score"}, "label2id": {"score": 0}},
    ],
)
def test_a_classifier_without_one_class_per_row_is_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    tiny_bert_classifier(tmp_path)
    edit_config(tmp_path, **changes)
    assert "class" in refusal(tmp_path).message


def test_an_unknown_model_type_is_refused_without_running_its_code(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('ran')")
    edit_config(
        tmp_path,
        model_type="evil",
        architectures=["LlamaForCausalLM"],
        auto_map={"AutoConfig": "modeling_evil.EvilConfig"},
    )
    assert "transformers cannot build" in refusal(tmp_path).message


def test_the_model_is_in_float32_in_eval_mode_without_a_cache(tmp_path: Path) -> None:
    tiny_gpt2(tmp_path, dtype=torch.bfloat16)
    model = built(tmp_path).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert model.config.use_cache is False
    assert model.config._attn_implementation == "eager"


def test_another_compute_dtype_rounds_the_weights_once(tmp_path: Path) -> None:
    saved = tiny_llama(tmp_path)
    model = built(tmp_path, dtype=torch.bfloat16)
    assert len(model.names) == 21
    expected = saved.model.norm.weight.to(torch.bfloat16)
    assert torch.equal(model.model.model.norm.weight, expected)


def test_writing_to_the_model_leaves_the_file_and_its_reader_alone(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with open_checkpoint(tmp_path) as checkpoint:
        stored = checkpoint.tensor("model.norm.weight")
        model = build(checkpoint).model
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert torch.equal(checkpoint.tensor("model.norm.weight"), stored)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_row_end_token_is_given_to_a_classifier_that_has_none(tmp_path: Path) -> None:
    tiny_bert_classifier(tmp_path / "own")
    assert built(tmp_path / "own", pad_id=3).model.config.pad_token_id == 0
    tiny_bert_classifier(tmp_path / "none", pad_token_id=None)
    assert built(tmp_path / "none", pad_id=3).model.config.pad_token_id == 3


def test_nothing_is_reported_while_a_model_loads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as reports

    tiny_bert_classifier(tmp_path)
    edit_weights(tmp_path, lambda w: {**w, "cls.predictions.bias": torch.ones(3)})
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    listener = Listener()
    reports.add_handler(listener)
    capfd.readouterr()
    try:
        built(tmp_path)
    finally:
        reports.remove_handler(listener)
    assert capfd.readouterr() == ("", "")
    assert heard == []


@pytest.mark.parametrize("leftover", [{}, {"cls.predictions.bias": torch.ones(3)}])
def test_a_head_that_its_class_would_make_up_in_silence_is_refused(
    leftover: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertForSequenceClassification

    patterns = {"classifier"}
    monkeypatch.setattr(BertForSequenceClassification, "_keys_to_ignore_on_load_missing", patterns)
    tiny_bert_classifier(tmp_path)
    edit_weights(
        tmp_path,
        lambda w: {k: v for k, v in w.items() if not k.startswith("classifier.")} | leftover,
    )
    assert "classifier.weight" in (refusal(tmp_path).detail or "")


def test_a_stack_of_experts_comes_apart_into_one_tensor_per_expert(tmp_path: Path) -> None:
    tiny_mixtral(tmp_path)
    model = built(tmp_path)
    layer = "model.layers.0.block_sparse_moe"
    assert model.files_of("model.layers.0.mlp.experts.down_proj") == tuple(
        f"{layer}.experts.{expert}.w2.weight" for expert in range(4)
    )
    assert len(model.files_of("model.layers.0.mlp.experts.gate_up_proj")) == 8
    assert model.files_of("model.layers.0.mlp.gate.weight") == (f"{layer}.gate.weight",)
