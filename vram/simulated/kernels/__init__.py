"""Allocations of CUDA kernels: rules by subject, each read off the CUDA sources of torch."""
