"""A server that imports everything once and forks a process per command, to be killed cheaply.

Requests and answers are lines of JSON: {"import"}, names of modules to have from then on, or
{"cwd", "line", "exchange"} and one of "kill_after"
(seconds), "kill_at" (the number of the step before which it dies), "fail_at" (the number of the
write that finds the disk full), "file_bytes" (how large a file may grow), or "record" (a file for
the disk's states, and "root", the place); the answer is
{"status", "seconds", "steps", "err"}.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Ended:
    """How a forked command ended. status: its exit code, or minus the signal that killed it."""

    status: int
    seconds: float
    steps: int
    err: str


class Forks:
    """The server as its users see it."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(self, cwd: Path, line: Sequence[str], exchange: bool = True, **how: Any) -> Ended:
        """Run one command line in a process of its own."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"cwd": str(cwd), "line": list(line), "exchange": exchange, **how}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))

    def load(self, modules: Sequence[str]) -> None:
        """Import modules once, for all commands to come."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"import": list(modules)}) + "\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == "{}\n"


@contextmanager
def forking() -> Iterator[Forks]:
    """A server for the time of a test module."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forked"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
    )
    try:
        yield Forks(server)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        assert server.stdout is not None
        server.stdout.close()
        server.wait()


def serve() -> None:
    """Import what commands need, then fork for every line of stdin."""
    import torch
    import yaml  # noqa: F401

    import mergekit_cl.cli
    import mergekit_cl.commands.ema_merge
    import mergekit_cl.commands.fisher_merge
    import mergekit_cl.commands.linear_merge
    import mergekit_cl.commands.verify
    import mergekit_cl.identity
    import mergekit_cl.merge.rounding
    import mergekit_cl.merging
    import mergekit_cl.methods.ema
    import mergekit_cl.methods.fisher
    import mergekit_cl.methods.linear
    import mergekit_cl.policyfile
    import mergekit_cl.remote_merge
    import mergekit_cl.report.merge
    import mergekit_cl.verifying
    from mergekit_cl.output import publish
    from tests import steps
    from tests.short_pages import make_pages_short

    make_pages_short()
    torch.set_num_threads(1)  # no pool of threads exists when a process is forked
    for text in sys.stdin:
        request = json.loads(text)
        if "import" in request:
            for name in request["import"]:
                importlib.import_module(name)
            if "mergekit_cl.estimating.run" in sys.modules:
                sys.modules["mergekit_cl.estimating.run"].SECONDS_BETWEEN_SAVES = -1.0
            sys.stdout.write("{}\n")
            sys.stdout.flush()
            continue
        with tempfile.NamedTemporaryFile() as err, tempfile.NamedTemporaryFile() as counted:
            began = time.perf_counter()
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.chdir(request["cwd"])
                for stream in (1, 2):
                    os.dup2(err.fileno(), stream)
                if not request["exchange"]:
                    publish.exchange = lambda one, other: False
                if "file_bytes" in request:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
                counter = steps.install(request)
                code = 70
                try:
                    mergekit_cl.cli.main([*request["line"], "--quiet"])
                except SystemExit as end:
                    code = int(end.code or 0)
                finally:
                    sys.stderr.flush()
                    counter.end()
                    Path(counted.name).write_text(str(counter.count))
                    os._exit(code)
            status = _wait(child, request.get("kill_after"))
            answer = {
                "status": os.waitstatus_to_exitcode(status),
                "seconds": time.perf_counter() - began,
                "steps": int(Path(counted.name).read_text() or 0),
                "err": Path(err.name).read_text(),
            }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _wait(child: int, seconds: float | None) -> int:
    if seconds is not None:
        ended = os.pidfd_open(child)
        if not select.select([ended], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
        os.close(ended)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    serve()
