import numpy as np
import pytest
from PIL import Image

from flowgrain.errors import DataError
from flowgrain.evaluate.base import Metric, PictureScore
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.cosine import ImageCosine
from flowgrain.evaluate.encoders.base import ImageEncoder, TextFeatures, open_rgb
from flowgrain.evaluate.frechet import FrechetDistance
from flowgrain.evaluate.inception_score import InceptionScore
from flowgrain.evaluate.kernel_distance import KernelDistance
from flowgrain.evaluate.moments import moments_of
from flowgrain.evaluate.precision_recall import DENSITY_COVERAGE, PRECISION_RECALL
from flowgrain.evaluate.table import PictureSet, loss_metrics, picture_metrics, score_metrics, shared_pictures

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


class Brightness(PictureScore):
    """Mean grey value; not defined on black pictures."""

    title = "brightness"
    version = "1"
    higher_is_better = None

    def __init__(self):
        self.calls = []

    def __call__(self, pictures, prompts):
        self.calls.append(list(prompts))
        means = np.array(
            [open_rgb(picture).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))[0] for picture in pictures]
        )
        return np.where(means == 0, np.nan, means.astype(np.float64))


class Joint(PatchMeans):
    """Patch means that know prompts and classes too."""

    def text(self, prompts):
        return TextFeatures(np.ones((len(prompts), 48), dtype=np.float32), (0,))

    def logits(self, features):
        return features[:, :10] * 10


class TextLength(Metric):
    """Needs the text side."""

    title = "text length"
    higher_is_better = True
    needs_own_reference = False
    needs_text = True
    small_sample = None
    small_sample_note = ""

    def statistic(self, features):
        return lambda rows: float(np.linalg.norm(features.text[rows], axis=1).mean())


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
    with pytest.raises(DataError, match="arm 'x': an interval needs at least 2 prompts, got 1"):
        picture_metrics([PictureSet("x", references[:2], ["one", "one"])], references, PatchMeans())
    with pytest.raises(DataError, match="arm 'near' is given twice"):
        picture_metrics([sets[0], sets[0]], references, PatchMeans())
    with pytest.raises(DataError, match="arm 'x': 1 pictures but 2 seeds"):
        picture_metrics([PictureSet("x", references[:1], ["one"], seeds=[0, 1])], references, PatchMeans())
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


def test_distribution_metrics_of_equal_pictures(references):
    prompts = [f"thing {i}" for i in range(30)]
    metrics = [*PRECISION_RECALL, *DENSITY_COVERAGE]
    dark = noisy_pictures(4, [np.zeros((8, 8, 3), dtype=np.uint8)] * 30, 40)
    arms = [PictureSet("same", references, prompts), PictureSet("dark", dark, prompts)]
    table = picture_metrics(
        arms, references, PatchMeans(), metrics=metrics, pairs=[("dark", "same")], bootstrap=BOOTSTRAP
    )
    values = {(r.name, r.arm): r.value for r in table.results}
    for name in ("precision (k = 3)", "recall (k = 3)", "coverage (k = 5)"):
        assert values[f"PatchMeans {name}", "same"] == 1 > values[f"PatchMeans {name}", "dark"]
    assert all(d.ahead == "same" for d in table.differences)
    # an interval ends where the metric does; differences have no such ends
    assert all(0 <= r.low <= r.value <= r.high <= (2 if "density" in r.name else 1) for r in table.results)
    assert "30 pictures and 30 references, fewer than 10000" in table.results[0].warning
    assert "kernel distance" in table.results[0].warning


def test_results_tell_what_made_them(sets, references):
    table = picture_metrics(sets[:1], references, PatchMeans(), bootstrap=BOOTSTRAP)
    frechet, cosine = table.results[0], table.results[2]
    assert frechet.details == {
        "encoder version": "1",
        "resize": "4 px, box",
        "references": "30",
        "interval": "bootstrap of the influence of each prompt (jackknife)",
        "resamples": "200",
        "seed": "0",
    }
    assert cosine.details["interval"] == "bootstrap"


def test_published_statistics_need_no_pool(sets, references):
    encoder = PatchMeans()
    metric = FrechetDistance(moments_of(encoder(references)), "colours")
    bare = PictureSet("near", sets[0].images, sets[0].prompts)
    found = picture_metrics([bare], [], encoder, metrics=[metric], bootstrap=BOOTSTRAP).results[0]
    expected = picture_metrics([bare], references, encoder, metrics=[FrechetDistance()], bootstrap=BOOTSTRAP).results[0]
    assert found.name == "PatchMeans Frechet distance to colours"
    assert (found.value, found.low) == (pytest.approx(expected.value), pytest.approx(expected.low))
    assert found.details["references"] == "30" and "30 references" in found.warning


