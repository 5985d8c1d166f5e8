"""The frame every command stands in: flags, errors, exit codes, start-up, completion."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest

import mergekit_cl.merging
from mergekit_cl.cli import COMMANDS, cli, main
from tests.commands.checkpoints import checkpoint
from tests.commands.lines import parse, shown_in
from tests.commands.running import clmerge, failure_lines, process

HEAVY = ("torch", "numpy", "transformers", "peft", "safetensors", "rich", "blake3")


def command_of(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds checkpoints a and b."""
    checkpoint(tmp_path / "a", 1)
    checkpoint(tmp_path / "b", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Start-up


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "--version",
        *(f"{name} --help" for name in COMMANDS),
        "",
        "fisher-marge",
        "--colour",
        "fisher",
        "fisher m --dat x",
        "linear-merge a",
        "linear-merge a b --weigths 1,2",
        "linear-merge a b --dtype int7",
        "linear-merge a b --weights 1,x",
        "fisher-merge a b --fisher one --json",
    ],
)
def test_help_and_usage_errors_load_click_alone(line: str) -> None:
    script = (
        "import sys, mergekit_cl.cli as frame\n"
        "try:\n    frame.main(sys.argv[1:])\n"
        f"except SystemExit:\n    print('loaded:', *(m for m in {HEAVY} if m in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, *line.split()], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1].split() == ["loaded:"]


def test_importing_the_packages_loads_nothing_heavy() -> None:
    script = "import sys, mergekit_cl, fisher, mergekit_cl.errors; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(ran.stdout.split())


def test_the_console_script_is_this_main() -> None:
    (script,) = entry_points(group="console_scripts", name="clmerge")
    assert script.load() is main


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_help_is_the_first_line_of_the_commands_docstring(name: str) -> None:
    documented = command_of(name).callback
    assert documented is not None
    assert (documented.__doc__ or "").strip().splitlines()[0] == COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_shows_an_example_of_itself_and_every_example_parses(name: str) -> None:
    examples = shown_in(clmerge(name, "--help").out)
    assert any(line.split()[1] == name for line in examples)
    for line in examples:
        assert parse(line) is not None


def test_the_help_of_the_group_names_every_command_and_its_examples_parse() -> None:
    shown = clmerge("--help")
    assert shown.code == 0
    assert shown.err == ""
    unwrapped = " ".join(shown.out.split())
    for name, short in COMMANDS.items():
        assert f" {name} {short}" in unwrapped
    assert len(shown_in(shown.out)) == 3
    assert all(parse(line) for line in shown_in(shown.out))
    assert clmerge("-h") == shown


def test_every_commands_module_is_listed() -> None:
    folder = Path(import_module("mergekit_cl.commands").__path__[0])
    modules = {path.stem.replace("_", "-") for path in folder.glob("*.py")}
    holding = {
        name
        for name in modules - {"--init--"}
        if hasattr(import_module(f"mergekit_cl.commands.{name.replace('-', '_')}"), "command")
    }
    assert holding == set(COMMANDS)


# Usage errors


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("", "missing command", "clmerge --help"),
        ("fisher-marge a b", "no such command 'fisher-marge'", "clmerge fisher-merge"),
        ("linearmerge a b", "no such command 'linearmerge'", "clmerge linear-merge"),
        ("fishr m", "no such command 'fishr'", "clmerge fisher"),
        ("xyzzy", "no such command 'xyzzy'", "clmerge --help"),
        ("linear-merge a b --weigths 1,2", "no such option '--weigths'", "--weights"),
        ("fisher-merge a b --normalise l2", "no such option '--normalise'", "--normalize"),
        ("fisher m --dta x", "no such option '--dta'", "--data"),
        ("linear-merge a b --jason", "no such option '--jason'", "--json"),
        ("linear-merge a b -x", "no such option '-x'", "clmerge linear-merge --help"),
        ("linear-merge", "missing argument 'A B [C...]'", "clmerge linear-merge --help"),
        ("linear-merge a", "a merge needs at least two models", "clmerge linear-merge --help"),
        ("linear-merge a b --weights", "'--weights' requires an argument", "--help"),
        ("linear-merge a b --weights 1,x", "'1,x' is no list of numbers", "--help"),
        ("linear-merge a b --weights 1,nan", "holds a number that is not finite", "--help"),
        ("linear-merge a b --threads 0", "0 is not in the range x>=1", "--help"),
        ("linear-merge a b --shard-size 5XB", "'5XB' is no size", "--help"),
        ("linear-merge a b --shard-size 0", "'0' is no size", "--help"),
        ("linear-merge a b --dtype int8", "'int8' is none of bfloat16, float16", "--help"),
        ("fisher-merge a b --normalize all", "'all' is not one of 'trace', 'l2'", "--help"),
        ("fisher-merge a b --floor -1", "-1.0 is not in the range x>=0", "--help"),
        ("fisher-merge a b --fisher x", "2 inputs need 2 --fisher, not 1", "--help"),
    ],
)
def test_wrong_usage_is_exit_2_and_names_what_was_wrong_and_what_to_do(
    line: str, what: str, hint: str
) -> None:
    result = clmerge(*line.split())
    assert result.code == 2
    assert result.out == ""
    lines = failure_lines(result)
    assert len(lines) == 2
    assert what in lines[0]
    assert lines[1].startswith("  try: ")
    assert hint in lines[1]
    as_json = clmerge(*line.split(), "--json")
    assert (as_json.code, as_json.err) == (2, "")
    assert as_json.error["code"] == "usage"
    assert as_json.error["message"] == lines[0].removeprefix("error: ")
    assert as_json.error["hint"] == lines[1].removeprefix("  try: ")


