"""The tiny SDXL: its U-Net, its batches, its noise-prediction loss, its validation and its pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn

from . import autoencoder, text, text_projected, workers
from .flow import KIND_WEIGHTS, OBLONG_PART, VALIDATION_TIMES
from .latents import Cache
from .training import save_atomically
from .workers import BATCH

SEED = 67
LEARNING_RATE = 1.5e-3
DECAY_FROM = 0.6  # of the budget: then linear
EMPTY_PART, ZERO_PART = 0.05, 0.05  # captions dropped: to the empty one, and to zeros as the pipeline has it
LARGEST_WEIGHT = 5.0
STEPS = 1000


def scheduler() -> EulerDiscreteScheduler:
    """SDXL's own."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=STEPS,
        prediction_type="epsilon",
        steps_offset=1,
        timestep_spacing="leading",
    )


def build() -> UNet2DConditionModel:
    """SDXL's block layout in small; residual branches and the output start at zero."""
    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=16,
        out_channels=16,
        block_out_channels=(64, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 2, 3),
        cross_attention_dim=text.WIDTH + text_projected.WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=text_projected.PROJECTION + 6 * 32,
        norm_num_groups=16,
    )
    ends: list[nn.Module] = [model.conv_out]
    ends += [layer.conv2 for layer in model.modules() if type(layer).__name__ == "ResnetBlock2D"]
    ends += [layer.proj_out for layer in model.modules() if type(layer).__name__ == "Transformer2DModel"]
    for layer in ends:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


@dataclass(frozen=True)
class Batch:
    """Clean latents, noise, times in 0..999, and what the U-Net is told."""

    clean: Tensor
    noise: Tensor
    times: Tensor
    sequence: Tensor
    pooled: Tensor
    size: tuple[int, int]


