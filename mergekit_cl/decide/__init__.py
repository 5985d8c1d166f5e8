"""Pure decisions, no torch, no files: policy.py (what is lossy), minimax.py (which weights)."""
