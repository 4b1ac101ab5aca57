"""The forward pass of an Enformer trunk with the same numbers and a fraction of the work.

Takes the weights of an ``enformer_pytorch.Enformer`` in eval mode and runs them another way. What changes, and why it
is exact (to rounding):

- *BatchNorm then GELU*: Enformer's GELU is ``x * sigmoid(1.702 x)``, so both are one SiLU of an affine map, and the
  factor 1 / 1.702 moves into the next layer's weights.
- *Attention pooling of two*: a softmax over two is the sigmoid of the difference, so one product of ``x0 - x1``
  replaces two products and a softmax.
- *Kernel-5 convolutions* of many channels in fp32 by Cook-Toom (`packed`), of few as five products; 1x1 convolutions as
  products with fused epilogues.
- *The last block and the final pointwise layer* run for the kept bins only. Attention is in ``relative_attention``.

Layout: rows of channels. Codes as in ``genome``: A0 C1 G2 T3 N4 PAD5. N is zero in every channel, which is also how
convolutions pad; PAD is 0.25. Stitching windows over a stretch lives in ``stretch``.
"""

# b pieces · l rows (bp, then bp / 2, … down to tokens) · c channels · n tokens

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from tfbind_store import freed_memory
from tfbind_store.precompute.packed import CookToom, PackedLinear, onednn_available
from tfbind_store.precompute.relative_attention import TransformerBlock
from tfbind_store.precompute.stretch import ConvGeometry
from tfbind_store.precompute.weights import exact_float32

