"""A module that says how it is cut: windows that overlap share its convolutions, as Enformer's do.

Its user names a method for the convolutions alone, one for what follows, and the width of each level's convolution;
how far zero padding reaches is derived from those (`stretch.ConvGeometry`). A wrong width would give wrong numbers in
silence, so the first window is also run alone and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tfbind_store.errors import ConfigError, SpecError
from tfbind_store.loci import Tiling
from tfbind_store.precompute.embedder import Codes
from tfbind_store.precompute.enformer import CODE_ROWS, left_to_right
from tfbind_store.precompute.stretch import ConvGeometry, Run, embed_run
from tfbind_store.precompute.weights import exact_float32

AT_MOST_OFF = 1e-4
"""Relative RMS between a window that shares and the same alone; rounding makes less, a wrong width far more."""
Step = Callable[[torch.nn.Module, Tensor], Tensor]


class SplitModule:
    """A module cut in two, as `stretch.SplitTrunk` wants it.

    Parameters
    ----------
    model
        On its device.
    convolve
        Takes the module and one-hot sequence ``[b, bp, 4]``, gives tokens ``[b, n, c]``.
    finish
        Takes the module and a window's tokens, gives bins ``[b, bins, dim]``.
    kernels
        Width of each level's convolution, the first on bases; every level ends in a pooling of two. Convolutions one
        after the other within a level count as one: their widths added, less one for each after the first.
    bin_bp
        Bases per token.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        convolve: Step,
        finish: Step,
        kernels: Sequence[int],
        bin_bp: int,
        device: torch.device,
    ) -> None:
        self.geometry = ConvGeometry.of_levels(kernels, dim=0)
        if self.geometry.bp_per_token != bin_bp or any(kernel < 1 for kernel in kernels):
            raise ConfigError(
                f"{len(kernels)} levels of pooling by two make bins of {self.geometry.bp_per_token} bp, not {bin_bp}",
                where="option kernels of embedder module",
                fix="--set kernels='[15, 5, 5]' with the width of every level's convolution, as bin_bp says",
            )
        self.model, self.device = model, device
        self._convolve, self._finish = convolve, finish
        self._table = torch.from_numpy(CODE_ROWS).to(device)

    @torch.inference_mode()
    def conv(self, codes: UInt8[Tensor, "b l"]) -> Float[Tensor, "b n c"]:
        """Return the tokens of pieces of sequence."""
        with exact_float32(self.device):
            tokens = self._convolve(self.model, self._table[codes.int()])
        wanted = codes.shape[1] // self.geometry.bp_per_token
        if tokens.shape[1] != wanted:
            what = f"it gives {tokens.shape[1]} tokens for {codes.shape[1]} bp, {wanted} were declared"
            raise SpecError(
                what, where="option tokens of embedder module", fix="--set kernels, gives as the module has them"
            )
        return tokens

    @torch.inference_mode()
    def transform(self, tokens: Float[Tensor, "b n c"], keep: slice) -> Float[Tensor, "b kept c"]:
        """Return the bins in `keep`, counted among those that the module gives."""
        with exact_float32(self.device):
            return self._finish(self.model, tokens)[:, keep]

    def pointwise(self, tokens: Float[Tensor, "b kept c"]) -> Float[Tensor, "b kept c"]:
        """Return them as they are."""
        return tokens


def embed_shared(
    split: SplitModule,
    windows: Sequence[int],
    codes: Codes,
    tiling: Tiling,
    *,
    spare_bins: int,
    batch_windows: int,
    alone: Callable[[int], Float[np.ndarray, "n_bins dim"]],
) -> Iterator[Float[np.ndarray, "n_bins dim"]]:
    """Yield the kept bins of each window in the order given, the convolutions shared by those that overlap.

    Parameters
    ----------
    split
        The module.
    windows, codes, tiling
        As embedders have them.
    spare_bins
        How many more bins the module gives than are kept.
    batch_windows
        Windows per call of what follows the convolutions.
    alone
        Gives a window's bins by the module's plain forward.

    Raises
    ------
    SpecError
        If the first window is not what it is alone.
    """
    grid, first = tiling.grid, True
    for together in left_to_right(windows, tiling):
        loci = [tiling.read(window) for window in together]
        chrom = loci[0]

        def read(begin: int, end: int) -> UInt8[np.ndarray, " bp"]:
            return codes(chrom._replace(start=begin, end=end))  # noqa: B023

        run = Run(
            starts_bp=tuple(locus.start for locus in loci),
            window_bp=grid.window_bp,
            keep=slice(spare_bins // 2, spare_bins // 2 + grid.n_bins),
            shares=True,
        )
        for window, values in zip(together, embed_run(split, run, read, batch_windows=batch_windows), strict=True):
            found = values.float().cpu().numpy()
            if first:
                _require_same(found, alone(window))
                first = False
            yield found


def _require_same(shared: np.ndarray, alone: np.ndarray) -> None:
    size = float(np.sqrt(np.square(alone, dtype=np.float64).mean()))
    off = float(np.sqrt(np.square(shared.astype(np.float64) - alone).mean()))
    if not off <= AT_MOST_OFF * size:
        relative = off / size if size else off
        raise SpecError(
            f"a window whose convolutions are shared is off what it is alone by {relative:.2g} (rms)",
            where="options tokens, from_tokens, kernels of embedder module",
            fix="give every level's width in kernels, or leave tokens out: each window is then run alone",
        )
