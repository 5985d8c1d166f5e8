"""What the estimator raises, as the errors a user meets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mergekit_cl.checkpoint import Checkpoint
from mergekit_cl.errors import DataError, InputError, OptionError
from mergekit_cl.estimating.request import FisherRequest
from mergekit_cl.finite import refuse_nonfinite


@contextmanager
def estimator_errors(request: FisherRequest, checkpoint: Checkpoint) -> Iterator[None]:
    """Within, errors of `fisher` become InputError, OptionError or DataError.

    What went wrong with a row may be due to a weight that is no number: then that is said.
    """
    from fisher.errors import EstimatorError, FisherError, StackError

    try:
        yield
    except StackError as error:
        raise InputError(
            "this model cannot be taken one layer at a time",
            detail=f"{checkpoint.path}: {error}",
            hint="leave out --stream-layers; it needs one stack of layers, each called once",
        ) from error
    except EstimatorError as error:
        raise OptionError(
            str(error), detail=str(request.model), hint="clmerge fisher --help"
        ) from error
    except FisherError as error:
        refuse_nonfinite(checkpoint)
        raise DataError(str(error), detail=", ".join(request.data)) from error
