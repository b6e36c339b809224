"""Simulated CUDA: what a model needs on a card, to the byte, on a machine that has none."""
