"""Other libraries' forms of what bella has: PEFT's adapters, the hub's folders."""
