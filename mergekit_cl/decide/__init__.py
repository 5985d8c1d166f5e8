"""Pure decisions, without torch and without files: policy.py (what counts as lossy)."""