def test_text_and_logits_reach_the_metrics_that_need_them(sets, references):
    metrics = [TextLength(), InceptionScore()]
    assert not picture_metrics(sets, references, PatchMeans(), metrics=metrics, bootstrap=BOOTSTRAP).results
    table = picture_metrics(sets[:1], references, Joint(), metrics=metrics, bootstrap=BOOTSTRAP)
    length, score = table.results
    assert length.value == pytest.approx(np.sqrt(48))
    assert "prompt of 1 pictures was cut off" in length.warning
    assert score.name == "PatchMeans Inception Score"
    assert 1 < score.low < score.value < score.high < 10
    assert "references" not in score.details
    assert "30 pictures, fewer than 5000" in score.warning and "kernel distance" in score.warning


def test_scores_are_pooled_with_intervals_and_paired_differences(sets):
    score = Brightness()
    table = score_metrics(sets, [score], pairs=[("near", "far")], bootstrap=BOOTSTRAP)
    near = table.results[0]
    assert near.value == pytest.approx(score(sets[0].images, sets[0].prompts).mean())
    assert near.low < near.value < near.high and near.encoder == "1" and near.n == near.clusters == 30
    assert table.differences[0].value == pytest.approx(table.results[1].value - near.value)
    assert table.differences[0].ahead is None and near.higher_is_better is None
    assert score.calls[0] == sets[0].prompts


def test_a_score_that_is_not_defined_on_a_picture_leaves_it_out(references):
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    prompts = [f"thing {i}" for i in range(30)]
    some = PictureSet("some", [black, black, *references[2:]], prompts)
    none = PictureSet("none", [black] * 30, prompts)
    table = score_metrics([some, none], [Brightness()], pairs=[("some", "none")], bootstrap=BOOTSTRAP)
    assert table.results[0].value == pytest.approx(np.nanmean(Brightness()(some.images, prompts)))
    assert "not defined on 2 of 30 pictures" in table.results[0].warning
    assert np.isnan([table.results[1].value, table.results[1].low, table.differences[0].value]).all()
    assert table.differences[0].ahead is None


def test_a_score_with_infinite_values_has_no_interval(references):
    class Infinite(Brightness):
        higher_is_better = True

        def __call__(self, pictures, prompts):
            return np.full(len(pictures), np.inf)

    prompts = [f"thing {i}" for i in range(30)]
    arms = [PictureSet(name, references, prompts) for name in ("a", "b")]
    table = score_metrics(arms, [Infinite()], pairs=[("a", "b")], bootstrap=BOOTSTRAP)
    assert table.results[0].value == np.inf and np.isnan(table.results[0].low)
    assert np.isnan(table.differences[0].value) and table.differences[0].ahead is None


def test_a_score_must_give_a_value_for_each_picture(sets):
    class Short(Brightness):
        def __call__(self, pictures, prompts):
            return np.zeros(len(pictures) - 1)

    with pytest.raises(DataError, match=r"brightness: \(29,\) values for the 30 pictures of 'near'"):
        score_metrics(sets, [Short()], bootstrap=BOOTSTRAP)


def test_arms_are_paired_by_prompt_and_seed(references):
    def arm(name, seeds):
        return PictureSet(name, references[:4], ["p", "p", "q", "q"], seeds=seeds)

    first, second = arm("first", [0, 1, 0, 1]), arm("second", [0, 1, 0, 7])
    pairs = [("first", "second")]
    with pytest.raises(DataError, match=r"differ on 2, for example 'q' with seed 1.*shared_pictures"):
        score_metrics([first, second], [Brightness()], pairs=pairs, bootstrap=BOOTSTRAP)
    shared = shared_pictures([first, second])
    assert [(item.prompts, item.seeds) for item in shared] == [(("p", "p", "q"), (0, 1, 0))] * 2
    assert score_metrics(shared, [Brightness()], pairs=pairs, bootstrap=BOOTSTRAP).differences[0].value == 0
    bare = PictureSet("bare", references[:3], ["p", "p", "q"])
    with pytest.raises(DataError, match="differ on 1, for example 'q'"):
        score_metrics([first, bare], [Brightness()], pairs=[("first", "bare")], bootstrap=BOOTSTRAP)
    with pytest.raises(DataError, match="arm 'bare' has no seeds"):
        shared_pictures([first, bare])
    with pytest.raises(DataError, match="no prompt and seed that all of first, other drew"):
        shared_pictures([first, arm("other", [5, 6, 5, 6])])


def test_shared_pictures_keep_each_arms_own_order_and_references(references):
    first = PictureSet("first", references[:3], ["p", "q", "r"], references[3:6], [0, 0, 0])
    second = PictureSet("second", references[6:9], ["r", "x", "p"], references[9:12], [0, 0, 0])
    kept = shared_pictures([first, second])
    assert [item.prompts for item in kept] == [("p", "r"), ("r", "p")]
    assert kept[1].images[1] is references[8] and kept[1].references[1] is references[11]
