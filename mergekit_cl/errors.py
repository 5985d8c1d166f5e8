"""The errors a user can meet.

    ClmergeError            exit 1
    |-- InputError          a file or tensor that was given is not usable
    |   |-- FormatError     its bytes are not what they claim to be
    |   |-- MismatchError   two inputs do not belong together
    |   `-- NonFiniteError  NaN or Inf where a number is needed
    |-- DataError           rows to compute on are missing or malformed
    |-- OutputError         the output cannot be written as asked
    |-- DriftError          exit 12: a training run was to end at a drift alarm
    `-- OptionError         exit 2: the command line contradicts itself or the inputs
    Interrupted             exit 130 or 143; the same command continues

Each carries what went wrong (`message`), where (`detail`: file, tensor or option, with the value
seen) and what to do (`hint`: a command or a change). Only the command layer prints or exits.
"""

from __future__ import annotations


class ClmergeError(Exception):
    """Something the user can act on; `code` names it for scripts."""

    exit_code = 1
    code = "error"

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint


class InputError(ClmergeError):
    """A file or tensor that was given cannot be used."""

    code = "input"


class FormatError(InputError):
    """The bytes of a file are not what its format says they are."""

    code = "format"


class MismatchError(InputError):
    """Two inputs do not belong together."""

    code = "mismatch"


class NonFiniteError(InputError):
    """NaN or Inf was found where a number is needed."""

    code = "nonfinite"


class DataError(ClmergeError):
    """Rows to compute on are missing or malformed."""

    code = "data"


class OutputError(ClmergeError):
    """The output cannot be written as asked."""

    code = "output"


class OptionError(ClmergeError):
    """The options contradict each other or the inputs."""

    exit_code = 2
    code = "usage"


class DriftError(ClmergeError):
    """The loss of new rows has changed, and the run was to end then."""

    exit_code = 12
    code = "drift"


class Interrupted(ClmergeError):
    """A signal asked the run to stop; what is done so far is kept."""

    code = "interrupted"

    def __init__(self, signal_number: int, *, hint: str | None = None) -> None:
        super().__init__("interrupted", hint=hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
