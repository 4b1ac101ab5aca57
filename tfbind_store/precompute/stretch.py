"""Neighbouring windows share one pass of the convolutions, and stay exactly what they would be alone.

Windows overlap (196,608 bp read every 114,688 bp), so the conv tower would see most bases twice. Here it runs once
along a stretch, in chunks, and windows are slices of its tokens. Alone, a window's convolutions pad with zeros at its
ends; that padding reaches `ConvGeometry.reach_tokens` inwards and no further. Those few tokens are computed again from
a short piece at each end, zero-padded as the window would be, and put over the slice.

The same streaming bounds the memory of a single long window. What shares nothing with its neighbour goes through alone:
short windows in batches, each a piece of its own; windows that do not lie on their neighbour's tokens, or after a gap,
as a stretch of one. Which way a window goes depends on the run's grid only, and chunks lie on the chromosome's own
even tokens: the same window comes out with the same bits whatever else is asked for, as long as the libraries treat
every row alike however many there are. On CPUs they do: oneDNN's products from two rows on, torch's functions where a
row is a multiple of 32 channels, as all of Enformer's are. GPUs choose other kernels for other sizes: there the same
window may differ by rounding.

Chunks and windows go through on as many threads as torch was given (`in_order`), each on one: the same bits as on one.
Nothing here knows Enformer: any model that can be cut into `SplitTrunk` may be run this way.
"""

# b pieces · l bp · n tokens · c channels

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tfbind_store.errors import LocusError
from tfbind_store.precompute.in_order import InOrder, threads_of_cpu

CPU_CHUNK_TOKENS = 256  # of Enformer, 32,768 bp: its widest rows are 100 MB, halos of 6 tokens a side cost 5 %
GPU_CHUNK_TOKENS = 1024
LEAST_CHUNK_TOKENS = 32
UNIFORM_CHUNKS = 4
"""Chunks of nothing but N, or of nothing but positions outside, whose tokens are kept."""
CodesReader = Callable[[int, int], UInt8[np.ndarray, " l"]]


