"""Pretrained models that the user names: found, fingerprinted and loaded, from folders, hub ids and single files."""
