"""Trunks cut where their short convolutions end: what one base changes up to there is a few tokens, beyond it many.

A changed base is convolved in a short piece around it, and only what follows the cut is asked of more of the window. An
Enformer's cut lies before its transformer. A `Convnet`'s lies before its dilated convolutions, which are then computed
for no more of the window than the bins that are asked for see. What a convnet is told of reading frames it is told of
the whole changed window: one base may end a frame a kilobase long.
"""

# b pieces or changes · l bp of a window or piece · n tokens · k bins · c, d channels

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tfbind_store.precompute.convnet import Convnet
from tfbind_store.precompute.enformer import CODE_ROWS, EnformerEmbedder
from tfbind_store.precompute.module import ModuleEmbedder
from tfbind_store.precompute.weights import exact_float32

TOKENS_AT_ONCE = 1536
"""Of a transformer: as many as a window of Enformer has."""
CHANGES_AT_ONCE = 16
"""Of a convnet, which is small."""


class CutModel(Protocol):
    """A trunk in two parts."""

    device: torch.device
    bp_per_token: int
    tokens_per_bin: int
    reach_tokens: int
    """How far from a base, and from a piece's ends, tokens are touched."""

    def at_once(self, window_tokens: int) -> int:
        """Return how many changed windows go through the second part together."""
        ...

    def tokens(self, codes: UInt8[Tensor, "b l"], /) -> Float[Tensor, "b n c"]:
        """Return the first part of pieces of sequence, zero-padded at both ends."""
        ...

    def bins(
        self, tokens: Float[Tensor, "b n c"], codes: UInt8[Tensor, "b l"], keep: range, /
    ) -> Float[Tensor, "b k d"]:
        """Return some bins of whole windows, whose bases `codes` are."""
        ...


def cut(model: Any) -> CutModel | None:
    """Return the two parts of the trunk behind an embedder; None where nobody knows how to cut it."""
    if isinstance(model, EnformerEmbedder):
        return _CutEnformer(model)
    if isinstance(model, ModuleEmbedder) and isinstance(model.model, Convnet):
        return _CutConvnet(model.model, model.device)
    return None


class _CutEnformer:
    tokens_per_bin = 1

    def __init__(self, model: EnformerEmbedder) -> None:
        self.fast, self.is_final = model.fast, model.tap == "trunk"
        self.device, geometry = self.fast.device, self.fast.geometry
        self.bp_per_token, self.reach_tokens = geometry.bp_per_token, geometry.reach_tokens

    def at_once(self, window_tokens: int) -> int:
        return max(1, TOKENS_AT_ONCE // window_tokens)

    def tokens(self, codes: UInt8[Tensor, "b l"]) -> Float[Tensor, "b n c"]:
        return self.fast.conv(codes)

    def bins(self, tokens: Float[Tensor, "b n c"], codes: UInt8[Tensor, "b l"], keep: range) -> Float[Tensor, "b k d"]:
        kept = self.fast.transform(tokens, slice(keep.start, keep.stop))
        return self.fast.pointwise(kept) if self.is_final else kept


class _CutConvnet:
    def __init__(self, model: Convnet, device: torch.device) -> None:
        self.model, self.device = model.to(device), device
        sizes = model.sizes
        self.bp_per_token, self.tokens_per_bin = sizes.quarter_bp, sizes.pools[1]
        self.reach_tokens = sizes.reach_quarters
        self._table = torch.from_numpy(CODE_ROWS).to(device)

    def at_once(self, window_tokens: int) -> int:
        return CHANGES_AT_ONCE

    @torch.inference_mode()
    def tokens(self, codes: UInt8[Tensor, "b l"]) -> Float[Tensor, "b n c"]:
        with exact_float32(self.device):
            return self.model.nearby(self._table[codes.int()])[:, :, 0].transpose(1, 2)

    @torch.inference_mode()
    def bins(self, tokens: Float[Tensor, "b n c"], codes: UInt8[Tensor, "b l"], keep: range) -> Float[Tensor, "b k d"]:
        model, per_bin, sees = self.model, self.tokens_per_bin, self.model.sizes.context_quarters
        first, last = keep.start * per_bin, keep.stop * per_bin
        low, high = max(0, first - sees), min(tokens.shape[1], last + sees)
        seen = tokens[:, low:high].transpose(1, 2).unsqueeze(2)
        with exact_float32(self.device):
            if model.sizes.frame_codons:
                seen = seen + model.of_frames(self._table[codes.int()])[..., low:high]
            quarters = model.surroundings(seen)[..., first - low : last - low]
            return model.pooled(quarters)
