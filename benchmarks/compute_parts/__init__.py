"""Parts of ``benchmarks/compute.py``."""
