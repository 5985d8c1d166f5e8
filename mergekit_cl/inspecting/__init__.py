"""What lies at a path, from headers alone.

kind.py (which of the kinds it is), tensors.py (counts and bytes), architecture.py (config and
names), adapter.py, fisher.py, made.py (one section each), plain.py (foreign values as JSON).
"""

from mergekit_cl.inspecting.kind import inspect_path

__all__ = ["inspect_path"]
