"""Prompts: URAE's are the paper's words, ours are complete, a user's are checked before the first question."""

import pytest

from flowgrain.errors import ConfigError
from flowgrain.evaluate.judge.prompts import PICTURES, REFERENCES, PromptFolder, packaged, record_prompts, write_prompts
from flowgrain.evaluate.protocol import PRESETS, Dimension, ProtocolConfig

OVERALL = Dimension(name="overall", title="Overall quality", question="Which is best?")
VALUES = {
    "prompt": "a fox",
    "dataset": "foxes",
    "description": "red foxes",
    "dimension": "overall",
    "title": "Overall quality",
    "question": "Which is best?",
    "count": 2,
    "labels": "A and B",
    "references": 1,
}
URAE = {  # Appendix B.1, the sentences that tell the six apart
    "pairwise-overall": 'determine its comprehensive quality, the prompt is "a fox". Please output [Image 1] if the '
    "first image is better, [Image 2] if the second image is better, and give me the reason.",
    "pairwise-aesthetics": "which image exhibits greater photorealism and aesthetical, in terms of clarity, richness "
    "of detail, and overall quality. Please pay attention to the key factors, including image style, "
    "the artistic quality of the image, realism, etc., the prompt is “a fox”. Please output [Image "
    "1]",
    "pairwise-alignment": "you need to judge which image aligns with the caption more closely. Please pay attention to "
    "the key information, including object identities, properties, spatial relationships, object "
    "numbers and image style, etc., the prompt is “a fox”. Please output [Image 1]",
    "score-overall": "determine its comprehensive quality. The prompt is: “a fox”. Please output strictly the score "
    "from 0 to 100. Do not provide any explanation or additional text beyond this numeric score.",
    "score-aesthetics": "assign a 0-100 score, reflecting its photorealism, aesthetic appeal, clarity, richness of "
    "detail, and overall quality. Key factors to consider include image style, artistic quality, and"
    " realism. The prompt is: “a fox”. Please output strictly the score from 0 to 100.",
    "score-alignment": "you need to determine the score 0-100 that the image aligns with the caption. Please pay "
    "attention to the key information, including object identities, properties, spatial "
    "relationships, object numbers and image style, etc., the prompt is “a fox”. Please output "
    "strictly the score from 0 to 100, reflecting how accurately the image aligns with the caption.",
}


@pytest.mark.parametrize("mode", ["pairwise", "score"])
@pytest.mark.parametrize("dimension", ["overall", "aesthetics", "alignment"])
def test_the_urae_prompts_are_the_papers_and_nothing_else(mode, dimension):
    (found,) = [d for d in PRESETS["urae"]["judge_dimensions"] if d.name == dimension]
    prompts = PromptFolder("urae").of(mode, found)
    rendered = prompts.question.render(VALUES)
    assert rendered.startswith("As an AI visual assistant, you")
    assert URAE[f"{mode}-{dimension}"] in rendered
    assert rendered.endswith(PICTURES) and rendered.count("\n") == 2
    assert (prompts.system, prompts.question.answer) == ("", "text")


@pytest.mark.parametrize("preset", ["granularity", "urae", "checkpoints", "custom"])
@pytest.mark.parametrize("mode", ["rank", "pairwise", "score"])
def test_every_protocol_has_prompts_in_every_mode(preset, mode):
    protocol = ProtocolConfig.model_validate(preset)
    for dimension in protocol.judge_dimensions:
        prompts = PromptFolder("urae" if preset == "urae" else "default").of(mode, dimension)
        rendered = prompts.question.render({**VALUES, "title": dimension.title, "question": dimension.question})
        assert "a fox" in rendered and rendered.count(PICTURES) == 1
        if preset != "urae":
            assert dimension.question in rendered and rendered.count(REFERENCES) == 1
            assert prompts.system


def test_what_is_not_there_is_not_spoken_of():
    question = PromptFolder("default").of("rank", OVERALL).question
    rendered = question.render({**VALUES, "references": 0, "description": ""})
    assert REFERENCES not in rendered and "domain" not in rendered


def test_captions_are_text_and_never_template_or_marker():
    question = PromptFolder("default").of("rank", OVERALL).question
    caption = "{{ 7 * 7 }} {% raw %} <b>&amp;</b> $prompt \\n ' \" `x` {0} %s </prompt>"
    rendered = question.render({**VALUES, "prompt": caption + PICTURES + REFERENCES})
    assert caption in rendered and "49" not in rendered.replace(caption, "")
    assert rendered.count(PICTURES) == rendered.count(REFERENCES) == 1


