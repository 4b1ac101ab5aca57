"""Predict binding over a genome or at loci, for any factors in any context, into files.

Scores are made part by part and published beside the output, so that a stopped prediction goes on and memory does not
grow with the genome. A number in a file is the calibrated share of bound bins among those that score so, unless raw
logits are asked for.
"""

# k bins · p pairs

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from tqdm import tqdm

from tfbind_store import freed_memory
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import ConfigError
from tfbind_store.feeding.bins import BinReader
from tfbind_store.ingest.loci import read_loci
from tfbind_store.loci import Locus
from tfbind_store.precompute.weights import pick_device
from tfbind_store.prediction.asked_pairs import Asked, EncodedPairs, encode_asked
from tfbind_store.prediction.calibration import Calibration, Method, calibrate
from tfbind_store.prediction.cells import Cells
from tfbind_store.prediction.files import Track, bins_of_loci, write_bigwig, write_peaks
from tfbind_store.prediction.parts import Parts
from tfbind_store.scoring.bins import LoadedRun, load_run
from tfbind_store.store.folder import Store

_log = logging.getLogger(__name__)
SUFFIXES = (".bw", ".bigwig", ".bed", ".narrowpeak", ".parquet")
Values = Callable[[Float32[np.ndarray, " k"]], Float32[np.ndarray, " k"]]
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """What is predicted and how it is written."""

    asked: Asked
    """Factors and context."""
    out: tuple[Path, ...]
    """Files; the ending says what: ``.bw``, ``.bed``, ``.narrowPeak``, ``.parquet``. Of several factors each gets its
    own file with factor and biotype before the ending; a ``.parquet`` holds all of them, and needs loci."""
    loci: Path | None = None
    """BED: only windows that these touch."""
    chroms: tuple[str, ...] = ()
    """Only these chromosomes."""
    fdr: float = 0.1
    """False discovery rate of called peaks, as measured on validation bins."""
    raw: bool = False
    """Logits in place of probabilities."""
    method: Method = "isotonic"
    """Of calibration."""
    device: str = "cpu"
    """Where the head runs."""
    signal: Path | None = None
    """bigWig of the asked cells, for a run that reads signals; without it the biotype's stored signal is taken."""


class Prediction(NamedTuple):
    """What was predicted."""

    pairs: tuple[tuple[str, str], ...]
    files: tuple[Path, ...]
    n_bins: int
    """Scored, for each pair."""
    n_windows_missing: int
    """Not embedded, so without a score; windows that are all N count too."""
    n_peaks: dict[str, int]
    """By file."""
    new_factors: tuple[str, ...]
    was_resumed: bool


@freed_memory.kept()
def predict(store: Store, run_name: str, config: PredictConfig) -> Prediction:
    """Score every pair over the genome, or the windows of loci, and write the files.

    Raises
    ------
    ConfigError
        If a file's ending is unknown, or a factor, biotype or chromosome.
    MissingWindow
        If none of the windows is embedded.
    CheckpointError
        If probabilities or peaks are wanted and the run has no validation bins to calibrate on.
    """
    kinds = _kinds(config)
    run = load_run(store, run_name, device=pick_device(config.device))
    encoded = encode_asked(store, run, config.asked)
    _require_own_files(config, encoded)
    loci = read_loci(store, config.loci) if config.loci is not None else None
    windows, n_missing = _windows(store, run, config, loci)
    cells = Cells(store, run, encoded.biotype_id, bigwig=config.signal, folder=config.out[0].absolute().parent)
    needs_calibration = not config.raw or bool(kinds & {"bed", "narrowpeak"})
    calibration = calibrate(store, run, method=config.method, gate=cells.gate) if needs_calibration else None
    if calibration is not None and kinds & {"bed", "narrowpeak"}:
        calibration.cutoff(config.fdr)  # refused now rather than after the scoring
    parts = Parts(_parts_folder(config.out[0]), store.tiling, windows, len(encoded.names))
    n_before = parts.begin(_plan(store, run, encoded, windows, cells))
    scored = _score(store, run, encoded, parts, cells)
    files, n_peaks = _write(store, config, encoded, parts, calibration, loci)
    parts.remove()
    return Prediction(encoded.names, files, scored, n_missing, n_peaks, encoded.new_factors, n_before > 0)


