"""The Laplace approximation around trained particles."""
