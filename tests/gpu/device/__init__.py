"""Tests for the day a device appears: ``pytest -m gpu``. What they do is tried over the stand-in before."""
