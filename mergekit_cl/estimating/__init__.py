"""From a model and rows to a published Fisher sidecar.

request.py (what was asked), run.py (the steps in order), state.py (an unfinished run on the disk),
store.py (tensors and metadata into the sidecar's files).
"""
