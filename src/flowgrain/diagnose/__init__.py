"""What a finished or running run says about the geometry of its training: ``flowgrain diagnose``."""
