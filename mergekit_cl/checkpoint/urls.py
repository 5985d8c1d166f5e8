"""URLs as users type them, and as much of them as may be shown to anybody."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
# A password may hold a slash that nobody quoted; "host:8080/x@y" is a port and no password.
_USER = re.compile(r"://(?:[^/\s:@]*:(?!\d+/)[^@\s]*|[^/\s@]*)@(?:[^/\s@]*@)*")
_QUERY = re.compile(r"(://[^\s?#'\"]*)[?#][^\s'\"]*")


def as_typed(path: str | Path) -> str:
    """The text of a PATH; gives a URL back the slash that `Path` takes from it."""
    text = str(path)
    if isinstance(path, Path) and _COLLAPSED.match(text) and not path.exists():
        return _COLLAPSED.sub("file:///" if text.startswith("file:/") else r"\1://", text, count=1)
    return text


def is_url(text: str) -> bool:
    """Whether a PATH names a place by its protocol."""
    return _URL.match(text) is not None


def local_path(text: str) -> Path | None:
    """The path that a `file://` URL means; None for every other URL."""
    return Path(unquote(urlsplit(text).path)) if text.startswith("file://") else None


def shown(text: str) -> str:
    """A URL, or a text with URLs in it, without what may be secret: user, password and query."""
    return _QUERY.sub(r"\1", _USER.sub("://", text))


def is_http(url: str) -> bool:
    """Whether the place is an HTTP server, which lists no folders."""
    return url.startswith(("http://", "https://"))


def child(folder: str, name: str) -> str:
    """The URL of a name in a folder; the folder's query goes along."""
    base, mark, query = folder.partition("?") if is_http(folder) else (folder, "", "")
    return f"{base.rstrip('/')}/{quote(name) if is_http(folder) else name}{mark}{query}"


def split(url: str) -> tuple[str, str]:
    """(folder, name) of a file's URL."""
    base, mark, query = url.partition("?") if is_http(url) else (url, "", "")
    folder, _, name = base.rstrip("/").rpartition("/")
    return f"{folder}{mark}{query}", unquote(name) if is_http(url) else name
