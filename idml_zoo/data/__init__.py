"""Benchmarks and images. Nothing heavy is imported until a benchmark is loaded."""
