"""A biotype's stored signal as numbers of a bin: its own, and means around it at several scales.

Numbers are log(1 + x), then brought to mean 0 and deviation 1 over the whole track: depth differs from file to file,
and an unseen biotype's must mean the same. Means count the bins of the chromosome that have a number. Only what
surrounds the asked bins is read, so that memory does not grow with the genome.
"""

# k bins · c biotypes · s scales · v bins that a mean counts

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Float32, Float64, Int64

from tfbind_store.errors import StoreMissing
from tfbind_store.loci import Tiling
from tfbind_store.store.folder import Store
from tfbind_store.tracks.binning import Binning, bin_bigwig

HALF_WIDTHS = (0, 2, 8, 32)
"""Bins on each side: the bin itself, and stretches of 5, 17 and 65 bins (640 bp to 8 kb of 128-bp bins)."""
BINS_AT_ONCE = 2048
READ_BINS = 1 << 21
Flat = Callable[[], Float32[np.ndarray, " bins"]]


class GenomeSignal:
    """One track of a genome, read where it is asked for.

    Parameters
    ----------
    read
        Returns its number in every bin, as a view of a mapped file where there is one.
    tiling
        Of the genome.
    let_go
        Called after each reading: unmaps what `read` has mapped.
    """

    def __init__(self, read: Flat, tiling: Tiling, *, let_go: Callable[[], None] = lambda: None) -> None:
        self._read, self._tiling, self._let_go = read, tiling, let_go

    @cached_property
    def moments(self) -> tuple[float, float]:
        """Mean and deviation of the track's logarithms; 0 and 1 where nothing is known, deviation 1 where none is."""
        n, middle, squares = 0, 0.0, 0.0
        for at in range(0, self._tiling.n_bins, READ_BINS):
            logs = _logs(self._read()[at : at + READ_BINS])
            logs = logs[~np.isnan(logs)]
            self._let_go()
            if not len(logs):
                continue
            own, total = float(logs.mean()), n + len(logs)  # moments of two parts put together
            squares += float(((logs - own) ** 2).sum()) + (own - middle) ** 2 * n * len(logs) / total
            middle += (own - middle) * len(logs) / total
            n = total
        spread = float(np.sqrt(squares / n)) if n else 1.0
        return middle, spread if spread > 0 else 1.0

    @cached_property
    def digest(self) -> str:
        """Hash of every bin's number."""
        digest = xxhash.xxh3_128()
        for at in range(0, self._tiling.n_bins, READ_BINS):
            digest.update(np.ascontiguousarray(self._read()[at : at + READ_BINS]).data.cast("B"))
            self._let_go()
        return digest.hexdigest()

    def at(self, bins: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k s"]:
        """Return the numbers of some bins; NaN past the end of a chromosome."""
        out = np.full((len(bins), len(HALF_WIDTHS)), np.nan, dtype=np.float32)
        for at in range(0, len(bins), BINS_AT_ONCE):
            part = bins[at : at + BINS_AT_ONCE]
            out[at : at + len(part)] = self._some(part)
        self._let_go()
        return out

    def _some(self, bins: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k s"]:
        tiling, far = self._tiling, HALF_WIDTHS[-1]
        chrom = tiling.window_chrom(bins // tiling.grid.n_bins)
        first = (tiling.first_window[chrom] * tiling.grid.n_bins)[:, np.newaxis]
        n_real = np.array([tiling.n_real_bins(number) for number in range(len(tiling.chroms))])[chrom]
        places = bins[:, np.newaxis] + np.arange(-far, far + 1)
        inside = (places >= first) & (places < first + n_real[:, np.newaxis])
        middle, spread = self.moments
        values = (_logs(self._read()[np.where(inside, places, bins[:, np.newaxis])]) - middle) / spread
        known = inside & ~np.isnan(values)
        values = np.where(known, values, 0)
        out = np.stack([_mean(values[:, far - h : far + h + 1], known[:, far - h : far + h + 1]) for h in HALF_WIDTHS])
        out[:, bins - first[:, 0] >= n_real] = np.nan
        return np.ascontiguousarray(out.T, dtype=np.float32)


class Signals:
    """Signals of a store's biotypes.

    Parameters
    ----------
    store
        Whose.
    array_name
        For example ``signals/signals``.

    Raises
    ------
    StoreMissing
        If the array has no signal.
    """

    def __init__(self, store: Store, array_name: str) -> None:
        self.store, self.array_name = store, array_name
        self._array = store.array(array_name)
        with store.reader() as catalog:
            sql = "SELECT biotype_id, row_index FROM data.tracks WHERE array_name = ? ORDER BY row_index DESC"
            found = catalog.rows(sql, [array_name])
        self.rows = {int(biotype): int(row) for biotype, row in found}  # of several, the first that came
        if not self.rows:
            raise StoreMissing("no signals in this array", where=array_name, fix="tfbind import signals STORE FOLDER")
        self.of = lru_cache(maxsize=None)(self._of)

    def at(self, biotype_ids: Sequence[int], bins: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k c s"]:
        """Return the numbers of some bins in some biotypes; NaN for a biotype without a signal."""
        out = np.full((len(bins), len(biotype_ids), len(HALF_WIDTHS)), np.nan, dtype=np.float32)
        for place, biotype in enumerate(biotype_ids):
            if int(biotype) in self.rows:
                out[:, place] = self.of(int(biotype)).at(bins)
        return out

    def of_bigwig(self, path: Path, folder: Path) -> GenomeSignal:
        """Return the signal of a file that is not in the store, binned as those are, kept in a nameless file."""
        with self.store.reader() as catalog:
            sql = "SELECT alias, chrom FROM data.chromosome_aliases JOIN data.chromosomes USING (chrom_id)"
            names = {str(alias): str(chrom) for alias, chrom in catalog.rows(sql)}
        binning = Binning(**self._array.spec.identity["binning"])
        values = bin_bigwig(path, self.store.tiling, {**self.store.meta.aliases, **names}, binning).values
        with tempfile.TemporaryFile(dir=folder) as file:
            values.tofile(file)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        numbers = np.frombuffer(mapped, dtype=np.float32)
        return GenomeSignal(lambda: numbers, self.store.tiling, let_go=lambda: mapped.madvise(mmap.MADV_DONTNEED))

    def _of(self, biotype_id: int) -> GenomeSignal:
        row = self.rows[biotype_id]
        return GenomeSignal(
            lambda: np.asarray(self._array.row(row)).reshape(-1), self.store.tiling, let_go=self._array.let_go
        )


def _logs(values: Float32[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    return np.asarray(np.log1p(np.maximum(values, 0).astype(np.float64)))


def _mean(values: Float64[np.ndarray, "k v"], known: np.ndarray) -> Float64[np.ndarray, " k"]:
    """Return the mean of what is known in each row; NaN where nothing is."""
    n = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(n > 0, values.sum(axis=1) / n, np.nan))
