"""Where results go: staging.py (a temporary place, locked), journal.py (what is finished),
shards.py (bytes at planned offsets), publish.py (the one rename)."""
