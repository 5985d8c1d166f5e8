"""Inner loops as machine code: compiled by numba once for a processor, kept, and loaded without it.

elements.py, pair.py, wide.py, sums.py, product.py, holding.py: what is computed, in
the Python that numba compiles; nothing else imports it. compiling.py: from there to machine code.
kept.py: where that is kept. kernel.py: what the rest of the package calls.
"""
