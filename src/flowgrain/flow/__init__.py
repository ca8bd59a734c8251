"""Pure mathematics of paths, time laws and loss weightings. Imports torch, numpy and scipy only."""
