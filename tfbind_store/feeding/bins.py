"""Bins of an array as tensors on a device.

What is stored otherwise than it is read goes to the device as it is stored, and becomes embeddings there: one byte a
number, or the trunk's last layer in float32 by the fast product of the device. The numbers are those that the array
itself gives (levels to the bit, the layer to the last digit of float32).
"""

# k bins · s stored channels · d channels · w windows

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor
from torch.nn import functional

from tfbind_store.arrays.decoded import DecodedArray, StoredBins
from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.arrays.transforms import GELU_SLOPE, Pointwise
from tfbind_store.precompute.packed import PackedLinear
from tfbind_store.precompute.weights import exact_float32

ROWS_AT_ONCE = {"cpu": 512, "cuda": 65_536}
"""Bins that are turned into embeddings together: what a cache holds, what keeps a GPU busy."""


class BinReader:
    """Reads bins of an array.

    Parameters
    ----------
    array
        Of windows.
    device
        Where the numbers are wanted.
    """

    def __init__(self, array: ShardedArray, device: torch.device) -> None:
        self.array, self.device = array, device

    def __call__(self, bins: Int64[np.ndarray, " k"]) -> Float16[Tensor, "k d"]:
        """Return the embeddings of global bins."""
        if not isinstance(self.array, DecodedArray):
            return self._there(self.array.gather_bins(bins)[:, 0])
        layer = self._layer  # before anything of its size
        out = torch.empty(len(bins), self.array.shape[-1], dtype=torch.float16, device=self.device)
        step = ROWS_AT_ONCE.get(self.device.type, ROWS_AT_ONCE["cuda"])
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), exact_float32(self.device):
            for at in range(0, len(bins), step):
                values = self._decoded(self.array.stored_bins(bins[at : at + step]))
                out[at : at + step] = values if layer is None else layer(values.float())
        return out

    def _decoded(self, stored: StoredBins) -> Float16[Tensor, "k s"]:
        values = self._there(stored.values)
        if stored.scales is not None:
            middle, step = (self._there(part).float() for part in stored.scales)
            which = self._there(stored.which)
            values = values.float().mul_(step[which]).add_(middle[which]).half()
        return values

    @cached_property
    def _layer(self) -> _Layer | None:
        assert isinstance(self.array, DecodedArray)
        return None if self.array.pointwise is None else _Layer(self.array.pointwise, self.device)

    def _there(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


class _Layer:
    """A `Pointwise` on a device: ``gelu(x)`` is ``silu(1.702 x) / 1.702``, and the factor moves into the weights."""

    def __init__(self, layer: Pointwise, device: torch.device) -> None:
        def there(numbers: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).to(device)

        self.scale, self.offset = there(GELU_SLOPE * layer.norm_scale), there(GELU_SLOPE * layer.norm_offset)
        self.product = PackedLinear(there(layer.weight), there(GELU_SLOPE * layer.bias))

    def __call__(self, x: Float[Tensor, "k s"]) -> Float[Tensor, "k d"]:
        """Return the trunk's numbers."""
        mixed = self.product(functional.silu(torch.addcmul(self.offset, x, self.scale), inplace=True))
        return functional.silu(mixed, inplace=True).div_(GELU_SLOPE)
