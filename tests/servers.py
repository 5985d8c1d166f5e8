"""Servers on this machine that stand for the internet."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """One request. span: (first byte, last byte) it asked for, or None for the whole file."""

    method: str
    path: str
    query: str
    span: tuple[int, int] | None


@dataclass
class FileServer:
    """Serves the files below `root` over HTTP, with ranges, and remembers what it was asked.

    ranges: whether it answers with parts. secret: the query it wants, else 403. refuses: called
    with each request for bytes; true gives half of the answer and then a closed connection.
    """

    root: Path
    ranges: bool = True
    secret: str | None = None
    refuses: Callable[[Request], bool] = field(default=lambda request: False)
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    sent: int = 0

    def spans(self, name: str) -> list[tuple[int, int]]:
        """The ranges that were asked of files of this name."""
        return [r.span for r in self.requests if r.span and r.path.endswith(name)]


@contextmanager
def serving(root: Path) -> Iterator[FileServer]:
    """A file server on a free port of 127.0.0.1."""
    state = FileServer(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            parts = urlsplit(self.path)
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            span = (int(found[1]), int(found[2])) if found else None
            request = Request(self.command, unquote(parts.path), parts.query, span)
            state.requests.append(request)
            file = root / request.path.lstrip("/")
            if state.secret is not None and parts.query != state.secret:
                self.send(403, b"")
            elif not file.is_file():
                self.send(404, b"")
            else:
                content = file.read_bytes()
                whole = span is None or not state.ranges
                part = content if whole else content[span[0] : span[1] + 1]  # type: ignore[index]
                self.send(200 if whole else 206, part, request, len(content))

        def send(
            self, status: int, content: bytes, request: Request | None = None, size: int = 0
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if request is not None:
                self.send_header("ETag", f'"{hash(content) & 0xFFFF:x}"')
                self.send_header("Accept-Ranges", "bytes" if state.ranges else "none")
            if status == 206 and request is not None and request.span is not None:
                last = request.span[0] + len(content) - 1
                self.send_header("Content-Range", f"bytes {request.span[0]}-{last}/{size}")
            self.end_headers()
            if self.command == "HEAD":
                return
            if request is not None and request.span is not None and state.refuses(request):
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                self.connection.close()
                return
            state.sent += len(content)
            self.wfile.write(content)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A reader that goes away is no news."""

    server = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
