"""Attention with Enformer's relative positions, without the tensors that its own forward makes on the way.

Keys of distances are computed once per layer and length: they do not depend on the input. Only the distances that a
block of queries meets are multiplied, and the shift that puts row i's distance j - i under column j is a view with
another stride. Two ways to the same numbers: `by_head`, one head of one window at a time so that a block of logits
stays in the cache of one core, and `batched`, all heads and windows at once through scaled-dot-product attention, for
GPUs and for windows of few tokens.
"""

# b windows · n tokens · q queries · h heads · k key dim · v value dim · c channels

from __future__ import annotations

import contextlib
from typing import Any

import torch
from enformer_pytorch.modeling_enformer import get_positional_embed
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tfbind_store.precompute.packed import PackedLinear, product

CPU_QUERIES = 128
"""Queries at once on a CPU: their logits over 1,536 tokens are 0.8 MB."""
GPU_QUERIES = 512
FEW_TOKENS = 128
"""Up to this many tokens a head alone is too little work for one product."""


class TransformerBlock:
    """Attention with relative positions and a feed-forward, both residual.

    Parameters
    ----------
    block
        enformer-pytorch's own.
    dtype
        Of products and rows; position features are always computed in float32, for their rounding is part of a trunk.
    onednn
        As in `PackedLinear`.
    """

    def __init__(self, block: Any, *, dtype: torch.dtype, onednn: bool) -> None:
        norm, attention, _ = block[0].fn
        self.onednn = onednn
        self.norm = _layer_norm(norm, dtype)
        self.heads = attention.heads
        self.key_dim = attention.to_q.out_features // self.heads
        self.value_dim = attention.to_v.out_features // self.heads
        self.query = PackedLinear((attention.to_q.weight * attention.scale).to(dtype), onednn=onednn)
        self.key_value = PackedLinear(
            torch.cat([attention.to_k.weight, attention.to_v.weight]).to(dtype), onednn=onednn
        )
        self.out = _as_it_is(attention.to_out, dtype, onednn)
        self.content_bias = attention.rel_content_bias[0].detach().to(dtype)
        self.position_bias = attention.rel_pos_bias[0].detach().to(dtype)
        self.dtype = dtype
        self.n_features, self.use_tf_gamma = attention.num_rel_pos_features, attention.use_tf_gamma
        precise = torch.promote_types(dtype, torch.float32)
        self.distance_weight = attention.to_rel_k.weight.detach().to(precise)
        self._relative_keys: dict[int, Tensor] = {}
        norm2, first, _, _, second, _ = block[1].fn
        self.norm2 = _layer_norm(norm2, dtype)
        self.first, self.second = (_as_it_is(layer, dtype, onednn) for layer in (first, second))

    def relative_keys(self, n: int) -> Float[Tensor, "h distances k"]:
        """Return each head's key of every distance -(n - 1) .. n - 1."""
        if n not in self._relative_keys:
            positions = get_positional_embed(
                n, self.n_features, self.distance_weight.device, use_tf_gamma=self.use_tf_gamma, dtype=torch.float32
            )
            keys = functional.linear(positions.to(self.distance_weight.dtype), self.distance_weight)
            self._relative_keys[n] = keys.unflatten(1, (self.heads, -1)).transpose(0, 1).to(self.dtype).contiguous()
        return self._relative_keys[n]

    def relative_bytes(self, n: int) -> int:
        """Return what the keys of distances of `n` tokens take."""
        return int(self.heads * (2 * n - 1) * self.key_dim) * self.dtype.itemsize

    def __call__(self, x: Float[Tensor, "b n c"], keep: slice) -> Float[Tensor, "b kept c"]:
        """Return the block's output for the tokens in `keep`; keys and values come from all tokens."""
        n = x.shape[1]
        normed = self.norm(x)
        kept, normed_kept = (x, normed) if keep == slice(0, n) else (x[:, keep], normed[:, keep])
        query = self.query(normed_kept).unflatten(2, (self.heads, self.key_dim)).transpose(1, 2)
        key, value = self.key_value(normed).split((self.heads * self.key_dim, self.heads * self.value_dim), dim=2)
        key = key.unflatten(2, (self.heads, self.key_dim)).transpose(1, 2).contiguous()
        value = value.unflatten(2, (self.heads, self.value_dim)).transpose(1, 2).contiguous()
        del normed, normed_kept
        relative, content, position = self.relative_keys(n), query + self.content_bias, query + self.position_bias
        if x.device.type == "cpu" and n > FEW_TOKENS:
            attended = by_head(content, position, key, value, relative, first_query=keep.start, onednn=self.onednn)
        else:
            attended = batched(content, position, key, value, relative, first_query=keep.start)
        y = self.out.add(attended.transpose(1, 2).flatten(2), kept.contiguous())
        return self.second.add(self.first(self.norm2(y), "relu"), y)


