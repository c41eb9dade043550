"""Low-rank particles: n changes B_i A_i of one frozen network (Bella)."""
