"""Linear layers whose products go to oneDNN on CPUs, forwards and backwards.

torch sends fp32 products to the BLAS it was built with, usually Intel's. On AMD machines oneDNN is about twice as fast
(104 against 190 GFLOP/s a core, forwards and backwards together), on Intel's own a step of a head takes 7 to 20 % more
with it; parameters are the same, and so are the numbers to rounding. The operator is private to torch, so it is never
relied upon: without it, on Intel, on other devices, in other precisions, under autocast and under torch.compile, this
is ``functional.linear``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tfbind_store.processor import is_intel

FEWEST_PRODUCTS = 10_000_000
"""Multiplications below which the call costs more than it saves: at 0.8 million it is 1.4 times slower, at 38 million
1.5 times faster."""


def onednn_available() -> bool:
    """Tell whether this build of torch has the operator."""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(
    x: Float[Tensor, "*shape i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*shape o"]:
    """Return ``x @ weight.T + bias``, by whichever library is faster."""
    if not _suits(x, weight):
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    y: Tensor = _Product.apply(flat, weight, bias)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """``nn.Linear`` through `product`: the same parameters, names and start."""

    def forward(self, input: Float[Tensor, "*shape i"]) -> Float[Tensor, "*shape o"]:
        """Return ``input @ weight.T + bias``."""
        return product(input, self.weight, self.bias)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] > FEWEST_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not is_intel()
        and onednn_available()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        to_x = _onednn(upstream, weight.t()) if wants_x else None
        to_weight = _onednn(upstream.t(), x.t()) if wants_weight else None
        return to_x, to_weight, upstream.sum(0) if ctx.has_bias and wants_bias else None
