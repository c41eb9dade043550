"""Curvature at a trained particle: Kronecker factors, and the Laplace approximation on them."""
