"""What becomes of an unfinished sidecar when its run ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mergekit_cl.errors import ClmergeError, Interrupted, OutputError
from mergekit_cl.output.staging import Staging


@contextmanager
def kept_or_discarded(staging: Staging) -> Iterator[None]:
    """Within, what ends a run decides over its temporary place, which is unlocked in any case.

    Bad input discards it. An interruption, the death of another process or a failure to write
    keeps it: the same command continues. Raises OutputError for an OSError.
    """
    try:
        yield
    except Interrupted as error:
        error.hint = f"the same command continues; what is done is kept in {staging.place}"
        raise
    except ClmergeError as error:
        if type(error) is not ClmergeError:  # that is a death, which says nothing against the rows
            staging.discard()
        raise
    except OSError as error:
        raise OutputError(
            "writing failed",
            detail=f"{staging.place}: {error.strerror or error}",
            hint="mend that and give the same command again: what is done is kept",
        ) from error
    finally:
        staging.close()
