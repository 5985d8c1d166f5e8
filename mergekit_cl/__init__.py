"""Merge checkpoints exactly, and know what the merge cost."""

__version__ = "0.1.0"
