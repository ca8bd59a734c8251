import math

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from family_contract import CAPTIONS, conditioned, noise
from random_auraflow import random_auraflow_pipeline
from transformer_contract import LatentTransformerContract, calls, predicted

from flowgrain.errors import ModelError
from flowgrain.families.auraflow import AuraFlow
from flowgrain.flow.paths import RectifiedFlow


class TestAuraFlow(LatentTransformerContract):
    kind = AuraFlow
    linears = 14 + 2 * 7
    build = staticmethod(random_auraflow_pipeline)

    def encode_prompt(self, pipe, caption, length):
        prompt, *_ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=length)
        return {"prompt_embeds": prompt}


@pytest.fixture(scope="module")
def family():
    return AuraFlow(random_auraflow_pipeline(), "random")


def test_states_after_the_captions_end_are_zero(family):
    prompt = family.embed_text(CAPTIONS).tensors["prompt_embeds"]
    lengths = [len(family.pipeline().tokenizer(caption).input_ids) for caption in CAPTIONS]
    assert lengths[0] < 12
    for row, length in zip(prompt, lengths, strict=True):
        assert (row[: min(length, 12)] != 0).any(dim=1).all()
        assert (row[length:] == 0).all()


def test_the_transformer_reads_t_itself(family):
    ((arguments, _),) = calls(family, lambda: predicted(family, noise(1, 4, 4, 4), 0.25, conditioned(family, ["x"])))
    assert torch.equal(arguments["timestep"], torch.tensor([0.25]))
    half = AuraFlow(random_auraflow_pipeline().to(torch.bfloat16), "half")
    ((arguments, _),) = calls(half, lambda: predicted(half, noise(1, 4, 4, 4), 0.7371, conditioned(half, ["x"])))
    assert torch.equal(arguments["timestep"], torch.tensor([0.7371], dtype=torch.bfloat16))


def test_capabilities_are_those_of_the_configurations(family):
    capabilities = family.capabilities
    assert capabilities.guidance == "classifier_free"
    assert (capabilities.pixel_multiple, capabilities.latent_scale, capabilities.latent_channels) == (4, 2, 4)
    assert capabilities.native_size == 4 * 12  # all positions; 1024 where there are more
    large = random_auraflow_pipeline(pos_embed_max_size=90000, num_attention_heads=1)
    assert AuraFlow(large, "random").capabilities.native_size == 1024


def test_text_lengths_follow_the_tokenizer_up_to_256(family):
    assert family.pipeline_options() == {"max_sequence_length": 12}
    pipe = random_auraflow_pipeline()
    pipe.tokenizer.model_max_length = 10**30
    assert AuraFlow(pipe, "random").pipeline_options() == {"max_sequence_length": 256}
    assert AuraFlow(pipe, "random").fingerprint() != family.fingerprint()


def test_sizes_beyond_the_positions_are_refused(family):
    assert family.tokens(48, 4) == 12
    with pytest.raises(ModelError, match="height 52 and width 4 pixels must be at most 48"):
        family.tokens(52, 4)
    conditioning = conditioned(family, ["fox"])
    assert predicted(family, noise(1, 4, 24, 2), 0.5, conditioning).shape == (1, 4, 24, 2)
    with pytest.raises(ModelError, match="width 26 latent cells must be at most 24"):
        predicted(family, noise(1, 4, 2, 26), 0.5, conditioning)


def test_path_and_shift_are_the_schedulers(family):
    assert isinstance(family.default_path(), RectifiedFlow)
    assert family.default_time_law() == "logit_normal"
    shift = family.default_shift()
    assert shift is not None
    assert math.isclose(shift(torch.tensor([77])).item(), math.log(1.73), rel_tol=1e-12)


def test_other_schedulers_are_refused():
    pipe = random_auraflow_pipeline()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ModelError, match="scheduler FlowMatchHeunDiscreteScheduler is not supported"):
        AuraFlow(pipe, "random")
