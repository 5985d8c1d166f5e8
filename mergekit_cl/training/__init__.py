"""From rows of text to a model and batches: what a Fisher run (and later a training run) needs."""
