"""Where the autoencoder of a model lies."""

import re
from pathlib import Path

from flowgrain.errors import ModelError
from flowgrain.families.configuration import files_digest
from flowgrain.families.embedded import resolve_model
from flowgrain.pretrained.weights import one_line

_FILES = ["vae/*.json", "vae/*.safetensors"]


def autoencoder_folder(model: str, key: str) -> Path:
    """The folder with an autoencoder's config.json: ``model`` itself, its ``vae/``, or that of a hub id.

    ``model`` was given as ``key``. Only the autoencoder of a hub model is downloaded, and nothing where HF_HUB_OFFLINE
    is set. Raises :class:`ModelError` where there is none.
    """
    folder = Path(resolve_model(model)).expanduser()
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        folder = _downloaded(model, key)
    for candidate in (folder, folder / "vae"):
        if (candidate / "config.json").is_file():
            return candidate
    raise ModelError(
        f"{key} {model}: no autoencoder here; give the folder of an AutoencoderKL (config.json and weights), a "
        "model in diffusers layout (with vae/), a hub id, or an embedded model"
    )


def autoencoder_digest(model: str, key: str) -> str:
    """SHA-256 of an autoencoder's configuration and weights; raises as :func:`autoencoder_folder`."""
    return files_digest(autoencoder_folder(model, key), (".json", ".safetensors"))


def _downloaded(model: str, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise ModelError(
            f"{key} {model}: neither a folder nor a hub model that can be reached ({type(error).__name__}: "
            f"{one_line(error)}); download its vae folder and give that"
        ) from None
