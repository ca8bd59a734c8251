import logging

import numpy as np
import pytest
import torch
from tiny_encoders import CLIP_PREPROCESSOR, TOKENIZER, clip_folder, dino_folder, pictures
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from flowgrain.errors import DataError, ModelError
from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.default_metrics import default_metrics
from flowgrain.evaluate.encoders.clip import load_clip
from flowgrain.evaluate.encoders.dino import DinoEncoder
from flowgrain.evaluate.feature_cache import CachedEncoder
from flowgrain.evaluate.scores.similarity import ImageSimilarity, TextSimilarity
from flowgrain.evaluate.scores.text_alignment import ClipScore
from flowgrain.evaluate.table import PictureSet, picture_metrics

PROMPTS = ["a red cat", "two blue dogs", "a green hill", "one house"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(str(clip_folder(tmp_path_factory.mktemp("models") / "clip")))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    return DinoEncoder(str(dino_folder(tmp_path_factory.mktemp("models") / "dino", "dinov2")))


def cosine(x, y):
    return torch.nn.functional.cosine_similarity(torch.tensor(x), torch.tensor(y), dim=-1).numpy()


class TensorModel(torch.nn.Module):
    """CLIPModel as torchmetrics knows it: features are tensors, which they are no more in transformers 5."""

    def __init__(self, folder):
        super().__init__()
        self.model = CLIPModel.from_pretrained(folder)
        self.config = self.model.config

    def get_image_features(self, pixel_values):
        return self.model.get_image_features(pixel_values).pooler_output

    def get_text_features(self, input_ids, attention_mask):
        return self.model.get_text_features(input_ids, attention_mask).pooler_output


def processor(text=None, images=None, **_options):
    if text is None:
        return CLIPImageProcessorPil(**CLIP_PREPROCESSOR)(images, return_tensors="pt")
    return AutoTokenizer.from_pretrained(TOKENIZER)(text, padding=True, return_tensors="pt")


def test_clipscore_is_that_of_torchmetrics(tmp_path):
    from torchmetrics.functional.multimodal import clip_score

    folder = clip_folder(tmp_path / "clip")
    score = ClipScore(load_clip(str(folder)))
    drawn = pictures(4)
    tensors = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in drawn]
    theirs = [
        clip_score(tensor, prompt, lambda: (TensorModel(folder), processor)).item()
        for tensor, prompt in zip(tensors, PROMPTS, strict=True)
    ]
    ours = score(drawn, PROMPTS)
    assert score.title == "CLIPScore"
    assert min(ours) < 0 < max(ours)
    np.testing.assert_allclose(np.maximum(ours, 0), theirs, rtol=1e-4, atol=1e-3)
    together = clip_score(tensors, PROMPTS, lambda: (TensorModel(folder), processor)).item()
    assert score.pooled(ours) == pytest.approx(together, abs=1e-3)
    assert score.pooled(-np.abs(ours)) == 0.0


def test_clipscore_flags_cut_prompts_and_refuses_what_has_no_text(clip, dinov2, caplog):
    with caplog.at_level(logging.WARNING):
        ClipScore(clip)(pictures(2), ["cat " * 50, "a cat"])
    assert "CLIPScore: 1 prompts are longer than the text encoder's context" in caplog.text
    with pytest.raises(ModelError, match="DINOv2Score needs an encoder of pictures and text"):
        ClipScore(dinov2)(pictures(1), ["a cat"])
    with pytest.raises(DataError, match="2 pictures but 1 prompts"):
        ClipScore(clip)(pictures(2), ["a cat"])


def test_a_picture_of_a_set_has_the_score_that_it_has_alone(clip):
    together = ClipScore(clip)(pictures(4), PROMPTS)
    alone = [ClipScore(clip)([picture], [prompt])[0] for picture, prompt in zip(pictures(4), PROMPTS, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_image_similarity_is_the_mean_over_all_pairs():
    generator = np.random.default_rng(0)
    generated, pool = generator.normal(size=(7, 5)), generator.normal(size=(4, 5))
    statistic = ImageSimilarity().statistic(FeatureSet(generated, None, pool))
    pairs = cosine(generated[:, None], pool[None])
    assert statistic(np.arange(7)) == pytest.approx(pairs.mean(), rel=1e-12)
    assert statistic(np.array([2, 2, 5])) == pytest.approx((2 * pairs[2].mean() + pairs[5].mean()) / 3, rel=1e-12)


def test_text_similarity_pairs_rows():
    generator = np.random.default_rng(0)
    generated, text = generator.normal(size=(7, 5)), generator.normal(size=(7, 5))
    statistic = TextSimilarity().statistic(FeatureSet(generated, None, generated, text))
    assert statistic(np.arange(7)) == pytest.approx(cosine(generated, text).mean(), rel=1e-12)
    with pytest.raises(DataError, match="no text side"):
        TextSimilarity().statistic(FeatureSet(generated, None, generated))


def test_metrics_come_under_their_names(clip, dinov2, tmp_path):
    sets = [PictureSet("one", pictures(8, 1), PROMPTS * 2), PictureSet("two", pictures(8, 2), PROMPTS * 2)]
    pool, found = pictures(20, 3), {}
    for encoder in (CachedEncoder(clip, tmp_path), dinov2):
        chosen = default_metrics(encoder, len(pool))
        table = picture_metrics(sets, pool, encoder, metrics=chosen, bootstrap=Bootstrap(100), pairs=[("one", "two")])
        found |= {(result.name, result.arm): result.value for result in table.results}
    one, references = clip(pictures(8, 1)), clip(pool)
    assert found["CLIP-I", "one"] == pytest.approx(cosine(one[:, None], references[None]).mean(), abs=1e-5)
    assert found["CLIP-T", "one"] == pytest.approx(cosine(one, clip.text(PROMPTS * 2).features).mean(), abs=1e-5)
    assert {"DINO-I (DINOv2)", "CLIP Frechet distance", "CLIP out-of-domain rate (alpha 0.05)"} < {n for n, _ in found}
    assert not any(name in ("DINOv2-T", "DINO-T") for name, _ in found)


def test_names_of_similarities():
    names = [ImageSimilarity().name(family) for family in ("CLIP", "SigLIP", "DINO", "DINOv2", "DINOv3")]
    assert names == ["CLIP-I", "SigLIP-I", "DINO-I", "DINO-I (DINOv2)", "DINO-I (DINOv3)"]
    assert TextSimilarity().name("CLIP") == "CLIP-T"


def test_default_metrics_leave_out_what_cannot_be_measured(dinov2):
    titles = [metric.title for metric in default_metrics(dinov2, references=18)]
    assert not any("out-of-domain" in title for title in titles)
    assert any("out-of-domain" in metric.title for metric in default_metrics(dinov2, references=19))