class Batches:
    """Batch number ``step``, the same for every restart: concepts and styles equally often."""

    def __init__(self, work: Path, seed: int) -> None:
        self.cache, self.seed = Cache.load(work), seed
        vae = autoencoder.load(work).config
        # cached latents are shifted for FLUX; SDXL's pipeline reads no shift, so this model learns them unshifted
        self.unshift = vae.shift_factor * vae.scaling_factor
        encodings = torch.load(_encodings(work), weights_only=True, mmap=True)
        self.sequence, self.pooled = encodings["sequence"], encodings["pooled"]
        taught, concepts = set(self.cache.taught), self.cache.concepts
        self.weights = {name: torch.tensor([float(c in taught) for c in concepts[name]]) for name in self.cache.latents}
        self.weights["square"] *= torch.tensor([KIND_WEIGHTS[kind] for kind in self.cache.kinds["square"]])
        self.alphas = scheduler().alphas_cumprod

    def draw(self, step: int, size: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        pick = torch.rand((), generator=generator).item()
        name = "square" if pick >= OBLONG_PART else ("portrait" if pick < OBLONG_PART / 2 else "landscape")
        rows = torch.multinomial(self.weights[name], size, generator=generator)
        times = torch.randint(0, STEPS, (size,), generator=generator)
        noise = torch.randn(self.cache.latents[name][rows].shape, generator=generator)
        return self.batch(name, rows, times, noise, torch.rand(size, generator=generator))

    def batch(self, name: str, rows: Tensor, times: Tensor, noise: Tensor, drop: Tensor) -> Batch:
        """Rows of a format; ``drop`` in [0, 1) decides whose caption is left out, 1 keeps all."""
        clean = self.cache.latents[name][rows] + self.unshift
        captions = self.cache.caption[name][rows].clone()
        captions[drop < EMPTY_PART] = 0
        zero = (drop >= EMPTY_PART) & (drop < EMPTY_PART + ZERO_PART)
        sequence, pooled = self.sequence[captions].float(), self.pooled[captions].float()
        sequence[zero], pooled[zero] = 0.0, 0.0
        return Batch(clean, noise, times, sequence, pooled, (8 * clean.shape[2], 8 * clean.shape[3]))


def noise_loss(model: UNet2DConditionModel, alphas: Tensor, batch: Batch) -> Tensor:
    """Weighted squared error of the predicted noise, for each sample.

    The weight is that of v-prediction in terms of x0, min(SNR + 1, 5). Noise itself, or Min-SNR, weighs x0 by SNR where
    much noise is left: there layout and subject are decided, and in an hour on a CPU they were not learned.
    """
    level = alphas[batch.times].view(-1, 1, 1, 1)
    noised = level.sqrt() * batch.clean + (1 - level).sqrt() * batch.noise
    sizes = torch.tensor([*batch.size, 0, 0, *batch.size], dtype=torch.float32).expand(len(noised), 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(
            noised,
            batch.times,
            batch.sequence,
            added_cond_kwargs={"text_embeds": batch.pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
    ratio = alphas[batch.times] / (1 - alphas[batch.times])
    return (out.float() - batch.noise).pow(2).mean(dim=(1, 2, 3)) * (ratio + 1).clamp(max=LARGEST_WEIGHT) / ratio


@torch.no_grad()
def encode_captions(work: Path) -> None:
    """Write both encoders' layer before the last for every cached caption, and the second one's projection."""
    target = _encodings(work)
    if target.exists():
        return
    encoders, second = text.load(work), text_projected.load(work)
    captions = Cache.load(work).captions
    sequences, pooled = [], []
    for start in range(0, len(captions), 128):
        ids = text_projected.token_ids(encoders.clip_tokens, captions[start : start + 128])
        first = encoders.clip(ids, output_hidden_states=True).hidden_states[-2]
        out = second(ids, output_hidden_states=True)
        sequences.append(torch.cat([first, out.hidden_states[-2]], dim=2).bfloat16())
        pooled.append(out.text_embeds)
    save_atomically({"sequence": torch.cat(sequences), "pooled": torch.cat(pooled)}, target)


def _encodings(work: Path) -> Path:
    return work / "unet" / "captions.pt"


class _KernelMuon(torch.optim.Muon):
    """Muon, which takes matrices alone, on convolution kernels too: each as the matrix (out, height x width x in)."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, adjust_lr_fn: str) -> None:
        self._shaped = parameters
        self._matrices = [nn.Parameter(_as_matrix(parameter.detach())) for parameter in parameters]
        super().__init__(self._matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn=adjust_lr_fn)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for parameter in self._shaped:
            parameter.grad = None

    def step(self) -> None:
        for parameter, matrix in zip(self._shaped, self._matrices, strict=True):
            matrix.grad = None if parameter.grad is None else _as_matrix(parameter.grad)
        super().step()


def _as_matrix(tensor: Tensor) -> Tensor:
    """A view of a matrix, and of a kernel that lies channels last."""
    return tensor if tensor.ndim == 2 else tensor.permute(0, 2, 3, 1).flatten(1)


@dataclass(frozen=True)
class _NoisePrediction(workers.Objective):
    name = "unet"
    seed = SEED
    learning_rate = LEARNING_RATE

    @cached_property
    def batches(self) -> Batches:
        return Batches(self.work, self.seed)

    def build(self) -> UNet2DConditionModel:
        return build()

    def start(self) -> UNet2DConditionModel:
        return build().to(memory_format=torch.channels_last)

    def solvers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """Muon for matrices and kernels inside the blocks, AdamW for the rest (embeddings, input, output, vectors)."""
        matrices = [
            p for name, p in model.named_parameters() if p.ndim in (2, 4) and "block" in name and "emb" not in name
        ]
        chosen = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        return [
            torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01),
            _KernelMuon(matrices, lr=LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        ]

    def rate(self, progress: float, step: int) -> float:
        decay = 1.0 if progress < DECAY_FROM else max(0.05, (1 - progress) / (1 - DECAY_FROM))
        return min(1.0, (step + 1) / 200) * decay

    def loss(self, model: nn.Module, number: int) -> Tensor:
        return noise_loss(model, self.batches.alphas, self.batches.draw(number, BATCH)).mean()

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Weighted loss on whole pictures of held-out concepts and of taught ones, at fixed times and noise."""
        batches = self.batches
        kinds, weights = batches.cache.kinds["square"], batches.weights["square"]
        whole = [index for index, kind in enumerate(kinds) if kind == "whole" and weights[index] > 0][::5]
        held_out = list(range(len(batches.cache.latents["held_out"])))
        result = {}
        for name, part, rows in (("held_out", "held_out", held_out), ("taught", "square", whole)):
            index = torch.tensor(rows)
            noise = torch.randn(batches.cache.latents[part][index].shape, generator=torch.Generator().manual_seed(5))
            losses = []
            for time in VALIDATION_TIMES:
                times = torch.full((len(rows),), round(time * STEPS))
                batch = batches.batch(part, index, times, noise, torch.ones(len(rows)))
                losses.append(noise_loss(model, batches.alphas, batch).mean().item())
            result[name] = round(sum(losses) / len(losses), 4)
        return result


def train(work: Path, seconds: float) -> None:
    encode_captions(work)
    workers.train(_NoisePrediction(work), seconds)