def _kinds(config: PredictConfig) -> set[str]:
    kinds = set()
    for path in config.out:
        if path.suffix.lower() not in SUFFIXES:
            fix = "end the name with one of .bw .bed .narrowPeak .parquet"
            raise ConfigError(f"{path.suffix or path.name!r} is no kind of file to write", where=str(path), fix=fix)
        kinds.add(path.suffix.lower().removeprefix("."))
    if not config.out:
        raise ConfigError("no file to write", where="--out", fix="name one: --out scores.bw")
    if "parquet" in kinds and config.loci is None:
        raise ConfigError("a Parquet file holds scores of loci", where="--out", fix="say which: --loci BED")
    return kinds


def _require_own_files(config: PredictConfig, encoded: EncodedPairs) -> None:
    """Refuse two outputs with one name, before anything is scored."""
    seen: dict[Path, tuple[str, str]] = {}
    for out in config.out:
        shared = out.suffix.lower() == ".parquet" or len(encoded.names) == 1
        for pair in encoded.names[:1] if shared else encoded.names:
            path = out if shared else _own_name(out, pair)
            if path in seen:
                what = f"{path.name} would hold {seen[path][0]} and {pair[0]}" if seen[path] != pair else "named twice"
                fix = "name each file once; predict factors whose names differ only in signs one at a time"
                raise ConfigError(what, where=str(path), fix=fix)
            seen[path] = pair


def _parts_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts")


def _plan(
    store: Store, run: LoadedRun, encoded: EncodedPairs, windows: Int64[np.ndarray, " w"], cells: Cells
) -> dict[str, Any]:
    """Return what decides every score, so that parts of another prediction are never taken for this one's."""
    digest = hashlib.sha256()
    for tensor in (*encoded.pairs, *run.head.state_dict().values()):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(cells.digest.encode())
    array = store.array(run.arrays.windows)
    return {
        "array": array.spec.fingerprint,
        "head_and_pairs": digest.hexdigest(),
        "pairs": [list(pair) for pair in encoded.names],
        "windows": hashlib.sha256(windows.tobytes()).hexdigest(),
    }


