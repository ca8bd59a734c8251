import hashlib
import pickle

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from flowgrain.errors import ConfigError, ModelError
from flowgrain.pretrained.weights import (
    fingerprint,
    folder_digest,
    load_exactly,
    model_folder,
    model_label,
    read_tensors,
    weight_files,
)

TENSORS = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}


class Trap:
    """Runs code when it is unpickled without limits."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_tensors_are_read_from_both_formats(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.save(TENSORS, tmp_path / "b.pth")
    torch.save({"epoch": 3, "state_dict": TENSORS}, tmp_path / "c.pt")
    assert all(same(read_tensors(path), TENSORS) for path in sorted(tmp_path.iterdir()))


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"state_dict": TENSORS, "extra": Trap(tmp_path / "ran")}, tmp_path / "evil.pt")
    with (tmp_path / "plain.pt").open("wb") as stream:
        pickle.dump(Trap(tmp_path / "ran"), stream, protocol=2)
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ModelError, match="cannot be read as weights"):
            read_tensors(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_files_without_tensors_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    for name in ("list.pt", "numbers.pt"):
        with pytest.raises(ModelError, match="holds no state dict"):
            read_tensors(tmp_path / name)
    with pytest.raises(ModelError, match="no such weights file"):
        read_tensors(tmp_path / "absent.pt")
    with pytest.raises(ModelError, match="no such weights file"):
        read_tensors(tmp_path)


def legacy(tensors, path):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=150)
@given(
    write=st.sampled_from([torch.save, legacy, save_file, lambda _tensors, path: path.write_bytes(b"")]),
    at=st.floats(0, 1),
    junk=st.binary(max_size=40),
)
def test_damaged_files_never_raise_anything_else(tmp_path, write, at, junk):
    path = tmp_path / ("w.safetensors" if write is save_file else "w.pt")
    write(TENSORS, path)
    whole = path.read_bytes()
    cut = int(at * len(whole))
    path.write_bytes(whole[:cut] + junk)
    try:
        read = read_tensors(path)
    except ModelError as error:
        assert str(path) in str(error)
    else:
        assert set(read) <= set(TENSORS)


def test_the_first_difference_of_a_state_dict_is_named():
    layer = nn.Linear(2, 3)
    state = layer.state_dict()
    load_exactly(layer, state, "file")
    with pytest.raises(ModelError, match="file: not the weights of Linear: 1 are missing, for example bias"):
        load_exactly(layer, {"weight": state["weight"]}, "file")
    with pytest.raises(ModelError, match="1 are unknown, for example more"):
        load_exactly(layer, {**state, "more": state["bias"]}, "file")
    with pytest.raises(ModelError, match=r"bias has shape \(4,\), expected \(3,\)"):
        load_exactly(layer, {**state, "bias": torch.zeros(4)}, "file")


def test_the_fingerprint_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert fingerprint([tmp_path / "model.safetensors"]) == hashlib.sha256(b"weights").hexdigest()[:12]


def test_the_fingerprint_of_shards_depends_on_each_and_on_their_order(tmp_path):
    paths = [tmp_path / f"model-{number}-of-2.safetensors" for number in (1, 2)]
    for path in paths:
        path.write_text(path.name)
    assert weight_files(tmp_path) == paths
    whole = fingerprint(paths)
    assert fingerprint(paths[::-1]) != whole
    paths[1].write_text("changed")
    assert fingerprint(paths) != whole
    with pytest.raises(ModelError, match="cannot be read"):
        fingerprint([tmp_path / "absent"])


def test_the_digest_of_a_folder_is_that_of_its_names_and_bytes_but_not_of_pickles(tmp_path):
    for name in ("model.safetensors", "config.json", "pytorch_model.bin", "README.md"):
        (tmp_path / name).write_text(name)
    parts = (name.encode() + hashlib.sha256(name.encode()).digest() for name in ("config.json", "model.safetensors"))
    assert folder_digest(tmp_path) == hashlib.sha256(b"".join(parts)).hexdigest()


def cached(cache, revision, commit, weights):
    """A snapshot in a cache of the hub that holds one file of weights."""
    repository = cache / "models--owner--clip"
    snapshot = repository / "snapshots" / (commit * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit * 40)
    (snapshot / weights).write_bytes(b"weights")
    return snapshot


def test_a_hub_id_is_found_in_the_local_cache_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = cached(tmp_path, "main", "0", "pytorch_model.bin")
    repository = tmp_path / "models--owner--clip"
    folder = model_folder("owner/clip")
    assert weight_files(folder) == [snapshot / "pytorch_model.bin"]
    assert model_label("owner/clip") == "owner/clip" and model_label(str(repository)) == "models--owner--clip"
    with pytest.raises(ModelError, match="owner/other: neither a folder nor a hub model that can be reached"):
        model_folder("owner/other")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no weights here; expected model\.safetensors"):
        weight_files(tmp_path)


def test_a_revision_is_another_snapshot_and_may_lack_safetensors(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached(tmp_path, "main", "0", "pytorch_model.bin")
    safe = cached(tmp_path, "safe", "1", "model.safetensors")
    assert model_folder("owner/clip", "safe", safetensors_only=True) == safe
    with pytest.raises(ModelError, match="owner/clip: only pickled weights, which are never opened"):
        model_folder("owner/clip", safetensors_only=True)
    with pytest.raises(ConfigError, match="a revision belongs to a hub id"):
        model_folder(str(safe), "main")
