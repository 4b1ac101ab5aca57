"""The forward pass of ESM-2 and ESM-1b up to one layer: fair-esm's numbers, less work.

fair-esm writes out every attention matrix, averages it over the heads, runs layers behind the one asked for, and ends
with the masked-language head; none of that changes an embedding. Here the tokens of several proteins lie one after the
other without padding, query, key and value are one product, and weights are laid out once (see ``packed``). On a CPU
with oneDNN, attention is done head by head while its matrix fits into the cache, with powers of two, which torch
computes four times faster than powers of e; elsewhere it is torch's fused one. Nothing here knows what a residue is.
"""

# n tokens of all proteins · b proteins · t tokens of one · h heads · k width of a head · d width of the model

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from tfbind_store.precompute.packed import PackedLinear, onednn_available, product

TRAINED_MASK_RATIO = 0.15 * 0.8
"""Share of tokens that training masked; without masks, embeddings are scaled down by it (Lin et al. 2023)."""
FEW_TOKENS = 160
"""Below this many tokens all heads together in one product are faster than one after the other (AMD EPYC, measured
with heads of 16 and of 64 numbers)."""
LARGEST_POWER = 96.0
"""Powers of two up to here, and sums of a million of them, are far from float32's end at 128."""


class EsmForward:
    """The layers of an ESM on one device, in one precision.

    Parameters
    ----------
    model
        ``esm.ESM2``, or ``esm.ProteinBertModel`` of version ESM-1b; its own tensors are left alone.
    n_layers
        How many layers to run.
    device, dtype
        Where, and the precision of the products with weights; sums, norms and attention on a CPU are float32.
    onednn
        Use oneDNN on a CPU; False gives the same numbers to rounding.
    """

    def __init__(
        self, model: Any, n_layers: int, *, device: torch.device, dtype: torch.dtype, onednn: bool = True
    ) -> None:
        self.device, self.dtype = device, dtype
        self.onednn = onednn and device.type == "cpu" and onednn_available(dtype)
        self._embed = _on(device, model.embed_tokens.weight)
        self._positions = _learned_positions(model, device)
        self._scale = float(model.embed_scale) * (1 - TRAINED_MASK_RATIO if drops_tokens(model) else 1.0)
        self._before = _Norm.of(getattr(model, "emb_layer_norm_before", None), device)
        self._blocks = [_Block(layer, self) for layer in model.layers[:n_layers]]
        self._after = _Norm.of(model.emb_layer_norm_after, device) if n_layers == len(model.layers) else None

    def __call__(self, lines: Sequence[Sequence[int]]) -> list[Float[Tensor, "t d"]]:
        """Return one row per token of each line of tokens, in float32."""
        lengths = [len(line) for line in lines]
        tokens = torch.tensor([token for line in lines for token in line], device=self.device)
        places = torch.cat([torch.arange(length, device=self.device) for length in lengths])
        x = self._embed[tokens] * self._scale
        if self._positions is not None:
            x = x + self._positions[places]
        if self._before is not None:
            x = self._before(x)
        turns = self._blocks[0].turns(places) if self._blocks else None
        for block in self._blocks:
            x = block(x, lengths, turns)
        if self._after is not None:
            x = self._after(x)
        return list(x.split(lengths))


def is_plain(model: Any) -> bool:
    """Tell whether `EsmForward` knows a model's architecture: ESM-2 or ESM-1b, not the older ESM-1."""
    return all(layer.self_attn.bias_k is None for layer in model.layers) and hasattr(model, "emb_layer_norm_after")


def drops_tokens(model: Any) -> bool:
    """Tell whether a model was trained with whole tokens dropped, and scales its embeddings for it."""
    own = getattr(model, "token_dropout", None)
    return bool(getattr(model.args, "token_dropout", False) if own is None else own)


