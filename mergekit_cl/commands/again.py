"""The command line that was typed, with other options: what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource


def line_again(ctx: click.Context, changed: Mapping[str, str | None]) -> str:
    """The line of a command as it was given, `changed` options replaced or, if None, left out.

    changed: {parameter: value}. Values are quoted for a shell; flags that stand anywhere are gone.
    """
    from mergekit_cl.checkpoint.urls import as_typed

    words = ["clmerge", ctx.command.name or ""]
    more = {name: value for name, value in changed.items() if value is not None}
    for parameter in ctx.command.params:
        name = parameter.name or ""
        given = ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if name in changed or not given:
            continue
        value = ctx.params[name]
        if isinstance(parameter, click.Argument):
            words += [str(one) for one in _all(value)]
        elif isinstance(parameter, click.Option):
            spelling = max(parameter.opts, key=len)
            if parameter.is_flag:
                words += [spelling] if value else [*parameter.secondary_opts[:1]]
            else:
                words += [word for one in _all(value) for word in (spelling, as_typed(one))]
    for name, value in more.items():
        words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
