"""Loading a transformers model with every weight from its files; the library itself only warns of missing ones."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from flowgrain.errors import ModelError
from flowgrain.evaluate.encoders.weights import one_line, read_json

Precision = Literal["float32", "float16", "bfloat16"]

_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)


def read_model_type(folder: Path, known: Collection[str], purpose: str) -> str:
    """``model_type`` of a folder's config.json. Raises :class:`ModelError` where it is not one of ``known``."""
    found = str(read_json(folder / "config.json").get("model_type"))
    if found not in known:
        raise ModelError(
            f"{folder / 'config.json'}: model_type '{found}' cannot be used for {purpose}; known: {', '.join(known)}"
        )
    return found


def load_model(folder: Path, options: dict[str, bool] | None = None) -> PreTrainedModel:
    """The model of a folder in float32 and evaluation mode, without gradients; ``options`` go to its constructor.

    Raises :class:`ModelError` for files that cannot be read, and for weights that are missing or of other shapes.
    """
    try:
        with quiet_transformers():
            loaded: Any = AutoModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **(options or {})
            )
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"{folder}: cannot be loaded as a transformers model ({type(error).__name__}: {one_line(error)}); give a "
            "complete folder with config.json and its weights"
        ) from None
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing ({', '.join(missing[:3])}); restore or download it again"
        )
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises :class:`ModelError` where it has none that can be read."""
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder)
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}: {one_line(error)}); text needs the "
            "tokenizer's files beside config.json"
        ) from None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of transformers: what matters of them is an error here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
