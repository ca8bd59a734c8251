import html as html_module
from dataclasses import replace

from made_up_evaluation import NAMES, SCRIPT
from test_page import Outline

from flowgrain.evaluate.ranking.summary import POOLED
from flowgrain.evaluate.results import MetricTable
from flowgrain.report.evaluation_page import evaluation_page
from flowgrain.report.page import Bullets, FigureRow, Paragraph, PromptGrid, Slider, Table, flat
from flowgrain.report.wording import decimal, share, whole_percent

SECTIONS = [
    "summary", "judge", "people", "variants", "trust", "pictures", "calibration", "measures", "training",
    "not-measured",
]  # fmt: skip


def blocks(page, anchor, kind):
    section = next(section for section in page.sections if section.anchor == anchor)
    return [block for block in flat(section.blocks) if isinstance(block, kind)]


def table(page, anchor, title):
    return next(block for block in blocks(page, anchor, Table) if title in block.title)


def test_sections_follow_the_questions_a_reader_has(evaluation_report):
    assert [section.anchor for section in evaluation_report.sections] == SECTIONS
    assert isinstance(evaluation_report.sections[0].blocks[0], Bullets)


def test_the_headline_has_two_to_six_sentences_of_numbers(evaluation, evaluation_report):
    sentences = evaluation_report.sections[0].blocks[0].items
    assert 2 <= len(sentences) <= 6
    first = evaluation.judge.summary.first_place[POOLED]
    assert f"granularity 1x came first most often, in {share(first['granularity 1x'])}" in sentences[1]
    assert f"{evaluation.judge.summary.counts.rankings} answers" in sentences[1]
    assert sentences[-1] == "Not measured: the luck of training."


def test_parts_that_were_not_measured_are_left_out_and_named(evaluation):
    bare = replace(evaluation, metrics=MetricTable(), judge=None, study=None, agreement={}, runs=())
    page = evaluation_page(bare, rows=1)
    assert [section.anchor for section in page.sections] == ["summary", "pictures", "not-measured"]
    lines = page.sections[-1].blocks[0].items
    where = str(evaluation.paths[0])
    assert [line.split(": ", 1)[1] for line in lines[:4]] == [
        f"flowgrain judge {where}",
        f"flowgrain study new {where}",
        f"flowgrain evaluate {where}",
        f"flowgrain report {where} --runs NAME=RUN",
    ]
    assert len(page.sections[0].blocks[0].items) == 2


def test_rates_on_the_page_are_those_of_the_summaries(evaluation, evaluation_report):
    for anchor, ballot in (("judge", evaluation.judge), ("people", evaluation.study)):
        first, ranks = ballot.summary.first_place[ballot.main], ballot.summary.rank_distribution[ballot.main]
        expected = [(name, str(first[name].n), share(first[name]), decimal(ranks[name].mean_rank)) for name in NAMES]
        assert list(table(evaluation_report, anchor, "First places").rows) == expected
        figure = blocks(evaluation_report, anchor, FigureRow)[0].figures[0]
        assert whole_percent(ranks[NAMES[2]].shares[0].value) in figure.alt


def test_table_two_has_people_and_judge_for_all_and_each_data_set(evaluation, evaluation_report):
    found = table(evaluation_report, "variants", "First-place rate")
    names = ["all data sets", *(dataset.name for dataset in evaluation.comparison.datasets)]
    assert found.columns == ("variant", *(f"{name}: {who}" for name in names for who in ("people", "LLM")))
    people = evaluation.study.summary.first_place_by_dataset["overall"]["alpha"][NAMES[0]]
    assert found.rows[0][3].replace("\n", " ") == share(people)


def test_other_dimensions_are_behind_a_click(evaluation_report):
    html = evaluation_report.render()
    assert html.count("<details>") == html.count("</details>") >= 4
    assert "Geometric and symbolic accuracy: the same figures" in html


def test_a_biased_judge_is_pointed_out(evaluation, evaluation_report):
    assert evaluation.judge.summary.position_bias[POOLED].found
    warnings = [block.text for block in blocks(evaluation_report, "trust", Paragraph)]
    assert any("prefers a place: the 1st picture from the left" in text for text in warnings)
    assert not any(text.startswith("People prefers") for text in warnings)


def test_every_reference_is_first_and_every_picture_is_there_once(evaluation_report):
    html = evaluation_report.render()
    grids = blocks(evaluation_report, "pictures", PromptGrid)
    assert [grid.columns for grid in grids] == [NAMES, NAMES]
    assert grids[0].prompts[0].reference is not None and grids[0].prompts[3].reference is None
    for uri in {tile.uri for grid in grids for prompt in grid.prompts for row in prompt.rows for tile in row.tiles}:
        assert html.count(uri) == 1
    (slider,) = blocks(evaluation_report, "pictures", Slider)
    numbers = [number for _, rows in slider.rows for number, _ in rows]
    assert numbers == [row.number for grid in grids for prompt in grid.prompts for row in prompt.rows]


def test_page_is_well_formed_loads_nothing_and_names_its_only_script(evaluation_report):
    html = evaluation_report.render()
    outline = Outline(html)
    assert not outline.stack
    assert outline.tags.count("script") == 1
    for tag, attributes in outline.attributes:
        for name in ("src", "srcset", "href"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:60])
    policy = next(a["content"] for t, a in outline.attributes if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy and "unsafe" not in policy
    assert "@import" not in html and "url(" not in html
    assert all(attributes["alt"] for tag, attributes in outline.attributes if tag == "img" and "src" in attributes)
    ids = [attributes["id"] for _, attributes in outline.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_names_cannot_become_markup(evaluation_report):
    html = evaluation_report.render()
    assert SCRIPT not in html and "<img src=x" not in html
    assert html.count(html_module.escape(SCRIPT)) > 20
    names = {name for _, attributes in Outline(html).attributes for name in attributes}
    assert not [name for name in names if name.startswith("on")]


def test_every_block_says_how_to_read_it(evaluation_report):
    for section in evaluation_report.sections:
        assert section.lead.endswith(".")
        for block in flat(section.blocks):
            if not isinstance(block, Paragraph | Bullets):
                assert block.title and block.reading.endswith(".")
