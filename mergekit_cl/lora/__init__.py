"""LoRA adapters on checkpoint files: adapter.py reads, refusals.py refuses, resolve.py gives edits.

edits.py: the edits. keymap.py: which tensor of the file an adapter's key means. factors.py: their
numbers. kernels.py: what they do to a block. planning.py: the plan of a merge. undo.py: what it
records to be taken back; undofile.py, planes.py: the base's bits; restored.py, unmerging.py: back.
extract.py: factors of a difference; difference.py, holding.py, adapterfile.py, extracting.py: an
adapter of it. compiled.py: kernels.py's products, by numba.
"""
