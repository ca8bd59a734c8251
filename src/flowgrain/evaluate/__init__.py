"""Metrics, one file each, and the table that measures arms with intervals.

A metric file imports torch, numpy and scipy only; pictures come in through ``encoders``.
"""
