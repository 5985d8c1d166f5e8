"""A hub of models on this machine."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What a hub knows: {repository: {file: content}}, and what it was asked for."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    url: str = ""


def entries(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
    """What the hub lists of a folder, not of those below it."""
    below = {n.removeprefix(f"{folder}/"): c for n, c in files.items() if n.startswith(folder)}
    found: dict[str, dict[str, Any]] = {}
    for name, content in below.items():
        top, _, rest = name.partition("/")
        path = f"{folder}/{top}".strip("/")
        file = {
            "type": "file",
            "path": path,
            "size": len(content),
            "oid": sha1(content).hexdigest(),
        }
        found[top] = {"type": "directory", "path": path, "oid": "0" * 40} if rest else file
    return list(found.values())


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """A server that speaks as much of the hub's protocol as reading a model needs."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
                self.model(found[1], lambda files: {
                    "id": found[1], "sha": COMMIT, "siblings": [{"rfilename": n} for n in files],
                }, found[2])  # fmt: skip
            elif found := re.fullmatch(r"/api/models/(.+?)/tree/([^/]+)/?(.*)", path):
                self.model(found[1], lambda files: entries(files, found[3]), found[2])
            elif found := re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", path):
                content = state.models[found[1]][found[2]]
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
                if asked is not None:
                    begin, last = int(asked[1]), int(asked[2])
                    state.ranges.append((found[2], begin, last + 1))
                    self.send(206, content[begin : last + 1])
                    return
                if self.command == "GET":
                    state.files.append(found[2])
                self.send(200, content)
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
                self.model(found[1], lambda files: {
                    "id": found[1], "sha": COMMIT, "siblings": [{"rfilename": n} for n in files],
                }, "main")  # fmt: skip
            else:
                self.send(404, b"{}")

        def model(self, repo: str, answer: Any, revision: str) -> None:
            if repo in state.gated:
                self.send(403, b"{}", "GatedRepo")
            elif repo not in state.models:
                self.send(404, b"{}", "RepoNotFound")
            elif revision not in ("main", COMMIT):
                self.send(404, b"{}", "RevisionNotFound")
            else:
                self.send(200, json.dumps(answer(state.models[repo])).encode())

        def send(self, status: int, content: bytes, code: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
