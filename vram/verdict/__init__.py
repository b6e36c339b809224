"""Arithmetic on numbers: growth, peaks and ratios. No device, file or clock."""
