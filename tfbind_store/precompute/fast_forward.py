"""The forward pass of an Enformer trunk with the same numbers and a fraction of the work.

Takes the weights of an ``enformer_pytorch.Enformer`` in eval mode and runs them another way. What changes, and why it
is exact (to rounding):

- *BatchNorm then GELU*: Enformer's GELU is ``x * sigmoid(1.702 x)``, so both are one SiLU of an affine map, and the
  factor 1 / 1.702 moves into the next layer's weights.
- *Attention pooling of two*: a softmax over two is the sigmoid of the difference, so one product of ``x0 - x1``
  replaces two products and a softmax.
- *Kernel-5 convolutions* in fp32 by Cook-Toom (`packed`), 1x1 convolutions as products with fused epilogues.
- *Relative positions*: keys once per layer and length; only the distances that a block of queries meets; the shift is
  a stride, not a copy.
- *The last block and the final pointwise layer* run for the kept bins only.

Layout: rows of channels. Codes as in ``genome``: A0 C1 G2 T3 N4 PAD5. N is zero in every channel, which is also how
convolutions pad; PAD is 0.25. Stitching windows over a stretch lives in ``stretch``.
"""

# b pieces · l rows (bp, then bp / 2, … down to tokens) · c channels · n tokens · h heads · k key dim · v value dim

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from enformer_pytorch.modeling_enformer import get_positional_embed
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from tfbind_store.precompute.packed import CookToom, PackedLinear, product

GELU_SLOPE = 1.702  # enformer-pytorch's GELU class: sigmoid(1.702 x) * x
BLOCK_BYTES = 3 << 19  # 1.5 MiB of rows at once stays in the cache of one core
QUERY_BLOCK = 128
N_CODE = 4


