"""Merging on a card: pinned slots, copies in and out that overlap its work, which device to take."""
