"""Command lines as help pages and documents show them."""

from __future__ import annotations

import re
import shlex

import click

from mergekit_cl.cli import cli, split_flags


def shown_in(text: str) -> list[str]:
    """Every `clmerge ...` line of a text, continued lines joined, comments and prompts dropped."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in joined.splitlines():
        for part in line.strip().removeprefix("$ ").split("&&"):
            if part.strip().startswith("clmerge "):
                found.append(part.split("  #")[0].strip())
    return found


def parse(line: str) -> click.Context | None:
    """Parse a command line without running it; click.UsageError where it is wrong.

    Gives the command's context, or None where the line only asks for help or the version.
    """
    words = shlex.split(line)
    assert words[0] == "clmerge"
    rest, _ = split_flags(words[1:])
    try:
        group = cli.make_context("clmerge", rest)
        name, command, arguments = cli.resolve_command(group, [*group._protected_args, *group.args])
        assert command is not None
        found = command.make_context(name, arguments, parent=group)
        if isinstance(command, click.Group):
            name, inner, arguments = command.resolve_command(
                found, [*found._protected_args, *found.args]
            )
            assert inner is not None
            return inner.make_context(name, arguments, parent=found)
        return found
    except click.exceptions.Exit:
        return None


def leaves() -> dict[str, click.Command]:
    """Every command that does something, by what is typed after `clmerge`."""
    found: dict[str, click.Command] = {}
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": value for inner, value in command.commands.items()}
        else:
            found[name] = command
    return found


def options_of(command: click.Command) -> set[str]:
    """Every spelling of every option that a command's help shows, but `--help`."""
    return {
        spelling
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }
