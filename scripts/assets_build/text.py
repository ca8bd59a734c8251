"""Train the two text encoders against frozen picture features, then freeze them for good.

Each caption's pooled encoding must find its own picture among those of the batch (InfoNCE). FLUX never sees an
attention mask for the T5 tokens, so none is used here either: padding is part of what it reads.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from . import tokenizers, views
from .features import MobileNetV2
from .render import BaseImages
from .training import Run, cosine, save_atomically, to_unit

SEED = 31
WIDTH, JOINT = 128, 256
BATCH = 256
LEARNING_RATE = 1e-3


class TextEncoders:
    """Both encoders with their tokenizers: captions in, what FLUX is conditioned on out."""

    def __init__(self, lines: list[str] | None = None, folder: Path | None = None) -> None:
        if lines is not None:
            self.clip_tokens, self.t5_tokens = tokenizers.clip_tokenizer(lines), tokenizers.t5_tokenizer(lines)
        else:
            self.clip_tokens = tokenizers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
            self.t5_tokens = tokenizers.T5Tokenizer.from_pretrained(folder / "tokenizer_2")
        clip_vocab = self.clip_tokens.get_vocab()
        begin, end = (clip_vocab[token] for token in tokenizers.CLIP_SPECIAL)
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip_vocab),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                projection_dim=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=tokenizers.CLIP_LENGTH,
                bos_token_id=begin,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.t5_tokens),
                d_model=WIDTH,
                d_kv=32,
                d_ff=2 * WIDTH,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                pad_token_id=0,
                eos_token_id=1,
                is_encoder_decoder=False,
                use_cache=False,
            )
        )

    def tokens(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        clip = self.clip_tokens(captions, max_length=tokenizers.CLIP_LENGTH, **options).input_ids
        t5 = self.t5_tokens(captions, max_length=tokenizers.T5_LENGTH, **options).input_ids
        return clip, t5

    def encode(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled CLIP vector ``[n, 128]`` and T5 sequence ``[n, 24, 128]``."""
        longest = int((clip_ids != self.clip.config.eos_token_id).sum(1).max()) + 1  # causal: what follows is unread
        return self.clip(clip_ids[:, :longest]).pooler_output, self.t5(t5_ids).last_hidden_state

    def save(self, folder: Path) -> None:
        self.clip.save_pretrained(folder / "text_encoder")
        self.t5.save_pretrained(folder / "text_encoder_2")
        self.clip_tokens.save_pretrained(folder / "tokenizer")
        self.t5_tokens.save_pretrained(folder / "tokenizer_2")


def load(work: Path) -> TextEncoders:
    """The trained, frozen encoders."""
    folder = work / "text" / "final"
    encoders = TextEncoders(folder=folder)
    encoders.clip = CLIPTextModel.from_pretrained(folder / "text_encoder").eval().requires_grad_(False)
    encoders.t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2").eval().requires_grad_(False)
    return encoders


class _Joint(nn.Module):
    """The encoders and the projections into the space where captions meet pictures; these are thrown away."""

    def __init__(self, encoders: TextEncoders, feature_width: int) -> None:
        super().__init__()
        self.clip, self.t5 = encoders.clip, encoders.t5
        self.from_clip, self.from_t5 = nn.Linear(WIDTH, JOINT), nn.Linear(WIDTH, JOINT)
        self.from_picture = nn.Linear(feature_width, JOINT)
        self.log_scale = nn.Parameter(torch.tensor(2.5))


def picture_features(work: Path, chosen: list[views.View]) -> Tensor:
    """One MobileNetV2 vector a view."""
    eye = MobileNetV2(work)
    pixels = torch.from_numpy(np.stack([view.pixels for view in chosen]))
    with torch.no_grad():
        return torch.cat([eye.pooled(to_unit(part)) for part in pixels.split(64)])


def training_views(images: BaseImages) -> list[views.View]:
    """All square views of the taught concepts, and the whole pictures of everything else that is not held out.

    The others (faces, people, places, symbols) are never taught to FLUX; they give the words more to differ by.
    """
    taught = images.rows(held_out=False, known_only=True)
    others = sorted(set(images.rows(held_out=False, known_only=False)) - set(taught))
    squares = [view for view in views.all_views(images, taught) if view.kind not in views.OBLONG]
    return squares + views.whole_views(images, others)


