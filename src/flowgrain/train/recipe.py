"""A recipe: one choice for each factor of the objective, and the budget to spend on it.

Defaults are the paper's Table 3 (Semantic Granularity Alignment, FLUX): AdamW, lr 1e-4, batch 8; what it leaves open
is as in kohya's trainer: training guidance 1.0, gradient clipping 1.0. A baseline and the full method differ only in
``data``, ``tuples`` and ``time`` (flow matching) or ``weighting`` (diffusion).
"""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from flowgrain.adapters.base import AdapterConfig
from flowgrain.adapters.source import init_digest
from flowgrain.align.terms.registry import TermConfig
from flowgrain.config import Config
from flowgrain.data.config import DRAWN_ANEW, DataConfig
from flowgrain.data.tuples import TupleConfig
from flowgrain.errors import ConfigError
from flowgrain.families.autoencoder_folder import autoencoder_digest
from flowgrain.families.configuration import configuration_digest
from flowgrain.train.interference_config import InterferenceConfig
from flowgrain.train.log import LogConfig
from flowgrain.train.loss_config import LossConfig
from flowgrain.train.masks import MaskConfig
from flowgrain.train.memory import MemoryConfig
from flowgrain.train.modulation_config import ModulationConfig
from flowgrain.train.optimizers import OptimizerConfig, removal
from flowgrain.train.path_config import NoiseConfig, PathConfig
from flowgrain.train.previews import PreviewConfig
from flowgrain.train.time_config import TimeConfig
from flowgrain.train.weighting_config import WeightingConfig


class ModelConfig(Config):
    """Which weights are fine-tuned."""

    path: str = Field(
        default="tiny-flux",
        description="diffusers folder, hub id, single safetensors file, or embedded: 'tiny-flux', 'tiny-sdxl'",
    )
    config: str | None = Field(
        default=None,
        description="single-file checkpoints: diffusers folder or hub id whose configuration files and tokenizers "
        "describe the file; null: the package's own for SD 1.5, 2.x and SDXL",
    )
    vae: str | None = Field(
        default=None,
        description="another autoencoder than the model's own: a folder that 'flowgrain vae' wrote, a diffusers folder "
        "or hub id with vae/ (docs/vae.md)",
    )
    family: str | None = Field(default=None, description="backbone family; None reads it from model_index.json")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="dtype of the frozen weights")
    guidance: float = Field(
        default=1.0, ge=0, description="guidance input in training; 1.0 for guidance-distilled models"
    )


class ScheduleConfig(Config):
    """Learning-rate factor: linear warm-up in updates, then decay over the budget."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0, description="updates of linear warm-up")
    final: float = Field(default=0.0, ge=0, le=1, description="factor at the end of the budget (linear and cosine)")

    @model_validator(mode="after")
    def _read(self) -> "ScheduleConfig":
        if self.kind == "constant" and self.final != 0.0:
            raise ValueError("schedule.final is not read by a constant schedule: remove it or choose linear or cosine")
        return self


class BudgetConfig(Config):
    """N1 and the multiples of it at which checkpoints are kept; training ends at the largest multiple."""

    amount: float = Field(gt=0, description="N1 in units")
    unit: Literal["updates", "slices", "seconds"] = "updates"
    checkpoints: tuple[float, ...] = Field(default=(1.0, 1.5), min_length=1, description="multiples of N1")

    @field_validator("checkpoints")
    @classmethod
    def _increasing(cls, checkpoints: tuple[float, ...]) -> tuple[float, ...]:
        if any(value <= 0 for value in checkpoints) or list(checkpoints) != sorted(set(checkpoints)):
            raise ValueError(f"checkpoints must be positive and increasing, got {list(checkpoints)}")
        return checkpoints


class EmaConfig(Config):
    """Exponential moving average of the adapter; where it is set, it is what is saved for sampling."""

    decay: float = Field(default=0.99, gt=0, lt=1)


class ValidationConfig(Config):
    """Fixed-noise loss on held-out roots: the same noise and noise levels for every arm and checkpoint."""

    path: Path | None = Field(
        default=None, description="decomposed data set or folder of held-out images; null: the part of data.holdout"
    )
    every: int | None = Field(
        default=None, gt=0, description="updates between measurements, beside those at the checkpoints of N1"
    )
    keep_best: bool = Field(default=True, description="keep the checkpoint of the lowest loss and name it in best.json")
    max_roots: int | None = Field(default=None, gt=0, description="use only the first held-out roots by name")
    batch_size: int = Field(default=32, gt=0, description="slices per forward pass")


def short_forms(values: dict[str, Any]) -> dict[str, Any]:
    """What short forms of a run's sections stand for: ``model: NAME``, and runs/NAME where no output is given."""
    short: dict[str, Any] = {}
    if isinstance(values.get("model"), str):
        short["model"] = {"path": values["model"]}
    if "output" not in values and isinstance(values.get("name"), str):
        short["output"] = f"runs/{values['name']}"
    return short


