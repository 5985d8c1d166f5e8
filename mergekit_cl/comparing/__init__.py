"""How far apart checkpoints are that already exist: pairing.py (which tensors), reading.py (one
pass over the files), made.py (what a merge recorded), baseline.py (the release before), run.py."""