# Flags taken anywhere on the line


def test_json_is_accepted_anywhere_and_stdout_holds_one_document(two: Path) -> None:
    line = ["linear-merge", "a", "b", "-o", "out"]
    states = []
    for place in range(len(line) + 1):
        result = clmerge(*line[:place], "--json", *line[place:])
        assert result.code == 0
        states.append(result.document["state"])
        assert result.out.count("\n") == 1
    assert states == ["published"] + ["up to date"] * len(line)


def test_json_plan_is_one_document_and_nothing_else(two: Path) -> None:
    result = clmerge("linear-merge", "a", "b", "--dry-run", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.document["command"] == "linear-merge"


def test_after_two_dashes_a_flag_is_a_path(two: Path) -> None:
    result = clmerge("linear-merge", "--", "a", "--json")
    assert result.code == 1
    assert failure_lines(result)[1] == "  --json"


def test_without_json_a_merge_prints_nothing_on_stdout(two: Path) -> None:
    result = clmerge("linear-merge", "a", "b")
    assert result.code == 0
    assert result.out == ""
    assert "output: merged" in result.err


@pytest.mark.parametrize("flag", ["--quiet", "-q"])
def test_quiet_says_nothing_of_success_and_everything_of_failure(two: Path, flag: str) -> None:
    done = clmerge("linear-merge", "a", "b", flag)
    assert (done.code, done.out, done.err) == (0, "", "")
    failed = clmerge(flag, "linear-merge", "a", "c")
    assert failed.code == 1
    assert failure_lines(failed)[:2] == ["error: no such file or directory", "  c"]


def test_quiet_json_prints_the_document_alone(two: Path) -> None:
    result = clmerge("linear-merge", "a", "b", "--quiet", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.document["state"] == "published"


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [("linear-merge a c", 1, "InputError"), ("linear-merge a b --weights 1,x", 2, "BadParameter")],
)
def test_debug_shows_the_traceback_and_keeps_message_and_exit_code(
    two: Path, line: str, code: int, kind: str
) -> None:
    plain = clmerge(*line.split())
    debugged = clmerge("--debug", *line.split())
    assert plain.code == debugged.code == code
    assert debugged.err.startswith("Traceback (most recent call last)")
    assert kind in debugged.err
    assert debugged.err.endswith(plain.err)
    as_json = clmerge(*line.split(), "--debug", "--json")
    assert as_json.code == code
    assert as_json.error["message"] in plain.err


# Colour and progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


COLOUR = re.compile(r"\x1b\[[\d;]*?(?:3[0-79]|38;5;\d+|9[0-7])m")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal()


def merge_on(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, *more: str) -> str:
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(SystemExit) as end:
        main(["linear-merge", "a", "b", *more])
    assert end.value.code == 0
    return terminal.getvalue()


@pytest.fixture
def _signals() -> Any:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_a_terminal_gets_a_bar_in_colour(
    two: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = merge_on(terminal, monkeypatch)
    assert COLOUR.search(shown)
    assert "━" in shown


@pytest.mark.usefixtures("_signals")
def test_no_color_leaves_no_colour_on_a_terminal(
    two: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = merge_on(terminal, monkeypatch)
    assert "━" in shown
    assert not COLOUR.search(shown)


@pytest.mark.usefixtures("_signals")
def test_quiet_silences_a_terminal(
    two: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert merge_on(terminal, monkeypatch, "--quiet") == ""


def test_a_pipe_gets_no_escape_sequences(two: Path) -> None:
    assert "\x1b" not in clmerge("linear-merge", "a", "b").err


# What is not the user's fault


def test_an_unforeseen_error_is_one_message_and_exit_1(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the sky fell")

    monkeypatch.setattr(mergekit_cl.merging, "make_plan", broken)
    result = clmerge("linear-merge", "a", "b")
    assert result.code == 1
    lines = failure_lines(result)
    assert lines[0] == "error: unexpected RuntimeError: the sky fell"
    assert "--debug" in lines[-1]
    assert clmerge("linear-merge", "a", "b", "--json").error["code"] == "internal"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_exit_128_and_its_number(
    two: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(mergekit_cl.merging, "make_plan", interrupted)
    result = clmerge("linear-merge", "a", "b")
    assert result.code == code
    assert failure_lines(result) == ["error: interrupted", "  try: give the same command again"]
    as_json = clmerge("linear-merge", "a", "b", "--json")
    assert (as_json.code, as_json.error["code"]) == (code, "interrupted")


def test_a_reader_that_goes_away_meets_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "mergekit_cl", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert ran.stderr == ""


# The same from outside


def test_as_a_process_results_and_people_have_streams_of_their_own(two: Path) -> None:
    done = process("linear-merge", "a", "b", "--json", cwd=two)
    assert done.code == 0
    assert json.loads(done.out)["state"] == "published"
    assert "output: merged" in done.err
    again = process("linear-merge", "a", "b", cwd=two)
    assert (again.code, again.out, again.err) == (0, "", "merged is up to date\n")
    assert process("linear-merge", "a", "c", cwd=two).code == 1
    assert process("linear-merge", "a", cwd=two).code == 2


# Shell completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_made_for_clmerge(shell: str) -> None:
    made = process(_CLMERGE_COMPLETE=f"{shell}_source")
    assert (made.code, made.err) == (0, "")
    assert f"_CLMERGE_COMPLETE={shell}_complete" in made.out
    assert re.search(r"(complete|compdef).* clmerge", made.out)


def complete(words: str, at: int) -> list[str]:
    done = process(_CLMERGE_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(at))
    assert done.code == 0
    return [line.partition(",")[2] for line in done.out.splitlines()]


def test_completion_names_every_command_and_the_options_of_one() -> None:
    assert complete("clmerge ", 1) == list(COMMANDS)
    assert complete("clmerge fisher-", 1) == ["fisher-merge"]
    assert complete("clmerge fisher-merge --no", 2) == ["--normalize", "--no-report"]