class Activation:
    """BatchNorm in eval mode followed by GELU, times 1.702: one SiLU of an affine map."""

    def __init__(self, norm: nn.BatchNorm1d, *, shift: Tensor | None = None) -> None:
        """Take the statistics of `norm`; `shift` is a constant that was left off its input."""
        if norm.running_mean is None or norm.running_var is None:
            raise AssertionError("a trunk without running statistics has no eval mode")
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        offset = norm.bias.double() - norm.running_mean.double() * scale
        if shift is not None:
            offset = offset + shift.double() * scale
        self.scale = (GELU_SLOPE * scale).to(norm.weight.dtype)
        self.offset = (GELU_SLOPE * offset).to(norm.weight.dtype)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the activation of ``x`` [..., c], into `out` if given."""
        y = torch.addcmul(self.offset, x, self.scale, out=out)
        return functional.silu(y, inplace=True)

    def to(self, dtype: torch.dtype) -> Activation:
        """Cast in place."""
        self.scale, self.offset = self.scale.to(dtype), self.offset.to(dtype)
        return self


class ResidualPool:
    """What follows every convolution: a residual 1x1 block, then pooling of neighbours by attention."""

    def __init__(self, residual: Any, pool: Any, *, bias: Tensor, dtype: torch.dtype, onednn: bool) -> None:
        """Take enformer-pytorch's modules; `bias` is the convolution's own, added here once for all."""
        norm, _, conv = residual.fn
        self.activation = Activation(norm, shift=bias).to(dtype)
        weight = conv.weight[:, :, 0] / GELU_SLOPE
        self.residual = PackedLinear(weight.to(dtype), (conv.bias + bias).to(dtype), onednn=onednn)
        self.logits = PackedLinear(pool.to_attn_logits.weight[:, :, 0, 0].to(dtype), onednn=onednn)

    def residual_block(self, y: Tensor) -> Tensor:
        """Return ``y + bias + block(y + bias)`` for rows ``y`` [r, c]."""
        return self.residual.add(self.activation(y), y)

    def pool(self, first: Tensor, second: Tensor, out: Tensor) -> None:
        """Write the attention-pooled pairs of rows to `out`: softmax over two is a sigmoid of the difference."""
        difference = first - second
        gate = self.logits(difference, "sigmoid")
        torch.addcmul(second, gate, difference, out=out)


class Stem:
    """Bases to channels: kernel-15 convolution, residual block, pooling."""

    def __init__(self, stem: Any, *, dtype: torch.dtype, onednn: bool) -> None:
        conv, residual, pool = stem
        self.kernel = conv.kernel_size[0]
        self.width = conv.out_channels
        # [out, 4, k] -> [out, k * 4]: one row of the unfolded one-hot is k bases of 4 channels
        self.product = PackedLinear(conv.weight.transpose(1, 2).flatten(1).to(dtype), onednn=onednn)
        self.tail = ResidualPool(residual, pool, bias=conv.bias, dtype=dtype, onednn=onednn)
        table = torch.zeros(6, 4, dtype=dtype, device=conv.weight.device)
        table[:4] = torch.eye(4)
        table[5] = 0.25
        self.table = table

    def __call__(self, codes: UInt8[Tensor, "b l"]) -> Float[Tensor, "b half c"]:
        """Read codes as if zeros lay on both sides."""
        b, length = codes.shape
        half = self.kernel // 2
        padded = functional.pad(codes, (half, half), value=N_CODE)
        out = self.table.new_empty(b, length // 2, self.width)
        step = _rows_per_block(self.width, b, out.element_size())
        for start in range(0, length, step):
            rows = min(step, length - start)
            one_hot = self.table[padded[:, start : start + rows + 2 * half].int()]
            unfolded = one_hot.as_strided((b, rows, 4 * self.kernel), (one_hot.stride(0), 4, 1))
            y = self.tail.residual_block(self.product(unfolded.reshape(b * rows, -1)))
            pairs = y.view(b, rows // 2, 2, self.width)
            self.tail.pool(pairs[:, :, 0], pairs[:, :, 1], out[:, start // 2 : (start + rows) // 2])
        return out


class TowerLevel:
    """One level of the tower: kernel-5 convolution, residual block, pooling; half the rows come out."""

    def __init__(self, level: Any, *, dtype: torch.dtype, onednn: bool, cook_toom: bool) -> None:
        block, residual, pool = level
        norm, _, conv = block
        self.activation = Activation(norm).to(dtype)
        self.width = conv.out_channels
        self.half = conv.kernel_size[0] // 2
        weight = conv.weight / GELU_SLOPE
        self.fast = CookToom(weight, onednn=onednn) if cook_toom and conv.kernel_size[0] == CookToom.KERNEL else None
        self.weight = weight[:, :, None].to(dtype).contiguous(memory_format=torch.channels_last)
        self.tail = ResidualPool(residual, pool, bias=conv.bias, dtype=dtype, onednn=onednn)

    def __call__(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b half c2"]:
        """Convolve as if zeros lay on both sides, block by block of rows."""
        b, length, _ = x.shape
        out = x.new_empty(b, length // 2, self.width)
        step = _rows_per_block(max(self.width, x.shape[-1]), b, x.element_size())
        tiled = self.fast is not None and length % 4 == 0
        for start in range(0, length, step):
            stop = min(start + step, length)
            block = out[:, start // 2 : stop // 2]
            if tiled:
                self._tiles(x, start, stop, block)
            else:
                self._direct(x, start, stop, block)
        return out

    def _padded(self, x: Tensor, start: int, stop: int, target: Tensor) -> None:
        """Write the activation of rows start - 2 .. stop + 2 to `target` [b, rows, c]; zeros past the ends."""
        left, right = max(start - self.half, 0), min(stop + self.half, x.shape[1])
        lead = left - (start - self.half)
        target[:, :lead] = 0
        target[:, lead + right - left :] = 0
        self.activation(x[:, left:right], out=target[:, lead : lead + right - left])

    def _tiles(self, x: Tensor, start: int, stop: int, out: Tensor) -> None:
        assert self.fast is not None
        b, _, c = x.shape
        tiles = (stop - start) // 4
        # one spare block per piece holds its padding; its tile is garbage and is left behind below
        blocks = b * (tiles + 1)
        phases = x.new_empty(4, blocks + 1, c)
        phases[:, -1] = 0
        by_piece = phases[:, :-1].unflatten(1, (b, tiles + 1))
        self._fill(x, start, stop, by_piece)
        y = self.fast(phases).view(4 * blocks, self.width)
        pairs = self.tail.residual_block(y).view(2, 2, b, tiles + 1, self.width)[:, :, :, :tiles]
        gate_in = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
        pooled = torch.empty_like(gate_in[0])
        self.tail.pool(gate_in[0], gate_in[1], pooled)
        out.unflatten(1, (tiles, 2)).copy_(pooled.permute(1, 2, 0, 3))

    def _fill(self, x: Tensor, start: int, stop: int, by_piece: Tensor) -> None:
        """Fill phase-major blocks [4, b, tiles + 1, c] with the activation, zeros past the ends of the pieces."""
        natural = by_piece.permute(1, 2, 0, 3)
        if start >= self.half and stop + self.half <= x.shape[1]:
            source = x[:, start - self.half : stop + self.half].unflatten(1, (-1, 4))
            self.activation(source, out=natural)
            return
        rows = x.new_empty(x.shape[0], stop - start + 2 * self.half, x.shape[2])
        self._padded(x, start, stop, rows)
        natural.copy_(rows.unflatten(1, (-1, 4)))

    def _direct(self, x: Tensor, start: int, stop: int, out: Tensor) -> None:
        b, _, c = x.shape
        rows = x.new_empty(b, stop - start + 2 * self.half, c)
        self._padded(x, start, stop, rows)
        image = rows[:, None].permute(0, 3, 1, 2)  # [b, c, 1, rows], channels last in memory
        y = functional.conv2d(image, self.weight).permute(0, 2, 3, 1).reshape(-1, self.width)
        pairs = self.tail.residual_block(y).view(b, (stop - start) // 2, 2, self.width)
        self.tail.pool(pairs[:, :, 0], pairs[:, :, 1], out)


class TransformerBlock:
    """Attention with relative positions and a feed-forward, both residual."""

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
        self.out = PackedLinear(attention.to_out.weight.to(dtype), attention.to_out.bias.to(dtype), onednn=onednn)
        self.content_bias = attention.rel_content_bias[0].to(dtype)
        self.position_bias = attention.rel_pos_bias[0].to(dtype)
        self.attention = attention
        self.dtype = dtype
        self._relative_keys: dict[int, Tensor] = {}
        norm2, first, _, _, second, _ = block[1].fn
        self.norm2 = _layer_norm(norm2, dtype)
        self.first = PackedLinear(first.weight.to(dtype), first.bias.to(dtype), onednn=onednn)
        self.second = PackedLinear(second.weight.to(dtype), second.bias.to(dtype), onednn=onednn)

    def relative_keys(self, n: int) -> Float[Tensor, "h distances k"]:
        """Return each head's key of every distance -(n - 1) .. n - 1; they do not depend on the input."""
        if n not in self._relative_keys:
            a = self.attention
            positions = get_positional_embed(
                n, a.num_rel_pos_features, a.to_rel_k.weight.device, use_tf_gamma=a.use_tf_gamma, dtype=torch.float32
            )
            keys = functional.linear(positions, a.to_rel_k.weight.float())
            self._relative_keys[n] = keys.unflatten(1, (self.heads, -1)).transpose(0, 1).to(self.dtype).contiguous()
        return self._relative_keys[n]

    def __call__(self, x: Float[Tensor, "b n c"], keep: slice) -> Float[Tensor, "b kept c"]:
        """Return the block's output for the tokens in `keep`; keys and values come from all tokens."""
        normed = self.norm(x)
        kept, normed_kept = (x, normed) if keep == slice(0, x.shape[1]) else (x[:, keep], normed[:, keep])
        query = self.query(normed_kept).unflatten(2, (self.heads, self.key_dim)).transpose(1, 2)
        key, value = self.key_value(normed).split((self.heads * self.key_dim, self.heads * self.value_dim), dim=2)
        key = key.unflatten(2, (self.heads, self.key_dim)).transpose(1, 2).contiguous()
        value = value.unflatten(2, (self.heads, self.value_dim)).transpose(1, 2).contiguous()
        attended = attend(
            query + self.content_bias, query + self.position_bias, key, value,
            self.relative_keys(x.shape[1]), first_query=keep.start, onednn=self.onednn,
        )  # fmt: skip
        y = self.out.add(attended.transpose(1, 2).flatten(2), kept.contiguous())
        return self.second.add(self.first(self.norm2(y), "relu"), y)


