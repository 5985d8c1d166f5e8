"""Which model class a config.json asks for, and whether its Fisher can be computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergekit_cl.errors import InputError

Task = Literal["causal-lm", "classifier"]
SUPPORTED = (
    "causal language models (...ForCausalLM, ...LMHeadModel) and sequence classifiers "
    "(...ForSequenceClassification)"
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """task: what the model predicts. class_name: its class in transformers."""

    task: Task
    class_name: str


def architecture(
    config: Mapping[str, Any],
    known: Mapping[Task, Mapping[str, str]],
    task: Task | None,
    where: str,
) -> Architecture:
    """The class to build for a config.json.

    known: by task, {model type: class name}, as transformers lists them. task: what the user said
    the model is for, where config.json names no class or another. Raises InputError for a model of
    another kind, quantised weights, and classifiers without classes.
    """
    _refuse_quantised(config, where)
    names = [str(name) for name in config.get("architectures") or []]
    model_type = config.get("model_type")
    found = next(
        (
            Architecture(kind, name)
            for name in names
            for kind, classes in known.items()
            if name in classes.values()
        ),
        None,
    )
    if task is not None and (found is None or found.task != task):
        class_name = known[task].get(str(model_type))
        found = None if class_name is None else Architecture(task, class_name)
    if found is None:
        said = ", ".join(names) or "no architecture"
        raise InputError(
            "the Fisher of this kind of model cannot be computed",
            detail=f"{where}: {said}, model type {model_type}",
            hint=f"supported are {SUPPORTED}",
        )
    if found.task == "classifier":
        _refuse_regression(config, where)
    return found


def known_classes() -> dict[Task, dict[str, str]]:
    """{task: {model type: class name}} of the installed transformers."""
    from transformers.models.auto import modeling_auto as auto

    return {
        "causal-lm": _first(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        "classifier": _first(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    }


def _first(mapping: Mapping[str, str | tuple[str, ...]]) -> dict[str, str]:
    return {kind: name if isinstance(name, str) else name[0] for kind, name in mapping.items()}


def _refuse_quantised(config: Mapping[str, Any], where: str) -> None:
    for field in ("quantization_config", "compression_config"):
        quantised = config.get(field)
        if quantised:
            method = quantised.get("quant_method", field) if isinstance(quantised, dict) else field
            raise InputError(
                "the weights are quantised and have no gradient",
                detail=f"{where}: {field} says {method}",
                hint="use the model in bfloat16, float16 or float32",
            )


def _refuse_regression(config: Mapping[str, Any], where: str) -> None:
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise InputError(
            "the Fisher of a classifier needs one class per row",
            detail=f"{where}: problem_type is {problem}",
        )
    if len(config.get("id2label") or {0: "", 1: ""}) < 2:
        raise InputError(
            "a classifier with one output is a regression and has no classes",
            detail=f"{where}: id2label has one entry",
        )
