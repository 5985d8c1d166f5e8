"""What the estimator refuses.

FisherError (a ValueError)
|-- BatchError       rows, labels or inputs that do not fit each other or the model
|   `-- DivergedError  rows for which the model's outputs are no finite numbers
|-- EstimatorError   an estimator that this model or these labels cannot be given to
|-- StateError       a saved state of another run
|-- StackError       a model that cannot be taken one layer at a time
`-- GraphError       the model changed what it computes between two batches
"""

from __future__ import annotations


class FisherError(ValueError):
    """A Fisher diagonal cannot be computed, or not as asked."""


class BatchError(FisherError):
    """Rows, labels or inputs do not fit each other or the model."""


class DivergedError(BatchError):
    """The model's outputs are not finite: its weights are no use, whatever the rows."""


class EstimatorError(FisherError):
    """The estimator cannot be used with this model or these labels."""


class StateError(FisherError):
    """A saved state belongs to another run."""


class StackError(FisherError):
    """The model is no single stack of layers that hand hidden states on."""


class GraphError(FisherError):
    """The model computed something else than it did when it was examined."""
