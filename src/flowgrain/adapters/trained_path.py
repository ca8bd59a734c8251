"""What an adapter predicts where its recipe said otherwise than the model: entries of its header, and reading them.

A LoRA trained with ``path.prediction: v_prediction`` turns a model of noise into one of v. No program can see that from
its tensors: whoever draws with it must change the scheduler too. An adapter without these entries predicts what the
model under it does, whichever that is.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from flowgrain.adapters.adapter_file import read_header
from flowgrain.adapters.base import FULL_NAME
from flowgrain.adapters.source import locate_adapter
from flowgrain.errors import CheckpointError
from flowgrain.families.base import Family
from flowgrain.flow.variance_preserving import PredictionType, VariancePreserving

PREDICTION_KEY, ZERO_KEY = "flowgrain_prediction_type", "flowgrain_zero_terminal_snr"
_SPEC_KEY, _SPEC_VELOCITY = "modelspec.prediction_type", "v"


@dataclass(frozen=True)
class TrainedPath:
    """Prediction type and zero terminal SNR, None where they are the model's own."""

    prediction: PredictionType | None = None
    zero_terminal_snr: bool | None = None

    def __bool__(self) -> bool:
        return self != TrainedPath()

    def __str__(self) -> str:
        said = [] if self.prediction is None else [f"prediction type {self.prediction}"]
        if self.zero_terminal_snr is not None:
            said.append(f"{'' if self.zero_terminal_snr else 'no '}zero terminal SNR")
        return " and ".join(said)


def path_entries(path: TrainedPath) -> dict[str, str]:
    """Header entries, none for what is the model's own."""
    entries = {} if path.prediction is None else {PREDICTION_KEY: path.prediction}
    if path.zero_terminal_snr is not None:
        entries[ZERO_KEY] = json.dumps(path.zero_terminal_snr)
    return entries


def trained_path(adapter: Path) -> TrainedPath:
    """What the adapter that ``adapter`` means says of its path; raises CheckpointError where it cannot be read."""
    file, header = _header(adapter)
    said, zero = header.get(PREDICTION_KEY), header.get(ZERO_KEY)
    prediction: PredictionType | None = next((known for known in get_args(PredictionType) if known == said), None)
    if prediction != said or zero not in (None, "true", "false"):
        raise CheckpointError(
            f"{file}: its header says {PREDICTION_KEY} {said} and {ZERO_KEY} {zero}, which this version does not "
            "know; use the version that trained it"
        )
    return TrainedPath(prediction, None if zero is None else zero == "true")


def path_notes(family: Family, adapter: Path) -> list[str]:
    """What a user must know who draws with the adapter on this model (a skeleton will do) in another program."""
    path, own = trained_path(adapter), family.default_path()
    if not isinstance(own, VariancePreserving):
        return []
    if path:
        return [
            f"trained with {path}, the model's own scheduler: prediction type {own.prediction}"
            f"{', zero terminal SNR' if own.schedule.zero_terminal_snr else ''}; no adapter file can change that, set "
            "it in the program that draws (ComfyUI: ModelSamplingDiscrete; diffusers: the scheduler's prediction_type "
            "and rescale_betas_zero_snr), or use --to merged, which writes the scheduler too"
        ]
    if _header(adapter)[1].get(_SPEC_KEY) == _SPEC_VELOCITY and own.prediction != "v_prediction":
        return [f"its header says that it predicts v, the model predicts {own.prediction}: it may be of another model"]
    return []


def _header(adapter: Path) -> tuple[Path, dict[str, str]]:
    file = locate_adapter(adapter)
    if file.is_file():
        return file, read_header(file)
    marker = file / FULL_NAME
    try:
        return marker, dict(json.loads(marker.read_text(encoding="utf-8")).get("metadata", {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{marker}: damaged ({error}); restore it") from None
