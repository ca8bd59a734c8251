"""The seal: one hash that commits to everything a study is, before its first answer.

``SEALED`` lists the SHA-256 of every file of the study in the format of ``sha256sum``; the seal is the SHA-256 of that
list. Without flowgrain: ``cd STUDY && sha256sum -c SEALED && sha256sum SEALED``.
"""

import hashlib
from pathlib import Path

from flowgrain.errors import DataError
from flowgrain.evaluate.study.plan import KEY_NAME, MEDIA, PLAN_NAME, STUDY_NAME
from flowgrain.files import atomic_write_text

SEAL_NAME = "SEALED"


def seal(folder: Path) -> str:
    """Write ``SEALED`` for the files of a new study and return the seal, 64 hexadecimal digits."""
    names = [STUDY_NAME, PLAN_NAME, KEY_NAME, *(f"{MEDIA}/{path.name}" for path in (folder / MEDIA).iterdir())]
    text = "".join(f"{_sha256(folder / name)}  {name}\n" for name in sorted(names))
    atomic_write_text(folder / SEAL_NAME, text)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(folder: Path, key: bool) -> str:
    """Check every sealed file and return the seal; ``key``: whether the key must be there (it may be kept elsewhere).

    Raises DataError naming the first file that is missing, was changed, or was put among the pictures afterwards.
    """
    try:
        text = (folder / SEAL_NAME).read_text(encoding="ascii")
    except FileNotFoundError:
        raise DataError(f"{folder}: no {SEAL_NAME}; give a folder that 'flowgrain study new' made") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / SEAL_NAME}: cannot be read ({error})") from None
    sealed = dict(_entry(line, folder) for line in text.splitlines())
    for name in (STUDY_NAME, PLAN_NAME, KEY_NAME):
        if name not in sealed:
            raise DataError(f"{folder / SEAL_NAME}: does not list {name}: the seal is broken")
    for name, digest in sealed.items():
        path = folder / name
        if not path.is_file():
            if name == KEY_NAME and not key:
                continue
            hint = "; put the key back to un-blind the results" if name == KEY_NAME else ": the seal is broken"
            raise DataError(f"{path}: sealed but not there{hint}")
        if _sha256(path) != digest:
            raise DataError(f"{path}: changed since the study was sealed: the seal is broken")
    added = next((p for p in (folder / MEDIA).iterdir() if f"{MEDIA}/{p.name}" not in sealed), None)
    if added is not None:
        raise DataError(f"{added}: put there after the study was sealed: the seal is broken")
    return hashlib.sha256(text.encode()).hexdigest()


def _entry(line: str, folder: Path) -> tuple[str, str]:
    digest, _, name = line.partition("  ")
    inside = name in (STUDY_NAME, PLAN_NAME, KEY_NAME) or name.startswith(f"{MEDIA}/")
    if len(digest) != 64 or not inside or ".." in name:
        raise DataError(f"{folder / SEAL_NAME}: '{line[:80]}' is no line of a seal: the seal is broken")
    return name, digest


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
