"""What networks with classes of their own answer, through transformers' own post-processing."""

from collections.abc import Sequence

from torch import Tensor

from flowgrain.slices.detectors.class_names import check_classes
from flowgrain.slices.detectors.hf_detector import Found, Reader
from flowgrain.slices.detectors.hf_models import HfNetwork, Outputs


class ClassReader(Reader):
    """Boxes of the wanted classes, labelled with the names in config.json; None takes all classes.

    Raises :class:`flowgrain.errors.ConfigError` for a class that the network does not have.
    """

    def __init__(self, network: HfNetwork, classes: Sequence[str] | None, model: str, confidence: float):
        self._processor = network.image_processor
        self._names: dict[int, str] = network.config.id2label
        known = self._names.values()
        self._wanted = check_classes(list(known) if classes is None else classes, known, model)
        self._confidence = confidence

    def text(self, count: int) -> dict[str, Tensor]:
        """See :class:`Reader`: none."""
        return {}

    def found(self, outputs: Outputs, sizes: list[tuple[int, int]]) -> list[Found]:
        """See :class:`Reader`."""
        results = self._processor.post_process_object_detection(outputs, threshold=self._confidence, target_sizes=sizes)
        found = []
        for result in results:
            labels = [self._names.get(int(number), str(int(number))) for number in result["labels"]]
            kept = [row for row, label in enumerate(labels) if label in self._wanted]
            found.append(Found(result["boxes"][kept], result["scores"][kept], [labels[row] for row in kept]))
        return found
