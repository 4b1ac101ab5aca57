"""What a head reads of a window's bins, for sequences that differ from the genome in a single base.

Convolutions reach a few tokens far: around a changed base the tokens are computed again from a short piece, and put
over those of the unchanged window. A piece ends either where the window does, and is zero-padded as that is, or far
enough away that its own padding does not reach the tokens that are taken from it. Attention sees everything, so a
transformer runs whole, but its last block and the last layer only for the bins that are asked for (`cut_models`). All
of it is exact, to rounding. Numbers stay float32: float16, as stored, would round small effects away.

Models that cannot be cut are asked for the whole window with each change.
"""

# b changes · k bins · d trunk dim · n tokens

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from tfbind_store.interpretation.cut_models import CutModel, cut
from tfbind_store.loci import Locus, Tiling
from tfbind_store.precompute.as_read import Map, taken_apart
from tfbind_store.precompute.embedder import Codes, WindowEmbedder
from tfbind_store.precompute.enformer import COMPLEMENT, reverse_complement
from tfbind_store.precompute.window_options import Strand, reading_of


class LiveBins(Protocol):
    """Some neighbouring bins of one window."""

    read: Locus
    """The bases that are read for them."""

    def reference(self) -> Float32[np.ndarray, "k d"]:
        """Return the bins of the sequence as it is."""
        ...

    def changed(
        self, positions: Int64[np.ndarray, " b"], bases: UInt8[np.ndarray, " b"]
    ) -> Iterator[Float32[np.ndarray, "some k d"]]:
        """Yield the bins of sequences with one base changed each, some changes at a time.

        Parameters
        ----------
        positions
            On the chromosome, within what is read.
        bases
            Codes that stand there instead.
        """
        ...


def live_bins(embedder: WindowEmbedder, tiling: Tiling, window: int, codes: Codes, bins: range) -> LiveBins:
    """Return some bins of a window, live.

    Parameters
    ----------
    embedder
        As `embedder_as_read` gives it.
    codes
        Reads the genome.
    bins
        Neighbouring kept bins.
    """
    model, maps = taken_apart(embedder)
    inner, shift_bp, strand = reading_of(model)
    read, parts = tiling.read(window).moved(shift_bp), cut(inner)
    if parts is None:
        return _WholeWindow(embedder, tiling, window, read, codes, bins)
    first = tiling.grid.margin_bp // tiling.grid.bin_bp + bins.start
    return _LocalChanges(parts, strand, read, codes, range(first, first + len(bins)), maps)


class _WholeWindow:
    """Any embedder: every change is a window of its own."""

    def __init__(
        self, embedder: WindowEmbedder, tiling: Tiling, window: int, read: Locus, codes: Codes, bins: range
    ) -> None:
        self.embedder, self.tiling, self.window, self.codes, self.bins = embedder, tiling, window, codes, bins
        self.read = read

    def reference(self) -> Float32[np.ndarray, "k d"]:
        return self._bins(self.codes)

    def changed(
        self, positions: Int64[np.ndarray, " b"], bases: UInt8[np.ndarray, " b"]
    ) -> Iterator[Float32[np.ndarray, "some k d"]]:
        for position, base in zip(positions.tolist(), bases.tolist(), strict=True):

            def with_change(locus: Locus, position: int = position, base: int = base) -> UInt8[np.ndarray, " bp"]:
                codes = self.codes(locus)
                if locus.start <= position < locus.end:
                    codes = codes.copy()
                    codes[position - locus.start] = base
                return codes

            yield self._bins(with_change)[np.newaxis]

    def _bins(self, codes: Codes) -> Float32[np.ndarray, "k d"]:
        (result,) = self.embedder.embed([self.window], codes, self.tiling)
        return np.asarray(result.values[self.bins.start : self.bins.stop], dtype=np.float32)


