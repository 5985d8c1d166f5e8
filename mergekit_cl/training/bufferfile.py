"""A replay buffer in a folder: `buffer.jsonl` and `buffer.json`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mergekit_cl.continual.buffer import Buffer
from mergekit_cl.continual.buffertext import MANIFEST, ROWS, Texts, decode, encode
from mergekit_cl.errors import InputError
from mergekit_cl.output.durable import write_durably


def save_buffer(buffer: Buffer, folder: Path) -> None:
    """Write both files into an existing folder, the manifest last.

    Stopped in between over an older buffer, it leaves a pair that `load_buffer` refuses: where that
    must not be, give a fresh folder and rename it.
    """
    texts = encode(buffer)
    write_durably(folder / ROWS, texts.rows)
    write_durably(folder / MANIFEST, texts.manifest)


def load_buffer(folder: Path, held_out: Iterable[str] = ()) -> Buffer:
    """The buffer in a folder.

    Raises InputError where a file is missing, FormatError where the two are damaged or hold a row
    of `held_out`.
    """
    try:
        texts = Texts((folder / ROWS).read_bytes(), (folder / MANIFEST).read_bytes())
    except OSError as error:
        raise InputError(
            "a replay buffer cannot be read",
            detail=f"{error.filename}: {error.strerror}",
            hint=f"both {ROWS} and {MANIFEST} belong to it",
        ) from None
    return decode(texts, str(folder), held_out)
