"""Short hashes of weights, for cache keys and provenance."""

import hashlib
import json

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

_CHUNK = 1 << 24


def module_digest(modules: dict[str, nn.Module]) -> str:
    """16 hex digits over names, shapes, dtypes and bytes of every tensor of the modules."""
    digest = hashlib.blake2b(digest_size=8)
    for name, module in modules.items():
        for key, tensor in module.state_dict().items():
            digest.update(f"{name}.{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            _update(digest, tensor)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over the vocabulary."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return hashlib.blake2b(vocabulary, digest_size=8).hexdigest()


def _update(digest: "hashlib.blake2b", tensor: Tensor) -> None:
    flat = tensor.detach().contiguous().view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        digest.update(flat[start : start + _CHUNK].cpu().view(torch.uint8).numpy().tobytes())
