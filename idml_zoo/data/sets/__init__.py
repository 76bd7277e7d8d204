"""The benchmarks: their official layouts and splits."""
