"""No-reference quality (MANIQA, QualiCLIP, MUSIQ, ...) through pyiqa, where the user has installed it.

pyiqa is licensed for non-commercial use, so it is neither a dependency nor an extra. It is imported when a score is
made. Where it lives in another environment, :mod:`flowgrain.evaluate.external.command` reaches it.
"""

import difflib
from collections.abc import Sequence
from importlib import import_module, metadata
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float

from flowgrain.errors import ConfigError, ModelError
from flowgrain.evaluate.base import ImageLike, PictureScore
from flowgrain.evaluate.encoders.base import open_rgb
from flowgrain.pretrained.weights import one_line

PACKAGE = "pyiqa"


class PyIqaScore(PictureScore):
    """One of pyiqa's no-reference metrics, by its name there: ``maniqa``, ``qualiclip``, ``musiq``, ...

    pyiqa downloads the metric's weights on first use. Raises :class:`ConfigError` where it is not installed or has no
    such no-reference metric, :class:`ModelError` where the metric cannot be made.
    """

    def __init__(self, metric: str, device: str = "cpu"):
        if find_spec(PACKAGE) is None:
            raise ConfigError(
                f"the quality metric '{metric}' comes from {PACKAGE}, which is not installed. Its licence allows "
                f"non-commercial use only; where that suits you: pip install {PACKAGE}"
            )
        pyiqa = import_module(PACKAGE)
        known = pyiqa.list_models(metric_mode="NR")
        if metric not in known:
            close = difflib.get_close_matches(metric, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "see pyiqa.list_models(metric_mode='NR')"
            raise ConfigError(f"{PACKAGE} has no no-reference metric '{metric}'; {hint}")
        try:
            self._network = pyiqa.create_metric(metric, device=torch.device(device))
        except (OSError, RuntimeError, ValueError, KeyError, AssertionError, ImportError) as error:
            raise ModelError(f"{PACKAGE} cannot make '{metric}' ({type(error).__name__}: {one_line(error)})") from None
        self.title = metric
        self.version = f"{PACKAGE} {metadata.version(PACKAGE)}, {metric}"
        self.higher_is_better = not self._network.lower_better

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[ImageLike], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """See :meth:`PictureScore.__call__`; pictures at their own size, one at a time."""
        values = []
        for picture in pictures:
            pixels = torch.from_numpy(np.array(open_rgb(picture))).permute(2, 0, 1)[None].float() / 255
            values.append(float(self._network(pixels)))
        return np.array(values, dtype=np.float64)
