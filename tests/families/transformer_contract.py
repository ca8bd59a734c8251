"""What every family over a transformer promises, as tests: a test class names family and models."""

import copy
import inspect
import shutil
from itertools import pairwise, product
from typing import Any, ClassVar

import pytest
import torch
from family_contract import (
    CAPTIONS,
    CPU,
    assert_same,
    backbone_calls,
    check_adapter,
    check_broken_files,
    check_cached_is_live,
    check_checkpointing,
    check_encoding,
    check_first_call,
    check_loading,
    check_missing_weight,
    check_skeleton,
    check_targets,
    conditioned,
    copied,
    draw,
    latent_noise,
    noise,
)
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.diffusers_family import DiffusersFamily
from flowgrain.families.loading import load_adapter

SIZES = [(16, 16), (32, 16), (8, 24)]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class PipelineContract:
    """Predicting, denoising and encoding as the pipeline does; subclasses name the family and its model."""

    kind: type[DiffusersFamily]
    guidances: ClassVar[tuple[float, ...]] = (1.0, 3.0)
    """Guidance scales to draw with; the first is that of training."""
    negative: ClassVar[str | None] = ""
    """What scales above the first guide away from; None where guidance is an input or nothing."""
    close: ClassVar = CLOSE
    """How far two drawings may differ by rounding."""

    @staticmethod
    def build() -> Any:
        """A random pipeline."""
        raise NotImplementedError

    def of(self, pipeline: Any) -> DiffusersFamily:
        """The family over a pipeline."""
        return self.kind(pipeline, "random")

    def options(self, guidance: float) -> dict[str, Any]:
        """Call options of the pipeline that draw with a guidance scale."""
        return {"guidance_scale": guidance}

    def combined(self, positive: Tensor, negative: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance of velocities, or of what else is predicted."""
        return negative + guidance * (positive - negative)

    def unpacked(self, family: DiffusersFamily, drawn: Tensor, height: int, width: int) -> Tensor:
        """Latents of the pipeline as the family has them; the same by default."""
        return drawn

    def draw(self, family: DiffusersFamily, x: Tensor, guidance: float, **options: Any) -> Tensor:
        return draw(family, x, **self.options(guidance), **options)[1]

    def guided(self, family: DiffusersFamily, x: Tensor, time: float, guidance: float) -> Tensor:
        """The family's prediction for both captions at one noise level, guided."""
        positive = predicted(family, x, time, conditioned(family, guidance=guidance))
        if self.negative is None or guidance == self.guidances[0]:
            return positive
        return self.combined(positive, predicted(family, x, time, conditioned(family, [self.negative] * 2)), guidance)

    @pytest.fixture(scope="class")
    def family(self):
        return self.of(self.build())

    @pytest.fixture
    def pipe(self, family):
        """A pipeline of one's own to change."""
        return copy.deepcopy(family._pipeline)

    def test_the_transformer_gets_what_the_pipeline_gives_it(self, family):
        for height, width in SIZES:
            guidance = self.guidances[0]
            check_first_call(family, height, width, guidance, **self.options(guidance))

    def test_in_bfloat16_too(self, pipe):
        guidance = self.guidances[0]
        check_first_call(self.of(pipe.to(torch.bfloat16)), 24, 16, guidance, 1, **self.options(guidance))

    def test_two_steps_are_the_pipelines(self, family):
        x = latent_noise(family, 24, 16)
        for guidance in self.guidances:
            theirs = self.unpacked(family, self.draw(family, x, guidance), 24, 16)
            ours = self.denoise(family, family._pipeline.scheduler, x, guidance)
            torch.testing.assert_close(ours, theirs, **self.close)
            assert (theirs - x).abs().max() > 0.1

    def denoise(self, family: DiffusersFamily, scheduler: Any, x: Tensor, guidance: float) -> Tensor:
        """Euler steps along the family's path over the noise levels that a scheduler was set to last."""
        path = family.default_path()
        for sigma, following in pairwise(scheduler.sigmas):
            velocity, here = self.guided(family, x, float(sigma), guidance), sigma.expand(len(x))
            clean, noisy = path.velocity_to_x0(velocity, x, here), path.velocity_to_noise(velocity, x, here)
            x = (1 - following) * clean + following * noisy
        return x

    def normalised(self, pipe: Any, raw: Tensor) -> Tensor:
        """The autoencoder's latents in the model's scale, by the pipeline's arithmetic."""
        config = pipe.vae.config
        return (raw - (config.shift_factor or 0.0)) * config.scaling_factor

    def test_pixels_and_latents_are_the_pipelines(self, family):
        pipe, guidance = family.pipeline(), self.guidances[0]
        check_encoding(family, 16, 24, lambda mean, spread: self.normalised(pipe, mean + spread))
        x = latent_noise(family, 16, 24)
        ours = family.decode(self.unpacked(family, self.draw(family, x, guidance), 16, 24))
        pictures = self.draw(family, x, guidance, output_type="pt")
        torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), pictures, rtol=1e-4, atol=1e-4)

    def test_cached_texts_are_live_ones(self, family):
        live = check_cached_is_live(family)
        assert live.keys() >= set(family.text_tensors)

    def test_a_prediction_does_not_depend_on_the_rows_beside_it(self, family):
        x, t = latent_noise(family, 16, 24), torch.tensor([[0.3], [0.8]])
        together = family.predict(x, t, conditioned(family)).prediction
        for row, caption in enumerate(CAPTIONS):
            alone = family.predict(x[row : row + 1], t[row : row + 1], conditioned(family, [caption])).prediction
            torch.testing.assert_close(alone[0], together[row], **CLOSE)

    def test_a_saved_adapter_draws_in_the_pipeline_what_the_live_one_draws(self, family, tmp_path):
        for kind in ("lora", "dora"):
            check_adapter(family, tmp_path / kind, kind, **self.options(self.guidances[0]))


