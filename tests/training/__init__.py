"""Tests of mergekit_cl.training."""
