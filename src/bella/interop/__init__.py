"""Other libraries' forms of what bella has: PEFT's adapters, the hub's folders, and other people's
loops: transformers' Trainer, Lightning, Accelerate.

Each module needs its library, and none of them is imported before it is asked for by its name.
"""
