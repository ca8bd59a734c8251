"""Vision models whose patch features are the reference of alignment: pixels to tokens on a grid."""
