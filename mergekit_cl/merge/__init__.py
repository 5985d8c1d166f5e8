"""Formulas on flat blocks: linear.py, fisher.py, rounding.py. They know no files.

A kernel takes the operands of one block, widened to the compute dtype and left untouched, and
buffers of the same length; it returns the exact result in one of the buffers.
"""
