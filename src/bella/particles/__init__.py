"""What one pass is: the particle axis, its layers, the shared prefix, choosing and exchanging."""
