import numpy as np
import pytest
from simulated_raters import names, ranking, simulate

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.records import Score, read_rankings, write_rankings
from flowgrain.evaluate.ranking.summarise import summarise
from flowgrain.evaluate.ranking.summary import POOLED, read_summary, write_summary

FEW = Bootstrap(resamples=100)
DIMENSIONS = ("geometry", "rendering")


def scores_of(rankings):
    """Every variant scored by its rank."""
    return [
        Score(
            item=r.item, dataset=r.dataset, prompt=r.prompt, seed=r.seed, dimension=r.dimension, rater=r.rater,
            repeat=r.repeat, variant=tier[0], value=90.0 - 10 * place,
        )
        for r in rankings
        for place, tier in enumerate(r.tiers)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def rankings():
    return simulate(
        [1.0, 0.3, -0.3, -1.0], np.random.default_rng(50), datasets=2, prompts=4, seeds=2, raters=3, repeats=2,
        dimensions=DIMENSIONS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def summary(rankings):
    return summarise(
        rankings, scores_of(rankings), source="study", dimensions=DIMENSIONS, variants=names(4), bootstrap=FEW
    )


def test_a_summary_holds_everything_that_is_reported(summary):
    assert (summary.source, summary.cluster, summary.level) == ("study", "crossed", 0.95)
    assert summary.counts.model_dump() == {"rankings": 192, "scores": 768, "raters": 3, "items": 16, "prompts": 8}
    assert summary.datasets == ("d0", "d1")
    for table in (
        summary.first_place,
        summary.rank_distribution,
        summary.pairwise,
        summary.strengths,
        summary.first_place_by_dataset,
        summary.first_place_differences,
        summary.position_bias,
        summary.agreement,
        summary.repeats,
    ):
        assert tuple(table) == (*DIMENSIONS, POOLED)
    assert tuple(summary.scores) == DIMENSIONS
    assert set(summary.first_place_by_dataset["geometry"]) == {"d0", "d1"}
    assert len(summary.pairwise["geometry"]) == len(summary.first_place_differences["geometry"]) == 6
    assert summary.first_place[POOLED]["v0"].value == pytest.approx(
        np.mean([summary.first_place[name]["v0"].value for name in DIMENSIONS])
    )
    assert (
        summary.repeats["geometry"].changed_order.same_first.n
        + (summary.repeats["geometry"].same_order.same_first.n if summary.repeats["geometry"].same_order else 0)
        == 48
    )


def test_a_summary_comes_back_from_its_file_as_it_was(summary, tmp_path):
    write_summary(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not a summary of rankings"), ('{"version": 2}', "not a summary"), (None, "cannot be read")],
)
def test_a_file_that_is_no_summary_is_named(tmp_path, text, message):
    path = tmp_path / "summary.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=f"summary.json: {message}"):
        read_summary(path)


def test_without_answers_the_summary_is_empty_and_says_so():
    empty = summarise([], source="judge", dimensions=DIMENSIONS, variants=names(4), bootstrap=FEW)
    assert empty.first_place == {} and empty.counts.rankings == 0 and empty.cluster == "prompt"
    assert empty.warnings == ("There are no answers yet.",)


def test_scores_alone_make_a_summary(rankings):
    only = summarise([], scores_of(rankings), source="judge", dimensions=DIMENSIONS, variants=names(4), bootstrap=FEW)
    assert only.strengths == {} and set(only.scores["geometry"].mean) == set(names(4))


def test_one_answer_alone_makes_a_summary_without_intervals():
    one = summarise([ranking(*"abcd")], source="study", dimensions=("overall",), variants=tuple("abcd"), bootstrap=FEW)
    assert POOLED not in one.first_place
    assert one.first_place["overall"]["a"].model_dump() == {"value": 1, "low": None, "high": None, "n": 1}
    assert one.agreement == {} and one.repeats == {}
    assert all(d.p_holm == 1 for d in one.first_place_differences["overall"])


def test_one_dimension_is_not_pooled_with_itself(rankings):
    geometry = [r for r in rankings if r.dimension == "geometry"]
    found = summarise(geometry, source="judge", dimensions=DIMENSIONS, variants=names(4), bootstrap=FEW)
    assert tuple(found.first_place) == ("geometry",)
    assert found.dimensions == DIMENSIONS


def test_warnings_tell_what_a_reader_must_know(rankings):
    few = summarise(rankings, source="judge", dimensions=DIMENSIONS, variants=names(4), bootstrap=FEW).warnings
    assert any("rest on 8 prompts" in text for text in few)
    alone = [r for r in rankings if r.rater == "r0"]
    one = summarise(alone, source="study", dimensions=DIMENSIONS, variants=names(4), bootstrap=FEW).warnings
    assert any("of one rater" in text for text in one)
    pairs = [ranking("a", "b", item="1"), ranking("a", "c", item="2")]
    mixed = summarise(pairs, source="judge", dimensions=("overall",), variants=tuple("abc"), bootstrap=FEW).warnings
    assert any("other variants than others" in text for text in mixed)
    led = simulate([0.0] * 4, np.random.default_rng(51), prompts=30, seeds=4, first_place_bonus=2.0)
    biased = summarise(led, source="judge", dimensions=("overall",), variants=names(4), bootstrap=FEW)
    assert biased.position_bias["overall"].found
    assert any(text.startswith("On 'overall' the place") for text in biased.warnings)
    fair = simulate([0.0] * 4, np.random.default_rng(52), prompts=30, seeds=4)
    assert summarise(fair, source="judge", dimensions=("overall",), variants=names(4), bootstrap=FEW).warnings == ()


def test_what_was_not_asked_is_refused(rankings):
    options = {"source": "judge", "variants": names(4), "bootstrap": FEW}
    with pytest.raises(DataError, match="no dimension 'rendering'; dimensions: geometry"):
        summarise(rankings, dimensions=("geometry",), **options)
    with pytest.raises(DataError, match="no dimension 'rendering'; dimensions: geometry"):
        summarise([], scores_of(rankings), dimensions=("geometry",), **options)
    with pytest.raises(ConfigError, match="no variant 'x'"):
        summarise(rankings, dimensions=DIMENSIONS, pairs=[("v0", "x")], **options)
    with pytest.raises(ConfigError, match="with itself"):
        summarise(rankings, dimensions=DIMENSIONS, pairs=[("v0", "v0")], **options)


def test_wanted_pairs_are_the_ones_that_are_corrected_for(rankings):
    options = {"source": "judge", "dimensions": DIMENSIONS, "variants": names(4), "bootstrap": FEW}
    (only,) = summarise(rankings, pairs=[("v3", "v0")], **options).first_place_differences["geometry"]
    assert (only.first, only.second, only.p_holm) == ("v3", "v0", only.p_value)


def test_rankings_come_back_from_their_file_as_they_were(rankings, tmp_path):
    path = tmp_path / "rankings.jsonl"
    write_rankings(path, rankings)
    assert read_rankings(path) == tuple(rankings)
    path.write_text(path.read_text() + '{"item": 1}\n')
    with pytest.raises(DataError, match=f"rankings.jsonl:{len(rankings) + 1}: not a ranking"):
        read_rankings(path)


@pytest.mark.parametrize("tiers", [(("a",),), (("a",), ("a", "b")), (("a", "b"), ()), (("a", "c"),)])
def test_a_ranking_holds_what_was_shown_once_each(tiers):
    with pytest.raises(ValueError, match="must hold each of"):
        ranking(*tiers, shown="ab")
