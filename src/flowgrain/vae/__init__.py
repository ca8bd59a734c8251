"""Autoencoder fine-tuning: the terms of its losses, the discriminator, and deeper compression by stride."""
