"""Spatial Gram loss: the self-similarities of features against those of a reference.

Spatial Gram Alignment (arXiv 2605.20808), Eqs. 3 and 4: with unit rows Z (what trains) and F
(the reference), N tokens each,

    L = |Z Z' - F F'|_F^2 / N^2                                                                        (direct)
      = (|Z' Z|_F^2 + |F' F|_F^2 - 2 |F' Z|_F^2) / N^2                                                 (factored)
    dL/dZ = 4 (Z Z' - F F') Z / N^2 = 4 (Z (Z' Z) - F (F' Z)) / N^2

The direct form holds N x N matrices, the factored one C x C. Both give the gradient together with the value, so that
nothing but it is kept for the backward pass; there is no second derivative. The factored form takes a difference of
large numbers: relative to a loss of 2e-6 it is off by about 1e-4 in float32, where the direct form is off by 1e-7.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Form = Literal["direct", "factored"]
EPSILON = 1e-12
"""A row shorter than this has no direction; it counts as zero."""


def unit_rows(
    tokens: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"] | None = None, centred: bool = False
) -> Float[Tensor, "b n c"]:
    """Rows of length 1, at least in float32; those of masked tokens (False) and of no direction are zero.

    ``centred`` first subtracts the mean over the tokens that count: vision models' features share a large mean
    direction, which flattens their self-similarities. The paper does not.
    """
    return F.normalize(_prepared(tokens, mask, centred), dim=-1, eps=EPSILON)


@dataclass(frozen=True)
class GramTarget:
    """The reference's part of the loss, which depends on no parameter."""

    rows: Float[Tensor, "b n c"]
    """Unit rows, zero where masked."""
    tokens: Float[Tensor, " b"]
    """Tokens that count, by sample."""
    form: Form
    gram: Float[Tensor, "b n n"] | None
    """F F' in the direct form."""
    square: Float[Tensor, " b"]
    """|F' F|_F^2."""

    @classmethod
    def of(
        cls,
        features: Float[Tensor, "b n c"],
        width: int,
        mask: Bool[Tensor, "b n"] | None = None,
        centred: bool = False,
        form: Form | Literal["auto"] = "auto",
    ) -> "GramTarget":
        """Of reference features, for trained ones of ``width`` channels; ``mask`` False where a token is padding."""
        with torch.no_grad(), _full_precision(features):
            rows = unit_rows(features.detach(), mask, centred)
            chosen = choose_form(rows.shape[1], width, rows.shape[2]) if form == "auto" else form
            gram = rows @ rows.mT if chosen == "direct" else None
            square = (rows.mT @ rows if gram is None else gram).square().sum(dim=(1, 2))
        count = features.shape[1]
        tokens = square.new_full((len(rows),), count) if mask is None else mask.sum(dim=1).to(square.dtype)
        return cls(rows, tokens, chosen, gram, square)


def choose_form(tokens: int, width: int, reference_width: int) -> Form:
    """The form with fewer multiplications, forward, backward and target together; direct where they are equal.

    Direct: Z Z', F F' and (Z Z' - F F') Z. Factored: Z' Z, F' Z, F' F, Z (Z' Z) and F (F' Z).
    """
    direct = tokens**2 * (2 * width + reference_width)
    factored = tokens * (2 * width**2 + 2 * width * reference_width + reference_width**2)
    return "direct" if direct <= factored else "factored"


def gram_loss(
    tokens: Float[Tensor, "b n c"],
    target: GramTarget,
    mask: Bool[Tensor, "b n"] | None = None,
    centred: bool = False,
) -> Float[Tensor, " b"]:
    """Mean squared difference of the two Gram matrices over the tokens that count, in [0, 2], by sample (Eqs. 3, 4).

    ``mask`` and ``centred`` must be those of the target. A sample without tokens gives 0. Computed in float32 at least,
    also under autocast. Raises ValueError where the numbers of samples or tokens differ.
    """
    if tokens.shape[:2] != target.rows.shape[:2]:
        raise ValueError(f"features of {tuple(tokens.shape[:2])} against a reference of {tuple(target.rows.shape[:2])}")
    with _full_precision(tokens):
        value = _GramLoss.apply(_prepared(tokens, mask, centred), target)
    return cast(Tensor, value)


class _GramLoss(torch.autograd.Function):
    """Normalises as well: beside the tokens no more than two buffers of their size are alive at a time."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, target: GramTarget) -> Tensor:
        lengths = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
        inverse = torch.where(lengths > EPSILON, 1 / lengths, 0)
        rows, fixed = tokens * inverse, target.rows.to(tokens.dtype)
        scale = 1 / target.tokens.to(rows.dtype).square().clamp(min=1)
        wanted = ctx.needs_input_grad[0]
        if target.gram is not None:
            error = torch.baddbmm(target.gram.to(rows.dtype), rows, rows.mT, beta=-1)
            value = torch.linalg.vector_norm(error, dim=(1, 2)).square()
            gradient = error @ rows if wanted else None
        else:
            own, cross = rows.mT @ rows, fixed.mT @ rows
            value = own.square().sum(dim=(1, 2)) + target.square.to(rows.dtype) - 2 * cross.square().sum(dim=(1, 2))
            gradient = (rows @ own).baddbmm_(fixed, cross, alpha=-1) if wanted else None
        if gradient is not None:
            along = torch.einsum("bnc,bnc->bn", rows, gradient).unsqueeze(-1)
            gradient.addcmul_(rows, along, value=-1)  # through the normalisation: (1 - z z') / length
            ctx.save_for_backward(gradient.mul_(4 * scale[:, None, None] * inverse))
        return value.clamp(min=0) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # create_graph: the kept gradient is a constant to autograd
            raise RuntimeError("the Gram loss has no second derivative")
        (gradient,) = ctx.saved_tensors
        return gradients[0][:, None, None] * gradient, None


def _prepared(tokens: Tensor, mask: Tensor | None, centred: bool) -> Tensor:
    rows = tokens if tokens.dtype == torch.float64 else tokens.float()
    if centred:
        rows = rows - _token_mean(rows, mask)
    return rows if mask is None else rows * mask.unsqueeze(-1)


def _token_mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return rows.mean(dim=1, keepdim=True)
    weights = mask.to(rows.dtype).unsqueeze(-1)
    return (rows * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp(min=1)


def _full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    return torch.autocast(tensor.device.type, enabled=False)
