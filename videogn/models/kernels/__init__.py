"""Fused layers for GPUs: Triton kernels and the operators that launch them.

Nothing is imported here, so that a machine without Triton can import everything else.
"""
