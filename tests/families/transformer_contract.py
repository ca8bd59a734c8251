"""What every family over a transformer that reads latents promises, as tests: a test class names family and models."""

import inspect
import shutil
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from family_contract import (
    CAPTIONS,
    CPU,
    check_broken_files,
    check_cached_is_live,
    check_checkpointing,
    check_missing_weight,
    check_targets,
    copied,
    move,
    noise,
)

from flowgrain.adapters.base import AdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.diffusers_family import DiffusersFamily
from flowgrain.families.loading import unload_adapter

SIZES = [(16, 16), (32, 16), (8, 24)]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PARTS = ("transformer", "vae", "text_encoder")


def inputs(captions=CAPTIONS, guidance=1.0):
    return ConditionInputs(captions=list(captions), embedding=None, guidance=guidance)


def calls(family, run):
    """(arguments by name, output) of every call of the backbone while ``run`` runs."""
    recorded = []
    signature = inspect.signature(family.backbone.forward)
    hook = family.backbone.register_forward_hook(
        lambda _m, args, kwargs, out: recorded.append((signature.bind(*args, **kwargs).arguments, out[0])),
        with_kwargs=True,
    )
    try:
        run()
    finally:
        hook.remove()
    return recorded


def draw(family, pipe, x, captions=CAPTIONS, guidance=1.0, steps=2, output="latent"):
    """What the family's pipeline makes of the noise ``x``."""
    scale = family.capabilities.latent_scale
    with torch.no_grad():
        return pipe(
            captions, latents=family.pipeline_latents(x), height=scale * x.shape[2], width=scale * x.shape[3],
            num_inference_steps=steps, guidance_scale=guidance, output_type=output, **family.pipeline_options(),
        ).images  # fmt: skip


def predicted(family, x, time, conditioning):
    """The family's prediction at one noise level."""
    with torch.no_grad():
        return family.predict(x, torch.full((len(x), 1), time, dtype=torch.float64), conditioning).prediction


def guided(family, x, time, guidance, captions=CAPTIONS):
    """The prediction with classifier-free guidance."""
    positive = predicted(family, x, time, family.condition(inputs(captions)))
    if guidance <= 1:
        return positive
    negative = predicted(family, x, time, family.condition(inputs([""] * len(captions))))
    return negative + guidance * (positive - negative)


def assert_same_inputs(ours: Any, theirs: Any, name: str = "") -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), name
        for key, value in theirs.items():
            assert_same_inputs(ours[key], value, key)
    elif isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype, name
        if name in ("encoder_hidden_states", "pooled_projections"):  # the pipeline encodes the batch at once
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(ours, theirs), name
    else:
        assert ours == theirs, name


