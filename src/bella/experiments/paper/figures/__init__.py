"""Figures of the paper, a file each."""
