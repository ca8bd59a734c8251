"""A cell of a design: one training run, named by what was varied in it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Model = Literal["flux", "sdxl"]
Adapter = Literal["dora", "lora"]


CUTS: dict[str, tuple[str, ...]] = {
    "slices": (),
    "plain-captions": ("levels.meso.caption='{caption}'", "levels.micro.caption='{caption}'"),
    "larger-parts": ("levels.meso.detector.fraction=0.75", "levels.micro.detector.fraction=0.55"),
}
"""Settings of decompose beyond the preset."""


@dataclass(frozen=True)
class Arm:
    """A way to train: a packaged recipe (without its model's name) and what differs from it."""

    recipe: str
    settings: tuple[str, ...] = ()
    slices: bool = True
    """Whether it trains on the decomposed data set, or on whole pictures."""
    cut: str = "slices"
    """How the data set is cut, a key of :data:`CUTS`."""
    steered: bool = False
    """Whether the run may look at pictures that it holds out of its own training data: what is reported is measured
    afterwards."""


@dataclass(frozen=True)
class Cell:
    """One run. ``key`` names it in results and on the command line."""

    stage: str
    model: Model
    adapter: Adapter
    domain: str
    arm: str
    seed: int
    images: int | None = None
    """Training pictures, the first by name; None for all of the domain."""
    settings: tuple[str, ...] = field(default=())
    """Beyond the arm's, ``key=value`` of the recipe."""
    label: str = ""
    """Tells cells apart that differ in ``settings`` alone."""

    @property
    def key(self) -> str:
        """``stage/model/adapter/domain/arm[/label]/seed``."""
        parts = [self.stage, self.model, self.adapter, self.domain, self.arm]
        parts += [self.label] if self.label else []
        return "/".join([*parts, f"seed{self.seed}"])

    def as_dict(self) -> dict[str, Any]:
        """For the results file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
