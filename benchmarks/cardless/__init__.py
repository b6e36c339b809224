"""PyTorch's own CUDA code without a GPU, beside the simulation: `python -m benchmarks.cardless`.

A PyTorch that was built with CUDA runs on a runtime that has no card: its dispatch, the choice of kernels, its caching
allocator and all that it allocates are its own, but no kernel is launched. So it is an independent witness of the
simulation, and not a GPU: what kernels, cuDNN and cuBLASLt decide by themselves it can't tell.
"""