def attend(
    content: Float[Tensor, "b h q k"],
    position: Float[Tensor, "b h q k"],
    key: Float[Tensor, "b h n k"],
    value: Float[Tensor, "b h n v"],
    relative: Float[Tensor, "h distances k"],
    *,
    first_query: int,
    onednn: bool,
) -> Float[Tensor, "b h q v"]:
    """Attend with content and relative-position logits, a block of queries at a time.

    Query i and key j are ``j - i`` apart, which is row ``j - i + n - 1`` of `relative`. A block of B queries meets only
    n + B - 1 distances; in the product with those, row r holds its own n logits from column B - 1 - r on, so that a
    view with a row stride one shorter is the shifted matrix.
    """
    b, h, queries, _ = content.shape
    n = key.shape[2]
    out = value.new_empty(b, h, queries, value.shape[3])
    step = min(queries, QUERY_BLOCK)
    for start in range(0, queries, step):
        rows = min(step, queries - start)
        lowest = n - 1 - (first_query + start + rows - 1)
        met = relative[:, lowest : lowest + n + rows - 1]
        for i in range(b):
            for j in range(h):
                far = product(position[i, j, start : start + rows], met[j], onednn=onednn)
                shifted = far.as_strided((rows, n), (n + rows - 2, 1), rows - 1)
                logits = product(content[i, j, start : start + rows], key[i, j], onednn=onednn).add_(shifted)
                weights = logits.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
                out[i, j, start : start + rows] = product(weights, value[i, j].T, onednn=onednn)
    return out


