"""What CUDA kernels allocate: rules by subject, each read off the CUDA sources of torch."""
