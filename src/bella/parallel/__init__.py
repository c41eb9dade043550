"""More than one process, over torch.distributed: who holds what, and what is said between them."""
