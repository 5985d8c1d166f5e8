"""Squares of per-example gradients, summed over examples, at the price of one backward pass.

uses        watches a forward pass and replaces the operations that parameters enter
operations  which ones those are
layers      autograd functions that yield one gradient per example
sums        squares and adds them, block by block
probe       checks on two rows that the model keeps rows apart
single      the way for every other model: one backward pass per example
"""
