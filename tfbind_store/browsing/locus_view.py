"""What a store holds of a locus: predictions of runs, measured peaks, blacklist and named loci, as rows of a figure.

Reads stored embeddings only; a run that reads other arrays than the store has now is refused like anywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32

from tfbind_store.catalog.database import Catalog
from tfbind_store.drawing.figures import Picture
from tfbind_store.drawing.tracks import Box, BoxRow, LineRow, draw_tracks
from tfbind_store.errors import ConfigError
from tfbind_store.feeding.bins import BinReader
from tfbind_store.loci import Locus
from tfbind_store.prediction.asked_pairs import Asked, EncodedPairs, encode_asked
from tfbind_store.prediction.cells import Cells
from tfbind_store.prediction.files import bins_of_loci
from tfbind_store.scoring.bins import HEAD_FILE, LoadedRun, load_run
from tfbind_store.store.folder import Store

MAX_BINS = 4096
MAX_BOXES = 2000
KEPT_RUNS, KEPT_PAIRS = 4, 256
UNITS = {"mse": "share", "tracks": "raw rate"}
"""Of heads' numbers, by the loss that gave them their scale; the others' are logits."""


class Pair(NamedTuple):
    """Whose binding is looked at."""

    factor: str
    biotype: str


@dataclass(frozen=True, kw_only=True)
class LocusView:
    """A locus, drawn."""

    locus: Locus
    pair: Pair
    picture: Picture
    n_peaks: int
    """Of the pair's experiments, in the locus."""
    n_bins_missing: int
    """Without an embedding in at least one run's array."""


