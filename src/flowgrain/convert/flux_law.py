"""What both trainers' options say about FLUX, in the recipe's terms: noise levels, layers and optimizers."""

import math

from flowgrain.convert.draft import Draft
from flowgrain.convert.options import Cited

UNIFORM_STD = round(math.pi / math.sqrt(3), 4)
"""Standard deviation of logit u for uniform u: the logit-normal of that width is the nearest law there is."""

RESOLUTION_LINE = {"base_tokens": 256, "max_tokens": 4096, "base_shift": 0.5, "max_shift": 1.15}
"""mu(tokens) of FLUX.1-dev's inference code: both trainers use these constants whatever the model's scheduler says."""

DOUBLE, SINGLE = "transformer_blocks.*.", "single_transformer_blocks.*."
IMAGE_ATTENTION = tuple(f"{DOUBLE}attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
TEXT_ATTENTION = tuple(f"{DOUBLE}attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"))
IMAGE_MLP = (f"{DOUBLE}ff.net.0.proj", f"{DOUBLE}ff.net.2")
TEXT_MLP = (f"{DOUBLE}ff_context.net.0.proj", f"{DOUBLE}ff_context.net.2")
IMAGE_MODULATION, TEXT_MODULATION = (f"{DOUBLE}norm1.linear",), (f"{DOUBLE}norm1_context.linear",)
SINGLE_ATTENTION = tuple(f"{SINGLE}attn.{name}" for name in ("to_q", "to_k", "to_v"))
SINGLE_MLP = (f"{SINGLE}proj_mlp", f"{SINGLE}proj_out")
SINGLE_MODULATION = (f"{SINGLE}norm.linear",)


def write_line(draft: Draft, cited: Cited) -> None:
    """FLUX.1's resolution shift, written out."""
    for key, value in RESOLUTION_LINE.items():
        draft.complete(f"time.resolution_shift.{key}", value, cited.option)
    draft.same(cited, "time.resolution_shift")


def write_static_shift(draft: Draft, cited: Cited, shift: float | int) -> None:
    """t' = s t / (1 + (s - 1) t) adds ln s to logit t: the same for every size."""
    draft.convert(cited, "time.mean", round(math.log(shift), 6))
    draft.complete("time.resolution_shift", "none", f"{cited.option}: the same shift for every size")


def write_model(draft: Draft, cited: Cited, path: str) -> None:
    """``model.path``: a folder or hub id as it is, a single file as the hub's model of its kind."""
    if path.lower().endswith((".safetensors", ".sft", ".ckpt", ".pt", ".gguf")):
        hub = "black-forest-labs/FLUX.1-schnell" if "schnell" in path.lower() else "black-forest-labs/FLUX.1-dev"
        draft.convert(
            cited,
            "model.path",
            hub,
            "one file there; here a folder in diffusers layout or a hub id: for other weights than this hub model's, "
            "save them with diffusers (FluxPipeline.save_pretrained) and give that folder",
        )
    else:
        draft.convert(cited, "model.path", path)
