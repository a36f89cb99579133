"""Projections: every set, its promises, its peers."""
