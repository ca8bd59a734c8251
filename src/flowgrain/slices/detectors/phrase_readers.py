"""How phrases reach a network and its boxes come back to them: one reader a family.

Grounding DINO reads ``upper body. logo.`` and scores its tokens; a box gets the phrase with the best token. OWL reads
each phrase as a query of its own. Boxes and scores are those of transformers' own post-processing.
"""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from flowgrain.errors import ConfigError
from flowgrain.pretrained.transformers_loading import load_tokenizer, reading
from flowgrain.slices.detectors.hf_detector import Found, Reader
from flowgrain.slices.detectors.hf_models import HfNetwork, Outputs

PROCESSORS = {
    "grounding-dino": "GroundingDinoProcessor",
    "mm-grounding-dino": "GroundingDinoProcessor",
    "owlv2": "Owlv2Processor",
    "owlvit": "OwlViTProcessor",
}
"""``model_type`` of config.json -> the processor that knows what the network's outputs mean."""

DINO_CONFIDENCE = 0.25
OWL_CONFIDENCE = 0.1
TEXT_THRESHOLD = 0.25


def open_reader(
    network: HfNetwork, phrases: Sequence[str], model: str, confidence: float | None, text_threshold: float | None
) -> Reader:
    """The reader of a network's family; None takes the family's default.

    Raises :class:`flowgrain.errors.ModelError` where the tokenizer cannot be read, :class:`ConfigError` for phrases
    that the network cannot read and for a threshold that it does not.
    """
    processor = _processor(network)
    if not network.config.model_type.startswith("owl"):
        confidence = DINO_CONFIDENCE if confidence is None else confidence
        text_threshold = TEXT_THRESHOLD if text_threshold is None else text_threshold
        return GroundingDinoReader(processor, phrases, model, network.config.max_text_len, confidence, text_threshold)
    if text_threshold is not None:
        raise ConfigError(f"text_threshold: read by Grounding DINO alone, {model} is {network.config.model_type}")
    most = network.config.text_config.max_position_embeddings
    return OwlReader(processor, phrases, model, most, OWL_CONFIDENCE if confidence is None else confidence)


class GroundingDinoReader(Reader):
    """Phrases as one lower-case text, each ended by a dot, and back from its tokens."""

    def __init__(
        self, processor: Any, phrases: Sequence[str], model: str, most: int, confidence: float, text_threshold: float
    ):
        self._processor = processor
        self._phrases = phrases
        self._confidence = confidence
        self._text_threshold = text_threshold
        divided = next((phrase for phrase in phrases if set(phrase) & set(".?")), None)
        if divided is not None:
            raise ConfigError(f"phrases: '{divided}' holds '.' or '?', which end a phrase for {model}; leave them out")
        plain = [" ".join(phrase.lower().split()) for phrase in phrases]
        encoded = processor.tokenizer(
            ". ".join(plain) + ".", return_tensors="pt", return_token_type_ids=True, return_offsets_mapping=True
        )
        offsets = encoded.pop("offset_mapping")[0].tolist()
        if len(offsets) > most:
            raise ConfigError(
                f"phrases: they make {len(offsets)} tokens, {model} reads {most}; use fewer or shorter ones"
            )
        self._spans = _spans(plain, offsets, model)
        self._text: dict[str, Tensor] = dict(encoded)

    def text(self, count: int) -> dict[str, Tensor]:
        """See :class:`Reader`."""
        return {name: tensor.expand(count, -1) for name, tensor in self._text.items()}

    def found(self, outputs: Outputs, sizes: list[tuple[int, int]]) -> list[Found]:
        """See :class:`Reader`; a box whose best phrase has no token above the text threshold is dropped."""
        results = self._processor.post_process_grounded_object_detection(
            outputs,
            self._text["input_ids"].expand(len(sizes), -1),
            threshold=self._confidence,
            text_threshold=self._text_threshold,
            target_sizes=sizes,
        )
        found = []
        for result, logits in zip(results, outputs.logits, strict=True):
            scores = torch.sigmoid(logits)
            scores = scores[scores.max(dim=-1)[0] > self._confidence]  # the rows that post-processing keeps, in order
            by_phrase = torch.stack([scores[:, span].max(dim=1)[0] for span in self._spans], dim=1)
            best, number = by_phrase.max(dim=1)
            kept = best > self._text_threshold
            labels = [self._phrases[int(index)] for index in number[kept]]
            found.append(Found(result["boxes"][kept], result["scores"][kept], labels))
        return found


class OwlReader(Reader):
    """Phrases as queries of their own."""

    def __init__(self, processor: Any, phrases: Sequence[str], model: str, most: int, confidence: float):
        self._processor = processor
        self._phrases = list(phrases)
        self._confidence = confidence
        for phrase in phrases:
            count = len(processor.tokenizer(phrase)["input_ids"])
            if count > most:
                raise ConfigError(f"phrases: '{phrase}' makes {count} tokens, {model} reads {most}; shorten it")
        encoded = processor.tokenizer(self._phrases, padding="max_length", max_length=most, return_tensors="pt")
        self._text: dict[str, Tensor] = {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def text(self, count: int) -> dict[str, Tensor]:
        """See :class:`Reader`: every phrase for each picture."""
        return {name: tensor.repeat(count, 1) for name, tensor in self._text.items()}

    def found(self, outputs: Outputs, sizes: list[tuple[int, int]]) -> list[Found]:
        """See :class:`Reader`; each box has its best phrase."""
        results = self._processor.post_process_grounded_object_detection(
            outputs, threshold=self._confidence, target_sizes=sizes, text_labels=[self._phrases] * len(sizes)
        )
        return [Found(result["boxes"], result["scores"], result["text_labels"]) for result in results]


def _processor(network: HfNetwork) -> Any:
    kind = getattr(transformers, PROCESSORS[network.config.model_type])
    tokenizer = load_tokenizer(network.folder)
    with reading(f"{network.folder}: its tokenizer does not fit the model", "restore the tokenizer's files"):
        return kind(image_processor=network.image_processor, tokenizer=tokenizer)


def _spans(phrases: list[str], offsets: list[list[int]], model: str) -> list[list[int]]:
    """Numbers of the tokens of each phrase in their joined text, by the tokens' places in it."""
    spans, start = [], 0
    for phrase in phrases:
        end = start + len(phrase)
        span = [number for number, (first, last) in enumerate(offsets) if start <= first < last <= end]
        if not span:
            raise ConfigError(f"phrases: the tokenizer of {model} knows nothing of '{phrase}'; use other words")
        spans.append(span)
        start = end + len(". ")
    return spans