class _LocalChanges:
    """A trunk that can be cut: only the tokens that a change reaches are computed again."""

    def __init__(
        self, model: CutModel, strand: Strand, read: Locus, genome: Codes, keep: range, maps: Sequence[Map]
    ) -> None:
        self.read, self.maps = read, maps
        codes = genome(read)
        self.strands: list[_Strand] = []
        if strand != "reverse":
            self.strands.append(_Strand(model, codes, keep))
        if strand != "forward":
            (flipped,) = reverse_complement(codes[np.newaxis])
            n_bins = len(codes) // (model.bp_per_token * model.tokens_per_bin)
            back = range(n_bins - keep.stop, n_bins - keep.start)
            self.strands.append(_Strand(model, np.ascontiguousarray(flipped), back, is_reverse=True))
        self.at_once = model.at_once(len(codes) // model.bp_per_token)

    def reference(self) -> Float32[np.ndarray, "k d"]:
        (bins,) = self._joined([strand.reference() for strand in self.strands])
        return np.asarray(bins)

    def changed(
        self, positions: Int64[np.ndarray, " b"], bases: UInt8[np.ndarray, " b"]
    ) -> Iterator[Float32[np.ndarray, "some k d"]]:
        positions = positions - self.read.start
        for at in range(0, len(positions), self.at_once):
            some = slice(at, at + self.at_once)
            yield self._joined([strand.changed(positions[some], bases[some]) for strand in self.strands])

    def _joined(self, strands: Sequence[Float[Tensor, "b k d"]]) -> Float32[np.ndarray, "b k d"]:
        """Return the mean over strands, through the maps that follow the trunk."""
        values: Any = torch.stack(list(strands)).mean(0).float().cpu().numpy()
        flat = values.reshape(-1, values.shape[-1])
        for through in self.maps:
            flat = through(flat)
        return np.asarray(flat, dtype=np.float32).reshape(*values.shape[:2], -1)


class _Strand:
    """One strand of a window, read in its own direction."""

    def __init__(
        self, model: CutModel, codes: UInt8[np.ndarray, " bp"], keep: range, *, is_reverse: bool = False
    ) -> None:
        self.model, self.codes, self.keep, self.is_reverse = model, codes, keep, is_reverse
        self.tokens = self.model.tokens(self._on_device(codes[np.newaxis]))

    def reference(self) -> Float[Tensor, "1 k d"]:
        """Return the kept bins of the window as it is."""
        return self._bins(self.tokens, self.codes[np.newaxis])

    def changed(self, positions: Int64[np.ndarray, " b"], bases: UInt8[np.ndarray, " b"]) -> Float[Tensor, "b k d"]:
        """Return the kept bins of changed sequences; positions, from the window's start, are the forward strand's."""
        if self.is_reverse:
            positions, bases = len(self.codes) - 1 - positions, COMPLEMENT[bases]
        bp, reach, n_tokens = self.model.bp_per_token, self.model.reach_tokens, self.tokens.shape[1]
        whole = np.tile(self.codes, (len(positions), 1))
        whole[np.arange(len(positions)), positions] = bases
        # the change reaches that far to each side; as far again, padding reaches in from the piece's own ends
        length = min(n_tokens, 4 * reach + 1)
        here = positions // bp
        begins = np.clip(here - 2 * reach, 0, n_tokens - length)
        pieces = [row[begin * bp : (begin + length) * bp] for row, begin in zip(whole, begins, strict=True)]
        found = self.model.tokens(self._on_device(np.stack(pieces)))
        tokens = self.tokens.repeat(len(pieces), 1, 1)
        for row, (token, begin) in enumerate(zip(here.tolist(), begins.tolist(), strict=True)):
            low, high = max(0, token - reach), min(n_tokens, token + reach + 1)
            tokens[row, low:high] = found[row, low - begin : high - begin]
        return self._bins(tokens, whole)

    def _bins(self, tokens: Float[Tensor, "b n c"], codes: UInt8[np.ndarray, "b bp"]) -> Float[Tensor, "b k d"]:
        """Return the kept bins in genome order."""
        kept = self.model.bins(tokens, self._on_device(codes), self.keep)
        return kept.flip(1) if self.is_reverse else kept

    def _on_device(self, codes: UInt8[np.ndarray, "b bp"]) -> UInt8[Tensor, "b bp"]:
        return torch.from_numpy(codes).to(self.model.device)
