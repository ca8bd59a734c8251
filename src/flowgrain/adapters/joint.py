"""Several components' low-rank adapters as one: one list of parameters, one file."""

from pathlib import Path

from torch import nn

from flowgrain.adapters.base import Adapter, AdapterConfig
from flowgrain.adapters.lora import LowRankAdapter, load_parts, save_parts


class JointAdapter(Adapter):
    """The adapters of a backbone and of text encoders, in this order; diffusers loads them from one file."""

    def __init__(self, config: AdapterConfig, parts: list[LowRankAdapter]):
        self.config = config
        self.parts = tuple(parts)

    @property
    def trains_text(self) -> bool:
        """See :attr:`Adapter.trains_text`."""
        return any(part.trains_text for part in self.parts)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """See :meth:`Adapter.parameters`."""
        return [named for part in self.parts for named in part.parameters()]

    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        """See :meth:`Adapter.save`."""
        save_parts(list(self.parts), folder, metadata)

    def load(self, folder: Path) -> None:
        """See :meth:`Adapter.load`."""
        load_parts(self, list(self.parts), folder)

    def train(self, mode: bool = True) -> None:
        """See :meth:`Adapter.train`."""
        for part in self.parts:
            part.train(mode)

    def merge(self) -> None:
        """See :meth:`Adapter.merge`."""
        for part in self.parts:
            part.merge()

    def remove(self) -> None:
        """See :meth:`Adapter.remove`."""
        for part in self.parts:
            part.remove()

    def _switch(self, mode: bool) -> None:
        for part in self.parts:
            part._set(mode)
