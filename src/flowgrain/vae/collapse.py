"""Noticing an autoencoder whose output no longer depends on its input.

Known from alignment terms that win over reconstruction (one colour for a whole picture) and from runs in half precision
(the same picture for everything): all losses are small or steady, nothing is non-finite, and what is saved is useless.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from flowgrain.config import Config
from flowgrain.errors import CollapseError

LEAST_VARIATION = 0.01
"""Standard deviation of inputs in [-1, 1] below which they are too plain to judge by (about one grey level)."""


class CollapseConfig(Config):
    """When a run counts as collapsed."""

    ratio: float = Field(
        default=0.02, ge=0, lt=1, description="standard deviation of outputs over that of inputs below this is constant"
    )
    patience: int = Field(default=20, ge=1, description="updates in a row before the run stops")


@torch.no_grad()
def variation_ratio(output: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"]) -> float | None:
    """Least ratio of the outputs' standard deviation to the inputs', over pixels and over the batch.

    Over pixels: the median over the pictures of a batch, so that one odd picture says nothing. Over the batch: of each
    pixel, averaged. Kinds whose inputs hardly vary are left out; None where none is left. 1 is a faithful
    reconstruction, 0 a constant.
    """
    wanted, found = (pixels.float().clamp(-1, 1) for pixels in (images, output))
    ratios = []
    spread = wanted.std(dim=(2, 3)).mean(dim=1)
    rich = spread > LEAST_VARIATION
    if rich.any():
        ratios.append((found.std(dim=(2, 3)).mean(dim=1)[rich] / spread[rich]).median())
    if len(wanted) > 1:
        across = wanted.std(dim=0).mean()
        if across > LEAST_VARIATION:
            ratios.append(found.std(dim=0).mean() / across)
    return min(ratio.item() for ratio in ratios) if ratios else None


class CollapseWatch:
    """Counts updates with a constant output; ``count`` belongs to what a run saves."""

    def __init__(self, config: CollapseConfig, count: int = 0):
        self.config = config
        self.count = count

    def observe(self, ratio: float | None, update: int) -> None:
        """Take one update's :func:`variation_ratio`; None changes nothing.

        Raises :class:`CollapseError` at the last of ``patience`` updates in a row.
        """
        if ratio is None:
            return
        self.count = self.count + 1 if ratio < self.config.ratio else 0
        if self.count >= self.config.patience:
            raise CollapseError(
                f"update {update}: the autoencoder's output is constant: for {self.count} updates its standard "
                f"deviation has been below {self.config.ratio:g} of the pictures' (now {ratio:.2g}); go back to an "
                "earlier checkpoint with a smaller learning rate or weights of gram, moments and adversarial, and "
                "train in float32 or bfloat16, not float16"
            )
