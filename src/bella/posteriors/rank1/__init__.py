"""Rank-1 Bayesian networks: distributions over rank-1 factors on shared weights."""
