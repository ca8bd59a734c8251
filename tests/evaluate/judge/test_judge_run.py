"""From pictures to statistics against a simulated judge: what was planted is found, nothing is asked twice."""

import pytest
from fake_endpoint import Fail, FakeEndpoint, Reset, Say
from simulated_judge import SHADES, answer, by_red, first_is_best, judge_by, settings

from flowgrain.config import load_config
from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.comparison import read_comparison
from flowgrain.evaluate.judge.agreement import agree, read_people
from flowgrain.evaluate.judge.config import JudgeConfig
from flowgrain.evaluate.judge.results import Judging
from flowgrain.evaluate.judge.run import JudgeObserver, dry_run, judge, make_plan
from flowgrain.evaluate.judge.tables import to_markdown
from flowgrain.evaluate.ranking.records import read_rankings
from flowgrain.evaluate.ranking.summary import POOLED, read_summary
from flowgrain.locks import FolderError, locked
from flowgrain.vlm.failures import EndpointError
from flowgrain.vlm.log import read_past

KEY = "sk-a-secret-that-nobody-may-see"
PRICES = {"price_in": 1.0, "price_out": 10.0}


def run(behave, root, out=None, retry_failed=False, **sections):
    """(outcome, endpoint) of one session."""
    with FakeEndpoint(behave) as endpoint:
        plan = make_plan(read_comparison([root]), settings(endpoint.url, **sections))
        return judge(plan, out or root / "judge", JudgeObserver(), retry_failed=retry_failed), endpoint


def test_a_planted_winner_is_found(make_comparison):
    outcome, endpoint = run(judge_by(by_red), make_comparison(prompts=8, seeds=1), repeats=2)
    summary = outcome.results.summary
    assert set(endpoint.counts.values()) == {1} and len(endpoint.calls) == 8 * 3 * 2
    for dimension in ("geometry", "rendering", "coherence", POOLED):
        assert summary.first_place[dimension]["granularity"].value == 1.0
        ranks = {name: entry.mean_rank.value for name, entry in summary.rank_distribution[dimension].items()}
        assert ranks == {"granularity": 1.0, "granularity-15": 2.0, "baseline-15": 3.0, "baseline": 4.0}
        assert not summary.position_bias[dimension].found
        ahead = {(d.first, d.second): d.ahead for d in summary.first_place_differences[dimension]}
        assert ahead["baseline", "granularity"] == "granularity"
    strengths = summary.strengths[POOLED].plackett_luce
    assert sorted(strengths, key=lambda name: strengths[name].value) == sorted(SHADES, key=SHADES.get)
    assert summary.repeats["geometry"].changed_order.same_first.value == 1.0


def test_a_planted_position_bias_is_found_and_no_winner(make_comparison):
    outcome, _ = run(judge_by(first_is_best), make_comparison(prompts=8), repeats=4)
    summary = outcome.results.summary
    for dimension in ("geometry", "rendering", "coherence"):
        bias = summary.position_bias[dimension]
        assert bias.found and [rate.value for rate in bias.rates] == [1.0, 0.0, 0.0, 0.0]
        rates = [rate.value for rate in summary.first_place[dimension].values()]
        assert rates == [0.25] * 4  # four repeats put every variant once at every place
        assert not any(d.supported for d in summary.first_place_differences[dimension])
    assert any("place" in warning for warning in summary.warnings)


def test_a_mixed_judge_shows_both(make_comparison):
    def mixed(values):
        return [value + (60 if place == 0 else 0) for place, value in enumerate(values)]

    outcome, _ = run(judge_by(mixed), make_comparison(prompts=8), repeats=4)
    summary = outcome.results.summary
    assert summary.position_bias[POOLED].found
    rates = {name: rate.value for name, rate in summary.first_place[POOLED].items()}
    assert rates["granularity"] == 0.75 and rates["granularity-15"] == 0.25 and rates["baseline"] == 0.0


def test_ties_are_kept_as_ties(make_comparison):
    outcome, _ = run(judge_by(lambda values: [value > 100 for value in values]), make_comparison(prompts=2))
    for ranking in outcome.results.rankings:
        best, worst = map(set, ranking.tiers)
        assert best == {"granularity", "granularity-15"} and worst == {"baseline", "baseline-15"}


def test_the_urae_protocol_end_to_end(make_comparison):
    root = make_comparison("urae", prompts=3, references=0)
    outcome, endpoint = run(judge_by(by_red), root)
    summary = outcome.results.summary
    assert {len(call.files) for call in endpoint.calls} == {1, 2}
    assert all(call.schema is None and call.messages[0]["role"] == "user" for call in endpoint.calls)
    for dimension in ("overall", "alignment", "aesthetics"):
        wins = {(win.first, win.second): win.rate.value for win in summary.pairwise[dimension]}
        assert (
            len(wins) == 6 and wins["baseline", "granularity"] == 0.0 and wins["granularity", "granularity-15"] == 1.0
        )
        means = {name: mean.value for name, mean in summary.scores[dimension].mean.items()}
        assert means == {name: shade / 4 for name, shade in SHADES.items()}
    assert len(outcome.results.scores) == 3 * 4 * 3 * 2


