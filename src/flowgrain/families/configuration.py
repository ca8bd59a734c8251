"""The folder or hub id that describes a single-file checkpoint (``model.config``)."""

import hashlib
from collections.abc import Container
from pathlib import Path

CONFIGURATION_SUFFIXES = (".json", ".txt", ".model")
"""Endings of configuration files and tokenizers."""


def configuration_digest(config: str) -> str:
    """What decides a model of the configuration: the contents of a folder's files, wherever it lies, or a hub id."""
    folder = Path(config)
    return files_digest(folder, CONFIGURATION_SUFFIXES) if folder.is_dir() else config


def files_digest(folder: Path, suffixes: Container[str]) -> str:
    """SHA-256 of names and contents of the files below ``folder`` that end so."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
