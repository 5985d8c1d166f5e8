"""An output that is written in one go: it is published whole or leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mergekit_cl.errors import ClmergeError, OutputError
from mergekit_cl.output.staging import Staging


@contextmanager
def published_whole(staging: Staging) -> Iterator[None]:
    """Within, an opened place is filled; then it is published, or discarded where that failed.

    Whatever is no error of ours or of the system leaves it, unlocked, for the next command.
    Raises OutputError for an OSError.
    """
    try:
        yield
        staging.publish()
    except ClmergeError:
        staging.discard()
        raise
    except OSError as error:
        staging.discard()
        raise OutputError(
            "writing failed",
            detail=f"{staging.place}: {error.strerror or error}",
            hint="mend that and give the same command again",
        ) from error
    finally:
        staging.close()
