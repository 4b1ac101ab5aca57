"""Write what bases contribute as files: Parquet, bedGraph, bigWig, TF-MoDISco-lite's arrays, sequence logos.

Coordinates are bp, 0-based, half-open. Where loci overlap, a track has the mean. A base without a number (N) is left
out of tracks, is a gap in a logo, null in Parquet and zero for TF-MoDISco-lite, whose one-hot row is zero there too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyBigWig
from jaxtyping import Float32, Float64, Int64, UInt8
from matplotlib.axes import Axes

from tfbind_store.catalog.database import Catalog
from tfbind_store.drawing.figures import Picture, draw_rows
from tfbind_store.durable import publish
from tfbind_store.errors import ConfigError, DependencyError
from tfbind_store.loci import Locus
from tfbind_store.prediction.files import whole

SUFFIXES = (".parquet", ".bedgraph", ".bw", ".bigwig", ".npz", ".svg")
LOGO_BASES = 100
"""Letters in one row of a logo; more are not readable."""


N_LETTERS = 4


class Contribution(NamedTuple):
    """What each base of a locus gives to its score."""

    locus: Locus
    codes: UInt8[np.ndarray, " n"]
    """A 0, C 1, G 2, T 3, N 4."""
    values: Float32[np.ndarray, "n 4"]
    """For each letter, with mean zero; NaN where the genome has an N."""
    score: float
    """Logit of the locus as it is."""

    @property
    def importance(self) -> Float32[np.ndarray, " n"]:
        """Number of the letter that stands there; NaN for an N."""
        return np.asarray(self.values[np.arange(len(self.codes)), np.minimum(self.codes, 3)])


class _Track(NamedTuple):
    """Importance of one chromosome's bases, ascending."""

    chrom: str
    positions: Int64[np.ndarray, " n"]
    values: Float64[np.ndarray, " n"]


def require_writable(out: Sequence[Path], widths_bp: Sequence[int]) -> None:
    """Refuse files of unknown kinds, before anything is computed.

    Raises
    ------
    ConfigError
        If a name ends otherwise, or TF-MoDISco's arrays are asked for loci of several widths.
    """
    if not out:
        raise ConfigError("no file to write", where="--out", fix="name one: --out bases.parquet")
    for path in out:
        if path.suffix.lower() not in SUFFIXES:
            fix = "end the name with one of .parquet .bedGraph .bw .npz .svg"
            raise ConfigError(f"{path.suffix or path.name!r} is no kind of file to write", where=str(path), fix=fix)
        if path.suffix.lower() == ".npz" and len(set(widths_bp)) > 1:
            what = f"TF-MoDISco's arrays hold loci of one width, these have {len(set(widths_bp))}"
            raise ConfigError(what, where=str(path), fix="make them alike: --width-bp 400")


def write_contributions(
    out: Path, found: Sequence[Contribution], pair: tuple[str, str], lengths_bp: dict[str, int]
) -> list[Path]:
    """Write one kind of file, whole or not at all; return what was written.

    Parameters
    ----------
    out
        The ending says what. ``.npz`` becomes two files, ``NAME.sequences.npz`` and ``NAME.contributions.npz``, as
        ``modisco motifs -s … -a …`` reads them; ``.svg`` a file for each locus if there are several.
    """
    kind = out.suffix.lower()
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".parquet":
        Catalog.write_parquet(out, table(found, pair))
        return [out]
    if kind == ".npz":
        return _write_modisco(out, found)
    if kind == ".svg":
        return [_write_logo(_own_name(out, one, len(found)), one, pair) for one in found]
    (_write_bigwig if kind in (".bw", ".bigwig") else _write_bedgraph)(out, _tracks(found), lengths_bp)
    return [out]


def table(found: Sequence[Contribution], pair: tuple[str, str]) -> dict[str, Any]:
    """Return one row per base: where it is, its importance, and the number of each letter."""
    sizes = [len(one.codes) for one in found]
    codes = np.concatenate([one.codes for one in found])
    values = np.concatenate([one.values for one in found])
    return {
        "locus": np.repeat([str(one.locus) for one in found], sizes).astype(object),
        "factor": np.full(len(codes), pair[0], dtype=object),
        "biotype": np.full(len(codes), pair[1], dtype=object),
        "locus_logit": np.repeat(np.array([one.score for one in found], dtype=np.float32), sizes),
        "chrom": np.repeat([one.locus.chrom for one in found], sizes).astype(object),
        "position": np.concatenate([np.arange(one.locus.start, one.locus.end) for one in found]),
        "base": np.array(list("ACGTN"), dtype=object)[np.minimum(codes, 4)],
        "importance": np.concatenate([one.importance for one in found]),
        **{letter: np.ascontiguousarray(values[:, place]) for place, letter in enumerate("ACGT")},
    }


