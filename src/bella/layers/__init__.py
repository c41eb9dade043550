"""How particles differ: one file for each way of giving a network several sets of weights."""
