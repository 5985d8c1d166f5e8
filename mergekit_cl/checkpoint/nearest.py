"""What a mistyped path may have meant."""

from __future__ import annotations

from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

MOST = 10_000  # names of a folder that are looked at


def nearest_path(place: Path) -> Path | None:
    """A path that exists and differs from this one in one name that is spelled alike.

    The first name that does not exist is replaced by its nearest sibling.
    """
    with suppress(OSError, ValueError):
        parts = place.parts
        for number in range(len(parts)):
            known = Path(*parts[:number])
            if (known / parts[number]).exists():
                continue
            names = [path.name for path, _ in zip(known.iterdir(), range(MOST), strict=False)]
            for near in get_close_matches(parts[number], sorted(names), n=3, cutoff=0.6):
                found = known.joinpath(near, *parts[number + 1 :])
                if found.exists():
                    return found
            return None
    return None
