"""Merge methods: linear.py and fisher.py turn opened inputs and options into a `Method`."""
