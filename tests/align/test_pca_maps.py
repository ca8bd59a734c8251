"""PCA maps: common colours, a fixed sign, outliers that do not decide, and a foreground."""

import numpy as np
import pytest
import torch

from flowgrain.align.grids import Grid
from flowgrain.align.pca_maps import pca_maps


def features(count, seed=0, width=8):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_pictures_have_their_grids():
    grids = [Grid(4, 6), Grid(5, 3)]
    maps = pca_maps([features(24), features(15, seed=1)], grids)
    assert [m.shape for m in maps] == [(4, 6, 3), (5, 3, 3)]
    assert all(m.dtype == np.uint8 for m in maps)


def test_first_component_separates_what_differs_most():
    left, right = torch.tensor([3.0, 0.1, 0.0, 1.0]), torch.tensor([-3.0, 0.1, 0.0, 1.0])
    tokens = torch.stack([left if place % 6 < 3 else right for place in range(24)])
    tokens[::2, 1] += 0.2
    [picture] = pca_maps([tokens], [Grid(4, 6)])
    assert (picture[:, :3, 0] > 250).all() and (picture[:, 3:, 0] < 5).all()
    # columns alternate: the second component, whose largest loading is positive, is bright where the value is high
    assert (picture[:, ::2, 1] > picture[:, 1::2, 1] + 100).all()
    # nothing else varies
    assert (np.ptp(picture[:, :3, 2].astype(int)) == 0) or picture[..., 2].std() < picture[..., 1].std()


def test_equal_features_have_equal_colours_across_pictures():
    shared = features(6)
    one, two = torch.cat([shared, features(6, 1)]), torch.cat([features(6, 2), shared])
    first, second = pca_maps([one, two], [Grid(3, 4), Grid(4, 3)])
    assert np.array_equal(first.reshape(-1, 3)[:6], second.reshape(-1, 3)[6:])


def test_colours_do_not_depend_on_signs_lengths_or_order():
    tokens, grid = features(60), Grid(6, 10)
    [picture] = pca_maps([tokens], [grid])
    lengths = 1 + torch.arange(60.0)[:, None] % 7
    assert np.abs(pca_maps([tokens * lengths], [grid])[0].astype(int) - picture).max() <= 1
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    [shuffled] = pca_maps([tokens[order]], [grid])
    assert np.abs(shuffled.reshape(-1, 3).astype(int) - picture.reshape(-1, 3)[order.numpy()]).max() <= 1
    # another order of the channels turns no component over
    channels = torch.randperm(8, generator=torch.Generator().manual_seed(4))
    assert np.abs(pca_maps([tokens[:, channels]], [grid])[0].astype(int) - picture).max() <= 1


def test_a_few_outliers_do_not_take_the_scale():
    tokens = torch.zeros(400, 4)
    angles = torch.linspace(-0.2, 0.2, 400)
    tokens[:, 0], tokens[:, 1] = angles.cos(), angles.sin()
    tokens[:2] = torch.tensor([0.0, -1.0, 0.0, 0.0])
    [picture] = pca_maps([tokens], [Grid(20, 20)])
    values = picture.reshape(-1, 3)[2:].astype(int)
    assert np.ptp(values[:, 0]) > 240


def test_background_decides_nothing_and_is_painted():
    front = features(30)
    behind = 5 * features(30, seed=1) + 20
    mask = torch.arange(60) < 30
    [both] = pca_maps([torch.cat([front, behind])], [Grid(6, 10)], [mask], background=(9, 8, 7))
    [alone] = pca_maps([front], [Grid(3, 10)])
    assert np.array_equal(both[:3], alone)
    assert (both[3:] == (9, 8, 7)).all()


def test_features_without_variety_are_grey():
    [picture] = pca_maps([torch.ones(12, 5)], [Grid(3, 4)])
    assert (picture == 128).all()
    [narrow] = pca_maps([features(12, width=2)], [Grid(3, 4)])
    assert (narrow[..., 2] == 128).all() and np.ptp(narrow[..., 0].astype(int)) == 255


@pytest.mark.parametrize(
    ("tokens", "grids", "mask", "message"),
    [
        ([torch.ones(5, 3)], [Grid(2, 3)], None, r"\[\(5, 3\)\] \(tokens, channels\) for grids of \[6\] places"),
        ([torch.ones(6, 3), torch.ones(6, 4)], [Grid(2, 3)] * 2, None, "for grids of"),
        ([], [], None, "for grids of"),
        ([torch.full((6, 3), torch.nan)], [Grid(2, 3)], None, "not finite"),
        ([torch.ones(6, 3)], [Grid(2, 3)], [torch.zeros(6, dtype=torch.bool)], "no token is foreground"),
        (
            [torch.ones(6, 3)],
            [Grid(2, 3)],
            [torch.ones(5, dtype=torch.bool)],
            r"foregrounds of \[5\] tokens for grids",
        ),
        ([torch.ones(6, 3)] * 2, [Grid(2, 3)] * 2, [torch.ones(n, dtype=torch.bool) for n in (5, 7)], r"of \[5, 7\]"),
    ],
)
def test_what_does_not_fit_is_refused(tokens, grids, mask, message):
    with pytest.raises(ValueError, match=message):
        pca_maps(tokens, grids, mask)
