"""Where this user's programs keep what they can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Ours there. Raises RuntimeError where nobody knows the user's home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clmerge"
