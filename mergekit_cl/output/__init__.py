"""Where results go: staging.py (a temporary place), lock.py (one process there), journal.py (what
is finished), shards.py (bytes at planned offsets), durable.py (what outlasts a power loss),
publish.py (the one rename), target.py (what may be replaced), upload.py (beyond this disk)."""
