"""What one picture of a size costs: tokens, shift of noise levels, operations, caches, the autoencoder's passes.

Everything follows from configuration files: the model runs on the meta device, and its operations are counted from the
shapes that go by. docs/high-resolution.md explains the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from flowgrain.families.autoencoder import PassBytes, VaeTiling, pass_bytes, set_tiling
from flowgrain.families.base import ConditionInputs, Family, TextEmbedding
from flowgrain.train.activations import on_meta

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class SizeCost:
    """One picture of ``width`` x ``height`` pixels."""

    width: int
    height: int
    tokens: int
    """Image tokens."""
    mu: float | None
    """Shift of the logit of noise levels that the model's own scheduler makes of the tokens; None for none."""
    posterior_bytes: int
    """Mean and log-variance in float32, one mirror state."""
    operations: int
    """Of a forward pass: multiplications and additions of matrix products, convolutions and attention."""
    attention: int
    """Those of them in attention between all pairs of tokens."""
    passes: PassBytes | None
    """The autoencoder's, None where its blocks are not known."""

    def lines(self) -> list[str]:
        """For people; the lower bounds are named as such."""
        size = f"{self.width}x{self.height}"
        mu = "" if self.mu is None else f", shift mu {self.mu:.3f}"
        share = self.attention / self.operations if self.operations else 0.0
        lines = [
            f"size: {size} is {self.tokens} tokens{mu}, {self.posterior_bytes / 2**20:.1f} MiB of posterior; a forward "
            f"pass is {self.operations / 1e12:.3g} TFLOP, {100 * share:.0f} % of them in attention",
        ]
        if self.passes is not None:
            encode, decode = (
                f"{size / 2**30:.2f} GiB {'in tiles' if tiled else 'whole'}"
                for size, tiled in (
                    (self.passes.encode, self.passes.encodes_in_tiles),
                    (self.passes.decode, self.passes.decodes_in_tiles),
                )
            )
            lines.append(f"autoencoder: {size} encodes in about {encode}, decodes in about {decode}, before training")
        return lines


def size_cost(
    family: Family, embedding: TextEmbedding, width: int, height: int, guidance: float, tiling: VaeTiling
) -> SizeCost:
    """Cost of one picture for a skeleton (:func:`flowgrain.families.registry.load_skeleton`).

    ``embedding`` is one caption's, without values. Raises ModelError for a size that the model cannot take.
    """
    capabilities, shift = family.capabilities, family.default_shift()
    tokens = family.tokens(height, width)
    cells = (height // capabilities.latent_scale, width // capabilities.latent_scale)
    vae = family.encoders()["vae"]
    set_tiling(vae, tiling, family.name)
    counter = _Counter()
    with torch.no_grad(), on_meta(), counter:
        latents = torch.empty(1, capabilities.latent_channels, *cells, device="meta")
        times = torch.full((1, 1), 0.5, device="meta")
        family.predict(latents, times, family.condition(ConditionInputs(None, embedding, guidance)))
    counts = counter.get_flop_counts()["Global"]
    return SizeCost(
        width=width,
        height=height,
        tokens=tokens,
        mu=None if shift is None else float(shift(torch.tensor([tokens]))),
        posterior_bytes=2 * 4 * capabilities.latent_channels * prod(cells),
        operations=sum(counts.values()),
        attention=counts.get(_ATTENTION, 0),
        passes=pass_bytes(vae, height, width, capabilities.latent_scale),
    )


class _Counter(FlopCounterMode):
    """Counts attention by its shapes as well, as the meta device runs it."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping={_ATTENTION: _attention_operations})


def _attention_operations(query: Sequence[int], key: Sequence[int], *_rest: Any, **_named: Any) -> int:
    """q k' and the weights times v: two products of 2 b h n m d operations each."""
    batch, heads, length, width = query
    return 4 * batch * heads * length * key[-2] * width
