"""Diagonal Fisher information: estimating it, storing it beside a checkpoint, reading it back."""
