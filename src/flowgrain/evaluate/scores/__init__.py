"""Scores of single pictures that need no references, one file each."""
