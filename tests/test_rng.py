"""Randomness depends on identity alone."""

import numpy as np
import torch

from flowgrain import rng


def test_same_identity_same_numbers_whatever_was_drawn_between():
    first = rng.normal((4, 4), 7, 0, "fox", "noise")
    torch.manual_seed(123)
    rng.normal((9,), 7, 0, "owl", "noise")
    assert torch.equal(first, rng.normal((4, 4), 7, 0, "fox", "noise"))


def test_every_part_of_the_identity_counts():
    identities = [(7, 0, "fox", "noise"), (8, 0, "fox", "noise"), (7, 1, "fox", "noise"), (7, 0, "owl", "noise"),
                  (7, 0, "fox", "u"), ("7", 0, "fox", "noise"), (7, 0, "fo", "xnoise")]  # fmt: skip
    assert len({rng.stable_seed(*identity) for identity in identities}) == len(identities)


def test_stable_across_machines_and_versions():
    assert rng.stable_seed(0, "fox") == 1337919168588552777


def test_uniform_is_open_and_uniform():
    values = np.array([rng.uniform(0, i, "u") for i in range(4000)])
    assert 0 < values.min() and values.max() < 1
    assert abs(values.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 4000)


def test_seeded_restores_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with rng.seeded(1, "adapter"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with rng.seeded(1, "adapter"):
        assert torch.equal(torch.rand(3), inside)
