"""What merges of given inputs would cost each of them, over a grid of weights, without merging."""
