"""Enformer's forward pass for training small trunks: the same parameters and the same function in fewer passes.

- Activations are channels last, so that convolutions of width 1 are matrix products.
- BatchNorm and GELU(x) = x * sigmoid(1.702 x) become one affine map and ``silu``; the 1.702 goes into the affine map
  and its inverse into the weights of the convolution behind it.
- Softmax over a pair is the sigmoid of the difference, and the pool's 1x1 convolution is linear: one product on half
  the positions.
- The stem's convolution over four channels is one matrix product.

It updates BatchNorm's running statistics as the plain forward does. Embedding genomes is ``precompute.enformer``'s.
"""

# b batch · l bp or bins · c channels

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from enformer_pytorch import Enformer
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tfbind_store.precompute.enformer import crop_bins
from tfbind_store.processor import multiplies_bfloat16

GELU_SLOPE = 1.702


def train_features(
    model: Enformer, sequence: Float[Tensor, "b l 4"], *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b n d"]:
    """Return the trunk's output for every bin, as ``model(sequence, return_only_embeddings=True)`` without a crop.

    Parameters
    ----------
    model
        With ``target_length`` -1, in train or eval mode.
    sequence
        One-hot; its length a multiple of the bin.
    dtype
        Of the convolutions and products; weights and statistics stay as they are.
    """
    return live_features(model, sequence, n_bins=None, dtype=dtype)


def live_features(
    model: Enformer,
    sequence: Float[Tensor, "b l 4"],
    *,
    n_bins: int | None,
    final: bool = True,
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
) -> Float[Tensor, "b n d"]:
    """Return the trunk's output for the `n_bins` centre bins, or for all.

    Parameters
    ----------
    final
        False stops before the last pointwise layer: the embedder's tap ``transformer``.
    checkpointing
        Keep only what lies between blocks, of the convolutions too, and compute each block again on the way back.
    """
    return in_blocks(model, sequence, n_bins=n_bins, final=final, dtype=dtype, run=_twice if checkpointing else _once)


def in_blocks(
    model: Enformer,
    sequence: Float[Tensor, "b l 4"],
    *,
    n_bins: int | None,
    final: bool,
    dtype: torch.dtype,
    run: Callable[..., Tensor],
) -> Float[Tensor, "b n d"]:
    """Return what `live_features` does; every block goes through ``run(function, module, input)``."""
    full = model.stem[0].weight.dtype
    x = run(_stem, model.stem, sequence.to(dtype))
    for layer in model.conv_tower:
        x = run(_layer, layer, x)
    x = x[:, :, 0].transpose(1, 2).to(full)
    kind = "cpu" if x.is_meta else x.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        for block in model.transformer:
            x = run(_apply, block, x)
        x = x if n_bins is None else crop_bins(x, n_bins)
        x = run(_apply, model.final_pointwise, x) if final else x
    return x.to(full)


def _once(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    return function(*inputs)


def _twice(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    return cast(Tensor, checkpoint(function, *inputs, use_reentrant=False))


def _apply(module: nn.Module, x: Tensor) -> Tensor:
    return cast(Tensor, module(x))


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device multiplies it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32


def _stem(stem: nn.Sequential, sequence: Float[Tensor, "b l 4"]) -> Float[Tensor, "b c 1 half"]:
    x = _first_convolution(sequence, cast(nn.Conv1d, stem[0]))
    return _pool(x + _block(x, cast(Any, stem[1]).fn), stem[2])


def _layer(layer: nn.Sequential, x: Float[Tensor, "b c 1 l"]) -> Float[Tensor, "b k 1 half"]:
    x = _block(x, cast(nn.Sequential, layer[0]))
    return _pool(x + _block(x, cast(Any, layer[1]).fn), layer[2])


def _first_convolution(sequence: Float[Tensor, "b l 4"], conv: nn.Conv1d) -> Float[Tensor, "b c 1 l"]:
    n_rows, length, channels = sequence.shape
    width = conv.kernel_size[0]
    padded = F.pad(sequence, (0, 0, width // 2, width // 2)).contiguous()
    row = padded.shape[1] * channels
    patches = padded.as_strided((n_rows, length, channels * width), (row, channels, 1))
    weight = conv.weight.permute(0, 2, 1).reshape(conv.out_channels, -1).to(sequence.dtype)
    bias = cast(Tensor, conv.bias).to(sequence.dtype)
    return F.linear(patches, weight, bias).view(n_rows, 1, length, -1).permute(0, 3, 1, 2)


def _block(x: Float[Tensor, "b c 1 l"], norm_gelu_conv: nn.Sequential) -> Float[Tensor, "b k 1 l"]:
    norm, conv = cast(nn.BatchNorm1d, norm_gelu_conv[0]), cast(nn.Conv1d, norm_gelu_conv[2])
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    assert norm.momentum is not None, "Enformer's BatchNorm averages with a fixed momentum"
    scaled = F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight * GELU_SLOPE, norm.bias * GELU_SLOPE,
        norm.training, norm.momentum, norm.eps,
    )  # fmt: skip
    weight = (conv.weight / GELU_SLOPE).to(x.dtype).unsqueeze(2)
    return F.conv2d(F.silu(scaled), weight, cast(Tensor, conv.bias).to(x.dtype), padding=(0, conv.kernel_size[0] // 2))


def _pool(x: Float[Tensor, "b c 1 l"], pool: nn.Module) -> Float[Tensor, "b c 1 half"]:
    n_rows, channels, _, length = x.shape
    left, right = x.permute(0, 2, 3, 1).reshape(n_rows, length // 2, 2, channels).unbind(2)
    weight = cast(nn.Conv2d, pool.to_attn_logits).weight[:, :, 0, 0].to(x.dtype)
    gate = F.linear(left - right, weight).sigmoid()
    return torch.addcmul(right, gate, left - right).view(n_rows, 1, length // 2, channels).permute(0, 3, 1, 2)
