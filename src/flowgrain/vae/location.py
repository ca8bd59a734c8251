"""Where the autoencoder of a model lies."""

import re
from pathlib import Path

from flowgrain.errors import ModelError
from flowgrain.families.registry import resolve_model
from flowgrain.pretrained.weights import one_line

_FILES = ["vae/*.json", "vae/*.safetensors"]


def vae_folder(model: str) -> Path:
    """The folder with an autoencoder's config.json: ``model`` itself, its ``vae/``, or that of a hub id.

    Only the autoencoder of a hub model is downloaded, and nothing where HF_HUB_OFFLINE is set. Raises
    :class:`ModelError` where there is none.
    """
    folder = Path(resolve_model(model)).expanduser()
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        folder = _downloaded(model)
    for candidate in (folder, folder / "vae"):
        if (candidate / "config.json").is_file():
            return candidate
    raise ModelError(
        f"model.path {model}: no autoencoder here; give the folder of an AutoencoderKL (config.json and weights), a "
        "model in diffusers layout (with vae/), a hub id, or an embedded model"
    )


def _downloaded(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=_FILES))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise ModelError(
            f"model.path {model}: neither a folder nor a hub model that can be reached ({type(error).__name__}: "
            f"{one_line(error)}); download its vae folder and give that"
        ) from None
