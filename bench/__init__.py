"""Benchmarks, each printing JSON. CipherFace's way of doing things lives here as a baseline, and nowhere else."""
