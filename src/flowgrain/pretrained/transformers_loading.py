"""Loading a transformers model with every weight from its files; the library itself only warns of missing ones.

No code that comes with a model is run.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from flowgrain.errors import ModelError
from flowgrain.pretrained.weights import LOAD_ERRORS, one_line, read_json

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_COMPUTED = ("num_batches_tracked",)
"""Endings of names of tensors that inference does not read; files may lack them."""


def read_model_type(folder: Path, known: Collection[str], purpose: str) -> str:
    """``model_type`` of a folder's config.json. Raises :class:`ModelError` where it is not one of ``known``."""
    found = str(read_json(folder / "config.json").get("model_type"))
    if found not in known:
        raise ModelError(
            f"{folder / 'config.json'}: model_type '{found}' cannot be used for {purpose}; known: {', '.join(known)}"
        )
    return found


def load_model(
    folder: Path, options: dict[str, bool] | None = None, auto: Any = AutoModel, safetensors_only: bool = False
) -> PreTrainedModel:
    """The model of a folder in float32 and evaluation mode, without gradients; ``options`` go to its constructor.

    ``auto`` is the class of transformers that loads it. With ``safetensors_only`` no pickle is opened. Raises
    :class:`ModelError` for files that cannot be read, and for weights that are missing or of other shapes.
    """
    with reading(
        f"{folder}: cannot be loaded as a transformers model", "give a complete folder with config.json and its weights"
    ):
        loaded: Any = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True if safetensors_only else None,
            trust_remote_code=False,
            output_loading_info=True,
            **(options or {}),
        )
    model, info = loaded
    refuse_missing(str(folder), [name for name in info["missing_keys"] if not name.endswith(_COMPUTED)])
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises :class:`ModelError` where it has none that can be read."""
    # without any of them transformers makes an empty tokenizer
    if not any(next(folder.glob(pattern), None) for pattern in _TOKENIZER_FILES):
        raise ModelError(f"{folder}: no tokenizer here; text needs {' or '.join(_TOKENIZER_FILES)} beside config.json")
    with reading(f"{folder}: its tokenizer cannot be loaded", "restore the tokenizer's files"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_image_processor(folder: Path) -> Any:
    """transformers' own image processor of a folder, in its Pillow form with or without torchvision.

    Raises :class:`ModelError` where it has none that can be read.
    """
    with reading(
        f"{folder}: its image processor cannot be loaded",
        "preprocessor_config.json beside the weights says how pictures are prepared",
    ):
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)


def refuse_missing(place: str, names: Collection[str]) -> None:
    """Raise :class:`ModelError` where there are ``names``: of weights that the files of ``place`` do not hold."""
    if names:
        first = ", ".join(sorted(names)[:3])
        raise ModelError(f"{place}: {len(names)} weights are missing ({first}); restore or download it again")


@contextmanager
def reading(failure: str, advice: str) -> Iterator[None]:
    """Let transformers read files in silence; what it raises becomes a :class:`ModelError` of one line."""
    try:
        with quiet_transformers():
            yield
    except LOAD_ERRORS as error:
        raise ModelError(f"{failure} ({type(error).__name__}: {one_line(error)}); {advice}") from None


def quiet_transformers() -> AbstractContextManager[None]:
    """No progress bars and no warnings of transformers: what matters of them is an error here."""
    return quiet(logging)


@contextmanager
def quiet(*libraries: ModuleType) -> Iterator[None]:
    """No progress bars and no warnings of libraries, given by the ``logging`` of their ``utils``."""
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
