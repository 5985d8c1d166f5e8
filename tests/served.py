"""`clmerge` and `python -m` for scripts that give many commands: forks of one process.

A process of its own loads torch and transformers first, which takes seconds and is tested
elsewhere. A command is given here what a process is given: a command line, a folder, an environment
and three streams; it gives back an exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

ROOT = Path(__file__).parents[1]
IMPORTS = (
    "mergekit_cl.cli",
    "mergekit_cl.commands.check",
    "mergekit_cl.commands.ema_merge",
    "mergekit_cl.commands.fisher",
    "mergekit_cl.commands.fisher_merge",
    "mergekit_cl.commands.gate",
    "mergekit_cl.commands.linear_merge",
    "mergekit_cl.commands.lora_merge",
    "mergekit_cl.commands.train",
    "mergekit_cl.commands.verify",
    "mergekit_cl.estimating.run",
    "mergekit_cl.gating.run",
    "mergekit_cl.merging",
    "mergekit_cl.tuning.run",
    "accelerate",
    "peft",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)
CLIENT = """\
#!{python} -SE
import json, os, socket, sys
name, line = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python" and line[:1] != ["-m"]:
    os.execv({python!r}, [{python!r}, *line])
words = line[1:] if name == "python" else ["mergekit_cl", *line]
given = {{"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({address!r})
    socket.send_fds(server, [json.dumps(given).encode()], [0, 1, 2])
    sys.exit(int(server.recv(16) or 70))
"""
# What the examples' settings say, and libraries read when they are loaded.
SETTINGS = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


@contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """`clmerge` and `python` in a folder, for a PATH, while their server runs; gives the former."""
    address = f"\0clmerge-{uuid4()}"  # no file, whose path might be too long for a socket
    for name in ("clmerge", "python"):
        (folder / name).write_text(CLIENT.format(python=sys.executable, address=address))
        (folder / name).chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen()
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.served", str(listening.fileno())],
            pass_fds=[listening.fileno()],
            cwd=ROOT,
            env=os.environ | SETTINGS,
            start_new_session=True,
        )
    try:
        yield folder / "clmerge"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # and what a test that failed has left
        server.wait()


def serve(descriptor: int) -> None:
    """Fork a command for every connection."""
    import torch

    for name in IMPORTS:
        importlib.import_module(name)
    torch.set_num_threads(1)  # no pool of threads exists when a process is forked
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a command but its client
    with socket.socket(fileno=descriptor) as listening:
        while True:
            client, _ = listening.accept()
            message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _run(json.loads(message), streams, client)
            for stream in streams:
                os.close(stream)
            client.close()


def _run(given: dict[str, Any], streams: list[int], client: socket.socket) -> NoReturn:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(given["environment"])
    os.chdir(given["folder"])
    code = 70
    sys.argv = given["words"]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        client.send(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
