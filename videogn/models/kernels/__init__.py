"""Triton kernels as torch operators. Nothing is imported, and no kernel compiled, before use."""
