"""A policy from its TOML file."""

from __future__ import annotations

import sys
from pathlib import Path

from mergekit_cl.decide.policy import Policy, parse_policy
from mergekit_cl.errors import OptionError

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