class TransformerContract(PipelineContract):
    """All that a family promises; subclasses say besides how many linears its adapter takes."""

    linears: int
    outside: ClassVar[tuple[str, ...]] = ("norm",)
    """Parts of the names of those linears of the blocks that no adapter takes."""
    missing: ClassVar[dict[str, str]] = {"transformer": "weight", "vae": "weight", "text_encoder": "weight"}
    """Parts whose files are broken, and a part of the name of the weight that is taken out."""

    @pytest.fixture(scope="class")
    def plain(self):
        """The family as it is made, with texts of its own length."""
        return self.kind(self.build(), "random")

    @pytest.fixture(scope="class")
    def saved(self, plain, tmp_path_factory):
        folder = tmp_path_factory.mktemp("model") / "saved"
        plain.pipeline().save_pretrained(folder)
        return folder

    def test_captions_can_be_encoded_with_gradient(self, family):
        encoders = [part for name, part in family.components().items() if name != family.backbone_name]
        for encoder in encoders:
            encoder.requires_grad_(True)
        conditioning = family.condition(ConditionInputs(CAPTIONS, None, 1.0, grad=True))
        x = latent_noise(family, 16, 16)
        family.predict(x, torch.full((2, 1), 0.5), conditioning).prediction.square().mean().backward()
        for encoder in encoders:
            reached = encoder.get_input_embeddings().weight.grad
            assert reached is not None and reached.any()
            encoder.requires_grad_(False)
            encoder.zero_grad()

    def test_the_fingerprint_sees_encoders_and_dtype_but_not_the_transformer(self, pipe):
        found = [self.of(pipe).fingerprint()]
        for parameter in pipe.transformer.parameters():
            parameter.data += 1
        assert self.of(pipe).fingerprint() == found[0]
        for encoder in self.of(pipe).encoders().values():
            next(encoder.parameters()).data.view(-1)[0] += 1
            found.append(self.of(pipe).fingerprint())
        found.append(self.of(pipe.to(torch.bfloat16)).fingerprint())
        assert len(set(found)) == len(found) >= 4

    def test_default_targets_are_every_attention_and_mlp_linear_of_the_blocks(self, family):
        check_targets(family, self.outside, self.linears)

    def test_checkpointing_gives_the_same_gradients(self, family):
        check_checkpointing(family)

    def test_blocks_compile(self, pipe):
        family = self.of(pipe)
        family.compile()  # nothing is compiled before the first call
        assert all(block._compiled_call_impl is not None for block in family.blocks())

    def test_a_saved_folder_loads_frozen_and_predicts_as_before(self, saved, plain):
        check_loading(self.kind, saved, plain)

    def test_a_skeleton_needs_no_weights(self, saved, plain, tmp_path):
        folder = tmp_path / "skeleton"
        shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        check_skeleton(self.kind, folder, plain)
        assert self.kind.read_capabilities(str(folder)) == plain.capabilities
        (folder / "transformer" / "config.json").unlink()
        for read in (self.kind.read_capabilities, lambda name: self.kind.skeleton(name, torch.float32)):
            with pytest.raises(ModelError, match=r"^[^\n]*cannot be read[^\n]*$"):
                read(str(folder))

    def test_missing_truncated_and_pickled_weights_are_one_clear_line(self, saved, tmp_path):
        for part, gone in self.missing.items():
            folder = copied(saved, tmp_path / part)
            restored = {file: file.read_bytes() for file in (folder / part).glob("*.safetensors")}
            check_missing_weight(self.kind, folder, part, gone)
            for file, content in restored.items():
                file.write_bytes(content)
            check_broken_files(self.kind, folder, part)

    def test_weights_of_another_architecture_are_refused(self, saved, tmp_path):
        folder, name = copied(saved, tmp_path / "other"), "diffusion_pytorch_model.safetensors"
        shutil.copy(saved / "vae" / name, folder / "transformer" / name)
        with pytest.raises(ModelError, match=r"^[^\n]*transformer: \d+ weights are missing[^\n]*$"):
            self.kind.load(str(folder), torch.float32, CPU)
        with pytest.raises(ModelError, match=r"^[^\n]*cannot be loaded as a [^\n]*$"):
            self.kind.load(str(folder / "transformer"), torch.float32, CPU)

    def test_a_transformer_of_another_architecture_is_refused(self, pipe):
        pipe.register_modules(transformer=pipe.vae)
        found = type(pipe.vae).__name__
        with pytest.raises(
            ModelError, match=rf"^random: the transformer of a \S+ model is a \w+, this one is a {found}$"
        ):
            self.of(pipe)

    def test_pipelines_with_missing_parts_are_refused(self, pipe):
        pipe.register_modules(vae=None)
        with pytest.raises(ModelError, match="has no vae; give a complete"):
            self.of(pipe)

    def test_models_of_other_input_channels_are_refused(self, pipe):
        pipe.transformer.register_to_config(in_channels=40)
        with pytest.raises(ModelError, match="takes 40 channels, the autoencoder gives 4"):
            self.of(pipe)

    def test_a_file_that_is_no_adapter_is_one_clear_line(self, family, tmp_path):
        (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"no adapter")
        with pytest.raises(ModelError, match=r"^[^\n]*cannot be loaded as a \w+ adapter[^\n]*$"):
            load_adapter(family.pipeline(), tmp_path)

    def test_sides_that_are_no_whole_patches_are_refused(self, family):
        assert family.tokens(32, 16) == 32
        for size in ((30, 16), (16, 18)):
            with pytest.raises(ModelError, match="multiples of 4"):
                family.tokens(*size)
            with pytest.raises(ModelError, match="multiples of 4"):
                family.encode_pixels(torch.zeros(1, 3, *size))
        with pytest.raises(ModelError, match=r"latent cells must be .* multiples of 2"):
            family.predict(noise(1, 4, 7, 8), torch.ones(1, 1), conditioned(family, ["fox"]))


