"""How particles differ: a folder, or a file, for each way."""
