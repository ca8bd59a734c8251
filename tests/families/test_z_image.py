from typing import ClassVar

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from family_contract import CAPTIONS, CPU, backbone_calls, check_taps, conditioned, latent_noise
from random_z import random_z, random_z_pipeline
from transformer_contract import TransformerContract

from flowgrain.errors import ModelError
from flowgrain.families.z_image import ZImage
from flowgrain.flow.paths import RectifiedFlow


def small(family):
    family.max_sequence_length = 64
    return family


class TestZImage(TransformerContract):
    kind = ZImage
    linears = 7 * 4
    outside = ("adaLN_modulation",)
    guidances: ClassVar = (0.0, 2.5)
    close: ClassVar = {"rtol": 1e-3, "atol": 1e-4}
    build = staticmethod(random_z_pipeline)

    def of(self, pipeline):
        return small(super().of(pipeline))

    def combined(self, positive, negative, guidance):
        """The scale counts from 0."""
        return positive + guidance * (positive - negative)


@pytest.fixture(scope="module")
def z():
    return small(random_z())


def test_time_and_sign_are_turned_round(z):
    x, t = latent_noise(z, 16, 24), torch.tensor([[0.25], [1.0]])
    predictions = []
    ((arguments, _, output),) = backbone_calls(z, lambda: predictions.append(z.predict(x, t, conditioned(z))))
    assert torch.equal(arguments[1], torch.tensor([0.75, 0.0]))  # the transformer's clock: 0 is noise
    assert torch.equal(predictions[0].prediction, -torch.stack(output)[:, :, 0])


@pytest.mark.parametrize("side", ["right", "left"])
def test_text_is_the_pipelines_bit_for_bit(side):
    pipe = random_z_pipeline()
    pipe.tokenizer.padding_side = side
    family = small(ZImage(pipe, "random"))
    long = " ".join(["rice"] * 200)
    for caption in (*CAPTIONS, "", long):
        (theirs,), _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=64)
        ours = family.embed_text([caption]).tensors
        length = int(ours["prompt_lengths"])
        assert torch.equal(ours["prompt_embeds"][0, :length], theirs)
        assert not ours["prompt_embeds"][0, length:].any()
        assert ours["prompt_embeds"].shape == (1, 64, 16)
    assert length == 64


def test_numbers_of_tokens_differ_in_a_batch_and_stay_on_the_cpu(z):
    lengths = conditioned(z).tensors["prompt_lengths"]
    assert lengths.device == CPU
    assert len(set(lengths.tolist())) == 2


def test_fingerprint_sees_template_padding_side_and_length():
    template, side = random_z_pipeline(), random_z_pipeline()
    template.tokenizer.chat_template += "!"
    side.tokenizer.padding_side = "left"
    families = [random_z(), small(random_z()), ZImage(template, "random"), ZImage(side, "random")]
    assert len({family.fingerprint() for family in families}) == 4


def test_another_architecture_is_one_clear_line(small_flux):
    with pytest.raises(ModelError, match=r"a ZImageTransformer2DModel, this one is a FluxTransformer2DModel$"):
        ZImage.load(str(small_flux), torch.float32, CPU)


def test_taps_are_image_tokens(z):
    transformer = z.backbone

    def head(tokens, t):
        step = transformer.t_embedder((1 - t) * transformer.t_scale)
        patches = transformer.all_final_layer["2-1"](tokens, c=step)
        size = [(1, 8, 12)] * 2
        return -torch.stack(transformer.unpatchify(list(patches), size, 2, 1)).squeeze(2)

    check_taps(z, ("noise_refiner.0", "layers.1"), head)


def test_capabilities_path_and_shift(z):
    assert (z.capabilities.guidance, z.capabilities.native_size) == ("classifier_free", 32)
    assert (z.capabilities.pixel_multiple, z.capabilities.latent_scale, z.capabilities.latent_channels) == (4, 2, 4)
    assert isinstance(z.default_path(), RectifiedFlow)
    turbo = z.default_shift()
    assert turbo is not None
    assert turbo(torch.tensor([7, 4096])).exp().tolist() == pytest.approx([3.0, 3.0])
    dynamic = random_z({"use_dynamic_shifting": True}).default_shift()
    assert dynamic is not None
    assert dynamic(torch.tensor([1000])).item() == pytest.approx(calculate_shift(1000))


def test_models_that_do_not_fit_are_refused(z):
    with pytest.raises(ModelError, match="takes 8 channels"):
        ZImage(random_z_pipeline(in_channels=8), "other")
    with pytest.raises(ModelError, match="time_shift_type 'linear'"):
        random_z({"use_dynamic_shifting": True, "time_shift_type": "linear"})
    with pytest.raises(ModelError, match="must be positive multiples of 2"):
        z.predict(torch.zeros(1, 4, 7, 8), torch.ones(1, 1), conditioned(z, ["fox"]))
