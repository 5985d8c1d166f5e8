"""How different two checkpoints are: sums.py (per block), metrics.py (what they mean),
layers.py (which tensors belong together), verdict.py (what to say of it)."""
