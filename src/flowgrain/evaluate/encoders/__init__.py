"""Image encoders, one file each, on the seam of ``base``; ``registry`` opens them by name."""
