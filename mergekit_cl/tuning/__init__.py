"""`clmerge train`: ordered tasks, and what keeps a model from forgetting the earlier ones."""
