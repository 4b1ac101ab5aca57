"""Open reading frames as numbers beside a sequence: where genes lie, which way they point, and how they use codons.

In a compact genome (bacteria, yeast) few stretches without a stop are long by chance, so that coding sequence is read
off the bases exactly, while a net with some megabases to learn from does not find a kilobase without a stop. What lies
before a gene may be its promoter, and biased codons say that the gene is expressed much, its promoter busy. Long
genomes with introns gain nothing here.

A frame runs from the first ATG behind a stop to the next stop, by the standard code. What is no base ends it as a stop
does; at an edge of what is read it may run in without an ATG and out without a stop. Of frames that overlap, on either
strand, the longest is kept, and others that share less than `MOST_SHARED` of their bases with longer ones.
"""

# bp bases · n positions, `step_bp` bases each

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

N_CODONS = 64
START = 0 * 16 + 3 * 4 + 2
"""ATG, as a number of base four."""
STOPS = (3 * 16 + 0 * 4 + 0, 3 * 16 + 0 * 4 + 2, 3 * 16 + 2 * 4 + 0)
"""TAA, TAG, TGA."""
MOST_SHARED = 0.3
NEAR_BP = np.array([60.0, 200.0, 600.0, 2000.0])
"""Distances over which nearness to a start or an end falls to a third, one number each."""
USAGE_NEAR_BP = 1000.0
"""The same of the next gene's codons."""
USAGE_SCALE = 20.0
"""Shares of codons differ by about a twentieth."""
PER_STRAND = 2 + 2 * len(NEAR_BP) + 2 * N_CODONS
N_NUMBERS = 2 * PER_STRAND
"""Numbers per position: those of the strand that is read, then those of the other."""
_OTHER_STRAND = np.array([3, 2, 1, 0, 4, 5], dtype=np.uint8)


class Frame(NamedTuple):
    """One frame, in the direction in which it is read."""

    start: int
    """First base of its ATG, or of the first codon that is read."""
    end: int
    """First base of its stop, or the first one that is not read."""
    usage: Float32[np.ndarray, " codons"]
    """Share of each codon among its codons, less the share that each would have of all alike, scaled."""


def frame_numbers(
    codes: UInt8[np.ndarray, " bp"], *, step_bp: int, least_codons: int
) -> Float32[np.ndarray, "n numbers"]:
    """Return what is said of frames at every position.

    For either strand, along its own direction: share of the position's bases in a frame; logarithm of the frame's
    length, in 300 bp; nearness to the next start ahead and to the last end behind at four scales; codon usage of the
    frame; codon usage of the next one ahead, fading with distance. The complement's numbers are these in reverse,
    halves exchanged.

    Parameters
    ----------
    codes
        A whole number of positions long.
    step_bp
        Bases per position.
    least_codons
        Shorter frames are not seen.
    """
    own, other = longest_frames(codes, least_codons)
    return np.concatenate(
        [_strand(own, len(codes), step_bp), _strand(other, len(codes), step_bp)[::-1]], axis=1, dtype=np.float32
    )


def longest_frames(codes: UInt8[np.ndarray, " bp"], least_codons: int) -> tuple[list[Frame], list[Frame]]:
    """Return the frames of the strand and of its complement, each in its own coordinates, longest first."""
    n_bp = len(codes)
    strands = open_frames(codes, least_codons), open_frames(_OTHER_STRAND[codes[::-1]], least_codons)
    by_length: dict[int, list[tuple[int, Frame, slice]]] = {}
    for strand, frames in enumerate(strands):
        for frame in frames:
            place = slice(n_bp - frame.end, n_bp - frame.start) if strand else slice(frame.start, frame.end)
            by_length.setdefault(frame.end - frame.start, []).append((strand, frame, place))
    taken = np.zeros(n_bp, dtype=bool)
    kept: tuple[list[Frame], list[Frame]] = ([], [])
    for length in sorted(by_length, reverse=True):
        # equally long ones are judged together, so that the complement's are the same
        chosen = [one for one in by_length[length] if taken[one[2]].mean() < MOST_SHARED]
        for strand, frame, place in chosen:
            kept[strand].append(frame)
            taken[place] = True
    return kept


def open_frames(codes: UInt8[np.ndarray, " bp"], least_codons: int) -> list[Frame]:
    """Return every frame of one strand of at least so many codons, overlapping ones too."""
    found = []
    for phase in range(3):
        triplets = codes[phase : phase + (len(codes) - phase) // 3 * 3].reshape(-1, 3).astype(np.int64)
        codons = triplets @ np.array([16, 4, 1])
        stops = np.flatnonzero(np.isin(codons, STOPS) | (triplets > 3).any(1))
        starts = np.flatnonzero(codons == START)
        begins, ends = np.append(0, stops + 1), np.append(stops, len(codons))
        long = ends - begins >= least_codons
        for begin, end in zip(begins[long].tolist(), ends[long].tolist(), strict=True):
            if begin > 0:  # else it may have begun before what is read
                at = int(np.searchsorted(starts, begin))
                begin = int(starts[at]) if at < len(starts) else end
            if end - begin >= max(1, least_codons):
                share = np.bincount(codons[begin:end], minlength=N_CODONS) / (end - begin)
                usage = ((share - 1 / N_CODONS) * USAGE_SCALE).astype(np.float32)
                found.append(Frame(phase + 3 * begin, phase + 3 * end, usage))
    return found


def _strand(frames: Sequence[Frame], n_bp: int, step_bp: int) -> Float32[np.ndarray, "n per_strand"]:
    n = n_bp // step_bp
    covered = np.zeros(n_bp, dtype=np.float32)
    length = np.zeros((n, 1), dtype=np.float32)
    usage = np.zeros((n, N_CODONS), dtype=np.float32)
    for frame in sorted(frames, key=lambda frame: (frame.end - frame.start, frame.start)):
        covered[frame.start : frame.end] = 1
        inside = slice(frame.start // step_bp, -(-frame.end // step_bp))
        length[inside] = np.log((frame.end - frame.start) / 300)
        usage[inside] = frame.usage
    middle = (np.arange(n) + 0.5) * step_bp
    ahead = sorted(frames, key=lambda frame: frame.start)
    starts = np.array([*(frame.start for frame in ahead), np.inf])
    ends = np.array([-np.inf, *sorted(frame.end for frame in frames)])
    # a start or end counts as ahead or behind until it lies a position away on the other side
    following = np.searchsorted(starts, middle - step_bp)
    to_start = np.maximum(starts[following] - middle, 0)[:, None]
    from_end = np.maximum(middle - ends[np.searchsorted(ends, middle + step_bp, side="right") - 1], 0)[:, None]
    usages = np.stack([*(frame.usage for frame in ahead), np.zeros(N_CODONS, dtype=np.float32)])
    parts = [
        covered.reshape(n, step_bp).mean(1, keepdims=True),
        length,
        np.exp(-to_start / NEAR_BP),
        np.exp(-from_end / NEAR_BP),
        usage,
        usages[following] * np.exp(-to_start / USAGE_NEAR_BP),
    ]
    return np.concatenate(parts, axis=1, dtype=np.float32)