def _tracks(found: Sequence[Contribution]) -> list[_Track]:
    """Return the importance of every base that has one, by chromosome, as UCSC's tools order them."""
    tracks = []
    for chrom in sorted({one.locus.chrom for one in found}):
        own = [one for one in found if one.locus.chrom == chrom]
        places = np.concatenate([np.arange(one.locus.start, one.locus.end) for one in own])
        numbers = np.concatenate([one.importance for one in own]).astype(np.float64)
        known = ~np.isnan(numbers)
        positions, row = np.unique(places[known], return_inverse=True)
        sums = np.bincount(row, weights=numbers[known], minlength=len(positions))
        tracks.append(_Track(chrom, positions, sums / np.bincount(row, minlength=len(positions))))
    return tracks


def _write_bedgraph(out: Path, tracks: Sequence[_Track], lengths_bp: dict[str, int]) -> None:
    with whole(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for track in tracks:
            for position, value in zip(track.positions.tolist(), track.values.tolist(), strict=True):
                file.write(f"{track.chrom}\t{position}\t{position + 1}\t{value:.6g}\n")


def _write_bigwig(out: Path, tracks: Sequence[_Track], lengths_bp: dict[str, int]) -> None:
    with whole(out) as temporary:
        file = pyBigWig.open(str(temporary), "w")
        if file is None:
            raise ConfigError("cannot be written", where=str(out), fix="give a path that you may write")
        file.addHeader([(chrom, lengths_bp[chrom]) for chrom in sorted(lengths_bp)])
        for track in tracks:
            if len(track.positions):
                starts = track.positions
                file.addEntries([track.chrom] * len(starts), starts, ends=starts + 1, values=track.values)
        file.close()


def _write_modisco(out: Path, found: Sequence[Contribution]) -> list[Path]:
    letters = np.vstack([np.eye(4, dtype=np.float32), np.zeros((2, 4), dtype=np.float32)])
    arrays = {
        "sequences": np.stack([letters[one.codes].T for one in found]),
        "contributions": np.stack([np.nan_to_num(one.values).T for one in found]),
    }
    files = []
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.savez_compressed(buffer, np.ascontiguousarray(array, dtype=np.float32))
        files.append(out.with_name(f"{out.stem}.{name}.npz"))
        publish(files[-1], [buffer.getvalue()])
    return files


def _own_name(out: Path, one: Contribution, n_loci: int) -> Path:
    place = f"{one.locus.chrom}-{one.locus.start}-{one.locus.end}"
    return out if n_loci == 1 else out.with_name(f"{out.stem}.{place}{out.suffix}")


def _write_logo(path: Path, one: Contribution, pair: tuple[str, str]) -> Path:
    publish(path, [logo(one, pair).svg.encode()])
    return path


def logo(one: Contribution, pair: tuple[str, str]) -> Picture:
    """Return a locus' bases, each as high as its importance.

    Raises
    ------
    DependencyError
        If logomaker is not installed.
    """
    try:
        import logomaker
        import pandas as pd
    except ImportError as error:
        fix = "pip install 'tfbind-store[logos]'"
        raise DependencyError("logos need logomaker", where="logomaker", fix=fix) from error
    letters = np.zeros((len(one.codes), 4), dtype=np.float32)
    known = one.codes < 4
    letters[np.flatnonzero(known), one.codes[known]] = one.importance[known]
    frame = pd.DataFrame(letters, columns=list("ACGT"), index=np.arange(one.locus.start, one.locus.end))
    limits = _limits(one.importance)
    n_rows = -(-len(frame) // LOGO_BASES)

    def paint(row: int, axes: Axes) -> None:
        part = frame.iloc[row * LOGO_BASES : (row + 1) * LOGO_BASES]
        logomaker.Logo(part, ax=axes, color_scheme="colorblind_safe", show_spines=False)
        first = one.locus.start + row * LOGO_BASES
        axes.set(ylim=limits, xlim=(first - 0.5, first + min(LOGO_BASES, len(frame)) - 0.5), ylabel="logit")
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")
        axes.grid(visible=False)

    caption = f"What each base of {one.locus} gives to the score of {pair[0]} in {pair[1]}, logit {one.score:.3g}."
    paints = [partial(paint, row) for row in range(n_rows)]
    return draw_rows("logo", caption, paints, width_in=9.6, row_in=1.7)


def _limits(importance: Float32[np.ndarray, " n"]) -> tuple[float, float]:
    low, high = min(0.0, float(np.nanmin(importance, initial=0))), max(0.0, float(np.nanmax(importance, initial=0)))
    room = 0.05 * (high - low or 1.0)
    return low - room, high + room