def predicted(family, x, time, conditioning):
    """The family's prediction at one noise level."""
    with torch.no_grad():
        return family.predict(x, torch.full((len(x), 1), time, dtype=torch.float64), conditioning).prediction


def calls(family, run):
    """(arguments by name, output) of every call of the backbone while ``run`` runs."""
    signature = inspect.signature(family.backbone.forward)
    return [
        (signature.bind(*arguments, **named).arguments, output)
        for arguments, named, output in backbone_calls(family, run)
    ]


class LatentTransformerContract(TransformerContract):
    """Families whose transformer reads latents as they are and patches them itself: SD3, AuraFlow, PixArt."""

    def levels(self, scheduler) -> list[float]:
        """The noise levels of the scheduler's timesteps, in the family's clock."""
        return scheduler.sigmas[:-1].double().tolist()

    def test_the_transformer_gets_what_the_pipeline_gives_it(self, family):
        """At every step, and with guidance for the empty captions too."""
        for (height, width), guidance in product(SIZES, self.guidances):
            x = latent_noise(family, height, width)
            theirs = calls(family, lambda x=x, guidance=guidance: self.draw(family, x, guidance))
            conditioning = conditioned(family, CAPTIONS if guidance <= 1 else ["", "", *CAPTIONS])
            levels = self.levels(family._pipeline.scheduler)
            assert len(theirs) == len(levels) == 2
            for (given, output), level in zip(theirs, levels, strict=True):
                latents = given["hidden_states"]
                ((ours, prediction),) = calls(
                    family, lambda x=latents, t=level, c=conditioning: predicted(family, x, t, c)
                )
                assert torch.equal(ours["timestep"], given["timestep"])
                assert_same(ours, given)
                torch.testing.assert_close(prediction, output, **CLOSE)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_one_picture_is_bitwise_the_pipelines(self, pipe, dtype):
        family = self.of(pipe.to(dtype))
        theirs = calls(family, lambda: self.draw(family, latent_noise(family, 16, 24, 1), 1.0))
        conditioning = conditioned(family, CAPTIONS[:1])
        for (given, output), level in zip(theirs, self.levels(family._pipeline.scheduler), strict=True):
            ours = predicted(family, given["hidden_states"], level, conditioning)
            assert ours.dtype == dtype
            assert torch.equal(ours, output[:, :4])

    def test_texts_are_the_pipelines(self, family):
        pipe = family.pipeline()
        for caption in CAPTIONS:
            ours = family.embed_text([caption]).tensors
            expected = self.encode_prompt(pipe, caption, family.pipeline_options()["max_sequence_length"])
            assert ours.keys() == expected.keys() == set(family.text_tensors)
            for name, value in expected.items():
                assert torch.equal(ours[name], value), name

    def encode_prompt(self, pipe, caption: str, length: int) -> dict[str, torch.Tensor]:
        """The pipeline's own tensors of one caption, by the family's names."""
        raise NotImplementedError

    def test_taps_are_the_image_tokens_of_the_named_blocks(self, family):
        x, t, conditioning = noise(2, 4, 6, 8), torch.full((2, 1), 0.3), conditioned(family)
        stacks = {stack: len(getattr(family.backbone, stack)) for stack in family.block_stacks}
        names = [f"{stack}.{index}" for stack, count in stacks.items() for index in range(count)]
        output = family.predict(x, t, conditioning, tuple(names))
        assert list(output.taps) == names
        assert all(tap.shape == (2, 12, family.backbone.inner_dim) for tap in output.taps.values())
        # what comes after the last block makes the prediction of its image tokens
        tokens = []
        handle = family.backbone.norm_out.register_forward_pre_hook(lambda _m, args: tokens.append(args[0]))
        plain = family.predict(x, t, conditioning)
        handle.remove()
        assert torch.equal(tokens[0], output.taps[names[-1]])
        assert torch.equal(output.prediction, plain.prediction)
        assert not any(module._forward_hooks for module in family.backbone.modules())
        last = list(stacks)[-1]
        with pytest.raises(ModelError, match=rf"{last}\.0 to {last}\.{stacks[last] - 1}"):
            family.predict(x, t, conditioning, (f"{last}.{stacks[last]}",))