def by_head(
    content: Float[Tensor, "b h q k"],
    position: Float[Tensor, "b h q k"],
    key: Float[Tensor, "b h n k"],
    value: Float[Tensor, "b h n v"],
    relative: Float[Tensor, "h distances k"],
    *,
    first_query: int,
    onednn: bool,
) -> Float[Tensor, "b h q v"]:
    """Attend one head and one block of queries at a time.

    Query i and key j are ``j - i`` apart, which is row ``j - i + n - 1`` of `relative`. A block of B queries meets only
    n + B - 1 distances; in the product with those, row r holds its own n logits from column B - 1 - r on, so that a
    view with a row stride one shorter is the shifted matrix.
    """
    b, h, queries, _ = content.shape
    n = key.shape[2]
    out = value.new_empty(b, h, queries, value.shape[3])
    precise = torch.promote_types(value.dtype, torch.float32)
    for start in range(0, queries, CPU_QUERIES):
        stop = min(start + CPU_QUERIES, queries)
        rows = stop - start
        met = _met(relative, n, first_query + start, rows)
        for i in range(b):
            for j in range(h):
                far = product(position[i, j, start:stop], met[j], onednn=onednn)
                shifted = far.as_strided((rows, n), (n + rows - 2, 1), rows - 1)
                logits = product(content[i, j, start:stop], key[i, j], onednn=onednn).add_(shifted)
                weights = logits.softmax(dim=-1, dtype=precise).to(value.dtype)
                out[i, j, start:stop] = product(weights, value[i, j].T, onednn=onednn)
    return out


def batched(
    content: Float[Tensor, "b h q k"],
    position: Float[Tensor, "b h q k"],
    key: Float[Tensor, "b h n k"],
    value: Float[Tensor, "b h n v"],
    relative: Float[Tensor, "h distances k"],
    *,
    first_query: int,
) -> Float[Tensor, "b h q v"]:
    """Attend all heads and windows at once; the position logits are the bias of scaled-dot-product attention.

    float32 keeps to torch's plain products and softmax: fused kernels of GPUs multiply float32 in three TF32 parts.
    """
    b, h, queries, _ = content.shape
    n = key.shape[2]
    is_half = content.dtype.itemsize < 4
    parts = []
    for start in range(0, queries, GPU_QUERIES):
        rows = min(GPU_QUERIES, queries - start)
        block = slice(start, start + rows)
        far = torch.matmul(position[:, :, block], _met(relative, n, first_query + start, rows).transpose(1, 2))
        wide = n + rows - 1
        shifted = far.as_strided((b, h, rows, n), (h * rows * wide, rows * wide, wide - 1, 1), rows - 1)
        with contextlib.nullcontext() if is_half else sdpa_kernel(SDPBackend.MATH):
            parts.append(
                functional.scaled_dot_product_attention(
                    # a copy: the kernels want rows that begin at a multiple of 16 bytes
                    content[:, :, block],
                    key,
                    value,
                    attn_mask=shifted.contiguous(),
                    scale=1.0,
                )
            )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _met(relative: Tensor, n: int, first_query: int, rows: int) -> Tensor:
    """Return the keys of the distances between queries ``first_query ..`` and all tokens, the lowest first."""
    lowest = n - 1 - (first_query + rows - 1)
    return relative[:, lowest : lowest + n + rows - 1]


def _as_it_is(linear: nn.Linear, dtype: torch.dtype, onednn: bool) -> PackedLinear:
    """Return a product with the layer's own weights, most of a trunk's; only another dtype needs a copy of them."""
    weight = linear.weight.to(dtype)
    return PackedLinear(weight, linear.bias.to(dtype), onednn=onednn, packed=weight.dtype != linear.weight.dtype)


def _layer_norm(norm: nn.LayerNorm, dtype: torch.dtype) -> nn.LayerNorm:
    copy = nn.LayerNorm(norm.normalized_shape, eps=norm.eps).to(norm.weight.device)
    copy.load_state_dict(norm.state_dict())
    return copy.to(dtype).requires_grad_(False)
