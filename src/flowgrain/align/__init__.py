"""Alignment terms: additions to the objective that compare features with a reference structure."""
