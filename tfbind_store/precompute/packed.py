"""Matrix products with weights laid out once, and the k = 5 convolution as eight of them.

Activations are rows of channels (channels last). On CPUs the products go to oneDNN, which is 2.3x faster than the BLAS
that torch calls on AMD machines and fuses the sigmoid, ReLU or addition that follows; elsewhere, and where this build
of torch lacks the operator, they are plain ``functional.linear``. Nothing here knows what a window is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

Unary = Literal["none", "relu", "sigmoid", "swish", "gelu"]

LONGEST_SUM = 96
"""Terms that oneDNN adds one after the other in `CookToom`, which enlarges their rounding; it grows with their root. As
fast as 128, 1 to 3 % slower than 256; 64 costs 5 %."""

_PLAIN: dict[Unary, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": functional.relu_,
    "sigmoid": Tensor.sigmoid_,
    "swish": lambda x: functional.silu(x, inplace=True),
    "gelu": functional.gelu,
}


def onednn_available(dtype: torch.dtype = torch.float32) -> bool:
    """Tell whether this build of torch has the fused oneDNN product (a private operator: never relied upon)."""
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return False
    if not all(hasattr(ops, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return False
    return dtype == torch.float32 or bool(ops._is_mkldnn_bf16_supported())


class PackedLinear:
    """``x @ weight.T + bias``, followed by a fused function or an addition.

    Parameters
    ----------
    weight
        [out, in].
    bias
        [out] or None.
    onednn
        Use the fused oneDNN operator; False gives the same numbers to rounding through ``functional.linear``.
    packed
        False leaves `weight` as it is, so that a model's own needs no second place in memory; products of many rows
        are 3 % slower, the numbers the same.
    longest_sum
        Where a float32 `weight` is wider, oneDNN's product is the sum of several, so that rounding stays small. None
        for one product, with its function fused.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        onednn: bool = True,
        packed: bool = True,
        longest_sum: int | None = None,
    ) -> None:
        self.onednn = onednn and weight.device.type == "cpu" and onednn_available()
        self.bias = None if bias is None else bias.contiguous()
        in_parts = self.onednn and longest_sum is not None and weight.dtype == torch.float32
        n_parts = -(-weight.shape[1] // longest_sum) if in_parts and longest_sum else 1
        parts = weight.chunk(n_parts, dim=1)
        self.widths = [part.shape[1] for part in parts]
        lay_out = torch.ops.mkldnn._reorder_linear_weight if self.onednn and packed else None
        self.parts: list[Tensor] = []
        for part in parts:  # one by one, so that each copy takes the place of the last
            rows = part.detach().contiguous()
            self.parts.append(rows if lay_out is None else lay_out(rows, None))

    def __call__(self, x: Tensor, unary: Unary = "none") -> Tensor:
        """Return ``unary(x @ weight.T + bias)``, [..., in] -> [..., out]."""
        if not self.onednn:
            return _PLAIN[unary](functional.linear(x, self.parts[0], self.bias))
        first, *others = zip(x.split(self.widths, dim=-1), self.parts, strict=True)
        fused = "none" if others else unary
        y = torch.ops.mkldnn._linear_pointwise(*first, self.bias, fused, [], "none")
        for x_part, weight in others:
            y = torch.ops.mkldnn._linear_pointwise.binary(x_part, y, weight, None, "add")
        return cast(Tensor, _PLAIN[unary](y) if others else y)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """Return ``other + x @ weight.T + bias`` as a new tensor."""
        if not self.onednn:
            return functional.linear(x, self.parts[0], self.bias).add_(other)
        bias = self.bias
        for x_part, weight in zip(x.split(self.widths, dim=-1), self.parts, strict=True):
            other = torch.ops.mkldnn._linear_pointwise.binary(x_part, other, weight, bias, "add")
            bias = None
        return other


def product(x: Tensor, weight: Tensor, *, onednn: bool) -> Tensor:
    """Return ``x @ weight.T`` for a weight that is used once (keys and values of attention), [r, in] -> [r, out]."""
    if onednn and x.device.type == "cpu" and onednn_available():
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""))
    return functional.linear(x, weight)


class CookToom:
    """A 1-D convolution with kernel 5 as 8 products per 4 outputs instead of 20.

    Works on *tiles*: tile t gives outputs 4t..4t+3 from inputs 4t..4t+7. Rows are held phase-major, ``[4, tiles, c]``:
    row 4t + p of the stretch lies at [p, t]. In that layout the transforms are plain matrix products and whole-array
    additions, and the 1x1 layers that follow do not care about the order.

    Notes
    -----
    Toom-Cook at the points 0, +-1, +-2, +-1/2 and infinity, transposed into a filter. In fp32 the relative error is
    5e-7 to 8e-7 of the output, against 2e-7 for the direct sum; nearly all of it are the products at 0, infinity and
    the points of the largest coefficients. In half precision it is too large to use.
    """

    KERNEL = 5
    TILE = 4
    POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)

    def __init__(self, weight: Tensor, *, onednn: bool = True) -> None:
        """Take ``weight`` [out, in, 5], transformed in float64 and stored in its own dtype."""
        interpolate = torch.linalg.inv(_powers(self.POINTS, self.KERNEL + self.TILE - 1)).T
        precise = weight.double()
        self.products: list[PackedLinear] = []
        for powers in _powers(self.POINTS, self.KERNEL).to(weight.device):  # one by one: together they are large
            kernel = (precise @ powers).to(weight.dtype)
            self.products.append(PackedLinear(kernel, onednn=onednn, longest_sum=LONGEST_SUM))
        transform = interpolate.to(weight.device, weight.dtype)
        self.first_half, self.second_half = transform[:, :4].contiguous(), transform[:, 4:].contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve without padding: phase-major [4, tiles + 1, in] -> [4, tiles, out]."""
        _, blocks, width = x.shape
        tiles = blocks - 1
        rows = x.reshape(4, blocks * width)
        points = torch.mm(self.first_half, rows[:, : tiles * width])
        points.addmm_(self.second_half, rows[:, width:])
        return self._gather([p(points[i].view(tiles, width)) for i, p in enumerate(self.products)])

    @staticmethod
    def _gather(m: list[Tensor]) -> Tensor:
        """Evaluate the four outputs of each tile; points +-a share their even and odd parts."""
        even1, odd1 = m[1] + m[2], m[1].sub_(m[2])
        even2, odd2 = m[3] + m[4], m[3].sub_(m[4])
        even3, odd3 = m[5] + m[6], m[5].sub_(m[6])
        y = m[0].new_empty(4, *m[0].shape)
        torch.add(m[0], even1, out=y[0]).add_(even2).add_(even3)
        torch.add(odd1, odd2, alpha=2, out=y[1]).add_(odd3, alpha=0.5)
        torch.add(even1, even2, alpha=4, out=y[2]).add_(even3, alpha=0.25)
        torch.add(odd1, m[7], out=y[3]).add_(odd2, alpha=8).add_(odd3, alpha=0.125)
        return y


def _powers(points: tuple[float, ...], degree: int) -> Tensor:
    """Return [points + infinity, degree]: each point's powers, and the leading coefficient for infinity."""
    table = torch.tensor([[point**k for k in range(degree)] for point in points], dtype=torch.float64)
    infinity = torch.zeros(1, degree, dtype=torch.float64)
    infinity[0, -1] = 1.0
    return torch.cat([table, infinity])
