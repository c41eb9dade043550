"""SSVI: a Gaussian on a small active set of the weights, sparse from start to end."""
