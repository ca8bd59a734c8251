"""Building blocks of ``scripts/build_assets.py``: how the embedded bundle is made from published image packages."""
