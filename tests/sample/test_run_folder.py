import json

import pytest

from flowgrain.errors import CheckpointError, DataError
from flowgrain.sample.prompts import read_prompts
from flowgrain.sample.run_folder import ModelChoice, choose_checkpoint, list_checkpoints, open_checkpoint, read_run


def test_a_run_names_its_model(run):
    assert read_run(run) == ("fox", ModelChoice("tiny-flux", None, "float32"))


@pytest.mark.parametrize("text", ["name: fox\n", "model: [", "- a\n", "name: fox\nmodel: {path: x}\n"])
def test_damaged_recipes_are_one_clear_line(run, text):
    (run / "recipe.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"^[^\n]*recipe\.yaml: damaged[^\n]*$"):
        read_run(run)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"no recipe\.yaml here"):
        read_run(tmp_path)


def test_the_last_complete_checkpoint_is_the_default(run):
    assert [checkpoint.update for checkpoint in list_checkpoints(run)] == [100, 120, 150]
    assert choose_checkpoint(run, None).update == 150


def test_a_checkpoint_is_found_by_budget_fraction(run):
    assert choose_checkpoint(run, 1.0).update == 100
    assert choose_checkpoint(run, 1.5).adapter == run / "checkpoints" / "update-000150" / "adapter"
    with pytest.raises(CheckpointError, match=r"no checkpoint at budget fraction 2; there are: 1, 1\.5"):
        choose_checkpoint(run, 2.0)


def test_runs_without_checkpoints_say_so(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint yet"):
        choose_checkpoint(tmp_path, None)


def test_unfinished_missing_and_damaged_checkpoints_are_refused(run):
    with pytest.raises(CheckpointError, match="unfinished checkpoint"):
        open_checkpoint(run / "checkpoints" / "update-000200")
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        open_checkpoint(run / "checkpoints" / "update-000300")
    folder = run / "checkpoints" / "update-000100"
    (folder / "state.json").write_text(json.dumps({"update": 1}))
    with pytest.raises(CheckpointError, match="damaged checkpoint state"):
        open_checkpoint(folder)
    (folder / "adapter" / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        open_checkpoint(folder)


def test_prompts_skip_comments_blank_lines_and_repetitions(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# heading\n a red fox \r\n\napple\n  # note\na red fox\n狐\n".encode())
    assert read_prompts(path) == ["a red fox", "apple", "狐"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"# only\n\n", "holds no prompt"), (b"caf\xe9\n", r"not UTF-8 text \(byte 3\)")],
)
def test_unusable_prompt_files_are_one_clear_line(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_prompt_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path)