class _Norm:
    """A LayerNorm with its weights on the device."""

    def __init__(self, norm: Any, device: torch.device) -> None:
        self.weight, self.bias, self.eps = _on(device, norm.weight), _on(device, norm.bias), float(norm.eps)

    @classmethod
    def of(cls, norm: Any, device: torch.device) -> _Norm | None:
        return None if norm is None else cls(norm, device)

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class _Block:
    """One layer: attention and two products, each added to what came in."""

    def __init__(self, layer: Any, owner: EsmForward) -> None:
        attention, device, dtype = layer.self_attn, owner.device, owner.dtype
        self.n_heads, self.dtype, self.onednn = attention.num_heads, dtype, owner.onednn
        self._rotary = None if attention.rot_emb is None else attention.rot_emb.inv_freq.float().to(device)
        self._norm, self._final_norm = _Norm(layer.self_attn_layer_norm, device), _Norm(layer.final_layer_norm, device)
        weight, bias = _query_key_value(attention, pairs=self._rotary is not None)
        self._qkv = self._packed(weight, bias, device)
        self._out = self._packed(attention.out_proj.weight, attention.out_proj.bias, device)
        self._wide = self._packed(layer.fc1.weight, layer.fc1.bias, device)
        self._narrow = self._packed(layer.fc2.weight, layer.fc2.bias, device)

    def _packed(self, weight: Tensor, bias: Tensor, device: torch.device) -> PackedLinear:
        weight, bias = (_on(device, tensor).to(self.dtype) for tensor in (weight, bias))
        return PackedLinear(weight, bias, onednn=self.onednn)

    def __call__(self, x: Float[Tensor, "n d"], lengths: Sequence[int], turns: Tensor | None) -> Float[Tensor, "n d"]:
        qkv = self._qkv(self._norm(x).to(self.dtype)).view(len(x), 3, self.n_heads, -1)
        if x.device.type == "cpu":
            qkv = qkv.float()
        if turns is not None:
            qkv = _turned(qkv, turns)
        if self.onednn:
            mixed = torch.cat([_attend(part) for part in qkv.split(list(lengths))])
        else:
            mixed = _attend_padded(qkv, lengths)
        x = self._added(self._out, mixed, x)
        return self._added(self._narrow, self._wide(self._final_norm(x).to(self.dtype), "gelu"), x)

    def _added(self, linear: PackedLinear, rows: Tensor, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        rows = rows.to(self.dtype)
        return linear.add(rows, x) if self.dtype == x.dtype else x + linear(rows)

    def turns(self, places: Int64[Tensor, " n"]) -> Tensor | None:
        """Return each token's rotations (Su et al. 2021) as complex numbers [n, 1, 1, k / 2]; None without them."""
        if self._rotary is None:
            return None
        angles = torch.outer(places.float(), self._rotary)
        return torch.polar(torch.ones_like(angles), angles)[:, None, None]


def _query_key_value(attention: Any, *, pairs: bool) -> tuple[Float[Tensor, "3d d"], Float[Tensor, " 3d"]]:
    """Return the three projections as one, queries scaled so that attention is a power of two.

    Rotation turns number i of a head with number i + k/2; `pairs` puts the two side by side, in queries and keys alike,
    which leaves their products alone and makes them one complex number.
    """
    factor = math.log2(math.e) * attention.head_dim**-0.5
    weights, biases = [], []
    for project, scale in ((attention.q_proj, factor), (attention.k_proj, 1.0), (attention.v_proj, 1.0)):
        weight, bias = project.weight.detach() * scale, project.bias.detach() * scale
        if pairs and project is not attention.v_proj:
            rows = torch.arange(len(bias), device=bias.device).view(-1, 2, attention.head_dim // 2)
            order = rows.transpose(1, 2).reshape(-1)
            weight, bias = weight[order], bias[order]
        weights.append(weight)
        biases.append(bias)
    return torch.cat(weights), torch.cat(biases)


def _turned(qkv: Float[Tensor, "n 3 h k"], turns: Tensor) -> Float[Tensor, "n 3 h k"]:
    """Rotate queries and keys; float32 numbers are changed in place."""
    exact = qkv.float()
    torch.view_as_complex(exact[:, :2].unflatten(-1, (-1, 2))).mul_(turns)
    return exact.to(qkv.dtype)


def _attend(qkv: Float[Tensor, "t 3 h k"]) -> Float[Tensor, "t d"]:
    """Return one protein's attention on a CPU with oneDNN, in float32."""
    t, _, h, k = qkv.shape
    query, key, value = qkv.permute(1, 2, 0, 3).contiguous()
    largest = query.norm(dim=-1).amax(1) * key.norm(dim=-1).amax(1)
    is_small = (largest <= LARGEST_POWER).tolist()
    if t < FEW_TOKENS:
        powers = _powers(torch.bmm(query, key.transpose(1, 2)), is_small=all(is_small))
        mixed = torch.bmm(powers, value).div_(powers.sum(-1, keepdim=True))
        short: Tensor = mixed.transpose(0, 1).reshape(t, h * k)
        return short
    value = value.transpose(1, 2).contiguous()
    mixed = query.new_empty(t, h, k)
    for head in range(h):
        powers = _powers(product(query[head], key[head], onednn=True), is_small=is_small[head])
        torch.div(product(powers, value[head], onednn=True), powers.sum(-1, keepdim=True), out=mixed[:, head])
    whole: Tensor = mixed.view(t, h * k)
    return whole


def _powers(x: Float[Tensor, "*h t t"], *, is_small: bool) -> Float[Tensor, "*h t t"]:
    """Return 2 to the `x`, of which each row may be divided by a power of two where that is needed to stay finite."""
    if not is_small:
        x.sub_(x.amax(-1, keepdim=True))
    return x.exp2_()


def _attend_padded(qkv: Float[Tensor, "n 3 h k"], lengths: Sequence[int]) -> Float[Tensor, "n d"]:
    """Return the attention of all proteins by torch's fused function, on any device."""
    n, _, h, k = qkv.shape
    sizes = torch.tensor(lengths, device=qkv.device)
    keep = torch.arange(max(lengths), device=qkv.device) < sizes[:, None]
    padded = qkv.new_zeros(*keep.shape, 3, h, k)
    padded[keep] = qkv
    query, key, value = padded.permute(2, 0, 3, 1, 4)
    mask = None if min(lengths) == max(lengths) else keep[:, None, None, :]
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=math.log(2))
    return mixed.transpose(1, 2)[keep].reshape(n, h * k)


def _learned_positions(model: Any, device: torch.device) -> Float[Tensor, "t d"] | None:
    """Return ESM-1b's vectors of the first, second, … token; ESM-2 has none."""
    positions = getattr(model, "embed_positions", None)
    return None if positions is None else _on(device, positions.weight)[model.padding_idx + 1 :]


def _on(device: torch.device, tensor: Tensor) -> Tensor:
    return tensor.detach().float().to(device)