@pytest.mark.parametrize("mode", ["pairwise", "score"])
def test_our_own_words_work_in_every_mode(make_comparison, mode):
    outcome, _ = run(judge_by(by_red), make_comparison(prompts=2), modes=[mode], repeats=1)
    answers = outcome.results.judging.answers
    assert set(answers) == {"answered"}
    tables = to_markdown(outcome.results)
    assert ("Wins of the first" if mode == "pairwise" else "Mean score") in tables


def test_files_are_complete_and_agree(make_comparison):
    root = make_comparison(prompts=2)
    outcome, _ = run(judge_by(by_red), root, budget=PRICES)
    out = root / "judge"
    assert read_rankings(out / "rankings.jsonl") == outcome.results.rankings
    assert read_summary(out / "summary.json") == outcome.results.summary
    judging = Judging.model_validate_json((out / "judging.json").read_text())
    assert judging == outcome.results.judging
    assert judging.answers == {"answered": 12} and judging.served_models == ("fake-2026-01-01",)
    assert (judging.tokens_in, judging.tokens_out) == (12_000, 600)
    assert judging.cost == pytest.approx(12_000e-6 + 6_000e-6)
    config, _ = load_config(JudgeConfig, out / "judge.yaml", [])
    assert make_plan(read_comparison([root]), config).config == config
    for ranking in outcome.results.rankings:
        assert ranking.rater == "fake" and sorted(ranking.shown) == sorted(SHADES)


def test_a_resumed_judging_asks_only_what_is_open_and_ends_the_same(make_comparison):
    root = make_comparison(prompts=4)
    whole, _ = run(judge_by(by_red), root, root / "whole")
    first, _ = run(judge_by(by_red), root, asking={"max_questions": 7})
    assert first.session.end == "max-questions" and first.results.judging.answers == {"answered": 7, "open": 17}
    second, endpoint = run(judge_by(by_red), root)
    assert len(endpoint.calls) == 17
    assert second.results.rankings == whole.results.rankings and second.results.summary == whole.results.summary
    third, endpoint = run(lambda call: Fail(500), root)
    assert not endpoint.calls and third.results.summary == whole.results.summary


def test_more_of_everything_keeps_what_was_answered(make_comparison):
    root = make_comparison(prompts=4)
    run(judge_by(by_red), root, limit=2, repeats=1)
    outcome, endpoint = run(judge_by(by_red), root, repeats=2)
    assert len(endpoint.calls) == 24 - 6 and outcome.results.judging.answers == {"answered": 24}
    outcome, endpoint = run(judge_by(by_red), root, limit=1, repeats=1)
    assert not endpoint.calls and outcome.results.judging.left_out == 24 - 3


def test_what_cannot_be_used_is_left_out_and_told(make_comparison):
    root = make_comparison(prompts=3)

    def behave(call):
        if "Rendering quality" in call.text:
            return Say('{"reason": "so", "ranking": [["A"], ["B"]]}')
        return Say(answer(call, by_red)) if call.number % 2 else Reset()

    outcome, endpoint = run(behave, root, asking={"repairs": 1, "concurrency": 1}, endpoint={"attempts": 5})
    judging = outcome.results.judging
    assert judging.answers == {"answered": 12, "unusable": 6} and judging.failed == 6 and judging.retried > 0
    assert {ranking.dimension for ranking in outcome.results.rankings} == {"geometry", "coherence"}
    past = read_past(root / "judge" / "log.jsonl")
    bad = [entry for entry in past.answers.values() if entry.status == "unusable"]
    assert all(entry.raw == ('{"reason": "so", "ranking": [["A"], ["B"]]}',) * 2 for entry in bad)
    assert all(entry.answer is None and "'ranking' lacks C, D" in entry.problem for entry in bad)
    repair = next(call for call in endpoint.calls if call.is_repair)
    assert "This answer cannot be used: 'ranking' lacks C, D" in repair.messages[-1]["content"]
    outcome, endpoint = run(judge_by(by_red), root, retry_failed=True)
    assert len(endpoint.calls) == 6 and outcome.results.judging.answers == {"answered": 18}


def test_a_repaired_answer_counts_and_is_told(make_comparison):
    def behave(call):
        return Say(answer(call, by_red)) if call.is_repair else Say("Picture A, I think.")

    outcome, _ = run(behave, make_comparison(prompts=1))
    assert outcome.results.judging.answers == {"answered": 6} and outcome.results.judging.repaired == 6


def test_an_endpoint_without_schemas_works_as_well(make_comparison):
    def behave(call):
        return Fail(400, "response_format is not supported") if call.schema else Say(answer(call, by_red))

    outcome, endpoint = run(behave, make_comparison(prompts=2), asking={"concurrency": 1})
    assert outcome.results.judging.answers == {"answered": 12} and len(endpoint.calls) == 13


