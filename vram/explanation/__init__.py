"""Explanation of growth, peaks and out of memory: the lines of code that allocate, and who holds what they made."""
