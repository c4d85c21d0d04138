"""The CPU backend: C++ kernels of `csrc/cpu`, called by ctypes on memory that numpy and torch own."""
