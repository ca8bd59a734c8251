"""What the folder of a vision model in transformers layout says of itself."""

from pathlib import Path
from typing import Any

from flowgrain.errors import ModelError
from flowgrain.pretrained.weights import fingerprint, weight_files


def folder_origin(folder: Path) -> str:
    """Digest of the weights and of the configuration, which has a part in the numbers too (scales, rotary bases)."""
    return f"sha256 {fingerprint([folder / 'config.json', *weight_files(folder)])}"


def patch_size(config: Any, folder: Path) -> int:
    """Side of a patch in pixels. Raises :class:`ModelError` where patches are not square."""
    found = config.patch_size
    sides = set(found) if isinstance(found, list | tuple) else {found}
    if len(sides) != 1:
        raise ModelError(f"{folder / 'config.json'}: patch_size {found}; only square patches are supported")
    return int(sides.pop())
