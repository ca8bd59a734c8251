"""How well an autoencoder gives a picture back: full-reference errors, perceptual distances, rFID."""
