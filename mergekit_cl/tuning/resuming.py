"""Whether a run may go on with a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from mergekit_cl.errors import FormatError, InputError, OptionError
from mergekit_cl.tuning.plain import from_yaml
from mergekit_cl.tuning.rundir import RunFolder
from mergekit_cl.tuning.schema import Config

FREE = ("output", "save_every", "shard", "trackers")
"""Keys that change nothing about the weights: they may differ when a run goes on."""


def check_same_config(folder: RunFolder, config: Config) -> None:
    """Raise where `folder` holds no run, or one of another config, whose keys are named."""
    check_resumed(folder)
    keys = _changed_keys(folder, config)
    if keys:
        raise OptionError(
            "the run was begun with another config, so it cannot be resumed with this one",
            detail=f"{folder.config} differs in {', '.join(keys[:5])}"
            + (f" and {len(keys) - 5} more" if len(keys) > 5 else ""),
            hint="give the same config again, or begin a new run with another output",
        )


def check_resumed(folder: RunFolder) -> None:
    """Raise InputError where `folder` holds no run."""
    if folder.read_record() is None:
        raise InputError(
            "there is no run to resume",
            detail=f"{folder.root}: no run.json of clmerge",
            hint="give the folder that an earlier clmerge train wrote, or begin one: "
            f"clmerge train CONFIG -o {folder.root}",
        )


def is_same_config(folder: RunFolder, config: Config) -> bool:
    """Whether the run in `folder` was begun with this config."""
    return not _changed_keys(folder, config)


def _changed_keys(folder: RunFolder, config: Config) -> list[str]:
    """Dotted keys that would change the weights and are not as they were."""
    now = config.model_dump(mode="json", by_alias=True)
    return [key for key in differing(stored_config(folder), now) if key.split(".")[0] not in FREE]


def stored_config(folder: RunFolder) -> Any:
    """The values of the config that a run was begun with; raises FormatError."""
    try:
        return from_yaml(folder.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise FormatError(
            "the config of the run cannot be read", detail=f"{folder.config}: {error!s:.160}"
        ) from error


def differing(one: Any, other: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the values in which two configs differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            yield from differing(one.get(key), other.get(key), f"{prefix}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from differing(mine, theirs, f"{prefix}.{number}".lstrip("."))
    elif one != other:
        yield prefix
