import math
from dataclasses import replace

import pytest
from made_up_evaluation import FAST, NAMES, metric_table, rank, write_comparison

from flowgrain.evaluate.protocol import OVERALL
from flowgrain.evaluate.ranking.summarise import summarise
from flowgrain.evaluate.ranking.summary import Difference, Estimate, GroupAgreement
from flowgrain.evaluate.results import MetricDifference, MetricResult, MetricTable
from flowgrain.report.evaluation import Ballot, Evaluation, Participation
from flowgrain.report.page import Details, FigureRow, Paragraph, PromptGrid, Slider, Table, flat
from flowgrain.report.sections.calibration import calibration_section, dataset_of, mean_over
from flowgrain.report.sections.checkpoints import checkpoints_section
from flowgrain.report.sections.headline import ballot_sentence, metrics_sentence
from flowgrain.report.sections.measures import measures_section
from flowgrain.report.sections.missing import gaps_of
from flowgrain.report.sections.preferences import gain, preferences_section, win_rate
from flowgrain.report.sections.side_by_side import choose_items, side_by_side_section
from flowgrain.report.sections.trust import cautions_of, level_of, trust_section

RUN = [(f"run {fraction:g}x", "run", fraction) for fraction in (0.5, 1.0, 1.5, 2.0)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Three variants, one data set, 8 prompts x 2 seeds."""
    folder = tmp_path_factory.mktemp("plain")
    variants = [("base", None, None), ("a 1x", "a", 1.0), ("b 1x", "b", 1.0)]
    return write_comparison(folder, variants=variants, datasets=("d",), prompts=[f"p{i}" for i in range(8)])


def ballot(comparison, strengths, source="judge", seed=0, **options):
    by_name = dict(zip(comparison.variants, strengths, strict=True))
    raters = ("model",) if source == "judge" else ("p1", "p2", "p3", "p4")
    rankings = rank(comparison, by_name, raters=raters, dimensions=("overall",), seed=seed, **options)
    summary = summarise(
        rankings,
        source=source,
        dimensions=("overall",),
        variants=comparison.variants,
        pairs=comparison.pairs,
        bootstrap=FAST,
    )
    return Ballot(summary, (OVERALL,), tuple(d.name for d in comparison.datasets))


def estimate(value, low, high):
    return Estimate(value=value, low=low, high=high, n=10)


def test_no_variant_leads_where_no_difference_is_supported(plain):
    sentence = ballot_sentence(ballot(plain, (0.0, 0.0, 0.0)))
    assert "none of 3 differences between variants is supported, so none leads" in sentence
    assert " over " not in sentence


def test_a_planted_winner_is_named_with_its_differences(plain):
    sentence = ballot_sentence(ballot(plain, (-4.0, 0.0, 4.0)))
    assert "b 1x came first most often" in sentence and "b 1x over base, +" in sentence


def test_no_metric_interval_without_zero_is_called_a_difference(plain):
    undecided = replace_differences(metric_table(plain), lambda d: replace(d, low=-1.0, high=1.0))
    assert "no 95\u00a0% interval excludes zero, so none supports a difference" in metrics_sentence(undecided)
    assert metrics_sentence(MetricTable(undecided.results)).endswith("no two variants were compared in pairs.")


def replace_differences(table, change):
    return MetricTable(table.results, tuple(change(d) for d in table.differences))


def test_differences_are_turned_to_the_variant_that_is_ahead():
    given = Difference(
        first="x", second="y", difference=estimate(-0.3, -0.5, -0.1), p_value=0.001, p_holm=0.002, level=0.95
    )
    turned = gain(given)
    assert given.ahead == "x" and (turned.value, turned.low, turned.high) == (0.3, 0.1, 0.5)


def test_win_rates_are_read_both_ways(plain):
    rates = ballot(plain, (-1.0, 0.0, 1.0)).summary.pairwise["overall"]
    one, other = win_rate(rates, "base", "b 1x"), win_rate(rates, "b 1x", "base")
    assert one.value == pytest.approx(1 - other.value)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))
    assert win_rate(rates, "base", "nobody") is None


@pytest.mark.parametrize(
    ("first", "chance", "tau", "level"),
    [
        ((0.6, 0.5, 0.7), 0.3, (0.5, 0.4, 0.6), "questions"),
        ((0.35, 0.25, 0.45), 0.3, (0.5, 0.4, 0.6), "variants"),
        ((0.35, 0.25, 0.45), 0.3, (0.1, -0.1, 0.3), "none"),
        (None, None, None, "none"),
    ],
)
def test_agreement_of_judge_and_people_is_graded_with_a_caution(first, chance, tau, level):
    found = GroupAgreement(
        groups=("judge", "study"),
        dimensions=("overall", "overall"),
        items=10,
        kendall_tau=None if tau is None else estimate(*tau),
        same_first=None if first is None else estimate(*first),
        same_first_by_chance=chance,
        strength_correlation=None,
    )
    assert level_of(found) == level
    assert len(cautions_of((), {"Judge and people": found})) == (level != "questions")


def test_raters_who_do_not_agree_are_pointed_out(plain):
    random = ballot(plain, (0.0, 0.0, 0.0), source="study", seed=4)
    assert random.summary.agreement["overall"].alpha_ranks.value < 0.2
    assert "raters hardly agree" in cautions_of((random,), {})[0]


def test_exclusions_are_listed_with_their_rules(plain):
    took_part = Participation(24, 22, 19, 1, 7.5, (("answered in less than 2 s (median)", 3),))
    people = replace(ballot(plain, (0.0, 0.0, 3.0), source="study"), participation=took_part)
    section = trust_section((people,), {})
    table = next(b for b in section.blocks if isinstance(b, Table) and "do not count" in b.title)
    assert table.rows == (("answered in less than 2 s (median)", "3"),)
    text = " ".join(next(b for b in section.blocks if not isinstance(b, Paragraph)).items)
    assert "24 participants, 22 finished, in 7.5 minutes (median); the answers of 19 count, 1 withdrew" in text


def test_questions_without_an_answer_are_counted(plain):
    judged = replace(ballot(plain, (0.0, 0.0, 3.0)), answers={"answered": 40, "refused": 6, "open": 2})
    assert "40 of 48 questions answered; 6 refused and 2 open." in trust_section((judged,), {}).blocks[0].items[0]


def test_means_over_data_sets_add_half_widths_as_squares():
    rows = [MetricResult("m", "a", "d", v, v - w, v + 2 * w, 0.95, 9, 9, "", True) for v, w in ((1.0, 0.3), (3.0, 0.4))]
    mean = mean_over(rows)
    assert (mean.value, mean.low, mean.high) == pytest.approx((2.0, 2.0 - 0.25, 2.0 + 0.5))
    assert mean_over(rows[:1]).low == pytest.approx(0.7)


def test_a_subset_names_its_data_set_first():
    assert dataset_of("alpha", ["alpha", "alpha 2"]) == ("alpha", "")
    assert dataset_of("alpha 2, whole images", ["alpha", "alpha 2"]) == ("alpha 2", "whole images")
    assert dataset_of("alphabet", ["alpha"]) == (None, "alphabet")


def test_calibration_averages_data_sets_and_draws_supported_arrows(evaluation):
    (table,) = [b for b in calibration_section(evaluation).blocks if isinstance(b, Table)]
    assert "averaged over 2 data sets" in table.title
    assert [row[0] for row in table.rows] == ["CLIP-I\u00a0↑"]
    assert table.rows[0][1].split("\n")[0] == "0.75"  # 0.7 and 0.8
    half = 0.015 / math.sqrt(2)
    # base and baseline differ by 0.02 in both data sets; granularity is held against the baseline of its own budget
    assert half < 0.02
    assert table.rows[0][2].split("\n")[2] == "↑ +0.020 against base"
    assert table.rows[0][3].split("\n")[2] == f"↑ +0.030 against {NAMES[1]}"


def test_without_the_papers_metrics_other_cosines_stand_in(plain):
    result = MetricResult("X image-image cosine", "base", "d", 0.5, 0.4, 0.6, 0.95, 16, 8, "X", True)
    other = replace(result, name="X Frechet distance")
    section = calibration_section(Evaluation(plain, (), MetricTable((result, other))))
    (table,) = [b for b in section.blocks if isinstance(b, Table)]
    assert [row[0] for row in table.rows] == ["X image-image cosine\u00a0↑"]
    assert calibration_section(Evaluation(plain, (), MetricTable((other,)))) is None


def test_many_figures_of_differences_fold_by_subset(plain):
    styles = Evaluation(plain, ()).styles
    table = MetricTable()
    for subset in ("one", "two"):
        for index in range(7):
            table += MetricTable(
                (MetricResult(f"m{index}", "base", subset, 1.0, 0.9, 1.1, 0.95, 9, 9, "", None, "few"),),
                (MetricDifference(f"m{index}", subset, "base", "a 1x", 0.1, 0.05, 0.2, 0.95, 9, None),),
            )
    blocks = measures_section(table, styles).blocks
    assert [len(b.figures) for b in blocks if isinstance(b, FigureRow)] == [7]
    assert [b.summary for b in blocks if isinstance(b, Details)] == ["Differences on two"]
    (warning,) = [b.text for b in blocks if isinstance(b, Paragraph) and b.tone == "warning"]
    assert warning.startswith("Few (m0, one; ") and warning.endswith("and 8 more).")
    assert "neither way is better by itself" in blocks[-3].figures[0].alt


def test_a_measure_without_an_interval_says_so(plain):
    nan = float("nan")
    table = MetricTable((MetricResult("m", "base", "d", 1.0, nan, nan, 0.95, 1, 1, "", True),))
    rows = measures_section(table, Evaluation(plain, ()).styles).blocks[0].rows
    assert rows[0][2].split("\n")[1] == "no interval"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pairs = [("run 1x", "run 1.5x"), ("run 1.5x", "run 2x")]
    return write_comparison(
        tmp_path_factory.mktemp("checkpoints"),
        variants=RUN,
        datasets=("d",),
        prompts=[f"p{i}" for i in range(10)],
        protocol="checkpoints",
        pairs=pairs,
    )


def checkpoint_metrics(values, supported):
    names = [name for name, _, _ in RUN]
    results = tuple(
        MetricResult("m", name, "d", value, value - 0.1, value + 0.1, 0.95, 20, 10, "", False)
        for name, value in zip(names, values, strict=True)
    )
    differences = tuple(
        MetricDifference("m", "d", names[i], names[i + 1], gap, gap - wide, gap + wide, 0.95, 10, False)
        for i, wide in ((1, 0.01), (2, 0.01 if supported else 9.0))
        for gap in [values[i + 1] - values[i]]
    )
    return MetricTable(results, differences)


@pytest.mark.parametrize(
    ("supported", "verdict"), [(True, "stands out from its neighbours"), (False, "does not stand out from a neighbour")]
)
def test_the_best_checkpoint_counts_only_beside_its_neighbours(trained, supported, verdict):
    found = Evaluation(trained, (), checkpoint_metrics((5.0, 4.0, 3.0, 3.5), supported))
    table = checkpoints_section(found).blocks[0]
    after = "better" if supported else "no difference"
    assert table.rows == (("m, d (lower is better)", "run", "1.5x", "3.00\n2.90 to 3.10", "better", after, verdict),)


def test_a_neighbour_that_was_not_compared_is_not_guessed(trained):
    found = Evaluation(trained, (), checkpoint_metrics((1.0, 4.0, 3.0, 3.5), True))
    assert checkpoints_section(found).blocks[0].rows[0][4:] == (
        "–",
        "not measured",
        "neighbours not measured against it",
    )


def test_first_places_over_checkpoints_use_win_rates(trained):
    judged = ballot(trained, (-3.0, -1.0, 5.0, 1.0))
    table = checkpoints_section(Evaluation(trained, (), judge=judged)).blocks[0]
    assert table.rows[0][0] == "first places, LLM judge (higher is better)"
    assert table.rows[0][2] == "1.5x" and table.rows[0][4:] == ("better", "better", "stands out from its neighbours")


def test_there_is_no_checkpoint_section_for_one_checkpoint_a_run(evaluation):
    assert checkpoints_section(evaluation) is None


def test_rows_spread_over_prompts_first_then_seeds(plain):
    dataset = plain.datasets[0]
    assert [(i.prompt, i.seed) for i in choose_items(dataset, 4)] == [("p0", 0), ("p2", 0), ("p4", 0), ("p6", 0)]
    assert len(choose_items(dataset, 16)) == len(choose_items(dataset, 99)) == 16
    assert len(choose_items(dataset, 1)) == 1


def test_pictures_are_scaled_to_the_side_that_is_asked_for(plain):
    section = side_by_side_section(plain, rows=2, side=32)
    grid = next(b for b in flat(section.blocks) if isinstance(b, PromptGrid))
    tiles = [tile for prompt in grid.prompts for row in prompt.rows for tile in row.tiles]
    assert {(tile.width, tile.height) for tile in tiles} == {(32, 32)}
    assert "2 of 16, evenly spaced, not picked by eye" in grid.reading


def test_one_variant_without_references_has_no_slider(tmp_path):
    comparison = write_comparison(tmp_path, variants=[("only", None, None)], datasets=("d",), prompts=("a", "b"))
    bare = replace(comparison, datasets=(replace(comparison.datasets[0], references=()),))
    assert not [b for b in side_by_side_section(bare, 2, 64).blocks if isinstance(b, Slider)]
    assert [b for b in side_by_side_section(comparison, 2, 64).blocks if isinstance(b, Slider)]
    assert [gap.what for gap in gaps_of(Evaluation(bare, ()))] == [
        "metrics", "nearness to the domain on d", "learning curves", "the luck of training",
    ]  # fmt: skip


def test_a_judge_that_only_scored_is_shown(plain):
    from flowgrain.evaluate.ranking.records import Score

    scores = [
        Score(
            item=item.key, dataset="d", prompt=item.prompt, seed=item.seed, dimension="overall", rater="m",
            variant=variant, value=50 + 10 * index,
        )
        for item in plain.items()
        for index, variant in enumerate(plain.variants)
    ]  # fmt: skip
    summary = summarise([], scores, source="judge", dimensions=("overall",), variants=plain.variants, bootstrap=FAST)
    found = Evaluation(plain, (), judge=Ballot(summary, (OVERALL,), ("d",)))
    assert found.ballots == ()
    means, differences = flat(preferences_section(found.sources, found.styles).blocks)
    assert means.rows[0][0] == "Overall quality" and means.rows[0][3].startswith("70.0")
    assert len(differences.rows) == 3
