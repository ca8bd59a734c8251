from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tiny_encoders import pictures

from flowgrain.errors import MissingExtraError, ModelError
from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.encoders import inception
from flowgrain.evaluate.encoders.registry import open_encoder
from flowgrain.evaluate.frechet import FrechetDistance

needs_fidelity = pytest.mark.skipif(find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights under the names of the published file."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as published

    path = tmp_path_factory.mktemp("inception") / "weights-inception-random.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(published.torch, "load", lambda *_arguments, **_options: {})
        patch.setattr(published.FeatureExtractorInceptionV3, "load_state_dict", lambda *_arguments: None)
        network = published.FeatureExtractorInceptionV3("random", ["2048"], "nowhere")
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def reference(weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("r", ["768", "2048", "logits_unbiased"], str(weights))


def as_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


@needs_fidelity
@torch.inference_mode()
def test_pooled_features_and_logits_are_those_of_torch_fidelity(weights, reference):
    encoder = open_encoder(f"inception:{weights}", batch_size=2)
    drawn = pictures(5)  # of different sizes
    features = encoder(drawn)
    assert features.shape == (5, 2048) and encoder.family == "Inception"
    for row, picture in zip(features, drawn, strict=True):
        _, pooled, logits = reference(as_tensor(picture))
        np.testing.assert_allclose(row, pooled[0].numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(encoder.logits(row[None])[0], logits[0].numpy(), rtol=1e-3, atol=1e-4)


@needs_fidelity
@torch.inference_mode()
def test_spatial_features_are_the_first_branch_of_the_block_called_mixed_6(weights, reference):
    encoder = open_encoder(f"inception-spatial:{weights}", batch_size=3)
    seen = []
    hook = reference.Mixed_6d.branch1x1.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    drawn = pictures(4)
    features = encoder(drawn)
    assert features.shape == (4, 2023) and encoder.family == "Inception spatial"
    for row, picture in zip(features, drawn, strict=True):
        reference(as_tensor(picture))
        np.testing.assert_allclose(row, seen.pop()[0, :7].permute(1, 2, 0).flatten().numpy(), rtol=1e-4, atol=1e-5)
    hook.remove()
    assert encoder.logits(features) is None
    assert encoder([]).shape == (0, 2023)


@needs_fidelity
def test_the_frechet_distance_is_fid_as_torch_fidelity_computes_it(weights, reference, tmp_path):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    encoder = open_encoder(f"inception:{weights}", batch_size=8)
    generated, pool = encoder(pictures(12, seed=1)), encoder(pictures(10, seed=2))
    first, second = (fid_features_to_statistics(torch.from_numpy(features)) for features in (generated, pool))
    theirs = fid_statistics_to_metric(first, second, verbose=False)["frechet_inception_distance"]
    ours = FrechetDistance().statistic(FeatureSet(generated, None, pool))(np.arange(12))
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@needs_fidelity
def test_only_the_published_weights_are_called_so(weights, monkeypatch):
    encoder = inception.InceptionEncoder(weights)
    assert "not the published weights, sha256" in encoder.name
    monkeypatch.setattr(inception, "PUBLISHED_SHA256", encoder.version[-12:][:8])
    assert "published FID weights" in inception.InceptionEncoder(weights).version


@needs_fidelity
def test_wrong_files_are_refused(weights, tmp_path):
    torch.save({"layers.0.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"other\.pth: not the weights of FID's Inception network"):
        inception.InceptionEncoder(tmp_path / "other.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        inception.InceptionEncoder(tmp_path / "junk.pth")
    with pytest.raises(ModelError, match="no such weights file"):
        inception.InceptionEncoder(tmp_path / "absent.pth")


def test_without_torch_fidelity_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(inception, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"needs torch-fidelity, .*pip install 'flowgrain\[fidelity\]'"):
        open_encoder(f"inception:{tmp_path / 'weights.pth'}")
