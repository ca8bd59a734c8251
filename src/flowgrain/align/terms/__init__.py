"""Alignment terms by kind: one file a method, and a line in ``registry.py``."""
