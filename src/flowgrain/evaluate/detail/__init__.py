"""Local detail of single pictures, without references: texture statistics and compressibility."""
