"""Comparisons: the same data, network, budget and seeds for every method, and what came of it."""