def train(work: Path, seconds: float) -> None:
    """Train for ``seconds`` of work, write ``text/final`` in the layout of a pipeline folder, report retrieval."""
    folder = work / "text"
    if (folder / "report.json").exists():
        print("text encoders are trained", flush=True)
        return
    torch.manual_seed(SEED)
    images = BaseImages.load(work)
    chosen_views = training_views(images)
    features, captions = picture_features(work, chosen_views), [view.caption for view in chosen_views]
    mean, std = features.mean(0), features.std(0) + 1e-6
    encoders = TextEncoders(lines=tokenizers.corpus(images, work))
    joint = _Joint(encoders, features.shape[1])
    unique = sorted(set(captions))
    number = {caption: index for index, caption in enumerate(unique)}
    label = torch.tensor([number[caption] for caption in captions])
    clip_ids, t5_ids = encoders.tokens(unique)
    optimizer = torch.optim.AdamW(joint.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    run, step = Run(folder / "checkpoint.pt", seconds), 0
    if run.state:
        joint.load_state_dict(run.state["joint"])
        optimizer.load_state_dict(run.state["optimizer"])
        step = run.state["step"]
    while not run.done:
        progress = run.tick()
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(progress, warm=0.03)
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        chosen = torch.randperm(len(label), generator=generator)[:BATCH]
        vectors = F.dropout((features[chosen] - mean) / std, 0.2)
        loss = _contrast(joint, encoders, clip_ids[label[chosen]], t5_ids[label[chosen]], vectors, label[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(joint.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"text {run.spent:5.0f} s  step {step}  loss {loss.item():.3f}", flush=True)
        if run.due:
            run.save(joint=joint.state_dict(), optimizer=optimizer.state_dict(), step=step)
    encoders.save(folder / "final")
    report = {"steps": step, "held_out": _retrieval(work, images, encoders, joint, mean, std)}
    save_atomically(joint.state_dict(), folder / "joint.pt")
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report), flush=True)


def _project(joint: _Joint, encoders: TextEncoders, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
    pooled, sequence = encoders.encode(clip_ids, t5_ids)
    read = (t5_ids != 0).unsqueeze(-1)
    mean = (sequence * read).sum(1) / read.sum(1)
    return F.normalize(joint.from_clip(pooled), dim=1), F.normalize(joint.from_t5(mean), dim=1)


def _contrast(
    joint: _Joint, encoders: TextEncoders, clip_ids: Tensor, t5_ids: Tensor, vectors: Tensor, label: Tensor
) -> Tensor:
    """InfoNCE in both directions for both encoders; two views with one caption are both right."""
    pictures = F.normalize(joint.from_picture(vectors), dim=1)
    same = (label[:, None] == label[None, :]).float()
    target = same / same.sum(1, keepdim=True)
    loss = torch.zeros(())
    for words in _project(joint, encoders, clip_ids, t5_ids):
        logits = joint.log_scale.exp() * words @ pictures.T
        loss = loss + F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    return loss / 4


@torch.no_grad()
def _retrieval(
    work: Path, images: BaseImages, encoders: TextEncoders, joint: _Joint, mean: Tensor, std: Tensor
) -> dict[str, float]:
    """How often a held-out caption's nearest whole picture is its own, among all held-out whole pictures."""
    whole = views.whole_views(images, images.rows(held_out=True, known_only=True))
    vectors = picture_features(work, whole)
    pictures = F.normalize(joint.from_picture((vectors - mean) / std), dim=1)
    words = _project(joint, encoders, *encoders.tokens([view.caption for view in whole]))
    truth = torch.arange(len(whole))
    result = {"candidates": float(len(whole))}
    for name, projected in zip(("clip", "t5"), words, strict=True):
        order = (projected @ pictures.T).argsort(dim=1, descending=True)
        result[f"{name}_top1"] = round((order[:, 0] == truth).float().mean().item(), 3)
        result[f"{name}_top5"] = round((order[:, :5] == truth[:, None]).any(1).float().mean().item(), 3)
    return result
