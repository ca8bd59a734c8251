"""Backbone families: the only code that knows a model's architecture."""
