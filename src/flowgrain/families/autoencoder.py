"""What an AutoencoderKL's configuration says of a model's latents, and how large pictures pass through it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowgrain.errors import ModelError
from flowgrain.families.base import Capabilities
from flowgrain.families.tiled_autoencoder import (
    TILE,
    WHOLE_PASS,
    TiledDecoder,
    TiledEncoder,
    can_tile,
    decoder_layers,
    encoder_layers,
    tiled_bytes,
    whole_bytes,
)

VaeTiling = Literal["auto", "exact", "blended", "off"]
"""``auto``: exact tiles where a whole pass would take more than 6 GiB; ``exact``: exact tiles for every picture;
``blended``: diffusers' own tiles, not what the whole pass gives; ``off``: whole."""

_VERSION = "1"
"""Of the exact tiles' arithmetic, for cache keys."""


def cell_pixels(vae: Mapping[str, Any]) -> int:
    """Pixels per latent cell and side of an AutoencoderKL with this configuration."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def latent_capabilities(
    vae: Mapping[str, Any], guidance: Literal["embedded", "classifier_free", "none"], cells: int, native_size: int
) -> Capabilities:
    """Capabilities of a model over an AutoencoderKL whose latents' sides are multiples of ``cells`` cells."""
    return Capabilities(
        guidance=guidance,
        pixel_multiple=cells * cell_pixels(vae),
        latent_channels=vae["latent_channels"],
        latent_scale=cell_pixels(vae),
        native_size=native_size,
    )


def set_tiling(vae: Any, tiling: VaeTiling, source: str) -> None:
    """Choose how ``vae`` encodes and decodes large pictures, in pipelines that share it too; parameters stay.

    Raises :class:`ModelError`, naming ``source``, for ``exact`` with an autoencoder of other blocks than an
    AutoencoderKL's; ``auto`` leaves such a one whole.
    """
    known = can_tile(vae.encoder, vae.decoder)
    if tiling == "exact" and not known:
        raise ModelError(
            f"{source}: memory.vae_tiling 'exact' knows the blocks of an AutoencoderKL, not those of a "
            f"{type(vae).__name__}; use blended or off"
        )
    if known:
        most = {"auto": WHOLE_PASS, "exact": 0}.get(tiling)
        vae.encoder, vae.decoder = TiledEncoder(vae.encoder, most), TiledDecoder(vae.decoder, most)
    vae.use_tiling = tiling == "blended"  # what diffusers' own switches of every autoencoder set


def encoding_of(vae: Any, height: int, width: int) -> str:
    """How a picture of so many pixels is encoded: part of its cache key. Empty for a whole pass."""
    if isinstance(vae.encoder, TiledEncoder) and vae.encoder.tiles((1, 3, height, width), vae.dtype.itemsize):
        return f"exact tiles {_VERSION} of {TILE}"
    if vae.use_tiling:
        settings = {name: value for name, value in vars(vae).items() if name.startswith("tile_")}
        return f"blended tiles {sorted(settings.items())}"
    return ""


@dataclass(frozen=True)
class PassBytes:
    """About what an encoder and a decoder hold at their peak for one picture, attention and weights left out."""

    encode: int
    decode: int
    encodes_in_tiles: bool
    decodes_in_tiles: bool


def pass_bytes(vae: Any, height: int, width: int, scale: int) -> PassBytes | None:
    """Bytes for a picture of so many pixels, of ``scale`` pixels a latent cell, as the autoencoder is set.

    None for an autoencoder of other blocks. Weights are not read: meta tensors do.
    """
    encoder, decoder, size = vae.encoder, vae.decoder, vae.dtype.itemsize
    if not (isinstance(encoder, TiledEncoder) and isinstance(decoder, TiledDecoder)):
        return None
    picture = (1, 3, height, width)
    deep = (1, decoder.conv_in.out_channels, height // scale, width // scale)
    encodes, decodes = encoder.tiles(picture, size), decoder.tiles(deep, size)
    return PassBytes(
        (tiled_bytes if encodes else whole_bytes)(encoder_layers(encoder), picture, size),
        (tiled_bytes if decodes else whole_bytes)(decoder_layers(decoder), deep, size),
        encodes,
        decodes,
    )
