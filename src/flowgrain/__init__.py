"""flowgrain: fine-tune text-to-image flow-matching and diffusion models by shaping the geometry of the data."""

__version__ = "0.1.0"
