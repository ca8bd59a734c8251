import numpy as np
import pytest
from PIL import Image

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.cosine import ImageCosine
from flowgrain.evaluate.features import ImageEncoder, open_rgb
from flowgrain.evaluate.kernel_distance import KernelDistance
from flowgrain.evaluate.table import PictureSet, loss_metrics, picture_metrics

BOOTSTRAP = Bootstrap(resamples=200)


class PatchMeans(ImageEncoder):
    """Mean colour of 16 patches: an encoder without weights."""

    family = "PatchMeans"
    name = "PatchMeans 4 x 4"
    version = "1"
    size = 4
    resize = "box"
    dimension = 48

    def __init__(self):
        self.encoded = 0

    def __call__(self, images):
        self.encoded += len(images)
        small = [open_rgb(image).resize((4, 4), Image.Resampling.BOX) for image in images]
        return np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 for image in small])


def noisy_pictures(seed, references, noise):
    generator = np.random.default_rng(seed)
    return [
        np.clip(reference + generator.normal(scale=noise, size=reference.shape), 0, 255).astype(np.uint8)
        for reference in references
    ]


@pytest.fixture(scope="module")
def references():
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, size=(30, 4, 4, 3))
    return [np.kron(colour, np.ones((2, 2, 1))).astype(np.uint8) for colour in colours]


@pytest.fixture(scope="module")
def sets(references):
    prompts = [f"thing {i}" for i in range(30)]
    return [
        PictureSet("near", noisy_pictures(1, references, 20), prompts, references),
        PictureSet("far", noisy_pictures(2, references, 120), prompts, references),
    ]


def test_the_nearer_arm_is_ahead_on_every_metric(sets, references):
    table = picture_metrics(sets, references, PatchMeans(), pairs=[("far", "near")], bootstrap=BOOTSTRAP)
    assert [difference.ahead for difference in table.differences] == ["near"] * 4
    assert len(table.results) == 8
    for result in table.results:
        assert result.low <= result.value <= result.high
        assert result.n == result.clusters == 30


def test_an_arm_does_not_differ_from_itself(sets, references):
    twins = [sets[0], PictureSet("twin", sets[0].images, sets[0].prompts, references)]
    table = picture_metrics(twins, references, PatchMeans(), pairs=[("near", "twin")], bootstrap=BOOTSTRAP)
    assert {(d.value, d.low, d.high, d.ahead) for d in table.differences} == {(0.0, 0.0, 0.0, None)}


def test_pairing_narrows_the_difference(references):
    # one noise for both arms, a small constant between them: the difference is far tighter than either value
    prompts = [f"thing {i}" for i in range(30)]
    a = noisy_pictures(3, references, 100)
    b = [np.clip(picture.astype(int) + 3, 0, 255).astype(np.uint8) for picture in a]
    arms = [PictureSet("a", a, prompts, references), PictureSet("b", b, prompts, references)]
    table = picture_metrics(
        arms, references, PatchMeans(), pairs=[("a", "b")], metrics=[ImageCosine(centred=True)], bootstrap=BOOTSTRAP
    )
    result, difference = table.results[0], table.differences[0]
    assert difference.high - difference.low < 0.3 * (result.high - result.low)


def test_small_samples_are_flagged_and_named_honestly(sets, references):
    table = picture_metrics(sets, references, PatchMeans(), bootstrap=BOOTSTRAP)
    frechet = next(r for r in table.results if "Frechet" in r.name)
    assert frechet.name == "PatchMeans Frechet distance"
    assert "fewer than 2048" in frechet.warning and "kernel distance" in frechet.warning
    assert next(r for r in table.results if "kernel" in r.name).warning is None


def test_metrics_of_own_references_are_left_out_without_them(sets, references):
    bare = [PictureSet("near", sets[0].images, sets[0].prompts)]
    names = {r.name for r in picture_metrics(bare, references, PatchMeans(), bootstrap=BOOTSTRAP).results}
    assert names == {"PatchMeans Frechet distance", "PatchMeans kernel distance"}


def test_shared_references_are_encoded_once(sets, references):
    encoder = PatchMeans()
    picture_metrics(sets, references, encoder, metrics=[KernelDistance()], bootstrap=BOOTSTRAP)
    assert encoder.encoded == 30 + 2 * 30


def test_own_references_stay_with_their_pictures(sets, references):
    order = np.random.default_rng(7).permutation(30)
    shuffled = PictureSet(
        "near",
        [sets[0].images[i] for i in order],
        [sets[0].prompts[i] for i in order],
        [references[i] for i in order],
    )
    first = picture_metrics([sets[0]], references, PatchMeans(), metrics=[ImageCosine()], bootstrap=BOOTSTRAP)
    second = picture_metrics([shuffled], references, PatchMeans(), metrics=[ImageCosine()], bootstrap=BOOTSTRAP)
    assert first.results[0].value == pytest.approx(second.results[0].value)
    assert first.results[0].low == pytest.approx(second.results[0].low)


def test_loss_differences_are_paired_by_root():
    generator = np.random.default_rng(0)
    easy_to_hard = generator.uniform(0.1, 1.0, size=40)
    base = {f"root{i}": float(v) for i, v in enumerate(easy_to_hard)}
    better = {root: value - 0.01 + 0.002 * generator.normal() for root, value in base.items()}
    table = loss_metrics({"base": base, "better": better}, pairs=[("base", "better")], bootstrap=BOOTSTRAP)
    assert table.results[0].low < table.results[1].value < table.results[0].high
    difference = table.differences[0]
    assert difference.ahead == "better"
    assert difference.value == pytest.approx(-0.01, abs=0.002)


def test_errors_name_arm_and_example(sets, references):
    with pytest.raises(DataError, match="arm 'x': 2 pictures but 1 prompts"):
        picture_metrics([PictureSet("x", references[:2], ["one"])], references, PatchMeans())
    with pytest.raises(DataError, match="arm 'near' is given twice"):
        picture_metrics([sets[0], sets[0]], references, PatchMeans())
    with pytest.raises(DataError, match="no arm 'c' to compare"):
        loss_metrics({"a": {"r": 1.0, "s": 2.0}}, pairs=[("a", "c")], bootstrap=BOOTSTRAP)
    with pytest.raises(DataError, match="for example 's'"):
        loss_metrics(
            {"a": {"r": 1.0, "q": 2.0}, "b": {"r": 1.0, "q": 2.0, "s": 1.0}},
            pairs=[("a", "b")],
            bootstrap=BOOTSTRAP,
        )
    with pytest.raises(DataError, match="not finite at root 'q'"):
        loss_metrics({"a": {"r": 1.0, "q": float("nan")}}, bootstrap=BOOTSTRAP)
