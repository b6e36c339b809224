"""Seeded memory series of many kinds, benign and leaking, judged by the ratchet rule and by simpler ones.

`python -m tests.vram.simulation` prints the table of docs/verdicts.md.
"""