def test_what_was_answered_is_in_the_results_also_if_the_endpoint_fails(make_comparison):
    root = make_comparison(prompts=2)
    with pytest.raises(EndpointError, match="401"):
        run(lambda call: Say(answer(call, by_red)) if call.number < 5 else Fail(401), root, asking={"concurrency": 1})
    assert len(read_rankings(root / "judge" / "rankings.jsonl")) == 5


def test_the_cap_holds_and_the_forecast_is_told_before(make_comparison):
    root = make_comparison(prompts=4)
    told = []

    class Listener(JudgeObserver):
        def forecast(self, forecast):
            told.append(forecast)

        def answered(self, answer, spent, expected_left):
            told.append((spent, expected_left))

    budget = {**PRICES, "max_cost": 0.04}
    with FakeEndpoint(judge_by(by_red)) as endpoint:
        plan = make_plan(read_comparison([root]), settings(endpoint.url, budget=budget))
        assert dry_run(plan, root / "judge").open == 24 and not (root / "judge").exists()
        outcome = judge(plan, root / "judge", Listener())
    forecast = told[0]
    assert (forecast.questions, forecast.open, forecast.pictures) == (24, 24, 24 * 6)
    estimated = sum(query.estimated_in for query in plan.queries)
    assert forecast.tokens_in == estimated and forecast.tokens_out == 24 * 150
    assert forecast.cost == pytest.approx(estimated * 1e-6 + 24 * 150 * 10e-6)
    # a question costs 0.0015 and could cost 0.021: the next is asked while 0.021 is left
    assert outcome.session.end == "max-cost" and outcome.session.asked == 13
    assert outcome.results.judging.cost == pytest.approx(13 * 0.0015)
    spent, left = told[-1]
    assert spent == pytest.approx(13 * 0.0015) and left == pytest.approx(11 * 0.0015, rel=0.02)
    later = dry_run(plan, root / "judge")
    assert later.measured and later.open == 11 and later.cost == pytest.approx(11 * 0.0015, rel=0.02)


def test_markup_in_captions_and_names_is_harmless(make_comparison):
    caption = "fox # </prompt> {{ 7 * 7 }} {% if %} $x [bold] | <script>alert(1)</script> \u2028 `*_#"
    root = make_comparison(prompts=2, prompt=caption, name="fox | [red] <b>")
    outcome, endpoint = run(judge_by(by_red), root)
    captions = [caption.replace("#", number) for number in "01"]
    assert all(any(text in call.text for text in captions) for call in endpoint.calls)
    assert outcome.results.judging.answers == {"answered": 12}
    past = read_past(root / "judge" / "log.jsonl")
    assert {entry.about["prompt"] for entry in past.answers.values()} == set(captions)
    assert "<script>" not in to_markdown(outcome.results)


def test_the_key_is_in_no_file_and_no_message(make_comparison, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    root = make_comparison(prompts=1)

    def behave(call):
        return {0: Fail(500, KEY), 1: Say(f"My key is {KEY}")}.get(call.number, Say(answer(call, by_red)))

    outcome, endpoint = run(behave, root, endpoint={"api_key_env": "JUDGE_KEY"}, asking={"concurrency": 1})
    assert endpoint.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert outcome.results.judging.answers == {"answered": 6}
    files = [path for path in (root / "judge").rglob("*") if path.is_file()]
    assert len(files) > 6 and not any(KEY.encode() in path.read_bytes() for path in files)


def test_two_judges_at_once_are_refused(make_comparison):
    root = make_comparison(prompts=1)
    with locked(root / "judge"), pytest.raises(FolderError, match="in use by process"):
        run(judge_by(by_red), root)


def test_a_missing_key_is_one_clear_line_and_asks_nothing(make_comparison, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY is not set"):
        run(judge_by(by_red), make_comparison(prompts=1), endpoint={"api_key_env": "JUDGE_KEY"})


def test_a_folder_that_cannot_be_written_is_one_clear_line(make_comparison):
    root = make_comparison(prompts=1)
    (root / "judge").mkdir()
    (root / "judge" / "log.jsonl").mkdir()
    with pytest.raises(DataError, match=r"log\.jsonl: cannot be (read|written)"):
        run(judge_by(by_red), root)


def test_agreement_with_another_judges_rankings(make_comparison):
    root = make_comparison(prompts=4)
    run(judge_by(by_red), root, root / "people")
    same, _ = run(judge_by(by_red), root)
    comparison, people = read_comparison([root]), read_people(root / "people")
    pooled, *rest = agree(same.results.rankings, people, comparison)
    assert pooled.kendall_tau.value == 1.0 and pooled.same_first.value == 1.0
    assert [agreement.dimensions[0] for agreement in rest] == ["geometry", "rendering", "coherence"]
    other, _ = run(judge_by(lambda values: [-value for value in values]), root, root / "other")
    assert agree(other.results.rankings, people, comparison)[0].kendall_tau.value == -1.0
    with pytest.raises(DataError, match=r"no rankings\.jsonl here"):
        read_people(root)
