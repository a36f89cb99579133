"""Runs CUDA C on the CPU: the kernels' own source, built by g++, with one fiber for each CUDA thread.

See ``engine.py`` for how to use it, ``headers/cuda.h`` for how it works.
"""