GELU_SLOPE = 1.702  # enformer-pytorch's GELU class: sigmoid(1.702 x) * x
CPU_BLOCK_BYTES = 3 << 20  # 3 MiB of rows at once: 7 % faster than 1.5, as fast as 6
GPU_BLOCK_BYTES = 1 << 30  # a GPU is filled by whole levels
ROWS_OF_A_BLOCK = 12  # of `dim` channels per token: input, normed, query, key and value twice, two of the feed-forward
N_CODE = 4
FEWEST_OF_COOK_TOOM = 160
"""Channels that a convolution reads. With fewer, transforms cost what they save: five products take as long, and round
a third as much."""


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
        step = _rows_per_block(out, self.width)
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
        onednn_here = onednn and weight.device.type == "cpu" and onednn_available(dtype)
        self.fast: CookToom | None = None
        self.shifted: PackedLinear | None = None
        if (
            cook_toom
            and conv.kernel_size[0] == CookToom.KERNEL
            and (conv.in_channels >= FEWEST_OF_COOK_TOOM or not onednn_here)
        ):
            self.fast = CookToom(weight, onednn=onednn)
        elif cook_toom and onednn_here:
            # [out, k * in]: one row of the unfolded rows is k rows, and a product for each of them
            self.shifted = PackedLinear(weight.transpose(1, 2).flatten(1), longest_sum=conv.in_channels)
        else:
            self.weight = weight[:, :, None].to(dtype).contiguous(memory_format=torch.channels_last)
        self.tail = ResidualPool(residual, pool, bias=conv.bias, dtype=dtype, onednn=onednn)

    def __call__(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b half c2"]:
        """Convolve as if zeros lay on both sides, block by block of rows."""
        b, length, channels = x.shape
        out = x.new_empty(b, length // 2, self.width)
        step = _rows_per_block(x, max(self.width, channels))
        for start in range(0, length, step):
            stop = min(start + step, length)
            block = out[:, start // 2 : stop // 2]
            if self.fast is None:
                self._direct(x, start, stop, block)
            else:
                self._tiles(self.fast, x, start, stop, block)
        return out

    def _padded(self, x: Tensor, start: int, stop: int, target: Tensor) -> None:
        """Write the activation of rows start - 2 .. stop + 2 to `target` [b, rows, c]; zeros past the ends."""
        left, right = max(start - self.half, 0), min(stop + self.half, x.shape[1])
        lead = left - (start - self.half)
        target[:, :lead] = 0
        target[:, lead + right - left :] = 0
        self.activation(x[:, left:right], out=target[:, lead : lead + right - left])

    def _tiles(self, convolve: CookToom, x: Tensor, start: int, stop: int, out: Tensor) -> None:
        b, _, c = x.shape
        tiles = -(-(stop - start) // CookToom.TILE)
        # one spare block per piece holds its padding; its tile is garbage and is left behind below
        blocks = b * (tiles + 1)
        phases = x.new_empty(4, blocks + 1, c)
        phases[:, -1] = 0
        self._fill(x, start, start + tiles * CookToom.TILE, phases[:, :-1].unflatten(1, (b, tiles + 1)))
        y = convolve(phases).view(4 * blocks, self.width)
        pairs = self.tail.residual_block(y).view(2, 2, b, tiles + 1, self.width)[:, :, :, :tiles]
        first, second = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
        pooled = torch.empty_like(first)
        self.tail.pool(first, second, pooled)
        natural = pooled.permute(1, 2, 0, 3)
        if out.shape[1] == 2 * tiles:
            out.unflatten(1, (tiles, 2)).copy_(natural)
        else:  # the last tile hangs over the end
            out.copy_(natural.flatten(1, 2)[:, : out.shape[1]])

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
        if self.shifted is not None:
            kernel = 2 * self.half + 1
            y = self.shifted(rows.as_strided((b, stop - start, kernel * c), (rows.stride(0), c, 1)))
        else:
            image = rows[:, None].permute(0, 3, 1, 2)  # [b, c, 1, rows], channels last in memory
            y = functional.conv2d(image, self.weight).permute(0, 2, 3, 1)
        y = y.reshape(-1, self.width)
        pairs = self.tail.residual_block(y).view(b, (stop - start) // 2, 2, self.width)
        self.tail.pool(pairs[:, :, 0], pairs[:, :, 1], out)


class FastTrunk:
    """An Enformer trunk, weights laid out for the fast forward; the largest ones stay where the model has them.

    The model is not to be changed from here on: some changes would be seen, others not.

    Parameters
    ----------
    model
        ``enformer_pytorch.Enformer``, on the device that is to compute; used in eval mode whatever its own mode.
    dtype
        Of products and rows: float32, bfloat16 (CPUs with AVX512-BF16 or AMX, GPUs), float16 (GPUs), float64 (to check
        the others).
    tf32
        Let a GPU round the factors of float32 products to TF32. Convolutions are then direct: Cook-Toom would enlarge
        the rounding.
    onednn
        False keeps to plain ``functional.linear`` (to compare with the same BLAS).
    """

    reentrant = True

    def __init__(
        self, model: Any, *, dtype: torch.dtype = torch.float32, tf32: bool = False, onednn: bool = True
    ) -> None:
        cook_toom = dtype == torch.float32 and not tf32
        self.dtype, self.tf32 = dtype, tf32
        self._of_model = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
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
        freed_memory.give_back()  # at full size, two threads: a peak of 2,244 MiB where it was 2,497
        self.device = self.stem.table.device
        self.geometry = ConvGeometry.of_levels(
            [model.stem[0].kernel_size[0]] + [level[0][2].kernel_size[0] for level in model.conv_tower],
            dim=model.dim,
            tile=CookToom.TILE if any(level.fast for level in self.levels) else 1,
        )

    @torch.inference_mode()
    def conv(self, codes: UInt8[Tensor, "b l"]) -> Float[Tensor, "b n c"]:
        """Return the tokens of pieces of sequence, convolutions padding with zeros at both ends."""
        with exact_float32(self.device, tf32=self.tf32):
            x = self.stem(codes)
            for level in self.levels:
                x = level(x)
            return x

    @torch.inference_mode()
    def transform(self, tokens: Float[Tensor, "b n c"], keep: slice) -> Float[Tensor, "b kept c"]:
        """Return the transformer's output for the tokens in `keep`."""
        every = slice(0, tokens.shape[1])
        keep = slice(*keep.indices(tokens.shape[1])[:2])
        with exact_float32(self.device, tf32=self.tf32):
            for block in self.blocks[:-1]:
                tokens = block(tokens, every)
            return self.blocks[-1](tokens, keep) if self.blocks else tokens[:, keep]

    @torch.inference_mode()
    def pointwise(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c2"]:
        """Return the embedding: the final pointwise layer of transformer outputs."""
        with exact_float32(self.device, tf32=self.tf32):
            return self.final(self.final_activation(tokens), "swish").mul_(1 / GELU_SLOPE)

    def laid_out_bytes(self, *, window_tokens: int) -> int:
        """Return what the laid-out weights take beside the model's own, keys of a window's distances included."""
        keys = sum(block.relative_bytes(window_tokens) for block in self.blocks)
        return keys + sum(
            tensor.numel() * tensor.element_size()
            for tensor in _tensors([self.stem, self.levels, self.blocks, self.final_activation, self.final])
            if tensor.is_mkldnn or tensor.untyped_storage().data_ptr() not in self._of_model
        )

    def working_bytes(self, *, chunk_tokens: int, window_tokens: int, batch_windows: int, n_threads: int = 1) -> int:
        """Return about how much memory the numbers on their way take at most, weights apart."""
        size, geometry = self.dtype.itemsize, self.geometry
        rows = (chunk_tokens + 2 * geometry.halo_tokens) * geometry.bp_per_token
        widths = [self.stem.width, *(level.width for level in self.levels)]
        # a level's input and output are there at once, each half as many rows as the one before
        levels = [(rows >> i + 1) * a + (rows >> i + 2) * b for i, (a, b) in enumerate(itertools.pairwise(widths))]
        convolving = max(levels, default=rows * widths[0]) * size + 12 * CPU_BLOCK_BYTES
        held = (2 * window_tokens + chunk_tokens) * geometry.dim * size
        transforming = batch_windows * window_tokens * geometry.dim * size * ROWS_OF_A_BLOCK
        return int(n_threads * max(convolving, transforming) + held)


def _tensors(thing: Any) -> Iterator[Tensor]:
    """Yield the tensors that an object of this package's, a module or a list of such holds."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, list | dict):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from _tensors(part)
    elif hasattr(thing, "__dict__"):
        yield from _tensors({name: part for name, part in vars(thing).items() if name != "_relative_keys"})


def _rows_per_block(x: Tensor, width: int) -> int:
    """Return how many rows of `width` channels go through at once, of every piece."""
    at_most = CPU_BLOCK_BYTES if x.device.type == "cpu" else GPU_BLOCK_BYTES
    rows = at_most // (width * x.shape[0] * x.element_size())
    return max(rows // 64 * 64, 64)