@dataclass(frozen=True, kw_only=True)
class ConvGeometry:
    """What the arithmetic of windows needs to know of a trunk's convolutions."""

    bp_per_token: int
    """Bases that one token stands for."""
    reach_tokens: int
    """Tokens at each end of a piece that zero padding touches."""
    halo_tokens: int
    """Tokens to add on each side of a chunk so that not even its rounding depends on where it was cut."""
    align_tokens: int
    """Chunks begin at multiples of this many tokens."""
    dim: int
    """Channels of a token."""

    @classmethod
    def of_levels(cls, kernels: Sequence[int], *, dim: int, tile: int = 1) -> ConvGeometry:
        """Follow zero padding through levels of one convolution and one pooling of two.

        Parameters
        ----------
        kernels
            Width of each level's convolution, the first one on bases; convolutions on single rows do not count.
        dim
            Channels of a token.
        tile
            Outputs that are computed together from all their inputs (`packed.CookToom`): inputs beyond an output's own
            cancel, but leave their rounding behind.

        Examples
        --------
        >>> ConvGeometry.of_levels([15, 5, 5, 5, 5, 5, 5], dim=1536, tile=4)
        ConvGeometry(bp_per_token=128, reach_tokens=3, halo_tokens=6, align_tokens=2, dim=1536)
        """
        reach = touched = 0
        for level, kernel in enumerate(kernels):
            beyond = tile - 1 if level else 0
            reach = -(-(reach + kernel // 2) // 2)
            touched = -(-(touched + kernel // 2 + beyond) // 2)
        align = max(tile // 2, 1)
        halo = -(-touched // align) * align
        return cls(bp_per_token=2 ** len(kernels), reach_tokens=reach, halo_tokens=halo, align_tokens=align, dim=dim)


class SplitTrunk(Protocol):
    """A trunk cut in three: convolutions of bases, layers that see a whole window, a layer that sees single tokens.

    One that says ``reentrant = True`` may be called by several threads at once.
    """

    geometry: ConvGeometry
    device: torch.device

    def conv(self, codes: UInt8[Tensor, "b l"], /) -> Float[Tensor, "b n c"]:
        """Return the tokens of pieces of sequence, padded with zeros at both ends."""
        ...

    def transform(self, tokens: Float[Tensor, "b n c"], keep: slice, /) -> Float[Tensor, "b kept c"]:
        """Return the kept tokens of whole windows."""
        ...

    def pointwise(self, tokens: Float[Tensor, "b kept c"], /) -> Float[Tensor, "b kept c2"]:
        """Return the embedding of each token."""
        ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """Windows along one chromosome, from left to right."""

    starts_bp: tuple[int, ...]
    """Where each begins to read; ascending, may be below zero."""
    window_bp: int
    keep: slice
    """Tokens of each window that are wanted, as ``slice(first, stop)``."""
    shares: bool
    """Whether windows of this grid overlap their neighbours (those that are asked for need not)."""

    @classmethod
    def evenly(cls, *, start_bp: int, n_windows: int, window_bp: int, stride_bp: int, keep: slice) -> Run:
        """Return windows at equal distances."""
        starts = tuple(start_bp + i * stride_bp for i in range(n_windows))
        return cls(starts_bp=starts, window_bp=window_bp, keep=keep, shares=stride_bp < window_bp)


def embed_run(
    trunk: SplitTrunk,
    run: Run,
    read: CodesReader,
    *,
    batch_windows: int = 1,
    chunk_tokens: int | None = None,
    final: bool = True,
    n_threads: int | None = None,
) -> Iterator[Float[Tensor, "kept c"]]:
    """Yield the embedding of each window of a run, in order.

    Parameters
    ----------
    trunk
        Weights laid out.
    run
        The windows.
    read
        Codes of ``[start, end)`` of the run's chromosome, PAD outside it.
    batch_windows
        Windows per call of the layers that see whole windows.
    chunk_tokens
        Tokens of the stretch per pass of the conv tower; bounds its memory. None: 256 on a CPU, 1,024 elsewhere.
    final
        Apply the final pointwise layer; False yields the transformer's output, half the channels.
    n_threads
        Chunks or windows that go through at once, each in memory of its own. None: `threads_of` the trunk.

    Raises
    ------
    LocusError
        If windows are no whole number of tokens.
    """
    bp = trunk.geometry.bp_per_token
    if run.window_bp % bp:
        raise LocusError(
            f"windows of {run.window_bp} bp are no whole number of tokens of {bp} bp",
            where="embed_run",
            fix=f"choose a window that is a multiple of {bp}",
        )
    if chunk_tokens is None:
        chunk_tokens = CPU_CHUNK_TOKENS if trunk.device.type == "cpu" else GPU_CHUNK_TOKENS
    chunk_tokens = max(chunk_tokens // trunk.geometry.align_tokens, 1) * trunk.geometry.align_tokens
    n_batches = -(-len(run.starts_bp) // batch_windows)
    with InOrder(threads_of(trunk) if n_threads is None else n_threads) as threads:
        tokens = _tokens(trunk, run, read, chunk_tokens, threads)
        jobs = (partial(_transformed, trunk, batch, run.keep, final) for batch in _batches(tokens, batch_windows))
        # fewer batches than threads: one after the other, all threads at each
        for out in (threads if n_batches >= threads.n_threads else InOrder(1)).results(jobs):
            yield from out


def threads_of(trunk: SplitTrunk) -> int:
    """Return how many chunks or windows of this trunk go through at once: as many as torch has threads on a CPU."""
    return threads_of_cpu() if trunk.device.type == "cpu" and getattr(trunk, "reentrant", False) else 1


def _batches(windows: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    while batch := list(itertools.islice(windows, size)):
        yield batch


def _transformed(trunk: SplitTrunk, windows: list[Tensor], keep: slice, final: bool) -> Tensor:
    """Return the embeddings of a batch, whose list is emptied so that its tokens do not outlive their use."""
    batch = windows[0][None] if len(windows) == 1 else torch.stack(windows)
    windows.clear()
    out = trunk.transform(batch, keep)
    return trunk.pointwise(out) if final else out


def stretches(starts_bp: Sequence[int], *, window_bp: int, bp_per_token: int) -> list[tuple[int, ...]]:
    """Cut a run where the next window does not overlap, or does not lie on the same tokens.

    Examples
    --------
    >>> stretches([0, 512, 1024, 2048, 2112, 9000], window_bp=1024, bp_per_token=128)
    [(0, 512, 1024), (2048,), (2112,), (9000,)]
    """
    found: list[list[int]] = []
    for start in starts_bp:
        gap = start - found[-1][-1] if found else window_bp
        if gap < window_bp and gap % bp_per_token == 0:
            found[-1].append(start)
        else:
            found.append([start])
    return [tuple(stretch) for stretch in found]


def _tokens(trunk: SplitTrunk, run: Run, read: CodesReader, chunk_tokens: int, threads: InOrder) -> Iterator[Tensor]:
    """Yield each window's tokens."""
    window_tokens = run.window_bp // trunk.geometry.bp_per_token
    # with reach_tokens from both ends, so little is left to share that a piece of its own is simpler
    if window_tokens <= 4 * trunk.geometry.reach_tokens or (window_tokens <= CPU_CHUNK_TOKENS and not run.shares):
        pieces = _pieces(trunk, run, read, at_once=max(chunk_tokens // window_tokens, 1))
        yield from itertools.chain.from_iterable(threads.results(pieces))
        return
    cutter = _Cutter(trunk, run, read, chunk_tokens, threads)
    for starts in stretches(run.starts_bp, window_bp=run.window_bp, bp_per_token=trunk.geometry.bp_per_token):
        yield from cutter.windows(starts)


def _pieces(trunk: SplitTrunk, run: Run, read: CodesReader, *, at_once: int) -> Iterator[Callable[[], Tensor]]:
    for first in range(0, len(run.starts_bp), at_once):
        starts = run.starts_bp[first : first + at_once]
        yield partial(trunk.conv, _codes(trunk, [read(start, start + run.window_bp) for start in starts]))


class _Part(NamedTuple):
    """Tokens of a stretch from number `first` on."""

    first: int
    tokens: Tensor

    @property
    def end(self) -> int:
        return self.first + len(self.tokens)


class _Cutter:
    """Streams stretches and cuts windows from them; token 0 of a stretch is where its first window begins."""

    def __init__(self, trunk: SplitTrunk, run: Run, read: CodesReader, chunk_tokens: int, threads: InOrder) -> None:
        self.trunk, self.geometry, self.threads = trunk, trunk.geometry, threads
        self.window_bp, self.read, self.chunk_tokens = run.window_bp, read, chunk_tokens
        self._uniform: dict[tuple[int, int], Tensor] = {}
        self._one_at_a_time = threading.Lock()

    def windows(self, starts: Sequence[int]) -> Iterator[Tensor]:
        """Yield the tokens of overlapping windows that begin at `starts`."""
        parts = self.threads.results(self._parts(starts))
        held: list[_Part] = []
        for start in starts:
            begin, stop = self._inner(start - starts[0])
            while held and held[0].end <= begin:
                held.pop(0)
            while not held or held[-1].end < stop:
                held.append(next(parts))
            inner = held[0].tokens if len(held) == 1 else torch.cat([part.tokens for part in held])
            tokens = inner[begin - held[0].first : stop - held[0].first]
            if reach := self.geometry.reach_tokens:
                ends = next(parts).tokens
                tokens = torch.cat([ends[:reach], tokens, ends[reach:]])
            yield tokens

    def _inner(self, offset_bp: int) -> tuple[int, int]:
        """Return the tokens of a window that zero padding does not touch."""
        begin = offset_bp // self.geometry.bp_per_token + self.geometry.reach_tokens
        return begin, begin + self.window_bp // self.geometry.bp_per_token - 2 * self.geometry.reach_tokens

    def _parts(self, starts: Sequence[int]) -> Iterator[Callable[[], _Part]]:
        """Yield what is to be computed, in the order in which `windows` wants it: chunks, then a window's two ends."""
        bp, align = self.geometry.bp_per_token, self.geometry.align_tokens
        odd = starts[0] // bp % align  # distance of token 0 from the chromosome's last multiple of `align`
        _, last = self._inner(starts[-1] - starts[0])
        end = 0
        for start in starts:
            begin, stop = self._inner(start - starts[0])
            end = max(end, begin - (begin + odd) % align)
            while end < stop:
                n = min(self.chunk_tokens, last - end + -(last + odd) % align)
                yield self._chunk(end, starts[0] + end * bp, n)
                end += n
            if self.geometry.reach_tokens:
                yield self._ends(start)

    def _chunk(self, first: int, start_bp: int, n_tokens: int) -> Callable[[], _Part]:
        """Read the sequence of `n_tokens` tokens from `start_bp` on, to be as they are within a long sequence."""
        bp, halo = self.geometry.bp_per_token, self.geometry.halo_tokens
        codes = self.read(start_bp - halo * bp, start_bp + (n_tokens + halo) * bp)
        key = (int(codes[0]), n_tokens) if bool((codes == codes[0]).all()) else None

        def compute() -> _Part:
            if key is None:
                return _Part(first, self._convolved(codes, n_tokens))
            with self._one_at_a_time:  # who waits here finds the tokens made
                if key not in self._uniform:
                    if len(self._uniform) == UNIFORM_CHUNKS:
                        self._uniform.clear()
                    self._uniform[key] = self._convolved(codes, n_tokens)
                return _Part(first, self._uniform[key])

        return compute

    def _convolved(self, codes: UInt8[np.ndarray, " l"], n_tokens: int) -> Tensor:
        halo = self.geometry.halo_tokens
        return self.trunk.conv(_codes(self.trunk, [codes]))[0, halo : halo + n_tokens]

    def _ends(self, start: int) -> Callable[[], _Part]:
        """Read the sequence of the tokens at a window's two ends that its own zero padding touches."""
        bp, reach = self.geometry.bp_per_token, self.geometry.reach_tokens
        piece_bp, end = 2 * reach * bp, start + self.window_bp
        pieces = [self.read(start, start + piece_bp), self.read(end - piece_bp, end)]

        def compute() -> _Part:
            both = self.trunk.conv(_codes(self.trunk, pieces))
            return _Part(0, torch.cat([both[0, :reach], both[1, reach:]]))

        return compute


def _codes(trunk: SplitTrunk, codes: Sequence[UInt8[np.ndarray, " l"]]) -> UInt8[Tensor, "b l"]:
    """Bring sequence to the device; from pinned memory, so that a GPU need not wait for it."""
    rows = torch.from_numpy(np.stack(codes))
    if trunk.device.type == "cpu":
        return rows
    return (rows.pin_memory() if trunk.device.type == "cuda" else rows).to(trunk.device, non_blocking=True)
