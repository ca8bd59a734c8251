"""Adapters: the trainable subspace of a frozen model's weights."""
