import numpy as np
import pytest

from flowgrain.errors import ConfigError
from flowgrain.sample.generate import SampleConfig, generate, picture_size

PROMPTS = ["a red fox", "an apple", "a small blue car"]
CONFIG = SampleConfig(steps=2, height=64, width=64, batch_size=4)


def draw(flux, prompts=PROMPTS, seeds=(0, 1), config=CONFIG, adapter=None, on_progress=lambda done, total: None):
    pictures = generate(flux, adapter, list(prompts), list(seeds), config, on_progress)
    return {(prompts[index], seed): np.asarray(image).astype(int) for index, seed, image in pictures}


@pytest.fixture(scope="module")
def reference(flux):
    return draw(flux)


def test_a_picture_depends_on_prompt_and_seed_across_batch_sizes(flux, reference):
    for size in (1, 3, 6):
        other = draw(flux, config=CONFIG.model_copy(update={"batch_size": size}))
        assert other.keys() == reference.keys()
        assert max(abs(other[key] - reference[key]).max() for key in reference) <= 2


def test_a_picture_ignores_the_other_prompts_and_seeds(flux, reference):
    some = draw(flux, prompts=PROMPTS[::-1][:2], seeds=(5, 1))
    for prompt in PROMPTS[1:]:
        assert abs(some[prompt, 1] - reference[prompt, 1]).max() <= 2


def test_prompts_and_seeds_give_different_pictures(reference):
    pictures = list(reference.values())
    assert len(pictures) == 6
    for index, one in enumerate(pictures):
        assert all(abs(one - other).max() > 20 for other in pictures[:index])


def test_order_size_and_progress(flux):
    calls = []
    config = SampleConfig(steps=1, height=48, width=64, batch_size=2)
    pictures = generate(flux, None, PROMPTS[:1], [3, 4, 5], config, lambda *call: calls.append(call))
    drawn = [(index, seed, image.size) for index, seed, image in pictures]
    assert drawn == [(0, 3, (64, 48)), (0, 4, (64, 48)), (0, 5, (64, 48))]
    assert calls == [(2, 3), (3, 3)]


def test_an_adapter_acts_and_is_gone_afterwards(flux, reference, adapter_folder):
    adapted = draw(flux, prompts=PROMPTS[:1], adapter=adapter_folder)
    assert abs(adapted[PROMPTS[0], 0] - reference[PROMPTS[0], 0]).max() > 10
    again = draw(flux, prompts=PROMPTS[:1])
    assert abs(again[PROMPTS[0], 0] - reference[PROMPTS[0], 0]).max() <= 2
    half = generate(flux, adapter_folder, PROMPTS, [0], CONFIG.model_copy(update={"batch_size": 1}), lambda *_: None)
    next(half)
    half.close()  # an abandoned iteration takes the adapter out too
    assert abs(draw(flux, prompts=PROMPTS[:1])[PROMPTS[0], 0] - reference[PROMPTS[0], 0]).max() <= 2


def test_the_native_size_and_unusable_sizes(flux):
    assert picture_size(flux, SampleConfig()) == (128, 128)
    assert picture_size(flux, SampleConfig(width=64)) == (128, 64)
    with pytest.raises(ConfigError, match="size 100x128: 100 is not a multiple of 16 pixels, which flux needs; use 96"):
        picture_size(flux, SampleConfig(width=100))
    with pytest.raises(ConfigError, match="use 16"):
        picture_size(flux, SampleConfig(height=7))
