"""Benchmarks: ``python -m benchmarks``. Figures are medians, peers interleaved in one run."""
