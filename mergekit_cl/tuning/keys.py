"""The keys that a config knows, and what each takes, from the schema that pydantic draws of it.

A node is a part of that JSON schema. A path is a tuple of keys and list positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from mergekit_cl.tuning.schema import Config

Node = Mapping[str, Any]
KeyPath = tuple[str | int, ...]

ELSEWHERE = {
    "accumulation_steps": "batch.accumulate",
    "batch_size": "batch.rows",
    "buffer_size": "replay.rows",
    "data": "task.0.data",
    "decay": "ema.half_life",
    "dropout": "lora.dropout",
    "ewc_lambda": "ewc.lambda",
    "gradient_accumulation_steps": "batch.accumulate",
    "grad_clip": "optimizer.clip",
    "lr": "optimizer.learning_rate",
    "max_grad_norm": "optimizer.clip",
    "max_seq_length": "batch.max_length",
    "max_steps": "task.0.steps",
    "model_name_or_path": "model",
    "num_epochs": "task.0.epochs",
    "num_train_epochs": "task.0.epochs",
    "output_dir": "output",
    "per_device_train_batch_size": "batch.rows",
    "r": "lora.rank",
    "save_steps": "save_every",
    "target_modules": "lora.targets",
    "tasks": "task",
    "train": "task.0.data",
    "warmup_steps": "optimizer.warmup",
}
"""What other trainers call a key: what it is called here."""


def whole() -> Node:
    """The node of a config, with every reference of it followed."""
    schema = Config.model_json_schema()

    def follow(node: Any) -> Any:
        if isinstance(node, list):
            return [follow(one) for one in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            named = schema["$defs"][node["$ref"].rpartition("/")[2]]
            return follow({**named, **{k: v for k, v in node.items() if k != "$ref"}})
        return {key: follow(value) for key, value in node.items() if key != "$defs"}

    found: Node = follow(schema)
    return found


def choices(node: Node) -> list[Node]:
    """The kinds of values that a node takes, but for nothing at all."""
    return [one for one in node.get("anyOf", [node]) if one.get("type") != "null"]


def child(node: Node | None, key: str | int) -> Node | None:
    """The node of a key of a table or a position of a list; None where there is none."""
    for one in choices(node or {}):
        if isinstance(key, int):
            items = one.get("items") or next(iter(one.get("prefixItems", ())), None)
            if items is not None:
                return dict(items)
        elif key in one.get("properties", {}):
            return dict(one["properties"][key])
        elif isinstance(one.get("additionalProperties"), Mapping):
            return dict(one["additionalProperties"])
    return None


def at(node: Node, path: KeyPath) -> Node | None:
    """The node of a path."""
    found: Node | None = node
    for key in path:
        found = child(found, key)
    return found


def is_table(node: Node | None) -> bool:
    """Whether a node takes keys."""
    return any(one.get("type") == "object" for one in choices(node or {}))


def known(node: Node | None) -> list[str]:
    """The keys of a table."""
    return [key for one in choices(node or {}) for key in one.get("properties", {})]


def every_key(node: Node, above: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """Every key that can be written, in the schema's order, tables before what is in them.

    A list of tables counts as its first one.
    """
    for key in known(node):
        here = (*above, key)
        inner = child(node, key) or {}
        yield here, inner
        items = child(inner, 0)
        if is_table(items):
            yield from every_key(items or {}, (*here, 0))
        else:
            yield from every_key(inner, here)


def shown(path: KeyPath) -> str:
    """A path as `--set` takes it: `task.0.steps`."""
    return ".".join(str(key) for key in path)


def nearest(node: Node, path: KeyPath) -> str | None:
    """The key that an unknown one may have meant: in its own table, else in another."""
    *above, last = path
    table = tuple(above)
    if str(last).lower() in ELSEWHERE:
        return ELSEWHERE[str(last).lower()]
    if close := get_close_matches(str(last), known(at(node, table)), n=1, cutoff=0.6):
        return shown((*table, close[0]))
    others: dict[str, KeyPath] = {}
    for other, _ in every_key(node):
        others.setdefault(str(other[-1]), other)
    close = get_close_matches(str(last), others, n=1, cutoff=0.75)
    return shown(others[close[0]]) if close else None