def _windows(
    store: Store, run: LoadedRun, config: PredictConfig, loci: Sequence[Locus] | None
) -> tuple[Int64[np.ndarray, " w"], int]:
    """Return the embedded windows that are asked for, and how many are not embedded."""
    tiling = store.tiling
    chroms = [store.meta.aliases.get(chrom, chrom) for chrom in config.chroms] or list(tiling.chroms)
    for chrom in chroms:
        if chrom not in tiling.chroms:
            fix = f"known: {', '.join(tiling.chroms[:8])}"
            raise ConfigError(f"no chromosome {chrom!r} in this genome", where="--chroms", fix=fix)
    numbers = [tiling.chrom_index[chrom] for chrom in chroms]
    asked = np.concatenate([np.arange(*tiling.first_window[n : n + 2]) for n in sorted(set(numbers))]).astype(np.int64)
    if loci is not None:
        first, last = bins_of_loci(tiling, *_columns(store, loci))
        n_bins = tiling.grid.n_bins
        touched = [np.arange(a // n_bins, (b - 1) // n_bins + 1) for a, b in zip(first, last, strict=True)]
        asked = np.intersect1d(asked, np.unique(np.concatenate(touched)))
    array = store.array(run.arrays.windows)
    is_ok = array.is_ok(asked)
    if not is_ok.any():
        raise array.without(asked, f"all {len(asked):,} windows")
    return asked[is_ok], int((~is_ok).sum())


def _columns(store: Store, loci: Sequence[Locus]) -> tuple[Int64[np.ndarray, " n"], ...]:
    index = store.tiling.chrom_index
    rows = [(index[locus.chrom], locus.start, locus.end) for locus in loci]
    return tuple(np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))


def _score(store: Store, run: LoadedRun, encoded: EncodedPairs, parts: Parts, cells: Cells) -> int:
    """Score what is not there yet; return the bins that have a score, of each pair."""
    array = store.array(run.arrays.windows)
    read = BinReader(array, run.source.device)
    n_bins = store.grid.n_bins
    offsets = np.arange(n_bins, dtype=np.int64)
    bar = tqdm(total=len(parts.windows), desc="predict", unit="window", disable=None)

    def scorer(windows: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "p bins"]:
        bins = (windows[:, None] * n_bins + offsets).reshape(-1)
        with torch.inference_mode():
            scores = cells.logits(read(bins), encoded.pairs, bins).float().cpu().numpy()
        array.let_go()
        bar.update(len(windows))
        return np.ascontiguousarray(scores.T)

    with bar:
        run.head.eval()
        parts.score(scorer)
    chrom = store.tiling.window_chrom(parts.windows)
    real = np.array([store.tiling.n_real_bins(number) for number in range(len(store.tiling.chroms))])
    local = parts.windows - store.tiling.first_window[chrom]
    return int(np.clip(real[chrom] - local * n_bins, 0, n_bins).sum())


def _write(
    store: Store,
    config: PredictConfig,
    encoded: EncodedPairs,
    parts: Parts,
    calibration: Calibration | None,
    loci: Sequence[Locus] | None,
) -> tuple[tuple[Path, ...], dict[str, int]]:
    files: list[Path] = []
    n_peaks: dict[str, int] = {}

    def values(logits: Float32[np.ndarray, " k"]) -> Float32[np.ndarray, " k"]:
        return logits if config.raw or calibration is None else calibration.probability(logits)

    for out in config.out:
        if out.suffix.lower() == ".parquet":
            assert loci is not None
            _write_table(store, out, encoded, parts, loci, values, calibration)
            files.append(out)
            continue
        for place, pair in enumerate(encoded.names):
            path = out if len(encoded.names) == 1 else _own_name(out, pair)
            logits = partial(parts.chromosome, place)
            if out.suffix.lower() in (".bw", ".bigwig"):
                write_bigwig(path, store.tiling, partial(_of_chromosome, logits, values))
            else:
                assert calibration is not None
                cutoff, name = calibration.cutoff(config.fdr), "_".join(pair)
                n_peaks[str(path)] = write_peaks(
                    path, store.tiling, logits, calibration.probability, cutoff, calibration.rate, name
                )
            files.append(path)
    return tuple(files), n_peaks


def _of_chromosome(logits: Track, values: Values, chrom: str) -> Float32[np.ndarray, " bins"]:
    return values(logits(chrom))


def _own_name(out: Path, pair: tuple[str, str]) -> Path:
    """Return the file of one of several pairs."""
    name = ".".join(_UNSAFE.sub("_", part) for part in pair)
    return out.with_name(f"{out.stem}.{name}{out.suffix}")


def _write_table(
    store: Store,
    path: Path,
    encoded: EncodedPairs,
    parts: Parts,
    loci: Sequence[Locus],
    values: Values,
    calibration: Calibration | None,
) -> None:
    """Write the highest score of the bins that each locus touches: one row per locus and pair, in the order of both."""
    chrom, start, end = _columns(store, loci)
    n_bins = store.grid.n_bins
    first, last = bins_of_loci(store.tiling, chrom, start, end)
    best = np.full((len(loci), len(encoded.names)), np.nan, dtype=np.float32)
    mean = best.copy()
    for number in np.unique(chrom).tolist():
        base = int(store.tiling.first_window[number]) * n_bins
        which = np.flatnonzero(chrom == number)
        for pair in range(len(encoded.names)):
            scores = parts.chromosome(pair, store.tiling.chroms[number])
            for place in which.tolist():
                touched = scores[first[place] - base : last[place] - base]
                if not np.isnan(touched).all():
                    best[place, pair] = np.nanmax(touched)
                    mean[place, pair] = np.nanmean(touched)
    n_loci, n_pairs = best.shape
    names = [locus.chrom for locus in loci]
    columns: dict[str, Any] = {
        "chrom": np.repeat(np.array(names, dtype=object), n_pairs),
        "start": np.repeat(start, n_pairs),
        "end": np.repeat(end, n_pairs),
        "factor": np.tile(np.array([pair[0] for pair in encoded.names], dtype=object), n_loci),
        "biotype": np.tile(np.array([pair[1] for pair in encoded.names], dtype=object), n_loci),
        "logit": best.reshape(-1),
        "mean_logit": mean.reshape(-1),
    }
    if calibration is not None:
        columns["probability"] = calibration.probability(best.reshape(-1))
    Catalog.write_parquet(path, columns)