@dataclass(frozen=True)
class Geometry:
    """What the arithmetic of windows needs to know of a trunk."""

    bp_per_token: int
    """Bases that one token stands for: 2 per pooling."""
    reach_tokens: int
    """Tokens at each end of a piece that zero padding touches."""
    dim: int
    """Channels of a token in the transformer; the embedding has twice as many."""


class FastTrunk:
    """An Enformer trunk, weights laid out for the fast forward. Frozen: later changes of the model are not seen.

    Parameters
    ----------
    model
        ``enformer_pytorch.Enformer``; used in eval mode whatever its own mode.
    dtype
        float32, or bfloat16 where the CPU has AVX512-BF16 or AMX.
    onednn
        False keeps to plain ``functional.linear`` (to compare with the same BLAS).
    """

    def __init__(self, model: Any, *, dtype: torch.dtype = torch.float32, onednn: bool = True) -> None:
        cook_toom = dtype == torch.float32
        with torch.no_grad():
            self.stem = Stem(model.stem, dtype=dtype, onednn=onednn)
            self.levels = [
                TowerLevel(level, dtype=dtype, onednn=onednn, cook_toom=cook_toom) for level in model.conv_tower
            ]
            self.blocks = [TransformerBlock(block, dtype=dtype, onednn=onednn) for block in model.transformer]
            _, (norm, _, conv), *_ = model.final_pointwise
            self.final_activation = Activation(norm).to(dtype)
            # one 1.702 cancels the activation's, the other belongs to the GELU that follows
            weight, bias = conv.weight[:, :, 0], conv.bias * GELU_SLOPE
            self.final = PackedLinear(weight.to(dtype), bias.to(dtype), onednn=onednn)
        self.geometry = _geometry(model)

    @torch.inference_mode()
    def conv(self, codes: UInt8[Tensor, "b l"]) -> Float[Tensor, "b n c"]:
        """Return the tokens of pieces of sequence, convolutions padding with zeros at both ends."""
        x = self.stem(codes)
        for level in self.levels:
            x = level(x)
        return x

    @torch.inference_mode()
    def transform(self, tokens: Float[Tensor, "b n c"], keep: slice) -> Float[Tensor, "b kept c"]:
        """Return the transformer's output for the tokens in `keep`."""
        every = slice(0, tokens.shape[1])
        keep = slice(*keep.indices(tokens.shape[1])[:2])
        for block in self.blocks[:-1]:
            tokens = block(tokens, every)
        return self.blocks[-1](tokens, keep) if self.blocks else tokens[:, keep]

    @torch.inference_mode()
    def pointwise(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c2"]:
        """Return the embedding: the final pointwise layer of transformer outputs."""
        return self.final(self.final_activation(tokens), "swish").mul_(1 / GELU_SLOPE)


def _geometry(model: Any) -> Geometry:
    """Follow the reach of zero padding through the levels: a kernel adds half its width, pooling halves."""
    kernels = [model.stem[0].kernel_size[0]] + [level[0][2].kernel_size[0] for level in model.conv_tower]
    reach, bp_per_token = 0, 1
    for kernel in kernels:
        reach = -(-(reach + kernel // 2) // 2)
        bp_per_token *= 2
    return Geometry(bp_per_token=bp_per_token, reach_tokens=reach, dim=model.dim)


def _layer_norm(norm: nn.LayerNorm, dtype: torch.dtype) -> nn.LayerNorm:
    copy = nn.LayerNorm(norm.normalized_shape, eps=norm.eps).to(norm.weight.device)
    copy.load_state_dict(norm.state_dict())
    return copy.to(dtype).requires_grad_(False)


def _rows_per_block(width: int, pieces: int, item_bytes: int) -> int:
    rows = BLOCK_BYTES // (width * pieces * item_bytes)
    return max(rows // 64 * 64, 64)
