"""Merging on a card: pinned slots, copies that overlap its work, and whether it is worth it."""
