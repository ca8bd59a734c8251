"""Constant outputs are noticed, faithful and plain ones are not."""

import pytest
import torch
from small_autoencoders import pictures, small_vae

from flowgrain.errors import CollapseError
from flowgrain.vae.collapse import CollapseConfig, CollapseWatch, variation_ratio


def test_ratio_of_known_outputs():
    images = pictures(4)
    assert variation_ratio(images, images) == pytest.approx(1)
    assert variation_ratio(0.1 * images, images) == pytest.approx(0.1, rel=1e-4)
    assert variation_ratio(torch.zeros_like(images), images) == 0
    # one colour a picture, each its own; then one picture for all
    colours = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    assert variation_ratio(colours, images) == pytest.approx(0, abs=1e-6)
    assert variation_ratio(images[:1].expand_as(images), images) == pytest.approx(0, abs=1e-6)


def test_plain_pictures_are_not_judged():
    white = torch.ones(2, 3, 8, 8)
    assert variation_ratio(white, white) is None
    # plain pictures of different colours vary over the batch alone
    two = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    assert variation_ratio(two, two) == pytest.approx(1)
    assert variation_ratio(torch.zeros_like(two), two) == 0
    assert variation_ratio(white[:1], white[:1]) is None


def test_one_odd_picture_says_nothing():
    images = pictures(5)
    output = images.clone()
    output[0] = 0
    assert variation_ratio(output, images) > 0.5


def test_watch_stops_after_its_patience_and_not_before():
    watch = CollapseWatch(CollapseConfig(patience=3))
    for update, ratio in enumerate([0.0, 0.0, 0.5, 0.0, None, 0.0]):
        watch.observe(ratio, update)
    resumed = CollapseWatch(watch.config, watch.count)
    with pytest.raises(
        CollapseError, match=r"update 6: the autoencoder's output is constant: for 3 updates.*go back to"
    ):
        resumed.observe(0.0, 6)
    assert CollapseError.exit_code == 3


def test_an_autoencoder_whose_last_layer_died_is_noticed():
    vae, images = small_vae(), pictures(3)
    with torch.no_grad():
        alive = variation_ratio(vae(images).sample, images)
        vae.decoder.conv_out.weight.zero_()
        dead = variation_ratio(vae(images).sample, images)
    assert alive > CollapseConfig().ratio > dead
