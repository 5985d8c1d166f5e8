"""Opening checkpoints: `open_checkpoint(path)` gives a `Checkpoint` of `TensorInfo`s.

places.py finds the files, header.py reads safetensors layouts, positioned.py, mapped.py, pickled.py
and remote.py hand out elements (arrays.py says in what), checkpoint.py joins them.
"""

from mergekit_cl.checkpoint.checkpoint import Checkpoint, open_checkpoint
from mergekit_cl.checkpoint.header import TensorInfo

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]
