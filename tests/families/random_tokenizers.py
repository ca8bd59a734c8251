"""Byte-level tokenizers of a few hundred tokens, in the layout of the language models that read captions."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")

QWEN_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen3's: an empty thought where thinking is switched off."""

CORPUS = (
    "system user assistant Describe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background: You are an AI that reasons about image descriptions."
)


def byte_level(special: tuple[str, ...], size: int = 420) -> Tokenizer:
    """Byte-pair encoding over all bytes, merged by the templates' words; ``special`` come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS] * 3, trainer)
    return tokenizer


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen's class with its special tokens and chat template."""
    built = byte_level(CHAT_TOKENS)
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=built, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = QWEN_CHAT_TEMPLATE
    return tokenizer
