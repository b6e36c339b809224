"""Which line of code made the memory, and who holds it."""
