"""Run clmerge as a user does: in this process where that is enough, else as a real one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_cl.cli import main
from tests.commands.trees import snapshot


@dataclass(frozen=True)
class Result:
    """What one command left behind: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; fails where there is more or less than one."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error inside the JSON document."""
        found: dict[str, Any] = self.document["error"]
        return found


def clmerge(*arguments: str | Path) -> Result:
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = int(str(end.code))
    else:
        raise AssertionError("main returned instead of exiting")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Result(code, out.getvalue(), err.getvalue())


def start(
    *arguments: str | Path, cwd: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start one command line as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mergekit_cl", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def process(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Result:
    """Run one command line as a process of its own."""
    running = start(*arguments, cwd=cwd, **environment)
    out, err = running.communicate(timeout=120)
    return Result(running.returncode, out, err)


def failure_lines(result: Result) -> list[str]:
    """The lines of a failed command's message, after checking its form.

    `error: <what>`, then indented where, then perhaps `  try: <what to do>`; nothing else is said.
    """
    lines = result.err.splitlines()
    assert lines, "a failure says nothing"
    assert lines[0].startswith("error: "), result.err
    assert all(line.startswith("  ") for line in lines[1:]), result.err
    assert not any(line.startswith("  try: ") for line in lines[1:-1]), result.err
    assert "Traceback" not in result.err
    return lines


def refused(*arguments: str | Path, unchanged: Path, says: tuple[str, ...], code: int = 1) -> str:
    """Run a command that must fail, say all of `says` in its form, and leave `unchanged` alone.

    The same is then asked for as JSON, which must say the same. Returns the message.
    """
    before = snapshot(unchanged)
    result = clmerge(*arguments)
    assert result.code == code, result
    assert result.out == ""
    lines = failure_lines(result)
    for part in says:
        assert part in result.err, f"{part!r} is not in:\n{result.err}"
    assert snapshot(unchanged) == before
    as_json = clmerge(*arguments, "--json")
    assert as_json.code == code
    assert as_json.err == ""
    error = as_json.error
    assert set(error) == {"code", "message", "detail", "hint"}
    assert lines[0] == f"error: {error['message']}"
    assert (lines[-1] == f"  try: {error['hint']}") == (error["hint"] is not None)
    assert snapshot(unchanged) == before
    return result.err
