"""The seam of autoencoders that are measured, and the one for every autoencoder in diffusers layout.

Only the autoencoder of a model is loaded: its backbone and text encoders have no part in a reconstruction.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain import rng
from flowgrain.errors import ModelError
from flowgrain.pretrained.weights import one_line

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class Autoencoder(ABC):
    """Pixels to latents and back."""

    name: str
    version: str
    """Everything that changes a reconstruction: weights, dtype, mean or sample of the posterior."""
    pixel_multiple: int
    """Image sides must be multiples of this many pixels."""

    @abstractmethod
    def __call__(self, pixels: Float[Tensor, "3 h w"], identity: str) -> Float[Tensor, "3 h w"]:
        """The reconstruction of one picture in [-1, 1], float32 on the CPU; what is random depends on ``identity``."""


class DiffusersAutoencoder(Autoencoder):
    """An AutoencoderKL. Its shift and scale of latents cancel in a reconstruction and are left out.

    ``sample_seed`` None decodes the posterior's mean, a number a sample of it.
    """

    def __init__(self, name: str, vae: "AutoencoderKL", fingerprint: str, sample_seed: int | None = None):
        self.name = name
        self.pixel_multiple = _multiple(vae.config)
        self._vae = vae
        self._sample_seed = sample_seed
        posterior = "posterior mean" if sample_seed is None else f"posterior sample, seed {sample_seed}"
        self.version = f"{fingerprint}, {str(vae.dtype).removeprefix('torch.')}, {posterior}"

    @torch.inference_mode()
    def __call__(self, pixels: Float[Tensor, "3 h w"], identity: str) -> Float[Tensor, "3 h w"]:
        """See :meth:`Autoencoder.__call__`.

        Raises :class:`ModelError` for a result that is not finite, or a picture that the device has no memory for.
        """
        try:
            output = self._decoded(pixels, identity)
        except torch.OutOfMemoryError:
            size = f"{pixels.shape[-1]}x{pixels.shape[-2]}"
            raise ModelError(
                f"{self.name}: no memory on {self._vae.device} for {identity} ({size}); allow fewer pixels a picture"
            ) from None
        if not output.isfinite().all():
            raise ModelError(
                f"{self.name}: the reconstruction of {identity} is not finite in {self._vae.dtype}; use float32"
            )
        return output

    def _decoded(self, pixels: Float[Tensor, "3 h w"], identity: str) -> Float[Tensor, "3 h w"]:
        posterior: Any = self._vae.encode(pixels[None].to(self._vae.device, self._vae.dtype)).latent_dist  # pyright: ignore
        latents = posterior.mean.float()
        if self._sample_seed is not None:
            noise = rng.normal(tuple(latents.shape), "reconstruct", identity, self._sample_seed)
            latents = latents + torch.exp(0.5 * posterior.logvar.float()) * noise.to(latents.device)
        return self._vae.decode(latents.to(self._vae.dtype), return_dict=False)[0][0].float().cpu()


def load_vae(location: str, dtype: torch.dtype, device: torch.device) -> "AutoencoderKL":
    """The AutoencoderKL of a model folder or hub id (its ``vae``), or of a folder that is one itself.

    Raises :class:`ModelError` for what holds none, or lacks weights.
    """
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        vae = AutoencoderKL.from_pretrained(location, subfolder=_subfolder(location), torch_dtype=dtype)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise _not_loaded(location, error) from None
    finally:
        logging.set_verbosity(verbosity)
    missing = [name for name, tensor in vae.state_dict().items() if tensor.is_meta]
    if missing:
        raise ModelError(f"{location}: {len(missing)} weights of the autoencoder are missing, for example {missing[0]}")
    vae.eval().requires_grad_(False)
    nn.Module.to(vae, device)
    return vae


def vae_multiple(location: str) -> int:
    """Sides of pictures must be multiples of this for the autoencoder that :func:`load_vae` loads; reads no weights."""
    from diffusers import AutoencoderKL

    try:
        config: Any = AutoencoderKL.load_config(location, subfolder=_subfolder(location))
        return _multiple(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_loaded(location, error) from None


def _multiple(config: Any) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)


def _subfolder(location: str) -> str | None:
    return None if (Path(location) / "config.json").is_file() else "vae"


def _not_loaded(location: str, error: Exception) -> ModelError:
    return ModelError(
        f"{location}: no autoencoder can be loaded ({type(error).__name__}: {one_line(error)}); give a model in "
        "diffusers layout, a hub id, or the folder of an AutoencoderKL"
    )
