"""From a model and rows to a published Fisher sidecar.

request.py (what was asked), run.py (the steps in order), company.py (several processes),
place.py (where it may go), identity.py (what decides its values), state.py (an unfinished run on
the disk), publish.py (described, moved), store.py (tensors into files); adam.py makes a sidecar
from a saved optimizer instead.
"""
