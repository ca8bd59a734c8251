import json

import numpy as np
import pytest
import yaml
from PIL import Image

from flowgrain.cli.main import main
from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.comparison import read_comparison
from flowgrain.evaluate.cosine import ImageCosine
from flowgrain.evaluate.encoders.mobilenet import MobileNetV2Encoder
from flowgrain.evaluate.measure import EvaluateConfig, measure, own_references
from flowgrain.evaluate.results import read_results
from flowgrain.evaluate.score_registry import ScoreOptions, open_score, score_usages
from flowgrain.evaluate.table import PictureSet, picture_metrics

PROMPTS = ("a red disc", "a blue square", "a green ring")


def picture(path, seed, noise):
    generator = np.random.default_rng(seed)
    pixels = np.kron(generator.integers(0, 256, (4, 4, 3)), np.ones((24, 24, 1)))
    pixels = pixels + noise * generator.normal(0, 40, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def comparison(tmp_path):
    """Two variants of three prompts and two seeds, the second one noisy, and a reference for each prompt."""
    for name, noise in (("clean", 0.0), ("noisy", 1.0)):
        lines = []
        for number, prompt in enumerate(PROMPTS):
            for seed in (0, 1):
                picture(tmp_path / name / f"{number}-{seed}.png", number, noise)
                lines.append(json.dumps({"file": f"{number}-{seed}.png", "prompt": prompt, "seed": seed}))
        (tmp_path / name / "samples.jsonl").write_text("\n".join(lines))
    for number, prompt in enumerate(PROMPTS):
        picture(tmp_path / "real" / f"{number}.png", number, 0.1)
        (tmp_path / "real" / f"{number}.txt").write_text(prompt)
    values = {
        "datasets": [
            {
                "name": "shapes",
                "references": "real",
                "variants": [{"name": name, "pictures": name} for name in ("clean", "noisy")],
            }
        ]
    }
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def silent(what, done, total):
    pass


def test_the_better_variant_is_found_and_every_number_has_its_interval(comparison):
    config = EvaluateConfig(scores=("compression",), resamples=100)
    table = measure(read_comparison([comparison]), config, comparison / "features", silent)
    assert {result.subset for result in table.results} == {"shapes"}
    assert all(result.low <= result.high for result in table.results)
    ahead = {item.name: item.ahead for item in table.differences}
    assert ahead["MobileNetV2 image-image cosine"] == "clean"
    assert ahead["compression ratio (JPEG 95)"] is None  # neither way is better
    assert any(item.name.startswith("compression") and item.supported for item in table.differences)


def test_it_is_the_table_of_the_parts(comparison):
    config = EvaluateConfig(scores=(), resamples=100)
    read = read_comparison([comparison])
    table = measure(read, config, None, silent)
    dataset = read.datasets[0]
    sets = [
        PictureSet(
            variant.name,
            [drawn.path for drawn in variant.pictures],
            [drawn.prompt for drawn in variant.pictures],
            own_references(dataset, [drawn.prompt for drawn in variant.pictures]),
        )
        for variant in dataset.variants
    ]
    pool = [reference.path for reference in dataset.references]
    direct = picture_metrics(sets, pool, MobileNetV2Encoder(), metrics=[ImageCosine()])
    for expected in direct.results:
        found = next(r for r in table.results if r.name == expected.name and r.arm == expected.arm)
        assert found.value == pytest.approx(expected.value, rel=1e-6)


def test_own_references_are_all_or_none(comparison):
    dataset = read_comparison([comparison]).datasets[0]
    assert [path.name for path in own_references(dataset, PROMPTS[::-1])] == ["2.png", "1.png", "0.png"]
    assert own_references(dataset, [PROMPTS[0], "a yellow star"]) is None


def test_without_references_scores_are_left(comparison):
    values = yaml.safe_load((comparison / "comparison.yaml").read_text())
    del values["datasets"][0]["references"]
    (comparison / "comparison.yaml").write_text(yaml.safe_dump(values))
    read = read_comparison([comparison])
    table = measure(read, EvaluateConfig(scores=("compression",), resamples=100), None, silent)
    assert {result.name for result in table.results} == {"compression ratio (JPEG 95)"}
    with pytest.raises(DataError, match="nothing to measure"):
        measure(read, EvaluateConfig(scores=(), resamples=100), None, silent)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("glmc", r"did you mean 'glcm'"),
        ("nothing", "known: glcm, glcm-entropy"),
        ("aesthetic:folder", "write it as aesthetic:CLIP,HEAD"),
        ("glcm:x", "write it as glcm"),
        ("clip-score", "write it as clip-score:CLIP"),
        ("hpsv2:file,", "write it as hpsv2:CHECKPOINT,TOKENIZER"),
    ],
)
def test_a_score_written_wrongly(spec, message):
    with pytest.raises(ConfigError, match=message):
        open_score(spec, ScoreOptions())


def test_every_score_is_named():
    assert score_usages().count(":") == 6


def test_from_the_command_line(comparison, capsys):
    arguments = ["evaluate", str(comparison), "--score", "compression", "--resamples", "100"]
    for _ in range(2):  # the second time from the features of the first
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    written = read_results(comparison / "metrics")
    assert len(written.results) == len({(result.name, result.arm) for result in written.results})
    assert "Differences whose interval excludes zero" in capsys.readouterr().out
    (comparison / "metrics/metrics.json").unlink()
    with pytest.raises(SystemExit):
        main([*arguments, "--dry-run"])
    assert not (comparison / "metrics/metrics.json").exists()


def test_without_a_comparison_it_says_what_to_give(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate"])
    assert stop.value.code == 2
    assert "give at least one comparison.yaml" in capsys.readouterr().err
