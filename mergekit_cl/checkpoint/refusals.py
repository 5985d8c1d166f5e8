"""What went wrong beyond this disk, in words that give no secret away."""

from __future__ import annotations

from collections.abc import Iterator

from mergekit_cl.checkpoint.urls import shown
from mergekit_cl.errors import InputError

REFUSED = (401, 403)
GONE = (404, 410)


def is_absent(error: BaseException) -> bool:
    """Whether a place answered, and said that nothing is there."""
    status = _status(error)
    if status is not None:
        return status in GONE
    # fsspec's HTTP calls a server that cannot be reached a file that is not found.
    return isinstance(error, (FileNotFoundError, NotADirectoryError)) and not any(
        isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
        for cause in _causes(error)
    )


def is_lasting(error: BaseException) -> bool:
    """Whether trying again would give the same."""
    return is_absent(error) or _is_refused(error) or isinstance(error, (ValueError, ImportError))


def access_error(error: BaseException, url: str) -> InputError:
    """The error to raise for what a filesystem raised.

    Raise it `from None`: messages of libraries hold whole URLs, with what signs them.
    """
    place = shown(url)
    if is_absent(error):
        return InputError("no such file or directory", detail=place)
    if _is_refused(error):
        return InputError(
            "access to the place is refused",
            detail=place,
            hint="log in as for the place's own tool (AWS_PROFILE, gcloud auth, ...), "
            "or sign the URL anew",
        )
    if isinstance(error, ValueError) and "rotocol not known" in str(error):
        return InputError(
            "no filesystem is known for this kind of place",
            detail=place,
            hint="hf://, s3://, gs://, https://, or another protocol that fsspec knows",
        )
    if isinstance(error, ValueError) and "range requests" in str(error):
        return InputError(
            "the server does not hand out parts of files",
            detail=place,
            hint="copy the model to this disk first",
        )
    return InputError(
        "the place cannot be read",
        detail=f"{place}: {reason(error)}",
        hint="see whether it can be reached, then give the same command again",
    )


def reason(error: BaseException) -> str:
    """Type and first line of an error's innermost cause, without secrets."""
    cause = [*_causes(error)][-1] if error.__cause__ else error
    lines = str(cause).strip().splitlines()
    told = f": {shown(lines[0]):.160}" if lines else ""
    return f"{type(cause).__name__}{told}"


def _is_refused(error: BaseException) -> bool:
    if isinstance(error, PermissionError) or _status(error) in REFUSED:
        return True
    # Each store's library has its own class for a login that is not there.
    return any("Credential" in type(cause).__name__ for cause in _causes(error))


def _status(error: BaseException) -> int | None:
    for cause in _causes(error):
        status = getattr(cause, "status", None)
        if isinstance(status, int):
            return status
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__
