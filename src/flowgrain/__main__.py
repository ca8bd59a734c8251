"""``python -m flowgrain``."""

from flowgrain.cli.main import main

main()