class Recipe(Config):
    """Everything that decides a training run."""

    name: str = Field(min_length=1, description="name of the arm in logs and reports")
    output: Path = Field(description="run folder, created by the run; runs/NAME where it is left out")
    seed: int = Field(default=0, ge=0, lt=2**31)
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig
    tuples: TupleConfig = Field(default_factory=TupleConfig)
    path: PathConfig = Field(default_factory=PathConfig)
    time: TimeConfig = Field(default_factory=TimeConfig)
    weighting: WeightingConfig = Field(default_factory=WeightingConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    align: tuple[TermConfig, ...] = Field(
        default=(), description="alignment terms, a list, or a map of names (docs/alignment.md)"
    )
    noise: NoiseConfig = Field(default_factory=NoiseConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    memory: MemoryConfig = Field(default_factory=MemoryConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    ema: EmaConfig | None = None
    mask: MaskConfig = Field(default_factory=MaskConfig, description="how masks (data.mask) enter the loss")
    clip: float | None = Field(default=1.0, gt=0, description="gradient norm limit, None for none")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="autocast of the forward pass; auto = bf16 where the device computes it natively"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    budget: BudgetConfig
    save_every: int | None = Field(
        default=None, gt=0, description="extra checkpoints every so many updates, for resuming"
    )
    validation: ValidationConfig | None = None
    previews: PreviewConfig | None = None
    interference: InterferenceConfig | None = None
    modulation: ModulationConfig = Field(default_factory=ModulationConfig)
    log: LogConfig = Field(default_factory=LogConfig)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        """``model: NAME`` for ``model: {path: NAME}``, runs/NAME where no output is given, ``align`` as a map."""
        if not isinstance(values, dict):
            return values
        short = short_forms(values)
        if isinstance(values.get("align"), dict):
            wrong = next((name for name, term in values["align"].items() if not isinstance(term, dict | None)), None)
            if wrong is not None:
                raise ValueError(
                    f"align.{wrong} is no term; write align as a map of terms by name, or as a list of them"
                )
            short["align"] = [
                {"kind": name, "name": name, **term} for name, term in values["align"].items() if term is not None
            ]
        return {**values, **short}

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "Recipe":
        """A key that this recipe would not read is an error, not a surprise (DESIGN section 6)."""
        # values are compared with their defaults, not with what was written: a run's own recipe.yaml writes all of them
        if self.tuples.grouping == "slice" and self.tuples.reduction == "level":
            raise ValueError(
                "tuples.reduction 'level' is not read with tuples.grouping 'slice': remove it or use grouping 'root'"
            )
        if self.memory.offload_encoders and not self.data.caches_text:
            off = "data.cache" if self.data.cache is False else "data.cache_text"
            raise ValueError(
                f"memory.offload_encoders moves encoders that nothing uses any more, but {off} is false and every "
                "update uses them: remove it or turn the cache on"
            )
        if self.data.levels == ("macro",) and set(self.time.granularity_shift) - {"macro"}:
            raise ValueError("time.granularity_shift of meso or micro is not read where data.levels is [macro]")
        if self.data.levels == ("macro",) and len(set(self.weighting.gamma.values)) > 1:
            raise ValueError("weighting.gamma of meso and micro is not read where data.levels is [macro]")
        if self.tuples.grouping == "slice" and not self.tuples.homogeneous:
            raise ValueError("tuples.homogeneous is not read with tuples.grouping 'slice': remove it")
        if self.data.flip_scope != "root" and not self.data.flip:
            raise ValueError("data.flip_scope is not read where data.flip is false: remove it or set data.flip")
        sources = self.data.sources or ()
        shaped = bool(sources) and all(source.resolution or source.buckets for source in sources)
        if shaped and (self.data.resolution or self.data.buckets):
            raise ValueError("data.resolution and data.buckets are not read where all sources have their own: remove")
        if self.data.trigger and sources and all(source.trigger or source.regularisation for source in sources):
            raise ValueError("data.trigger is not read where every source has its own: remove it")
        return self

    @model_validator(mode="after")
    def _trained_text_encoders_read_captions(self) -> "Recipe":
        """Frozen text encoders read no rate; an embedding that was kept is not what a trained one gives any more.

        (DESIGN section 5.)
        """
        rates = [] if self.trains_text else [key for key in self.optimizer.lrs if key.startswith("text_encoder")]
        if rates:
            raise ValueError(
                f"optimizer.lrs: '{rates[0]}' is a rate of text encoders, and none trains (adapter.text_encoders is "
                f"null); {removal(rates[0])}"
            )
        if self.trains_text and self.data.caches_text:
            variants = " (data.caption_variants goes too)" if self.data.caption_variants is not None else ""
            raise ValueError(
                "adapter.text_encoders are trained, but data.cache_text keeps what they gave before: set "
                f"data.cache_text to false{variants}, or remove adapter.text_encoders"
            )
        return self

    @model_validator(mode="after")
    def _one_held_out_part(self) -> "Recipe":
        """Validation needs held-out pictures, from one place; masks need a source."""
        path = self.validation.path if self.validation is not None else None
        if self.validation is not None and path is None and self.data.holdout is None:
            raise ValueError("validation needs held-out pictures: set validation.path, or data.holdout to a share")
        if path is not None and self.data.holdout is not None:
            raise ValueError("validation.path and data.holdout both name held-out pictures: remove one")
        if self.data.mask == "none" and self.mask != MaskConfig():
            raise ValueError("mask is set, but data.mask is none: set data.mask to alpha or file, or remove mask")
        return self

    @model_validator(mode="after")
    def _measured_modulation_is_measured(self) -> "Recipe":
        """Modulation that follows measurements needs them, and reads no key of one that is not there."""
        if not self.modulation.measured:
            return self
        if self.validation is None and self.interference is None:
            raise ValueError(
                "modulation.kind measured follows measurements, and none is made: add validation (with every) to move "
                "noise levels, interference to move the levels' weights, or both"
            )
        if self.validation is not None and self.validation.every is None:
            raise ValueError("modulation.kind measured follows the held-out losses of every so many updates: "
                             "set validation.every, or remove validation")  # fmt: skip
        if self.data.levels == ("macro",):
            raise ValueError("modulation.kind measured compares granularities, and data.levels has [macro] alone")
        readers = {"validation": ("max_shift", "gamma_range"), "interference": ("factor_range", "measurements")}
        for section, keys in readers.items():
            unread = [key for key in self.modulation.changed() if key in keys]
            if getattr(self, section) is None and unread:
                raise ValueError(f"modulation.{unread[0]} is not read without {section}: remove it or add the section")
        return self

    @model_validator(mode="after")
    def _terms_go_together(self) -> "Recipe":
        """Alignment terms and the wavelet loss with each other and with the other sections."""
        names = [term.name for term in self.align]
        taken = next((name for name in names if names.count(name) > 1 or name in ("flow", "wavelet")), None)
        if taken is not None:
            raise ValueError(
                f"align: two terms are called '{taken}', or it is the name of a loss: give each a 'name' of its own"
            )
        if self.memory.compile and self.terms_in_force:
            raise ValueError(
                "memory.compile: alignment terms read what blocks give by hooks, and a compiled block may have been "
                f"compiled without them: set it to false, or remove align ({', '.join(names)})"
            )
        if self.loss.kind == "wavelet" and self.weighting.kind != "none":
            raise ValueError(
                f"weighting.kind {self.weighting.kind} weighs the squared error of what the model predicts, and "
                "loss.kind wavelet is an error of x0: set one of them back (weighting.kind none, loss.kind mse)"
            )
        return self

    @property
    def terms_in_force(self) -> tuple[TermConfig, ...]:
        """Alignment terms whose weight is not 0: the others are not built at all."""
        return tuple(term for term in self.align if term.weight > 0)

    @property
    def trains_text(self) -> bool:
        """Whether text encoders train: captions are then encoded anew, with gradient, for every micro-batch."""
        return self.adapter.text_encoders is not None

    def identity(self) -> str:
        """A hash of all that changes what is computed: a checkpoint resumes only under the same identity.

        Raises CheckpointError where the adapter to start from cannot be read.
        """
        aside = {"output", "save_every", "name", "device", "previews", "interference", "log"}
        values = self.model_dump(mode="json", exclude=aside)
        # the data set's fingerprint knows its contents, captions, shapes, weights and masks, wherever they lie
        values["data"] = {key: values["data"][key] for key in DRAWN_ANEW}
        del values["tuples"]["micro_batch"]
        if self.model.config is None:
            del values["model"]["config"]
        else:
            values["model"]["config"] = configuration_digest(self.model.config)
        if self.model.vae is None:
            del values["model"]["vae"]
        else:
            values["model"]["vae"] = autoencoder_digest(self.model.vae, "model.vae")
        if self.adapter.init_from is not None:
            values["adapter"]["init_from"]["path"] = init_digest(self.adapter.init_from.path)
        del values["memory"]["offload_encoders"]  # where the encoders wait
        if values["memory"]["vae_tiling"] == "auto":
            del values["memory"]["vae_tiling"]  # as before there was a choice; posteriors have keys of their own
        values["align"] = [term.model_dump(mode="json", exclude={"watch"}) for term in self.terms_in_force]
        for key, default in (("align", []), ("loss", LossConfig().model_dump(mode="json"))):
            if values[key] == default:
                del values[key]  # as it was before there were such sections
        if values["validation"] is not None:
            for key in ("path", "keep_best") if self.modulation.measured else ("path", "every", "keep_best"):
                del values["validation"][key]
        if not self.modulation.measured:
            del values["modulation"]
        elif self.interference is not None:
            values["interference"] = {"every": self.interference.every}
        if self.schedule.kind == "constant":
            del values["budget"]  # nothing but the end depends on it: a finished run can be made longer
        text = json.dumps(values, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def find_recipe(name: str) -> Path:
    """The recipe file ``name``: a path, or the name of a packaged recipe; raises ConfigError with the nearest name."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    packaged = Path(__file__).parent.parent / "recipes"
    known = sorted(file.stem for file in packaged.glob("*.yaml"))
    if name in known:
        return packaged / f"{name}.yaml"
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"packaged recipes: {', '.join(known)}"
    raise ConfigError(f"no recipe '{name}'; {hint} A file of your own must end in .yaml")
