"""Several versions of one window's sequence, such as the alleles of variants, through a frozen model together.

Versions differ in a few bases. An embedder that can remember (`WindowEmbedder`) gives their convolutions chunk by
chunk, and a chunk that it has seen is not computed again: of a substitution one or two chunks are new, of an insertion
or a deletion those on its right. The layers that see whole windows run for every version, in batches. All of it is
exact: the same chunks with the same bases give the same tokens, to the bit on a CPU. To be batched, versions are laid
out as windows of an invented chromosome, too far apart to share anything; an embedder that cannot remember gets them
one by one, at the window's own place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from tfbind_store.loci import Locus, Tiling
from tfbind_store.precompute.embedder import Codes, WindowEmbedder
from tfbind_store.precompute.stretch import SplitTrunk

REMEMBERED_BYTES = 256 * 1024**2
REMEMBERED_CHUNK_TOKENS = 64
"""Shorter chunks leave less to compute anew, and cost more halos: 19 % for a reference that is computed once."""


class RememberingTrunk:
    """A trunk that keeps the tokens of pieces that it has seen, the latest `max_bytes` of them."""

    reentrant = False

    def __init__(self, trunk: SplitTrunk, *, max_bytes: int = REMEMBERED_BYTES) -> None:
        self.trunk, self.geometry, self.device = trunk, trunk.geometry, trunk.device
        self.transform, self.pointwise = trunk.transform, trunk.pointwise
        self.n_computed = 0
        """Bases that went through the convolutions."""
        self._max_bytes, self._n_bytes = max_bytes, 0
        self._seen: OrderedDict[bytes, Tensor] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trunk, name)

    def conv(self, codes: UInt8[Tensor, "b l"]) -> Float[Tensor, "b n c"]:
        """Return the tokens of pieces; those not seen before are computed together."""
        keys = [row.tobytes() for row in codes.cpu().numpy()]
        new = {key: place for place, key in enumerate(keys) if key not in self._seen}
        found = {key: self._seen[key] for key in keys if key in self._seen}
        if new:
            self.n_computed += len(new) * codes.shape[1]
            found.update(zip(new, self.trunk.conv(codes[list(new.values())]), strict=True))
        for key, tokens in found.items():
            self._keep(key, tokens)
        return torch.stack([found[key] for key in keys])

    def _keep(self, key: bytes, tokens: Tensor) -> None:
        if key not in self._seen:
            self._seen[key] = tokens.clone()  # not a view that keeps a whole batch alive
            self._n_bytes += tokens.nbytes + len(key)
        self._seen.move_to_end(key)
        while self._n_bytes > self._max_bytes and len(self._seen) > 1:
            gone, dropped = self._seen.popitem(last=False)
            self._n_bytes -= dropped.nbytes + len(gone)


def remembering(embedder: WindowEmbedder) -> WindowEmbedder | None:
    """Return a twin of an embedder that keeps what it has computed; None if it has none."""
    make = getattr(embedder, "remembering", None)
    twin: WindowEmbedder | None = None if make is None else make()
    return twin


def embed_versions(
    embedder: WindowEmbedder, window: int, versions: Sequence[Codes], tiling: Tiling, *, together: bool
) -> list[Float32[np.ndarray, "n_bins dim"]]:
    """Return the kept bins of a window for each version of its sequence.

    Parameters
    ----------
    embedder
        The model.
    window
        Where the versions lie.
    versions
        Readers of the window's chromosome as each version has it.
    together
        Let the model see them as windows of one chromosome; its numbers must not depend on where a window lies.
    """
    if not together:
        return [next(iter(embedder.embed([window], codes, tiling))).values for codes in versions]
    grid = tiling.grid
    step = -(-3 * grid.window_bp // grid.stride_bp)
    step += step % 2  # all begin on an even token, as chunks do
    apart = step * grid.stride_bp
    invented = Tiling.over(grid, {"versions": apart * len(versions)})
    real = tiling.read(window)

    def codes(locus: Locus) -> UInt8[np.ndarray, " bp"]:
        place = min(max(round(((locus.start + locus.end) / 2 - grid.stride_bp / 2) / apart), 0), len(versions) - 1)
        moved = real.start - (place * apart - grid.margin_bp)
        return versions[place](Locus(real.chrom, locus.start + moved, locus.end + moved))

    windows = [place * step for place in range(len(versions))]
    return [made.values for made in embedder.embed(windows, codes, invented)]
