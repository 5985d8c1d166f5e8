"""Squares of per-example gradients, summed over examples, at the price of one backward pass.

uses        watches a forward pass and replaces the operations that parameters enter
owners      follows which row is whose where a model regroups rows
operations  which operations have a counterpart
layers      autograd functions that yield one gradient per example
experts     the same for weights of many experts in one tensor
convolution the gradients of kernels, from the patches they saw
sums        squares and adds them, block by block
traces      the summed squares of each example, for standard errors
probe       checks on two rows that the model keeps rows apart
single      the way for every other model: one backward pass per example
"""
