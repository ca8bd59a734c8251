"""Captions that a large language model reads (FLUX.2, Qwen-Image, Z-Image): what of them is cached and stacked.

Qwen-Image and Z-Image read a caption's own tokens and never its padding. Their embeddings are kept with zero rows up
to one length, so that cached ones stack, beside the number of true rows. These numbers decide the shapes that the
backbone sees: they stay on the CPU, where reading one does not wait for the device.
"""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from flowgrain.families.fingerprint import tokenizer_digest

PROMPT, LENGTHS = "prompt_embeds", "prompt_lengths"
"""Names of the states, zero after a caption's end, and of the number of its tokens."""


def padded(states: Float[Tensor, "1 n d"], length: int) -> dict[str, Tensor]:
    """One caption's states, cut or filled with zero rows to ``length``, and how many of them are its own."""
    states = states[:, :length]
    tokens = states.shape[1]
    return {
        PROMPT: torch.nn.functional.pad(states, (0, 0, 0, length - tokens)),
        LENGTHS: torch.tensor([tokens]),
    }


def reading_digests(reader: PreTrainedTokenizerBase | ProcessorMixin, template: str | None) -> list[str]:
    """Short hashes of a vocabulary, and of the template and the side that is padded."""
    tokenizer = reader.tokenizer if isinstance(reader, ProcessorMixin) else reader
    manner = f"{tokenizer.padding_side} {template}".encode()
    return [tokenizer_digest(tokenizer), hashlib.blake2b(manner, digest_size=8).hexdigest()]
