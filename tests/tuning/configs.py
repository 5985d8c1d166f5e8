"""Random configs, drawn from the schema itself so that no key can be forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from mergekit_cl.tuning.keys import whole
from mergekit_cl.tuning.schema import Config

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
AMBIGUOUS = st.sampled_from(
    ["1e-4", "no", "null", "1:30", "0o17", "-", "~", "", "a: b", "#", "2026-11-22", ".5", "=", "<<"]
)
PLACES = st.one_of(
    TEXT.map(lambda text: "/data/" + text), st.just("hf://org/name@main"), st.just("s3://bucket/x")
)


def configs() -> st.SearchStrategy[Config]:
    """Configs that pass, with any value in any key."""
    return _values(whole()).map(_sensible).map(Config.model_validate)


def _sensible(content: dict[str, Any]) -> dict[str, Any]:
    """The same with what several keys must agree on agreeing."""
    content.setdefault("output", "/run")
    for number, task in enumerate(content["task"]):
        task["name"] = f"{number}{task['name']}"
        if task.get("steps") is not None:
            task["epochs"] = None
    if content.get("ewc") is not None:
        content["ewc"]["anchors"] = list(content["ewc"].get("sidecars", []))
    if (content.get("gate") or {}).get("suites"):
        for task in content["task"]:
            content["gate"]["suites"].pop(task["name"], None)
    return content


def _values(node: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if "anyOf" in node:
        return st.one_of(*(_values(one) for one in node["anyOf"]))
    if "enum" in node or "const" in node:
        return st.sampled_from(node.get("enum", [node.get("const")]))
    return getattr(_Kinds, node["type"])(node)  # type: ignore[no-any-return]


class _Kinds:
    @staticmethod
    def object(node: Mapping[str, Any]) -> st.SearchStrategy[Any]:
        if isinstance(node.get("additionalProperties"), Mapping):
            return st.dictionaries(
                st.one_of(TEXT, AMBIGUOUS), _values(node["additionalProperties"]), max_size=2
            )
        required = {key: _values(node["properties"][key]) for key in node.get("required", ())}
        others = {k: _values(v) for k, v in node["properties"].items() if k not in required}
        return st.fixed_dictionaries(required, optional=others)

    @staticmethod
    def array(node: Mapping[str, Any]) -> st.SearchStrategy[Any]:
        if "prefixItems" in node:
            return st.tuples(*(_values(one) for one in node["prefixItems"])).map(list)
        return st.lists(_values(node["items"]), min_size=node.get("minItems", 0), max_size=3)

    @staticmethod
    def number(node: Mapping[str, Any]) -> st.SearchStrategy[float]:
        low = node.get("minimum", node.get("exclusiveMinimum"))
        high = node.get("maximum", node.get("exclusiveMaximum"))
        return st.floats(
            low,
            high,
            allow_nan=False,
            allow_infinity=False,
            exclude_min="exclusiveMinimum" in node,
            exclude_max="exclusiveMaximum" in node,
        )

    @staticmethod
    def integer(node: Mapping[str, Any]) -> st.SearchStrategy[int]:
        return st.integers(node.get("minimum"))

    @staticmethod
    def boolean(node: Mapping[str, Any]) -> st.SearchStrategy[bool]:
        return st.booleans()

    @staticmethod
    def null(node: Mapping[str, Any]) -> st.SearchStrategy[None]:
        return st.none()

    @staticmethod
    def string(node: Mapping[str, Any]) -> st.SearchStrategy[str]:
        if "pattern" in node:
            return st.from_regex(node["pattern"].replace("$", r"\Z"))
        return PLACES if "format" in node else st.one_of(TEXT, AMBIGUOUS)
