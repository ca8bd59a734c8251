"""Train the two tokenizers on the captions and on the names of all emoji, as ordinary CLIP and T5 tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from . import domains, vocabulary
from .render import BaseImages, read_sets

BYTE_PAIR_SIZE, UNIGRAM_SIZE = 2200, 2048
CLIP_LENGTH, T5_LENGTH = 77, 24
CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-/&+#%"
_SENTENCES = (
    "a photo of a small red car in front of the blue house",
    "a drawing of two green animals with big yellow eyes, on a white background",
    "the picture shows an orange and a pink flower under the black sky, icon style",
    "close-up of the left eye, extreme close-up of the brown and purple pattern, sticker style",
)


def corpus(images: BaseImages, work: Path) -> list[str]:
    """All base and domain captions, every emoji's name, and a few ordinary sentences."""
    triggers = [*vocabulary.STYLES.values(), *(domain.trigger for domain in domains.ALL)]
    lines = []
    for concept in sorted(images.known):
        for style in triggers:
            for closeness in ("", "close-up", "extreme close-up"):
                lines.append(vocabulary.caption(concept, style, closeness))
    names = sorted({name.replace("-", " ") for icons in read_sets(work).values() for name in icons.icons})
    lines += [name for name in names if "skin tone" not in name for _ in range(4)]
    return lines + [sentence for sentence in _SENTENCES for _ in range(20)]


def clip_tokenizer(lines: list[str]) -> CLIPTokenizer:
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    reference = CLIPTokenizer().backend_tokenizer
    trained.normalizer, trained.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_PAIR_SIZE, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(lines, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = dict(model["vocab"])
    for letter in sorted(alphabet):  # a byte may also end a word
        vocab.setdefault(letter + "</w>", len(vocab))
    for token in CLIP_SPECIAL:
        vocab[token] = len(vocab)
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)


def t5_tokenizer(lines: list[str]) -> T5Tokenizer:
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=UNIGRAM_SIZE,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list(_LETTERS),
        show_progress=False,
    )
    trained.train_from_iterator([*lines, *_LETTERS], trainer)
    vocab = [tuple(entry) for entry in json.loads(trained.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=T5_LENGTH)
