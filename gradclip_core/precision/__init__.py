"""Finite precision: how a factor is rounded, and what happens to values that are not finite."""
