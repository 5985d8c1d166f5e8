"""The command line's frame: commands found lazily, errors told in three lines, exit codes."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from importlib import import_module
from traceback import print_exception
from typing import NoReturn

import click

from mergekit_cl.commands.streams import Streams
from mergekit_cl.errors import ClmergeError, Interrupted
from mergekit_cl.interrupts import interrupting
from mergekit_cl.launched import launched
from mergekit_cl.report.text import log_line

COMMANDS = {
    "fisher": "Compute a Fisher sidecar for a model.",
    "fisher-merge": "Merge models weighted by their Fisher sidecars.",
    "linear-merge": "Merge models by a weighted average.",
    "ema-merge": "Move a state towards newer models: an exponential moving average.",
    "lora-merge": "Merge LoRA adapters into their base, with one rounding.",
    "lora-unmerge": "Take a lora-merge back: the base, bit for bit, proven by digests.",
    "lora-extract": "Extract a LoRA adapter out of what a tuned model differs from its base by.",
    "diff": "Tell how far a checkpoint is from another, such as a merge from a parent.",
    "check": "Hold a merge to a policy of how far it may be from its parents.",
    "gate": "Decide whether a candidate may replace a reference: is it at most a margin worse?",
    "train": "Fine-tune on one task after another without forgetting.",
    "ema-average": "Average the weights of a training run, with any half-life, after it.",
    "verify": "Check every tensor of a checkpoint against its recorded digests.",
    "drift": "Tell when the level of a stream of losses has changed.",
    "inspect": "Tell what a checkpoint, adapter, sidecar or manifest is, from headers.",
}
"""Command: first line of its help. Its function is `command` in commands/<name>.py."""

EVERYWHERE = {"--json": "json", "--quiet": "quiet", "-q": "quiet", "--debug": "debug"}
"""Flags accepted anywhere on the line."""

HELP = {"-h", "--help", "--version"}


class LazyGroup(click.Group):
    """Knows the names of its commands and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"mergekit_cl.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            raise click.UsageError(f"no such command {args[0]!r}.{_nearest(args[0])}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="clmerge", prog_name="clmerge")
def cli() -> None:
    """Merge checkpoints exactly, and know what the merge cost.

    \b
    clmerge fisher A --data a.jsonl
    clmerge fisher B --data b.jsonl
    clmerge fisher-merge A B

    Every command takes --json (one JSON document on stdout), --quiet and --debug, anywhere on the
    line. Exit codes: 0 done, 1 failed, 2 wrong usage, 10 lossy under --strict or by check,
    rejected by gate, 11 inconclusive, 12 drift, 130 or 143 interrupted (the same command
    continues).
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of docs/commands.md."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    rest, flags = split_flags(given)
    # Of several processes' run the first one speaks; any other command is one process's own.
    silent = rest[:1] in (["fisher"], ["train"]) and launched().rank > 0
    streams = Streams(json="json" in flags, quiet="quiet" in flags, silent=silent)
    if streams.json or streams.quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Of a large model there are hundreds of thousands of small objects, all of which live to the
    # end: to look for cycles among them again and again takes as long as to make them.
    gc.set_threshold(100_000)
    interrupt = interrupting(hint="give the same command again")
    # Threads that spin while they wait make torch several times slower on a shared machine. OpenMP
    # reads this when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        with _as_document(streams, rest):
            code = cli.main(rest, prog_name="clmerge", standalone_mode=False, obj=streams) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`| head`): nothing more to say, and no traceback at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if isinstance(error, Interrupted):
            # It ends now: one more Ctrl-C would only cut off the message, or change the exit code.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        if "debug" in flags:
            print_exception(error)
        code = _tell(error, streams, rest)
    sys.exit(code)


@contextmanager
def _as_document(streams: Streams, words: list[str]) -> Iterator[None]:
    """Help and version as JSON, where that is asked for: click prints them as text."""
    before = words[: words.index("--")] if "--" in words else words
    asked = "version" if "--version" in before else "help"
    if not streams.json or HELP.isdisjoint(before):
        yield
        return
    text = io.StringIO()
    with redirect_stdout(text):
        yield
    print(json.dumps({asked: text.getvalue().rstrip()}))  # noqa: T201


def split_flags(arguments: list[str]) -> tuple[list[str], set[str]]:
    """Take the flags that stand anywhere out of a command line; nothing after `--` is one."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = {EVERYWHERE[a] for a in arguments[:end] if a in EVERYWHERE}
    rest = [a for a in arguments[:end] if a not in EVERYWHERE] + arguments[end:]
    return rest, flags


def _tell(error: Exception, streams: Streams, words: list[str]) -> int:
    """Print one error as text or JSON; returns the exit code."""
    code, exit_code, detail, hint = "internal", 1, None, None
    if isinstance(error, ClmergeError):
        code, exit_code = error.code, error.exit_code
        message, detail, hint = error.message, error.detail, error.hint
    elif isinstance(error, click.ClickException):
        message, hint = _usage(error, words)
        code, exit_code = "usage", 2
    else:
        message = f"unexpected {type(error).__name__}: {error}"
        hint = "the same command with --debug shows where; please report it"
    if streams.silent:
        return exit_code
    if streams.json:
        told = {"code": code, "message": message, "detail": detail, "hint": hint}
        print(json.dumps({"error": told}))  # noqa: T201
    else:
        lines = [f"error: {message}"]
        lines += [f"  {detail}"] if detail else []
        lines += [f"  try: {hint}"] if hint else []
        # Names in it come from files; terminals and workflows obey some of what they may hold.
        safe = [log_line(line) for line in "\n".join(lines).split("\n")]
        print("\n".join(safe), file=sys.stderr)  # noqa: T201
    return exit_code


def _usage(error: click.ClickException, words: list[str]) -> tuple[str, str | None]:
    message = error.format_message().strip()
    path = " ".join(["clmerge", *(word for word in words[:1] if word in COMMANDS)])
    message = message[:1].lower() + message[1:]
    what, nearest = _split_suggestion(message)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None and context.parent is not None:
        path = context.command_path
        if isinstance(context.command, click.Group) and nearest in context.command.commands:
            nearest = f"{path} {nearest}"
    if isinstance(error, click.NoSuchOption) and nearest is None:
        # Flags that stand anywhere are taken off the line: the group does not know them.
        near = get_close_matches(error.option_name, [*EVERYWHERE, *HELP], cutoff=0.6)
        nearest = near[0] if near else None
    return what.rstrip(". "), nearest or f"{path} --help"


def _split_suggestion(message: str) -> tuple[str, str | None]:
    """Take 'Did you mean X?' or '(Did you mean one of: X, Y?)' off the end of a message."""
    what, found, rest = message.partition("Did you mean ")
    if not found:
        return message, None
    names = rest.rstrip(")?").removeprefix("one of: ").replace("'", "")
    return what.rstrip(" ("), names.replace(", ", " or ")


def _nearest(name: str) -> str:
    near = get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
    return f" Did you mean clmerge {near[0]}?" if near else ""
