"""Kernels for x86 processors in C++ (`src/`), compiled once per machine and called through ctypes."""
