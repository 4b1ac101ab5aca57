"""Neighbouring windows share one pass of the convolutions, and stay exactly what they would be alone.

Windows overlap (196,608 bp read every 114,688 bp), so the conv tower would see most bases twice. Here it runs once
along a stretch, in chunks, and windows are slices of its tokens. Alone, a window's convolutions pad with zeros at its
ends; that padding reaches `Geometry.reach_tokens` inwards and no further. Those few tokens are computed again from a
short piece at each end, zero-padded as the window would be, and put over the slice.

The same streaming bounds the memory of a single long window. Windows that are short (4,096 bp) and do not overlap go
through in batches, each as a piece of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tfbind_store.errors import LocusError
from tfbind_store.precompute.fast_forward import FastTrunk

CHUNK_TOKENS = 256  # halos of 3 tokens a side cost 2 %; 32,768 bp of Enformer's widest rows are 100 MB
CodesReader = Callable[[int, int], UInt8[np.ndarray, " l"]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Windows at equal distances along one chromosome."""

    start_bp: int
    """Where the first window begins to read; may be below zero."""
    n_windows: int
    window_bp: int
    stride_bp: int
    keep: slice
    """Tokens of each window that are wanted, as ``slice(first, stop)``."""


def fits(trunk: FastTrunk, *, window_bp: int, stride_bp: int) -> bool:
    """Tell whether windows begin and end between tokens, so that they can be cut from one stretch."""
    bp = trunk.geometry.bp_per_token
    return window_bp % bp == 0 and stride_bp % bp == 0


def embed_run(
    trunk: FastTrunk,
    run: Run,
    read: CodesReader,
    *,
    batch_windows: int = 1,
    chunk_tokens: int = CHUNK_TOKENS,
    final: bool = True,
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
        Windows per call of the transformer.
    chunk_tokens
        Tokens of the stretch per pass of the conv tower; bounds its memory.
    final
        Apply the final pointwise layer; False yields the transformer's output, half the channels.

    Raises
    ------
    LocusError
        If windows do not begin and end between tokens.
    """
    if not fits(trunk, window_bp=run.window_bp, stride_bp=run.stride_bp):
        bp = trunk.geometry.bp_per_token
        raise LocusError(
            f"windows of {run.window_bp} bp every {run.stride_bp} bp do not lie on tokens of {bp} bp",
            where="embed_run",
            fix=f"choose a window and a stride that are multiples of {bp}",
        )
    tokens = _pieces(trunk, run, read) if _alone(trunk, run, chunk_tokens) else _stream(trunk, run, read, chunk_tokens)
    waiting: list[Tensor] = []
    for number, window in enumerate(tokens, start=1):
        waiting.append(window)
        if len(waiting) == batch_windows or number == run.n_windows:
            out = trunk.transform(torch.stack(waiting), run.keep)
            yield from trunk.pointwise(out) if final else out
            waiting.clear()


def _alone(trunk: FastTrunk, run: Run, chunk_tokens: int) -> bool:
    """Tell whether each window is better one piece: short, and sharing nothing with its neighbour."""
    window_tokens = run.window_bp // trunk.geometry.bp_per_token
    shares = run.n_windows > 1 and run.stride_bp < run.window_bp
    return window_tokens <= 4 * trunk.geometry.reach_tokens or (window_tokens <= chunk_tokens and not shares)


def _pieces(trunk: FastTrunk, run: Run, read: CodesReader) -> Iterator[Tensor]:
    for i in range(run.n_windows):
        start = run.start_bp + i * run.stride_bp
        yield trunk.conv(_tensor(trunk, [read(start, start + run.window_bp)]))[0]


def _stream(trunk: FastTrunk, run: Run, read: CodesReader, chunk_tokens: int) -> Iterator[Tensor]:
    """Cut windows from the stretch; token 0 is where the first window begins."""
    bp, reach = trunk.geometry.bp_per_token, trunk.geometry.reach_tokens
    width, stride = run.window_bp // bp, run.stride_bp // bp
    last = (run.n_windows - 1) * stride + width - reach
    held: list[Tensor] = []
    first = end = reach
    for i in range(run.n_windows):
        begin, stop = i * stride + reach, i * stride + width - reach
        while held and first + len(held[0]) <= begin:
            first += len(held.pop(0))
        if not held and begin > end:
            first = end = begin
        while end < stop:
            n = min(chunk_tokens, last - end)
            codes = read(run.start_bp + (end - reach) * bp, run.start_bp + (end + n + reach) * bp)
            held.append(trunk.conv(_tensor(trunk, [codes]))[0, reach:-reach])
            end += n
        inner = torch.cat(held)[begin - first : stop - first]
        left, right = _ends(trunk, run, read, i)
        yield torch.cat([left, inner, right])


def _ends(trunk: FastTrunk, run: Run, read: CodesReader, i: int) -> tuple[Tensor, Tensor]:
    """Return the tokens at a window's two ends that its own zero padding touches."""
    bp, reach = trunk.geometry.bp_per_token, trunk.geometry.reach_tokens
    piece_bp = 2 * reach * bp
    start = run.start_bp + i * run.stride_bp
    end = start + run.window_bp
    both = trunk.conv(_tensor(trunk, [read(start, start + piece_bp), read(end - piece_bp, end)]))
    return both[0, :reach], both[1, reach:]


def _tensor(trunk: FastTrunk, codes: list[UInt8[np.ndarray, " l"]]) -> UInt8[Tensor, "b l"]:
    return torch.from_numpy(np.stack(codes)).to(trunk.stem.table.device, non_blocking=True)
