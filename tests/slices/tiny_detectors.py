"""Random detection networks of a few thousand weights in transformers layout, with tokenizers made here."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.utils import logging

CLASSES = {0: "person", 1: "head", 2: "eye"}
WORDS = ("upper", "body", "logo", "red", "hat", "sub", "##marine", "a", "cat", "?")


def save_detector(kind: str, folder: Path) -> Path:
    """A network with classes of its own: detr, conditional-detr, rt-detr or yolos."""
    logging.set_verbosity_error()
    edges = {"shortest_edge": 48, "longest_edge": 80}
    common = {
        "d_model": 16,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "num_queries": 6,
        "id2label": CLASSES,
    }
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if kind in ("detr", "conditional-detr"):
            backbone = transformers.ResNetConfig(**sizes, out_features=["stage4"])
            names = {"detr": "Detr", "conditional-detr": "ConditionalDetr"}
            config = _of(names[kind], "Config")(
                **common, backbone_config=backbone, use_timm_backbone=False, backbone=None, encoder_layers=1
            )
            model, processor = _of(names[kind], "ForObjectDetection")(config), _of(names[kind], "ImageProcessorPil")
            size = edges
        elif kind == "rt-detr":
            backbone = transformers.RTDetrResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"])
            config = transformers.RTDetrConfig(
                **common,
                backbone_config=backbone,
                encoder_hidden_dim=16,
                encoder_in_channels=[8, 8, 16],
                decoder_in_channels=[16, 16, 16],
                hidden_expansion=0.5,
                num_denoising=0,
            )
            model, processor = transformers.RTDetrForObjectDetection(config), transformers.RTDetrImageProcessorPil
            size = {"height": 64, "width": 64}
        else:
            config = transformers.YolosConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                image_size=[64, 64],
                num_detection_tokens=6,
                id2label=CLASSES,
            )
            model, processor = transformers.YolosForObjectDetection(config), transformers.YolosImageProcessorPil
            size = edges
        _stir(model)
    model.save_pretrained(folder)
    processor(size=size).save_pretrained(folder)
    return folder


def save_rf_detr(folder: Path) -> Path:
    """RF-DETR of one layer; its image processor needs torchvision, so its rule is written by hand."""
    logging.set_verbosity_error()
    backbone = {
        "model_type": "rf_detr_dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 1,
        "image_size": 64,
        "patch_size": 8,
        "num_windows": 2,
        "out_indices": [1, 2],
    }
    with torch.random.fork_rng():
        torch.manual_seed(8)
        config = transformers.RfDetrConfig(
            backbone_config=backbone,
            c2f_num_blocks=1,
            d_model=16,
            decoder_ffn_dim=16,
            decoder_layers=1,
            decoder_self_attention_heads=2,
            decoder_cross_attention_heads=2,
            num_queries=6,
            group_detr=1,
            id2label=CLASSES,
        )
        model = transformers.RfDetrForObjectDetection(config)
        _stir(model)
    model.save_pretrained(folder)
    rule = {"image_processor_type": "RfDetrImageProcessor", "size": {"height": 48, "width": 64}, "do_pad": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(rule))
    return folder


def save_grounding_dino(folder: Path, family: str = "GroundingDino") -> Path:
    """Grounding DINO or MMGroundingDino over a Swin of four stages and a BERT of one layer."""
    logging.set_verbosity_error()
    with torch.random.fork_rng():
        torch.manual_seed(6)
        backbone = transformers.SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        )
        text = transformers.BertConfig(
            vocab_size=1100,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        )
        config = _of(family, "Config")(
            backbone_config=backbone,
            text_config=text,
            num_queries=8,
            num_feature_levels=3,
            encoder_layers=1,
            encoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_layers=2,
            decoder_ffn_dim=16,
            decoder_attention_heads=2,
            d_model=32,
            max_text_len=20,
        )
        model = _of(family, "ForObjectDetection")(config)
        _stir(model)
    model.save_pretrained(folder)
    processor = transformers.GroundingDinoProcessor(
        transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 80}), word_pieces()
    )
    processor.save_pretrained(folder)
    return folder


def save_owl(folder: Path, family: str = "Owlv2") -> Path:
    """OWLv2 or OwlViT of one layer a tower, patches of 16 in 64 pixels."""
    logging.set_verbosity_error()
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = byte_pairs()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = _of(family, "Config")(
            text_config={**tower, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
            vision_config={**tower, "image_size": 64, "patch_size": 16},
            projection_dim=16,
        )
        model = _of(family, "ForObjectDetection")(config)
        _stir(model)
    model.save_pretrained(folder)
    pixels = _of(family, "ImageProcessorPil")(size={"height": 64, "width": 64})
    _of(family, "Processor")(pixels, tokenizer).save_pretrained(folder)
    return folder


def word_pieces() -> transformers.PreTrainedTokenizerBase:
    """BERT's kind of tokenizer; special tokens and the dot have the numbers that Grounding DINO looks for."""
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    free = (number for number in range(1, 1100) if number not in fixed.values())
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = dict.fromkeys([*WORDS, *letters, *(f"##{letter}" for letter in letters)])
    vocabulary = fixed | {word: next(free) for word in words if word not in fixed}
    vocabulary |= {f"[unused{number}]": number for number in range(1100) if number not in vocabulary.values()}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    return transformers.BertTokenizer(tokenizer_object=inner, model_max_length=64)


def byte_pairs() -> transformers.PreTrainedTokenizerBase:
    """CLIP's kind of tokenizer without merges: each letter is a token; the end of text has the greatest number."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["!", *(letter for letter in letters if letter != "!"), *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    inner = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    last = len(vocabulary) - 1
    inner.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", last - 1), ("<|endoftext|>", last)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="!",
        model_max_length=16,
    )


def _of(family: str, what: str):
    return getattr(transformers, f"{family}{what}")


def _stir(model: torch.nn.Module) -> None:
    """Weights far enough from their start that boxes and scores differ from query to query."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed_tokens" not in name:
            parameter.data += torch.randn_like(parameter) * 0.3
