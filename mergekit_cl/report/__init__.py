"""What people and programs are told: progress.py, merge.py (the end of a merge)."""
