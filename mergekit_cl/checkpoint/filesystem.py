"""Folders beyond this disk, through fsspec: what lies there, and parts of it."""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_cl.checkpoint.refusals import access_error, is_absent, is_lasting
from mergekit_cl.checkpoint.urls import child, is_http, shown
from mergekit_cl.errors import InputError

CONNECTIONS = 8
SMALL_BYTES = 100_000_000  # no index, config or tokenizer is larger
PAUSES = (0.2, 1.0)  # seconds before an HTTP request is tried again; object stores do so themselves
STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "Last-Modified", "updated")


@dataclass(frozen=True)
class RemoteFile:
    """A file beyond this disk. url: whole, so it may hold a secret. stamp: differs after a change.

    Its text is what may be shown.
    """

    name: str
    url: str = field(repr=False)
    nbytes: int
    stamp: str

    def __str__(self) -> str:
        return shown(self.url)


class RemoteFolder:
    """One folder of any filesystem fsspec knows, with a temporary folder here for small files.

    url: of the folder. Every method raises InputError where the place fails.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs = _filesystem(url)
        self.scratch = Path(tempfile.mkdtemp(prefix="clmerge-"))
        # Also where nobody calls close: on an error, or at the end of the process.
        self.close = weakref.finalize(self, shutil.rmtree, self.scratch, ignore_errors=True)

    def listing(self) -> dict[str, RemoteFile] | None:
        """Files in the folder by name; None where the server lists none."""
        if is_http(self.url):
            return None
        try:
            entries = self._fs.ls(self._fs._strip_protocol(self.url), detail=True)
        except Exception as error:
            if is_absent(error):
                return {}
            raise access_error(error, self.url) from None
        named = [(entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in entries]
        return {
            name: _described(name, child(self.url, name), entry)
            for name, entry in named
            if entry["type"] == "file" and name
        }

    def find(self, name: str, *, optional: bool = False) -> RemoteFile | None:
        """A file by its name below the folder; None where it is not there.

        optional: a refused access counts as absence, as where a signature is for one file alone.
        """
        url = child(self.url, name)
        try:
            info = self._fs.info(self._fs._strip_protocol(url))
        except Exception as error:
            refused = access_error(error, url)
            if is_absent(error) or (optional and is_lasting(error)):
                return None
            raise refused from None
        return _described(name, url, info) if info.get("type", "file") == "file" else None

    def find_all(self, names: Sequence[str], *, optional: bool = False) -> list[RemoteFile | None]:
        """`find` for several names at once."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(lambda name: self.find(name, optional=optional), names))

    def fetch(self, file: RemoteFile, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file, by one range request; never more is transferred."""
        pauses = PAUSES if is_http(self.url) else ()
        for pause in (*pauses, None):
            try:
                return self._range(file, start, stop)
            except Exception as error:
                if pause is None or is_lasting(error):
                    raise access_error(error, file.url) from None
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def fetch_small(self, files: Sequence[RemoteFile]) -> list[bytes]:
        """Whole small files: index, config, tokenizer."""
        for file in files:
            if file.nbytes > SMALL_BYTES:
                raise InputError(
                    "a file beside the weights is larger than any config or tokenizer",
                    detail=f"{file}: {file.nbytes} bytes",
                    hint="copy the model to this disk first",
                )
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(lambda file: self.fetch(file, 0, file.nbytes), files))

    def heads(self, files: Sequence[RemoteFile], count: int) -> list[bytes]:
        """The first `count` bytes of each file, or all of it."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(lambda file: self.fetch(file, 0, min(count, file.nbytes)), files))

    def put(self, source: Path, name: str) -> None:
        """Upload a file, in parts where it is large; raises what the filesystem raises."""
        path = self._fs._strip_protocol(child(self.url, name))
        self._fs.put_file(str(source), path)
        if self._fs.info(path)["size"] != source.stat().st_size:
            raise EOFError(f"{name} did not arrive whole")

    def remove(self, name: str) -> None:
        """Delete a file; raises what the filesystem raises."""
        self._fs.rm_file(self._fs._strip_protocol(child(self.url, name)))

    def _range(self, file: RemoteFile, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        path = self._fs._strip_protocol(file.url)
        content: bytes
        if is_http(file.url) or file.url.startswith("hf://"):
            # cat_file reads ahead from the hub, and takes a whole file from a server that answers
            # with one.
            with self._fs.open(path, "rb", size=file.nbytes, cache_type="none") as stream:
                stream.seek(start)
                content = stream.read(stop - start)
        else:
            content = self._fs.cat_file(path, start=start, end=stop)
        if len(content) != stop - start:
            raise EOFError(f"{len(content)} bytes came where {stop - start} were asked for")
        return content


def _described(name: str, url: str, info: dict[str, Any]) -> RemoteFile:
    size = info.get("size")
    if not isinstance(size, int) or info.get("partial") is False:
        raise InputError(
            "the server does not hand out parts of files",
            detail=shown(url),
            hint="copy the model to this disk first",
        )
    stamps = [str(info[key]) for key in STAMPS if info.get(key)]
    return RemoteFile(name, url, size, stamps[0] if stamps else "")


def _filesystem(url: str) -> Any:
    """The filesystem of a URL, fresh: one that is kept would answer from an old listing."""
    import fsspec

    options: dict[str, Any] = {}
    try:
        if is_http(url):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=30)
            options["client_kwargs"] = {"timeout": timeout}
            options["headers"] = {"Accept-Encoding": "identity"}
        if "::" not in url:
            options |= {"skip_instance_cache": True, "use_listings_cache": False}
        return fsspec.core.url_to_fs(url, **options)[0]
    except ImportError as error:
        known = url.startswith(("s3", "http"))
        raise InputError(
            "this kind of place needs a package that is not installed",
            detail=f"{shown(url)}: {str(error).splitlines()[0]:.120}",
            hint="pip install 'clmerge[remote]'" if known else "pip install the package it names",
        ) from error
    except Exception as error:
        raise access_error(error, url) from None
