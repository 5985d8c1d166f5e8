"""A policy from its TOML file, and the default one written into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import fill

from mergekit_cl.decide.policy import DEFAULT, METRICS, TOLERANCE, Policy, parse_policy
from mergekit_cl.errors import OptionError, OutputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_policy(path: Path) -> Policy:
    """Read a policy; raises OptionError where it is missing, no TOML, or no policy."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            "the policy cannot be read", detail=f"--policy {path}: {error.strerror}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(
            "the policy is not TOML", detail=f"{path}: {error}", hint="see docs/commands.md"
        ) from error
    return parse_policy(content, str(path))


MEANING = {
    "survival": "least share of the update that rounding may leave",
    "predicted_loss": "nats per token; only where a parent's sidecar is calibrated",
    "loss_rise": "nats per token above a parent; only where --data is given",
    "missing": "tensors of a parent that the merge lacks",
}


def default_policy() -> str:
    """The built-in policy as a commented file."""
    width = max(len(f"{name} = {value:g}") for name, value in DEFAULT.model.items())
    lines = [
        f"{f'{name} = {value:g}':<{width}}  # {MEANING[name]}"
        for name, value in DEFAULT.model.items()
    ]
    others = ", ".join(name for name in METRICS if name not in DEFAULT.model)
    return _DEFAULT.format(
        model="\n".join(lines),
        others=fill(others, 98, initial_indent="# ", subsequent_indent="# "),
        tolerance=f"{TOLERANCE:g}",
    )


def write_policy(path: Path, *, force: bool) -> None:
    """Write the built-in policy; raises OutputError over a file, unless `force` is set."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(default_policy())
    except FileExistsError as error:
        raise OutputError(
            "the policy is there already", detail=f"--write-policy {path}", hint="--force"
        ) from error
    except OSError as error:
        raise OutputError(
            "the policy cannot be written", detail=f"--write-policy {path}: {error.strerror}"
        ) from error


_DEFAULT = """\
# What counts as lossy: clmerge check MERGED PARENT... --policy FILE; merges take it too.
# survival and cosine are lossy below their threshold, every other metric above it. A metric that
# is not known breaks nothing. A line that is taken out is a threshold that is gone.

[model]
{model}
# may stand here too:
{others}

# Layers and tensors by name; of several patterns that match, later ones win.
# [layers."model.layers.*"]
# survival = 0.3
#
# [tensors."*.embed_tokens.*"]
# rel_l2 = 0.02

[baseline]
tolerance = {tolerance}  # share by which a metric may be worse than in --baseline
"""