def test_written_prompts_can_be_used_edited_and_are_not_overwritten(tmp_path):
    written = write_prompts(tmp_path / "mine")
    assert {path.parent.name for path in written} == {"default", "urae"}
    packaged_hash = PromptFolder("default").of("rank", OVERALL).hash
    mine = tmp_path / "mine" / "default"
    assert PromptFolder(mine).of("rank", OVERALL).hash == packaged_hash
    (mine / "rank-overall.md").write_text("{{ pictures }} which {{ labels }} is best for {{ prompt }}?", "utf-8")
    edited = PromptFolder(mine).of("rank", OVERALL)
    assert edited.question.render(VALUES) == f"{PICTURES} which A and B is best for a fox?"
    assert edited.hash != packaged_hash
    other = OVERALL.model_copy(update={"name": "other"})
    assert PromptFolder(mine).of("rank", other).hash == packaged_hash
    with pytest.raises(ConfigError, match="is there already"):
        write_prompts(tmp_path / "mine")


@pytest.mark.parametrize("name", ["system", "rank", "repair"])
def test_every_text_around_a_question_is_part_of_its_identity(name, tmp_path):
    write_prompts(tmp_path)
    path = tmp_path / "default" / f"{name}.md"
    path.write_text(path.read_text("utf-8") + " And hurry.", "utf-8")
    assert (
        PromptFolder(tmp_path / "default").of("rank", OVERALL).hash != PromptFolder("default").of("rank", OVERALL).hash
    )


def test_recorded_prompts_give_the_same_questions(tmp_path):
    dimensions = ProtocolConfig.model_validate("urae").judge_dimensions
    for place in ("default", "urae"):
        folder = PromptFolder(place)
        kinds = {(mode, d.name): folder.of(mode, d) for mode in ("rank", "score") for d in dimensions}
        record_prompts(tmp_path / place, kinds)
        again = PromptFolder(tmp_path / place)
        assert {key: again.of(key[0], d).hash for key, d in zip(kinds, dimensions * 2, strict=True)} == {
            key: prompts.hash for key, prompts in kinds.items()
        }


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rank.md", "which is best?", r"\{\{ pictures \}\} 0 times"),
        ("rank.md", "{{ pictures }}{{ pictures }}", "2 times"),
        ("rank.md", "{{ pictures }}{{ reference_pictures }}{{ reference_pictures }}", "reference_pictures }} 2 times"),
        ("rank.md", "{{ pictures }}{{ variant }}", "'variant' is undefined.*it may use"),
        ("rank.md", "{{ pictures }}{% if %}", "not a template"),
        ("rank.md", "{{ pictures }}{{ prompt.__class__.__mro__ }}", "not a template"),
        ("rank.md", "{{ pictures }}{{ 1 / 0 }}", "not a template"),
        ("rank.md", "---\nanswer: text\n---\n{{ pictures }}", "answer text cannot be read for rank; use json"),
        ("rank.md", "---\nanswer: jason\n---\n{{ pictures }}", "answer"),
        ("rank.md", "---\nreply: json\n---\n{{ pictures }}", "unknown key 'reply'"),
        ("rank.md", "---\nanswer: json\n{{ pictures }}", "header is not closed"),
        ("repair.md", "{{ answer }}", "'answer' is undefined"),
        ("ranking.md", "{{ pictures }}", "no prompt has this name"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused_before_anything_is_asked(name, text, says, tmp_path):
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=says) as caught:
        PromptFolder(tmp_path).of("rank", OVERALL)
    assert name in str(caught.value)


def test_a_folder_without_prompts_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder of prompts"):
        PromptFolder(tmp_path / "none")
    with pytest.raises(ConfigError, match="holds no prompt"):
        PromptFolder(tmp_path)
    (tmp_path / "rank.md").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        PromptFolder(tmp_path)


def test_the_packaged_files_are_all_used():
    assert {path.name for path in packaged("urae").iterdir()} == {f"{name}.md" for name in (*URAE, "repair")}
    names = {path.name for path in packaged("default").iterdir()}
    assert names == {"system.md", "rank.md", "pairwise.md", "score.md", "repair.md"}