class TransformerContract:
    """Subclasses name the family, its model and how many linears its adapter takes."""

    kind: type[DiffusersFamily]
    linears: int
    close: ClassVar = CLOSE
    """How far two drawings may differ by rounding."""

    @staticmethod
    def build() -> Any:
        """A random pipeline."""
        raise NotImplementedError

    def levels(self, scheduler) -> list[float]:
        """The noise levels of the scheduler's timesteps, in the family's clock."""
        return scheduler.sigmas[:-1].double().tolist()

    @pytest.fixture(scope="class")
    def family(self):
        return self.kind(self.build(), "random")

    @pytest.fixture(scope="class")
    def saved(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("model") / "saved"
        self.build().save_pretrained(folder)
        return folder

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    @pytest.mark.parametrize(("height", "width"), SIZES)
    def test_the_transformer_gets_what_the_pipeline_gives_it(self, family, height, width, guidance):
        x = noise(2, 4, height // 2, width // 2)
        pipe = family.pipeline()
        theirs = calls(family, lambda: draw(family, pipe, x, guidance=guidance))
        conditioning = family.condition(inputs(CAPTIONS if guidance <= 1 else ["", "", *CAPTIONS]))
        levels = self.levels(pipe.scheduler)
        assert len(theirs) == len(levels) == 2
        for (their_inputs, their_output), level in zip(theirs, levels, strict=True):
            latents = their_inputs["hidden_states"]
            ((our_inputs, our_output),) = calls(
                family, lambda x=latents, t=level: predicted(family, x, t, conditioning)
            )
            assert_same_inputs(our_inputs, their_inputs)
            torch.testing.assert_close(our_output, their_output, **CLOSE)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_one_picture_is_bitwise_the_pipelines(self, dtype):
        family = self.kind(self.build().to(dtype), "random")
        pipe = family.pipeline()
        theirs = calls(family, lambda: draw(family, pipe, noise(1, 4, 8, 12), CAPTIONS[:1]))
        conditioning = family.condition(inputs(CAPTIONS[:1]))
        for (their_inputs, their_output), level in zip(theirs, self.levels(pipe.scheduler), strict=True):
            ours = predicted(family, their_inputs["hidden_states"], level, conditioning)
            assert ours.dtype == dtype
            assert torch.equal(ours, their_output[:, :4])

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    def test_two_steps_are_the_pipelines(self, family, guidance):
        x = noise(2, 4, 12, 8)
        pipe = family.pipeline()
        theirs = draw(family, pipe, x, guidance=guidance)
        torch.testing.assert_close(self.denoise(family, pipe.scheduler, x, guidance), theirs, **self.close)

    def denoise(self, family, scheduler, x, guidance):
        """Euler steps along the family's path over the scheduler's noise levels."""
        path = family.default_path()
        for sigma, following in pairwise(scheduler.sigmas):
            velocity, here = guided(family, x, float(sigma), guidance), sigma.expand(len(x))
            clean, noisy = path.velocity_to_x0(velocity, x, here), path.velocity_to_noise(velocity, x, here)
            x = (1 - following) * clean + following * noisy
        return x

    def test_pixels_and_latents_are_the_pipelines(self, family):
        pixels = noise(2, 3, 16, 24).clamp(-1, 1)
        together = family.encode_pixels(pixels)
        alone = family.encode_pixels(pixels[1:])
        assert torch.equal(alone.mean[0], together.mean[1]) and torch.equal(alone.logvar[0], together.logvar[1])
        pipe = family.pipeline()
        drawn = family.latents(alone, noise(1, 4, 8, 12, seed=3))
        with torch.no_grad():
            raw = pipe.vae.encode(pixels[1:]).latent_dist.sample(torch.Generator().manual_seed(3))
        config = pipe.vae.config
        torch.testing.assert_close(drawn, (raw - (config.shift_factor or 0.0)) * config.scaling_factor)
        x = noise(1, 4, 8, 12)
        pictures = family.decode(draw(family, pipe, x, CAPTIONS[:1]))
        theirs = draw(family, pipe, x, CAPTIONS[:1], output="pt")
        torch.testing.assert_close((pictures / 2 + 0.5).clamp(0, 1), theirs)
        with torch.no_grad():
            torch.testing.assert_close(family.decode(drawn), pipe.vae.decode(raw, return_dict=False)[0], **CLOSE)

    def test_texts_are_the_pipelines_and_cached_ones_are_live_ones(self, family):
        live = check_cached_is_live(family)
        assert live.keys() == set(family.text_tensors)
        pipe = family.pipeline()
        for row, caption in enumerate(CAPTIONS):
            expected = self.encode_prompt(pipe, caption, family.pipeline_options()["max_sequence_length"])
            for name, value in expected.items():
                assert torch.equal(live[name][row : row + 1], value), name

    def encode_prompt(self, pipe, caption: str, length: int) -> dict[str, torch.Tensor]:
        """The pipeline's own tensors of one caption, by the family's names."""
        raise NotImplementedError

    def test_the_fingerprint_sees_encoders_and_text_length_but_not_the_transformer(self):
        same = self.kind(self.build(), "random").fingerprint()
        other = self.build()
        for parameter in other.transformer.parameters():
            parameter.data += 1
        assert self.kind(other, "random").fingerprint() == same
        found = {same}
        for name in self.kind(self.build(), "random").encoders():
            changed = self.build()
            next(getattr(changed, name).parameters()).data.view(-1)[0] += 1
            found.add(self.kind(changed, "random").fingerprint())
        found.add(self.kind(self.build().to(torch.bfloat16), "random").fingerprint())
        assert len(found) == 2 + len(self.kind(self.build(), "random").encoders())

    def test_default_targets_are_every_attention_and_mlp_linear_of_the_blocks(self, family):
        check_targets(family, outside=("norm",), count=self.linears)

    @pytest.mark.parametrize("kind", ["lora", "dora"])
    def test_a_saved_adapter_draws_in_the_pipeline_what_the_live_one_draws(self, saved, tmp_path, kind):
        family = self.kind.load(str(saved), torch.float32, CPU)
        x = noise(2, 4, 8, 12)
        base = draw(family, family.pipeline(), x)
        adapter = inject(family, AdapterConfig(kind=kind, rank=2, alpha=3), 0)
        move(adapter, 0.1)
        live = draw(family, family.pipeline(), x)
        assert (live - base).abs().max() > 1e-3
        adapter.save(tmp_path, {})
        with pytest.raises(ModelError, match="carries an adapter already"):
            family.pipeline(tmp_path)
        adapter.remove()
        fresh = self.kind.load(str(saved), torch.float32, CPU)
        pipe = fresh.pipeline(tmp_path)
        torch.testing.assert_close(draw(fresh, pipe, x), live, **self.close)
        unload_adapter(pipe)
        assert torch.equal(draw(fresh, pipe, x), base)

    def test_checkpointing_gives_the_same_gradients(self):
        check_checkpointing(self.kind(self.build(), "random"))

    def test_blocks_compile(self):
        family = self.kind(self.build(), "random")
        family.compile()  # nothing is compiled before the first call
        assert all(block._compiled_call_impl is not None for block in family.blocks())

    def test_taps_are_the_image_tokens_of_the_named_blocks(self, family):
        x, t, conditioning = noise(2, 4, 6, 8), torch.full((2, 1), 0.3), family.condition(inputs())
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

    def test_sides_that_are_no_whole_patches_are_refused(self, family):
        assert family.tokens(32, 16) == 32
        for size in ((30, 16), (16, 18)):
            with pytest.raises(ModelError, match="multiples of 4"):
                family.tokens(*size)
            with pytest.raises(ModelError, match="multiples of 4"):
                family.encode_pixels(torch.zeros(1, 3, *size))
        with pytest.raises(ModelError, match=r"latent cells must be .* multiples of 2"):
            family.predict(noise(1, 4, 7, 8), torch.ones(1, 1), family.condition(inputs(["fox"])))

    def test_a_saved_folder_loads_frozen_and_predicts_as_before(self, saved, family):
        loaded = self.kind.load(str(saved), torch.float32, CPU)
        x, conditioning = noise(1, 4, 8, 12), family.condition(inputs(CAPTIONS[:1]))
        state = family.backbone.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.backbone.state_dict().items())
        ours, theirs = (predicted(model, x, 0.5, conditioning) for model in (loaded, family))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # weights in a file are aligned otherwise
        assert loaded.fingerprint() == family.fingerprint()
        assert self.kind.read_capabilities(str(saved)) == loaded.capabilities == family.capabilities
        for module in (loaded.backbone, *loaded.encoders().values()):
            assert not module.training
            assert not any(parameter.requires_grad for parameter in module.parameters())

    def test_a_skeleton_needs_no_weights(self, saved, family, tmp_path):
        folder = tmp_path / "skeleton"
        shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        skeleton = self.kind.skeleton(str(folder), torch.bfloat16)
        assert self.kind.read_capabilities(str(folder)) == skeleton.capabilities == family.capabilities
        for name, module in {**skeleton.components(), **skeleton.encoders()}.items():
            own = {**family.components(), **family.encoders()}[name].state_dict()
            assert {key: tensor.shape for key, tensor in module.state_dict().items()} == {
                key: tensor.shape for key, tensor in own.items()
            }
            assert all(tensor.is_meta and tensor.dtype == torch.bfloat16 for tensor in module.parameters())
        x = torch.empty(2, 4, 8, 12, device="meta")
        conditioning = skeleton.condition(inputs())
        for name, value in family.condition(inputs()).tensors.items():
            assert conditioning.tensors[name].shape == value.shape, name
            assert conditioning.tensors[name].is_floating_point() == value.is_floating_point(), name
        prediction = skeleton.predict(x, torch.full((2, 1), 0.5), conditioning).prediction
        assert prediction.is_meta and prediction.shape == x.shape
        (folder / "transformer" / "config.json").unlink()
        for read in (self.kind.read_capabilities, lambda name: self.kind.skeleton(name, torch.float32)):
            with pytest.raises(ModelError, match=r"^[^\n]*cannot be read[^\n]*$"):
                read(str(folder))

    @pytest.mark.parametrize("part", PARTS)
    def test_missing_truncated_and_pickled_weights_are_one_clear_line(self, saved, tmp_path, part):
        check_missing_weight(self.kind, copied(saved, tmp_path / "missing"), part, "weight")
        check_broken_files(self.kind, copied(saved, tmp_path / "broken"), part)

    def test_weights_of_another_architecture_are_refused(self, saved, tmp_path):
        folder, name = copied(saved, tmp_path / "other"), "diffusion_pytorch_model.safetensors"
        shutil.copy(saved / "vae" / name, folder / "transformer" / name)
        with pytest.raises(ModelError, match=r"^[^\n]*transformer: \d+ weights are missing[^\n]*$"):
            self.kind.load(str(folder), torch.float32, CPU)
        with pytest.raises(ModelError, match=r"^[^\n]*cannot be loaded as a [^\n]*$"):
            self.kind.load(str(folder / "transformer"), torch.float32, CPU)

    def test_pipelines_with_missing_parts_are_refused(self):
        components = {**self.build().components, "vae": None}
        with pytest.raises(ModelError, match="has no vae; give a complete"):
            self.kind(self.kind.pipeline_class(**components), "partial")

    def test_models_of_other_input_channels_are_refused(self):
        pipe = self.build()
        pipe.transformer.register_to_config(in_channels=8)
        with pytest.raises(ModelError, match="takes 8 channels, the autoencoder gives 4"):
            self.kind(pipe, "inpainting")
