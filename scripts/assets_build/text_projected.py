"""Train the second CLIP of the tiny SDXL: a text model with a projection, against frozen picture features.

The first one is FLUX's, shared. SDXL reads the layer before the last of both, and the projection of this one.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from . import text, tokenizers, views
from .render import BaseImages
from .training import Run, cosine

SEED = 61
WIDTH, PROJECTION = 64, 96
BATCH = 256
LEARNING_RATE = 1.5e-3


def build(tokens: tokenizers.CLIPTokenizer) -> CLIPTextModelWithProjection:
    vocabulary = tokens.get_vocab()
    begin, end = (vocabulary[token] for token in tokenizers.CLIP_SPECIAL)
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=PROJECTION,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizers.CLIP_LENGTH,
            hidden_act="gelu",
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def load(work: Path) -> CLIPTextModelWithProjection:
    folder = work / "text_projected" / "final"
    return CLIPTextModelWithProjection.from_pretrained(folder).eval().requires_grad_(False)


def train(work: Path, seconds: float) -> None:
    """Train for ``seconds`` of work, write ``text_projected/final``, report retrieval of held-out pictures."""
    folder = work / "text_projected"
    if (folder / "report.json").exists():
        print("the projected text encoder is trained", flush=True)
        return
    torch.manual_seed(SEED)
    images = BaseImages.load(work)
    chosen_views = text.training_views(images)
    features, captions = text.picture_features(work, chosen_views), [view.caption for view in chosen_views]
    mean, std = features.mean(0), features.std(0) + 1e-6
    tokens = text.load(work).clip_tokens
    model, from_picture = build(tokens), nn.Linear(features.shape[1], PROJECTION)
    scale = nn.Parameter(torch.tensor(2.5))
    unique = sorted(set(captions))
    number = {caption: index for index, caption in enumerate(unique)}
    label = torch.tensor([number[caption] for caption in captions])
    ids = token_ids(tokens, unique)
    parameters = [*model.parameters(), *from_picture.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.05)
    run, step = Run(folder / "checkpoint.pt", seconds), 0
    if run.state:
        model.load_state_dict(run.state["model"])
        from_picture.load_state_dict(run.state["from_picture"])
        scale.data.copy_(run.state["scale"])
        optimizer.load_state_dict(run.state["optimizer"])
        step = run.state["step"]
    while not run.done:
        progress = run.tick()
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(progress, warm=0.03)
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        chosen = torch.randperm(len(label), generator=generator)[:BATCH]
        pictures = F.normalize(from_picture(F.dropout((features[chosen] - mean) / std, 0.2)), dim=1)
        words = F.normalize(pooled(model, ids[label[chosen]]), dim=1)
        loss = _contrast(scale.exp() * words @ pictures.T, label[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"projected text {run.spent:5.0f} s  step {step}  loss {loss.item():.3f}", flush=True)
        if run.due:
            run.save(
                model=model.state_dict(),
                from_picture=from_picture.state_dict(),
                scale=scale.data,
                optimizer=optimizer.state_dict(),
                step=step,
            )
    model.save_pretrained(folder / "final")
    whole = views.whole_views(images, images.rows(held_out=True, known_only=True))
    report = {"steps": step, "held_out": _retrieval(work, model.eval(), from_picture, tokens, whole, mean, std)}
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report), flush=True)


def token_ids(tokens: tokenizers.CLIPTokenizer, captions: list[str]) -> Tensor:
    """Ids of the full length, as the pipeline makes them."""
    return tokens(
        captions, padding="max_length", max_length=tokenizers.CLIP_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def pooled(model: CLIPTextModelWithProjection, ids: Tensor) -> Tensor:
    """The projected encoding of each caption; what follows the longest one is unread (causal attention)."""
    longest = int((ids != model.config.eos_token_id).sum(1).max()) + 1
    return model(ids[:, :longest]).text_embeds


def _contrast(logits: Tensor, label: Tensor) -> Tensor:
    """InfoNCE in both directions; two views with one caption are both right."""
    same = (label[:, None] == label[None, :]).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def _retrieval(
    work: Path,
    model: CLIPTextModelWithProjection,
    from_picture: nn.Linear,
    tokens: tokenizers.CLIPTokenizer,
    whole: list[views.View],
    mean: Tensor,
    std: Tensor,
) -> dict[str, float]:
    """How often a held-out caption's nearest whole picture is its own, among all held-out whole pictures."""
    pictures = F.normalize(from_picture((text.picture_features(work, whole) - mean) / std), dim=1)
    words = F.normalize(pooled(model, token_ids(tokens, [view.caption for view in whole])), dim=1)
    order, truth = (words @ pictures.T).argsort(dim=1, descending=True), torch.arange(len(whole))
    return {
        "candidates": float(len(whole)),
        "top1": round((order[:, 0] == truth).float().mean().item(), 3),
        "top5": round((order[:, :5] == truth[:, None]).any(1).float().mean().item(), 3),
    }
