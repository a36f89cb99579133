"""What a call costs: bytes, launches, waits. Counted, so that docs/gpu.md cannot say something else."""