class LocusViewer:
    """Draws loci of one store; keeps the last runs in memory. May be called by several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._runs: dict[str, LoadedRun] = {}
        self._stamps: dict[str, tuple[int, int]] = {}
        self._pairs: dict[tuple[str, Pair], EncodedPairs] = {}

    def view(self, locus: Locus, pair: Pair, runs: Sequence[str]) -> LocusView:
        """Return a locus with the predictions of runs and what was measured.

        Raises
        ------
        ConfigError
            If the locus has too many bins to draw, or factor or biotype are unknown.
        CheckpointError
            If a run has no head, or reads other embeddings than the store holds.
        """
        grid = self.store.grid
        if (locus.end - locus.start) > MAX_BINS * grid.bin_bp:
            what = f"{locus} has {(locus.end - locus.start) // grid.bin_bp:,} bins, {MAX_BINS:,} can be drawn"
            raise ConfigError(what, where="locus", fix=f"look at {MAX_BINS * grid.bin_bp:,} bp at most")
        rows: list[LineRow | BoxRow] = []
        missing = np.zeros(0, dtype=bool)
        for name in runs:
            edges, values, unit = self._predicted(name, locus, pair)
            rows.append(LineRow(f"{name}: predicted binding of {pair.factor} in {pair.biotype}", edges, values, unit))
            missing = np.isnan(values) if not len(missing) else missing | np.isnan(values)
        own, others = self._measured(locus, pair)
        rows += [own, *others]
        caption = f"{pair.factor} in {pair.biotype} on {locus}: " + "; ".join(row.label for row in rows)
        picture = draw_tracks("locus", caption, locus.start, locus.end, rows)
        return LocusView(
            locus=locus, pair=pair, picture=picture, n_peaks=len(own.boxes), n_bins_missing=int(missing.sum())
        )

    def _predicted(
        self, name: str, locus: Locus, pair: Pair
    ) -> tuple[Float32[np.ndarray, " bins_plus_1"], Float32[np.ndarray, " bins"], str]:
        """Return the edges of a locus' bins, their scores, NaN where nothing is embedded, and the scores' unit."""
        tiling, bin_bp = self.store.tiling, self.store.grid.bin_bp
        chrom = tiling.chrom_index[locus.chrom]
        first, last = (int(ends[0]) for ends in bins_of_loci(tiling, *(np.array([x]) for x in (chrom, *locus[1:]))))
        bins = np.arange(first, last, dtype=np.int64)
        edges = (bins[0] - int(tiling.first_window[chrom]) * tiling.grid.n_bins + np.arange(len(bins) + 1)) * bin_bp
        values = np.full(len(bins), np.nan, dtype=np.float32)
        # heads are not made for several threads at once, and one core computes no faster for two
        with self._lock:
            run, encoded = self._run(name, pair)
            array = self.store.array(run.arrays.windows)
            there = array.is_ok(bins // tiling.grid.n_bins)
            if there.any():
                with torch.inference_mode():
                    dna = BinReader(array, run.source.device)(bins[there])
                    cells = Cells(self.store, run, encoded.biotype_id)
                    values[there] = cells.logits(dna, encoded.pairs, bins[there])[:, 0].float().numpy()
        return edges.astype(np.float32), values, UNITS.get(run.header.loss, "logit")

    def _run(self, name: str, pair: Pair) -> tuple[LoadedRun, EncodedPairs]:
        stamp = _stamp(self.store.run_dir(name) / HEAD_FILE)
        if self._stamps.get(name) != stamp:  # trained again meanwhile
            self._forget(name)
        if name not in self._runs:
            while len(self._runs) >= KEPT_RUNS:
                self._forget(next(iter(self._runs)))
            run = load_run(self.store, name)
            run.head.eval()
            self._runs[name], self._stamps[name] = run, stamp
        if (name, pair) not in self._pairs:
            if len(self._pairs) >= KEPT_PAIRS:
                self._pairs.clear()
            asked = Asked(factors=(pair.factor,), biotype=pair.biotype)
            self._pairs[name, pair] = encode_asked(self.store, self._runs[name], asked)
        return self._runs[name], self._pairs[name, pair]

    def _forget(self, name: str) -> None:
        self._runs.pop(name, None)
        self._pairs = {key: value for key, value in self._pairs.items() if key[0] != name}

    def _measured(self, locus: Locus, pair: Pair) -> tuple[BoxRow, list[BoxRow]]:
        """Return the pair's own peaks, and what else lies here: other factors' peaks, blacklist, sets of loci."""
        with self.store.reader() as catalog:
            own = _boxes(
                catalog,
                "SELECT start, \"end\", '' FROM peaks WHERE factor = $factor AND biotype = $biotype AND",
                locus,
                pair._asdict(),
            )
            rows = [
                BoxRow(
                    f"peaks of other factors in {pair.biotype}",
                    _boxes(
                        catalog,
                        'SELECT start, "end", factor FROM peaks WHERE factor <> $factor AND biotype = $biotype AND',
                        locus,
                        pair._asdict(),
                    ),
                )
            ]
            blacklist = _boxes(catalog, 'SELECT start, "end", name FROM blacklist WHERE', locus, {})
            rows += [BoxRow("blacklist", blacklist)] if blacklist else []
            for (name,) in catalog.rows("SELECT DISTINCT set_name FROM loci ORDER BY ALL"):
                select = "SELECT start, \"end\", coalesce(name, '') FROM loci WHERE set_name = $set_name AND"
                if boxes := _boxes(catalog, select, locus, {"set_name": name}):
                    rows.append(BoxRow(f"loci: {name}", boxes))
        return BoxRow(f"measured peaks of {pair.factor} in {pair.biotype}", own), rows


def _boxes(catalog: Catalog, select: str, locus: Locus, values: dict[str, Any]) -> list[Box]:
    where = f'{select} chrom = $chrom AND start < $last AND "end" > $first ORDER BY ALL LIMIT {MAX_BOXES}'
    found = catalog.rows(where, {**values, "chrom": locus.chrom, "first": locus.start, "last": locus.end})
    return [Box(int(start), int(end), str(name or "")) for start, end, name in found]


def _stamp(path: Path) -> tuple[int, int]:
    """Return what tells one state of a file from another; nothing of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)
