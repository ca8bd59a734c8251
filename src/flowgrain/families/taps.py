"""Outputs of named blocks, recorded while a model runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def captured(blocks: dict[str, nn.Module], tokens: Callable[[Any], Tensor]) -> Iterator[dict[str, Tensor]]:
    """Name -> what ``tokens`` makes of the block's output, filled by a forward pass inside the ``with`` statement."""
    features: dict[str, Tensor] = {}
    handles = [block.register_forward_hook(_recorder(features, name, tokens)) for name, block in blocks.items()]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def _recorder(features: dict[str, Tensor], name: str, tokens: Callable[[Any], Tensor]) -> Any:
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        features[name] = tokens(output)

    return record
