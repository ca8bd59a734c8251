import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.errors import ConfigError, DataError
from flowgrain.sample.manifest import (
    SAMPLES_NAME,
    Provenance,
    done_already,
    picture_name,
    plan_records,
    read_manifest,
    write_manifest,
)


def provenance(**changes):
    values = {
        "run": "fox", "checkpoint": "update-000100", "budget_fraction": 1.0, "model": "tiny-flux",
        "model_fingerprint": "f", "adapter_sha256": "a", "dtype": "float32", "sampler": "pipeline", "steps": 2,
        "guidance": 3.5, "height": 64, "width": 64,
    }  # fmt: skip
    return Provenance(**{**values, **changes})


def fill(folder, records):
    for record in records:
        (folder / record.file).write_bytes(b"png")
    write_manifest(folder, records)


def test_lines_survive_the_file_and_name_the_versions(tmp_path):
    records = plan_records(provenance(), ["a 狐 fox", "apple"], [0, 1])
    write_manifest(tmp_path, records)
    assert read_manifest(tmp_path) == records
    assert all(getattr(records[0], package) for package in ("flowgrain", "torch", "diffusers"))
    assert [(record.prompt, record.seed) for record in records] == [
        ("a 狐 fox", 0), ("a 狐 fox", 1), ("apple", 0), ("apple", 1),
    ]  # fmt: skip


@given(st.text(min_size=1), st.integers(0, 10**6))
def test_picture_names_are_safe_file_names(prompt, seed):
    assert re.fullmatch(rf"([a-z0-9-]{{1,40}}-)?[0-9a-f]{{8}}-{seed}\.png", picture_name(prompt, seed))


def test_picture_names_tell_prompts_with_equal_starts_apart():
    start = "a very long prompt about a fox that sits in the snow"
    assert len({picture_name(start + end, 0) for end in (" at night", " by day", "")}) == 3


def test_only_pictures_that_exist_with_an_equal_line_are_kept(tmp_path):
    records = plan_records(provenance(), ["fox", "apple"], [0])
    assert done_already(tmp_path, records) == []
    fill(tmp_path, records)
    assert done_already(tmp_path, records) == records
    (tmp_path / records[0].file).unlink()
    assert done_already(tmp_path, records) == records[1:]
    more = plan_records(provenance(), ["pear", "fox", "apple"], [0, 1])
    assert done_already(tmp_path, more) == records[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 3}, "steps 2 there, 3 now"),
        ({"adapter_sha256": "b"}, "adapter_sha256 a there, b now"),
        ({"run": "cat"}, "run fox there, cat now"),
    ],
)
def test_pictures_drawn_otherwise_are_refused_and_left_alone(tmp_path, change, message):
    fill(tmp_path, plan_records(provenance(), ["fox"], [0]))
    with pytest.raises(ConfigError, match=message):
        done_already(tmp_path, plan_records(provenance(**change), ["fox"], [0]))


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not empty and not a sample folder"):
        done_already(tmp_path, plan_records(provenance(), ["fox"], [0]))
    assert done_already(tmp_path / "new", []) == []


def test_a_damaged_line_is_named(tmp_path):
    fill(tmp_path, plan_records(provenance(), ["fox"], [0]))
    with (tmp_path / SAMPLES_NAME).open("a") as stream:
        stream.write('{"file": "x.png"')
    with pytest.raises(DataError, match=r"samples\.jsonl:2: not a sample line"):
        read_manifest(tmp_path)
