"""Bugs put into the kernels on purpose, each with the net that has to catch it."""
