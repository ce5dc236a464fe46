"""The CUDA kernels as functions of plain tensors, one file an operation, and the modules that they are in."""
