"""Published reference statistics (``.npz``) of ADM's evaluator and of pytorch-fid, and our own in the same form.

``mu`` and ``sigma`` are the moments of pooled features, ``mu_s`` and ``sigma_s`` those of spatial ones, ``arr_0``
pictures for precision and recall. Statistics hold for one network and one resize alone, which the file does not tell.
"""

import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from flowgrain.errors import DataError
from flowgrain.evaluate.moments import Moments
from flowgrain.files import atomic_write_bytes

SPATIAL_CHANNELS = 7
IMAGES = "arr_0"
_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Moments of a reference set in one network's features."""

    features: Moments
    spatial: Moments | None
    """Of spatial features; None where the file has none."""


def spatial_features(maps: Float[np.ndarray, "n c h w"], channels: int = SPATIAL_CHANNELS) -> Float[np.ndarray, "n f"]:
    """The features of sFID (Nash et al. 2021): the first channels of a feature map, 7 x 17 x 17 = 2023 of Inception's.

    Channels run fastest, as in ``mu_s`` of published statistics. Raises :class:`DataError` for fewer channels.
    """
    if maps.shape[1] < channels:
        raise DataError(f"feature maps of {maps.shape[1]} channels, spatial features take the first {channels}")
    return maps[:, :channels].transpose(0, 2, 3, 1).reshape(len(maps), -1)


def read_reference_statistics(path: Path) -> ReferenceStatistics:
    """The moments in ``path``. Raises :class:`DataError` for a file without ``mu`` and ``sigma`` or of wrong shapes."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in ("mu", "sigma", "mu_s", "sigma_s", "count") if name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no reference statistics ({error}); give an .npz file with mu and sigma") from None
    count = int(found["count"]) if "count" in found else None
    moments = [_moments(path, found, suffix, count) for suffix in ("", "_s")]
    if moments[0] is None:
        raise DataError(f"{path}: holds no mu and sigma, only {', '.join(found) or 'other arrays'}")
    return ReferenceStatistics(moments[0], moments[1])


def write_reference_statistics(path: Path, statistics: ReferenceStatistics) -> None:
    """Write ``mu``, ``sigma`` (and ``mu_s``, ``sigma_s``) with the number of pictures as ``count``."""
    arrays = {"mu": statistics.features.mean, "sigma": statistics.features.covariance}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    if statistics.features.count is not None:
        arrays["count"] = np.array(statistics.features.count)
    stream = BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    atomic_write_bytes(path, stream.getvalue())


def read_reference_images(path: Path) -> UInt8[np.ndarray, "n h w 3"]:
    """The pictures in ``path``; memory-mapped, so that a picture is read when it is looked at.

    Raises :class:`DataError` for a file without ``arr_0``, of another shape, or compressed: that one cannot be mapped.
    """
    name = f"{IMAGES}.npy"
    try:
        with zipfile.ZipFile(path) as archive:
            if name not in archive.namelist():
                raise DataError(f"{path}: holds no pictures ({IMAGES}), only {', '.join(archive.namelist())}")
            member = archive.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED:
            raise DataError(
                f"{path}: {IMAGES} is compressed and cannot be memory-mapped; save it anew with numpy.savez"
            )
        images = _mapped(path, member.header_offset)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no reference pictures ({error}); give an .npz file with {IMAGES}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"{path}: {IMAGES} is {images.dtype} {images.shape}, expected uint8 of shape (n, h, w, 3)")
    return images


def _moments(path: Path, found: dict[str, np.ndarray], suffix: str, count: int | None) -> Moments | None:
    names = [f"mu{suffix}", f"sigma{suffix}"]
    missing = [name for name in names if name not in found]
    if len(missing) == 2:
        return None
    if missing:
        raise DataError(f"{path}: holds {' and '.join(set(names) - set(missing))} but no {missing[0]}")
    mean, covariance = (np.asarray(found[name], dtype=np.float64) for name in names)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(
            f"{path}: {names[0]} is {mean.shape} and {names[1]} {covariance.shape}, expected (d,) and (d, d)"
        )
    return Moments(mean, covariance, count)


def _mapped(path: Path, header_offset: int) -> np.ndarray:
    """The array of an uncompressed member of an archive, from the place of its local header."""
    with path.open("rb") as stream:
        stream.seek(header_offset)
        header = stream.read(_LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        stream.seek(header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(stream)
        offset = stream.tell()
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran_order else "C")
