"""The model card of a merge: front.py (for the hub), section.py (for people), card.py (both)."""
