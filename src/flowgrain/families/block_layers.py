"""Names of the linear layers in a transformer's repeated blocks, as patterns for adapters."""

ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
"""Attention of one stream in diffusers' blocks."""

JOINT_ATTENTION = (*ATTENTION, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
"""Attention of an image and a text stream to both."""


def in_blocks(stack: str, *layers: str) -> tuple[str, ...]:
    """Patterns that name ``layers`` in every block of the backbone's attribute ``stack``."""
    return tuple(f"{stack}.*.{layer}" for layer in layers)
