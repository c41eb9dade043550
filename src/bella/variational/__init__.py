"""Variational inference: divergences in closed form, and how their weight rises in training."""
