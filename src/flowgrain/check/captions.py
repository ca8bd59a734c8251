"""Findings about captions: missing, cut by the text encoder, the same for every picture."""

from collections import Counter
from collections.abc import Iterator, Sequence

from flowgrain.check.findings import Finding
from flowgrain.data.dataset import Slice
from flowgrain.families.registry import configuration_folder
from flowgrain.families.token_counts import cut_captions


def captions(slices: Sequence[Slice]) -> Iterator[Finding]:
    """Missing captions, and one caption for all."""
    missing = sorted({item.file.place() for item in slices if not item.caption})
    if missing:
        yield Finding(
            "warning", "caption_missing",
            f"{len(missing)} of {len(slices)} slices have no caption: they are learned for the empty prompt; write "
            "a .txt of the same name beside each, or set data.trigger",
            tuple(missing),
        )  # fmt: skip
    counts = Counter(item.caption for item in slices if item.caption)
    if len(counts) == 1 and len(slices) > 1:
        yield Finding(
            "note", "caption_shared",
            f"all captions are '{next(iter(counts))}': everything in the pictures binds to it",
        )  # fmt: skip


def too_long(slices: Sequence[Slice], model: str, config: str | None) -> Iterator[Finding]:
    """Captions that the model's sequence encoder cuts; its tokenizer is read, no weights.

    Of several encoders the last one gives the token sequence (T5 in FLUX and SD3); CLIP's pooled vector beside it
    cuts at 77 tokens by design. ``config`` describes a single file.
    """
    from transformers import AutoTokenizer

    with configuration_folder(model, config) as location:
        folders = sorted(location.glob("tokenizer*")) if location is not None else []
        if not folders:  # a hub model's tokenizers are downloaded with its weights
            return
        reader = AutoTokenizer.from_pretrained(folders[-1])
    limit = reader.model_max_length
    lengths = cut_captions(reader, {item.caption for item in slices}, limit).lengths
    longer = (item for item in slices if item.caption in lengths)
    cut = sorted(f"{item.file.place()} ({lengths[item.caption]} tokens)" for item in longer)
    if cut:
        yield Finding(
            "warning", "caption_cut",
            f"{len(cut)} captions are longer than the {limit} tokens that {model} reads: the rest is not seen",
            tuple(cut),
        )  # fmt: skip
