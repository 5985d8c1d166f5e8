"""Which file system a path lies on."""

from __future__ import annotations

import os
import re
from pathlib import Path

# A page of a mapped file on these is fetched by a fault: slow, one at a time, and when the server
# goes away or the file shrinks it is a signal that ends the process instead of an error.
NETWORK = re.compile(r"nfs\d?|cifs|smb3?|smbfs|9p|afs|ceph|glusterfs|fuse(\..+)?")


def is_on_network(path: Path, mounts: str | None = None) -> bool:
    """Whether a path lies on a network file system, by the system's table of mounts.

    mounts: that table's text, for another machine's. False where there is no table to ask.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(errors="surrogateescape")
        except OSError:
            return False
    place = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1])
        # Of two mounts on one point the later one hides the earlier.
        if len(point) >= len(best) and _is_below(place, point):
            best, kind = point, fields[2]
    return NETWORK.fullmatch(kind) is not None


def _is_below(place: str, point: str) -> bool:
    return place == point or place.startswith(point.rstrip("/") + "/")
