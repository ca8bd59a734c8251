"""How long captions are to a text encoder, without running it."""

from collections.abc import Iterable
from typing import Any

from flowgrain.families.base import CutCaptions
from flowgrain.families.loading import quiet_libraries


def cut_captions(tokenizer: Any, captions: Iterable[str], limit: int) -> CutCaptions:
    """The captions of more than ``limit`` tokens, those of their start and end included."""
    with quiet_libraries():  # which would warn of the first long caption
        lengths = {caption: len(tokenizer(text=[caption]).input_ids[0]) for caption in captions}
    return CutCaptions(limit, {caption: length for caption, length in lengths.items() if length > limit})
