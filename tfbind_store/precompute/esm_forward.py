"""The forward pass of ESM-2 and ESM-1b up to one layer, on batches of proteins: fair-esm's numbers, less work.

fair-esm's ESM-2 writes out every attention matrix, averages them over the heads, runs layers behind the one asked for,
and ends with the masked-language head; none of that changes an embedding. Here attention is torch's fused one and
padded tokens are not looked at. ESM-1b has no rotary positions and runs through fair-esm's own modules.
"""

# b proteins · t tokens · h heads · k width of a head · d width of the model

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch.nn import functional

TRAINED_MASK_RATIO = 0.15 * 0.8
"""Share of tokens that training masked; without masks, embeddings are scaled down by it (Lin et al. 2023)."""


def esm_layer(
    model: Any, tokens: Int64[torch.Tensor, "b t"], layer: int, *, padding: int
) -> Float[torch.Tensor, "b t d"]:
    """Return the vectors of `layer`, 0 for the token embeddings; the last layer is normalised as fair-esm does.

    Parameters
    ----------
    model
        ``esm.ESM2`` or ``esm.ProteinBertModel``.
    tokens
        Special tokens and padding included.
    layer
        How many layers to run.
    padding
        The token that is no token.
    """
    if type(model).__name__ != "ESM2":
        found: torch.Tensor = model(tokens, repr_layers=[layer])["representations"][layer]
        return found
    keep = tokens.ne(padding)
    x = model.embed_scale * model.embed_tokens(tokens)
    if model.token_dropout:
        x = x * (1 - TRAINED_MASK_RATIO)
    x = x * keep[..., None].to(x.dtype)
    mask = None if bool(keep.all()) else keep[:, None, None, :]
    cos, sin = _rotary(model.layers[0].self_attn.rot_emb.inv_freq, tokens.shape[1]) if layer else (x, x)
    for block in model.layers[:layer]:
        x = x + _attention(block.self_attn, block.self_attn_layer_norm(x), mask, cos.to(x.dtype), sin.to(x.dtype))
        hidden = functional.gelu(block.fc1(block.final_layer_norm(x)))
        x = x + block.fc2(hidden)
    done: torch.Tensor = model.emb_layer_norm_after(x) if layer == len(model.layers) else x
    return done


def _attention(
    attention: Any,
    x: Float[torch.Tensor, "b t d"],
    mask: Bool[torch.Tensor, "b 1 1 t"] | None,
    cos: Float[torch.Tensor, "t k"],
    sin: Float[torch.Tensor, "t k"],
) -> Float[torch.Tensor, "b t d"]:
    heads = (*x.shape[:2], attention.num_heads, attention.head_dim)
    q, k, v = (
        project(x).view(heads).transpose(1, 2) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = functional.scaled_dot_product_attention(_turned(q, cos, sin), _turned(k, cos, sin), v, attn_mask=mask)
    out: torch.Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(x.shape))
    return out


def _rotary(
    frequencies: Float[torch.Tensor, " half"], n_tokens: int
) -> tuple[Float[torch.Tensor, "t k"], Float[torch.Tensor, "t k"]]:
    """Return cosines and sines of each token's angles (Su et al. 2021), in float32."""
    place = torch.arange(n_tokens, device=frequencies.device, dtype=torch.float32)
    angles = torch.outer(place, frequencies.float()).repeat(1, 2)
    return angles.cos(), angles.sin()


def _turned(
    x: Float[torch.Tensor, "b h t k"], cos: Float[torch.Tensor, "t k"], sin: Float[torch.Tensor, "t k"]
) -> Float[torch.Tensor, "b h t k"]:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
