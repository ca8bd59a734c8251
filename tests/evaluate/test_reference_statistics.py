import numpy as np
import pytest

from flowgrain.errors import DataError
from flowgrain.evaluate.moments import moments_of
from flowgrain.evaluate.reference_statistics import (
    ReferenceStatistics,
    read_reference_images,
    read_reference_statistics,
    spatial_features,
    write_reference_statistics,
)


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(20, 4))


def test_published_form_is_read(tmp_path, features):
    path = tmp_path / "reference.npz"
    small = features[:, :2]
    np.savez(path, mu=features.mean(0), sigma=np.cov(features.T), mu_s=small.mean(0), sigma_s=np.cov(small.T))
    found = read_reference_statistics(path)
    np.testing.assert_allclose(found.features.covariance, np.cov(features.T))
    assert found.spatial is not None and found.spatial.mean.shape == (2,)
    assert found.features.count is None


def test_own_statistics_come_back_with_their_count(tmp_path, features):
    path = tmp_path / "own.npz"
    write_reference_statistics(path, ReferenceStatistics(moments_of(features), None))
    found = read_reference_statistics(path)
    assert found.features.count == 20 and found.spatial is None
    np.testing.assert_array_equal(found.features.covariance, moments_of(features).covariance)


def test_spatial_features_are_the_first_channels_with_channels_running_fastest():
    # as (n, height, width, channel)[..., :7] of the reference evaluator, flattened
    maps = np.random.default_rng(1).normal(size=(2, 768, 17, 17))
    expected = np.moveaxis(maps, 1, -1)[..., :7].reshape(2, -1)
    assert expected.shape == (2, 2023)
    np.testing.assert_array_equal(spatial_features(maps), expected)
    with pytest.raises(DataError, match="6 channels"):
        spatial_features(maps[:, :6])


def test_pictures_are_mapped_not_read(tmp_path):
    pictures = np.random.default_rng(2).integers(0, 256, size=(5, 8, 6, 3), dtype=np.uint8)
    path = tmp_path / "pictures.npz"
    np.savez(path, pictures, labels=np.arange(5))
    found = read_reference_images(path)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, pictures)


def test_what_is_wrong_with_a_file_is_named(tmp_path, features):
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"nothing")
    other = tmp_path / "other.npz"
    np.savez(other, values=features)
    half = tmp_path / "half.npz"
    np.savez(half, mu=features.mean(0))
    shapes = tmp_path / "shapes.npz"
    np.savez(shapes, mu=np.zeros(3), sigma=np.eye(2))
    for path, message in (
        (tmp_path / "absent.npz", "absent.npz: no reference statistics"),
        (broken, "broken.npz: no reference statistics"),
        (other, "holds no mu and sigma"),
        (half, "holds mu but no sigma"),
        (shapes, r"mu is \(3,\) and sigma \(2, 2\)"),
    ):
        with pytest.raises(DataError, match=message):
            read_reference_statistics(path)
    with pytest.raises(DataError, match="holds no pictures"):
        read_reference_images(other)
    with pytest.raises(DataError, match="no reference pictures"):
        read_reference_images(broken)
    compressed = tmp_path / "compressed.npz"
    np.savez_compressed(compressed, np.zeros((1, 2, 2, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="compressed"):
        read_reference_images(compressed)
    grey = tmp_path / "grey.npz"
    np.savez(grey, np.zeros((2, 4, 4), dtype=np.uint8))
    with pytest.raises(DataError, match=r"uint8 \(2, 4, 4\)"):
        read_reference_images(grey)
